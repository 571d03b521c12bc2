"""Several nodes on one sale: more workers, two reconcilers, restarts, a lost node, a replica that
takes over, PgBouncer."""

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import asyncpg
import pytest

from bench import product as bench_product
from bench.client import Summary
from bench.product import Product, free_port
from tests.conftest import temporary_data_dir
from tests.e2e.nodes import Command, Node, joined, stores_of
from tests.e2e.sales import CONNECTIONS, Sale, finish, wait_for_wins
from tests.hot.worlds import HotServer
from tests.pgbouncer import pgbouncer

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

MODES = pytest.mark.parametrize("durability", ["fast", "strict"])
STOCK = 16_000
# Two crowds of this size want twice the stock.
CLAIMS = 16_000


@contextmanager
def started(*options: str, settings: dict[str, str] | None = None) -> Iterator[Product]:
    with temporary_data_dir() as path:
        product = bench_product.start(path, *options, settings=settings)
        try:
            yield product
        finally:
            product.stop()
            print("\n".join(line for line in product.log if '"level": "info"' not in line)[-4_000:])


@contextmanager
def crowds(sale: Sale, products: list[Product]) -> Iterator[list[subprocess.Popen[str]]]:
    """Send a crowd of its own to each node; their histories are one."""
    with ExitStack() as stack:
        running = []
        for number, product in enumerate(products):
            options = ["--requests", str(CLAIMS), "--connections", str(CONNECTIONS // 4)]
            options += ["--seed", str(sale.seed + number), "--replay-share", "0.02"]
            running.append(
                stack.enter_context(
                    bench_product.crowd(
                        product,
                        sale.path,
                        sale.code,
                        *options,
                        history=sale.history.with_suffix(f".{number}"),
                    )
                )
            )
        yield running


def home(sale: Sale, running: list[subprocess.Popen[str]]) -> list[Summary]:
    summaries = [finish(process) for process in running]
    for number, summary in enumerate(summaries):
        print(f"node {number}: {summary}")
        with sale.history.open("ab") as whole:
            whole.write(sale.history.with_suffix(f".{number}").read_bytes())
    assert [s.unexpected for s in summaries] == [[]] * len(summaries)
    assert [s.undecided for s in summaries] == [0] * len(summaries)
    assert [s.replays_differing for s in summaries] == [0] * len(summaries)
    return summaries


def assert_sold_exactly(sale: Sale, summaries: list[Summary]) -> None:
    assert sum(s.distinct_wins for s in summaries) == sum(s.wins for s in summaries) == sale.stock
    assert sum(s.sold_out for s in summaries) == len(summaries) * CLAIMS - sale.stock
    sale.product.wait_for_lag_0(sale.id, 60)
    assert sale.rows() == dict.fromkeys(("rows", "numbers", "customers", "ids"), sale.stock)
    status, audit = sale.product.verify(sale.history)
    assert status == 0, audit
    assert "violations: 0" in audit and "quarantine: 0" in audit


@MODES
def test_two_nodes_three_workers_and_two_reconcilers_sell_one_stock(
    tmp_path: Path, durability: str
) -> None:
    with started("--workers", "2") as first, joined(first) as node, temporary_data_dir() as scratch:
        second = Command("reconcile", "--data-dir", str(scratch), environ=stores_of(first))
        try:
            sale = Sale(first, durability, tmp_path, stock=STOCK)
            with crowds(sale, [first, node.product(first)]) as running:
                summaries = home(sale, running)
        finally:
            second.kill()
        assert min(s.wins for s in summaries) > STOCK // 20, "both nodes have sold"
        assert_sold_exactly(sale, summaries)


@MODES
def test_a_rolling_restart_under_load_leaves_nobody_without_a_truthful_answer(
    tmp_path: Path, durability: str
) -> None:
    with started() as first, joined(first) as node:
        sale = Sale(first, durability, tmp_path, stock=STOCK)
        with crowds(sale, [first, node.product(first)]) as running:
            wait_for_wins(running[0], 800)
            node.restart()
            os.kill(first.pids()["api"], signal.SIGTERM)
            summaries = home(sale, running)
        assert_sold_exactly(sale, summaries)


def test_a_node_that_dies_with_its_disk_stops_nobody_else(tmp_path: Path) -> None:
    with started() as first, joined(first) as node:
        sale = Sale(first, "fast", tmp_path, stock=STOCK)
        other = node.product(first)
        won = [other.ask("POST", sale.path, body(n), key=f"node-{n}") for n in range(50)]
        assert {status for status, _ in won} == {200}
        with sale.crowd(CLAIMS) as crowd:
            wait_for_wins(crowd, 800)
            node.remove()
            summary = finish(crowd)
        assert (summary.undecided, summary.unexpected) == (0, [])
        assert summary.wins == STOCK - 50
        assert set(summary.answers) <= {"200 redeemed", "409 sold_out"}, summary.answers
        again = [first.ask("POST", sale.path, body(n), key=f"node-{n}") for n in range(50)]
        assert again == won
        first.wait_for_lag_0(sale.id, 60)
        assert sale.rows()["rows"] == STOCK
        assert first.verify()[0] == 0


@contextmanager
def primary_and_replica(link: Path) -> Iterator[tuple[HotServer, HotServer]]:
    """Run a Valkey and one that follows it; `link` leads to whom the clients take for the first."""
    primary, replica = HotServer(), HotServer()
    try:
        primary.start()
        replica.start()
        with primary.client() as first, replica.client() as second:
            port = free_port()
            first.config_set("port", port)
            second.replicaof("127.0.0.1", port)
            while second.info("replication")["master_link_status"] != "up":
                time.sleep(0.02)
        link.symlink_to(primary.socket)
        yield primary, replica
    finally:
        for server in (primary, replica):
            server.kill()
            shutil.rmtree(server.directory, ignore_errors=True)


async def books_of(sale: Sale) -> tuple[int, int, int]:
    """Return how many leases the sale had, its units written off, and its wins in quarantine."""
    connection = await asyncpg.connect(sale.product.servers()["database_url"])
    try:
        row = await connection.fetchrow(
            "select (select count(*) from vf.leases),"
            " (select sum(burned_count) from vf.flash_sales), (select count(*) from vf.quarantine)"
        )
        return tuple(row)
    finally:
        await connection.close()


@pytest.mark.parametrize("missed_wins", [0, 1_500])
def test_a_replica_promoted_under_two_nodes_sells_no_number_twice(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, missed_wins: int
) -> None:
    link = data_dir / "redis.sock"
    data_dir.chmod(0o755)
    settings = {"VAUCHFLOW_REDIS_URL": f"unix://{link}"}
    monkeypatch.setenv("VAUCHFLOW_REDIS_URL", f"unix://{link}")
    with (
        primary_and_replica(link) as (primary, replica),
        started("--workers", "2", settings=settings) as first,
        joined(first, **settings) as node,
    ):
        sale = Sale(first, "fast", tmp_path, stock=STOCK)
        with crowds(sale, [first, node.product(first)]) as running:
            won = wait_for_wins(running[0], 1_000)
            with replica.client() as client:
                if missed_wins:
                    client.replicaof("NO", "ONE")
                    wait_for_wins(running[0], won + missed_wins)
                link.unlink()
                primary.kill()
                client.replicaof("NO", "ONE")
                link.symlink_to(replica.socket)
            summaries = [finish(process) for process in running]
        print(*summaries, sep="\n")
        assert [(one.unexpected, one.undecided) for one in summaries] == [([], 0)] * 2
        first.wait_for_lag_0(sale.id, 60)
        for number in range(2):
            with sale.history.open("ab") as whole:
                whole.write(sale.history.with_suffix(f".{number}").read_bytes())
        rows = sale.rows()
        lease_count, burned, quarantined = asyncio.run(books_of(sale))
        print(f"seed {sale.seed}: {rows}, {lease_count} leases, {burned} written off")
        assert set(rows.values()) == {rows["rows"]}
        assert rows["rows"] + burned == STOCK, "every unit is sold or named"
        assert quarantined == 0
        # A win that was lost and is asked for again with its key is won anew.
        lost = sum(one.distinct_wins for one in summaries) - rows["rows"]
        assert lost <= burned
        assert sum(one.replays_differing for one in summaries) <= burned
        if missed_wins:
            assert lease_count == 2
        elif lease_count == 1:
            assert (lost, burned) == (0, 0)
        status, audit = first.verify(sale.history)
        assert status == 0, audit
        assert "violations: 0" in audit


def body(n: int) -> dict[str, object]:
    return {"customer_id": f"node-{n}", "order_value": 89.99}


@MODES
def test_everything_goes_through_pgbouncer_in_transaction_mode(
    tmp_path: Path, durability: str
) -> None:
    with started() as first:
        stores = stores_of(first)
        with pgbouncer(stores["VAUCHFLOW_DATABASE_URL"]) as url, temporary_data_dir() as scratch:
            stores |= {"VAUCHFLOW_DATABASE_URL": url, "VAUCHFLOW_PREPARED_STATEMENTS": "false"}
            for name in ("reconciler", "worker", "api"):
                # The first node's own processes go: the second's do everything from here on.
                os.kill(first.pids()[name], signal.SIGSTOP)
            node = Node(stores)
            others = [
                Command(name, "--data-dir", str(scratch), environ=stores)
                for name in ("reconcile", "worker")
            ]
            try:
                node.wait_until_ready()
                # The stopped worker of the first node is waited for until it counts as dead.
                time.sleep(3.5)
                product = node.product(first)
                sale = Sale(product, durability, tmp_path, stock=4_000)
                with sale.crowd(8_000) as crowd:
                    summary = finish(crowd)
                assert (summary.undecided, summary.unexpected) == (0, [])
                assert summary.wins == summary.distinct_wins == 4_000
                product.wait_for_lag_0(sale.id, 60)
                product.must("POST", f"/v1/flash-sales/{sale.id}/close")
                until = time.monotonic() + 20
                while sale.read()["status"] != "settled":
                    assert time.monotonic() < until, sale.read()
                    time.sleep(0.1)
                assert sale.rows()["rows"] == 4_000
                assert sale.read()["claimed"] == 4_000
                done = subprocess.run(
                    [bench_product.LAUNCHER, "verify", "--data-dir", str(scratch)],
                    env={k: v for k, v in os.environ.items() if "VAUCHFLOW_" not in k} | stores,
                    capture_output=True,
                    text=True,
                    timeout=120,
                    check=False,
                )
                assert done.returncode == 0, done.stdout
            finally:
                for other in others:
                    other.kill()
                node.remove()
                for name in ("reconciler", "worker", "api"):
                    os.kill(first.pids()[name], signal.SIGCONT)
