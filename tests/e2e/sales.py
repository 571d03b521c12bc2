"""What the acceptance tests of a sale share: a running product, a crowd, and the books."""

import asyncio
import json
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import msgspec

from bench import product as bench_product
from bench.client import Summary
from bench.product import Product
from core.settings import running_servers
from tests.conftest import temporary_data_dir

STOCK = 20_000
CLAIMS = 60_000
CONNECTIONS = 256
# Claims are decided at 2,000 a second at the very least on two busy cores.
CROWD_TIMEOUT_S = 120.0
DRAIN_TIMEOUT_S = 60.0


@contextmanager
def running() -> Iterator[Product]:
    with temporary_data_dir() as path:
        product = bench_product.start(path)
        try:
            yield product
        finally:
            product.stop()


class Sale:
    """A sale of its own for one test, the crowd that comes to it, and what the books say."""

    def __init__(self, product: Product, durability: str, scratch: Path, **terms: Any) -> None:
        self.product = product
        self.seed = random.randrange(1_000_000_000)
        self.code = f"SALE{self.seed}"
        self.history = scratch / "history.jsonl"
        self.stock = terms.setdefault("stock", STOCK)
        terms.setdefault("per_customer_limit", 1)
        self.sale = product.open_sale(
            name=f"Sale {self.seed}",
            code=self.code,
            discount_type="PERCENT",
            discount_value=50,
            durability=durability,
            **terms,
        )
        self.id = self.sale["id"]
        self.path = f"/v1/flash-sales/{self.id}/claim"

    @contextmanager
    def crowd(
        self, claims: int = CLAIMS, *, replay_share: float = 0.02
    ) -> Iterator[subprocess.Popen[str]]:
        options = ["--requests", str(claims), "--connections", str(CONNECTIONS)]
        options += ["--seed", str(self.seed), "--replay-share", str(replay_share)]
        with bench_product.crowd(
            self.product, self.path, self.code, *options, history=self.history
        ) as process:
            yield process

    def claim(
        self, customer: str, *, key: str = "", order_value: float = 89.99
    ) -> tuple[int, dict[str, Any]]:
        body = {"customer_id": customer, "order_value": order_value}
        return self.product.ask("POST", self.path, body, key=key)

    def read(self) -> dict[str, Any]:
        return self.product.must("GET", f"/v1/flash-sales/{self.id}")

    def rows(self) -> dict[str, int]:
        """Count the sale's rows in PostgreSQL, past everything that could embellish them."""
        return asyncio.run(_counted(self.product, self.code))

    def assert_sold_exactly(self, summary: Summary) -> str:
        """Check everything the promise says of a sale that sold out; returns the audit."""
        print(f"seed {self.seed}: {summary}")
        assert summary.unexpected == []
        assert summary.undecided == 0
        assert (summary.wins, summary.distinct_wins) == (self.stock, self.stock)
        assert summary.sold_out == summary.requests - self.stock
        assert summary.replays_differing == 0
        sale = self.product.wait_for_lag_0(self.id, DRAIN_TIMEOUT_S)
        assert (sale["claimed"], sale["settled"]) == (self.stock, self.stock), sale
        assert self.rows() == dict.fromkeys(("rows", "numbers", "customers", "ids"), self.stock)
        status, audit = self.product.verify(self.history)
        print(audit)
        assert status == 0, audit
        assert "FAILED" not in audit and "violations: 0" in audit
        assert all(f"I{n:<3}ok" in audit for n in range(1, 11)), audit
        assert "quarantine: 0" in audit
        return audit


def finish(process: subprocess.Popen[str]) -> Summary:
    """Wait for a crowd to go home; returns what it saw."""
    last = ""
    for line in follow(process):
        last = line
    assert last, "the crowd died without a word"
    return msgspec.json.decode(last, type=Summary)


def follow(process: subprocess.Popen[str]) -> Iterator[str]:
    """Yield the crowd's lines as they come, up to the last."""
    assert process.stdout is not None
    deadline_s = time.monotonic() + CROWD_TIMEOUT_S
    for line in process.stdout:
        yield line
        assert time.monotonic() < deadline_s, f"the crowd is still there: {line}"


def wait_for_wins(process: subprocess.Popen[str], wins: int) -> int:
    """Wait until the crowd has won so often; returns how often it has."""
    for line in follow(process):
        found: int = json.loads(line)["wins"]
        if found >= wins:
            assert "seconds" not in line, "the crowd was gone before anything could happen"
            return found
    raise AssertionError("the crowd ended early")


async def _counted(product: Product, code: str) -> dict[str, int]:
    assert product.data_dir is not None
    servers = running_servers(product.data_dir)
    assert servers is not None and servers.database_url is not None
    connection = await asyncpg.connect(servers.database_url)
    try:
        row = await connection.fetchrow(
            "select count(*) as rows, count(distinct (r.lease_id, r.seq)) as numbers,"
            " count(distinct r.customer_id) as customers, count(distinct r.id) as ids"
            " from vf.redemptions r join vf.vouchers v on v.id = r.voucher_id where v.code = $1",
            code,
        )
    finally:
        await connection.close()
    return dict(row)
