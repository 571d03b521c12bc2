"""Ten thousand different vouchers, each redeemed once: what the API adds to its own statement."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from bench.connections import Connection, Target, request
from bench.product import Product
from core.db import queries
from core.settings import running_servers
from tests.e2e import sales

VOUCHERS = 10_000
CLIENTS = 32
# What is asked of the product: half of what its own statement does without an API around it.
RATIO_MIN = 0.5
# Three of each in turn: a machine's mood takes both alike.
ROUNDS = 3

pytestmark = [pytest.mark.long, pytest.mark.timeout(540)]


@pytest.fixture(scope="module")
def product() -> Iterator[Product]:
    with sales.running() as started:
        yield started


def make(product: Product) -> list[str]:
    terms = {"discount_type": "PERCENT", "discount_value": 20, "max_redemptions": 1}
    body = {**terms, "count": VOUCHERS, "code_config": {"prefix": f"T{random.randrange(10**6)}-"}}
    made = product.must("POST", "/v1/vouchers/bulk", body)
    codes: list[str] = made["codes"]
    assert len(codes) == VOUCHERS
    return codes


async def by_clients(work: list[Any], ask: Callable[[int, Any], Awaitable[None]]) -> list[float]:
    """Let CLIENTS take one after another; return how long each took, in ms, unsorted."""
    took_ms: list[float] = []
    left = iter(work)

    async def client(number: int) -> None:
        for one in left:
            began = time.perf_counter()
            await ask(number, one)
            took_ms.append((time.perf_counter() - began) * 1000)

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return took_ms


async def over_http(product: Product, codes: list[str]) -> tuple[float, list[float]]:
    target = Target.of(product.url)
    connections = [Connection(target) for _ in range(CLIENTS)]
    sent = {
        code: request(
            target, "POST", f"/v1/vouchers/{code}/redeem", product.token,
            msgspec.json.encode({"customer_id": f"cus_{n}", "order_value": 89.99}), f"{code}-{n}",
        )
        for n, code in enumerate(codes)
    }  # fmt: skip

    async def ask(number: int, code: str) -> None:
        answer = await connections[number].send(sent[code], 20.0)
        assert answer.status == 200 and b'"discount_applied":18.00' in answer.body, answer

    began = time.perf_counter()
    took = await by_clients(codes, ask)
    elapsed = time.perf_counter() - began
    for connection in connections:
        connection.close()
    return len(codes) / elapsed, took


async def bare(dsn: str, project: UUID, vouchers: list[UUID]) -> tuple[float, list[float]]:
    """The statement that decides a plain redeem, on a connection a client, nothing around it."""
    sql = queries.find("redemptions.redeem_many").sql
    connections = [await asyncpg.connect(dsn) for _ in range(CLIENTS)]

    async def ask(number: int, voucher: UUID) -> None:
        rows = await connections[number].fetch(
            sql, project, voucher, 1, None, None, None, [uuid4()], [f"{voucher}"], [b"f"],
            ["customer"], [8999], [1800], [None], [None],
        )  # fmt: skip
        assert [row["outcome"] for row in rows] == ["redeemed"], rows

    began = time.perf_counter()
    took = await by_clients(vouchers, ask)
    elapsed = time.perf_counter() - began
    for connection in connections:
        await connection.close()
    return len(vouchers) / elapsed, took


async def ids_of(dsn: str, codes: list[str]) -> tuple[UUID, list[UUID]]:
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch(
            "SELECT project_id, id FROM vf.vouchers WHERE code = ANY ($1)", codes
        )
    finally:
        await connection.close()
    return rows[0]["project_id"], [row["id"] for row in rows]


def p99(took_ms: list[float]) -> float:
    return sorted(took_ms)[int(0.99 * len(took_ms))]


def test_redeeming_10_000_vouchers_once_each_is_half_as_fast_as_the_bare_statement(
    product: Product,
) -> None:
    assert product.data_dir is not None
    servers = running_servers(product.data_dir)
    assert servers is not None and servers.database_url is not None
    dsn = servers.database_url
    ratios = []
    for number in range(ROUNDS):
        project, vouchers = asyncio.run(ids_of(dsn, make(product)))
        bare_per_s, bare_ms = asyncio.run(bare(dsn, project, vouchers))
        per_s, took_ms = asyncio.run(over_http(product, make(product)))
        ratios.append(per_s / bare_per_s)
        print(
            f"round {number}: over HTTP {per_s:,.0f}/s, p99 {p99(took_ms):.1f} ms; "
            f"bare {bare_per_s:,.0f}/s, p99 {p99(bare_ms):.1f} ms; ratio {ratios[-1]:.2f}"
        )
    assert sorted(ratios)[ROUNDS // 2] >= RATIO_MIN
    status, audit = product.verify()
    assert status == 0 and "violations: 0" in audit, audit
