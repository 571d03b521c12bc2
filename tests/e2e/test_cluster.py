"""A whole product on a Valkey Cluster: two API nodes, and three masters that fsync every write."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest

from bench import product as bench_product
from bench.product import Product
from tests.conftest import temporary_data_dir
from tests.e2e.nodes import Node, stores_of
from tests.e2e.sales import CONNECTIONS, Sale, finish, wait_for_wins
from tests.masters import Masters, masters

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

STOCK = 12_000


@contextmanager
def running_on(cluster: Masters) -> Iterator[tuple[Product, Product]]:
    """Start a product whose Redis is the cluster, and a second node beside it."""
    settings = {"VAUCHFLOW_REDIS_URL": cluster.url}
    with temporary_data_dir() as path:
        first = bench_product.start(path, settings=settings)
        node = Node(stores_of(first) | settings)
        try:
            node.wait_until_ready()
            yield first, node.product(first)
        finally:
            node.remove()
            first.stop()
            print("\n".join(line for line in first.log if '"level": "info"' not in line)[-4_000:])


async def lease_of(product: Product) -> str:
    connection = await asyncpg.connect(product.servers()["database_url"])
    try:
        return str(await connection.fetchval("select id from vf.leases where state = 'open'"))
    finally:
        await connection.close()


@pytest.mark.parametrize("durability", ["fast", "strict"])
def test_two_nodes_sell_exactly_the_stock_of_a_sale_in_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: str
) -> None:
    with masters() as cluster, running_on(cluster) as (first, second):
        monkeypatch.setenv("VAUCHFLOW_REDIS_URL", cluster.url)
        sale = Sale(first, durability, tmp_path, stock=STOCK)
        options = ["--requests", str(STOCK), "--connections", str(CONNECTIONS // 4)]
        options += ["--seed", str(sale.seed + 1), "--replay-share", "0.02"]
        other = tmp_path / "second.jsonl"
        with (
            sale.crowd(STOCK) as here,
            bench_product.crowd(second, sale.path, sale.code, *options, history=other) as there,
        ):
            if durability == "fast":
                wait_for_wins(here, 1_000)
                cluster.move(asyncio.run(lease_of(first)))
            summaries = [finish(here), finish(there)]
        print(*summaries, sep="\n")
        assert [(one.unexpected, one.undecided) for one in summaries] == [([], 0)] * 2
        assert sum(one.replays_differing for one in summaries) == 0
        assert sum(one.distinct_wins for one in summaries) == STOCK
        assert sum(one.sold_out for one in summaries) == STOCK
        with sale.history.open("ab") as whole:
            whole.write(other.read_bytes())
        first.wait_for_lag_0(sale.id, 60)
        assert sale.rows() == dict.fromkeys(("rows", "numbers", "customers", "ids"), STOCK)
        status, audit = first.verify(sale.history)
        assert status == 0, audit
        assert "violations: 0" in audit and "quarantine: 0" in audit
