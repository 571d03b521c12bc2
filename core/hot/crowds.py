"""The facts from which a sold-out voucher's crowd is answered without asking PostgreSQL.

A writer reads version, records and customers from PostgreSQL in one snapshot and puts them; facts
count only while fresh (one second, renewed by a probe of PostgreSQL) and only at their version.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterable, Iterable

from redis.asyncio import Redis
from vauchflow_hotpath import FACTS_LUA

from core.hot import keys
from core.hot.leases import Customer, Record, chunks, customer_pairs, record_pairs

FRESH_MS = 1_000  # how long a crowd is answered after PostgreSQL last agreed; the protocol's second
FACTS_TTL_MS = 3_600_000  # an hour after the last renewal nothing is left
LOADING_TTL_MS = 10_000  # a writer that loads nothing for so long is dead, and another may begin


async def _act(redis: Redis, voucher_id: str, *args: str | bytes | int) -> bool:
    done = await redis.eval(FACTS_LUA, 4, *keys.of_crowd(voucher_id), *args)
    return int(done) == 1


async def put(
    redis: Redis,
    voucher_id: str,
    lineage: str,
    version: int,
    records: AsyncIterable[Record] | Iterable[Record] = (),
    customers: AsyncIterable[Customer] | Iterable[Customer] = (),
    *,
    customer_limit: int = 0,
) -> bool:
    """Store the facts of a sold-out voucher and make them fresh; complete before they count.

    Fresh is counted from this call, so call it right after reading the version; facts that took
    longer to load count once `renew` says so.
    False when facts or a tombstone of this version or a newer one are stored, or another writer
    took over. Cost: one round trip for each 500 records or customers.
    """
    writer = secrets.token_hex(8)
    began = time.monotonic()
    if not await _act(
        redis, voucher_id, "put", version, LOADING_TTL_MS, writer, lineage, customer_limit
    ):
        return False
    async for chunk in chunks(records):
        flat = record_pairs(chunk)
        if not await _load(redis, voucher_id, version, writer, "records", flat):
            return False
    async for held in chunks(customers):
        flat = customer_pairs(held)
        if not await _load(redis, voucher_id, version, writer, "customers", flat):
            return False
    fresh_ms = max(0, FRESH_MS - int((time.monotonic() - began) * 1000))
    return await _act(redis, voucher_id, "ready", version, FACTS_TTL_MS, writer, fresh_ms)


async def _load(
    redis: Redis, voucher_id: str, version: int, writer: str, what: str, flat: list[str | bytes]
) -> bool:
    return await _act(redis, voucher_id, "load", version, LOADING_TTL_MS, writer, what, *flat)


async def renew(redis: Redis, voucher_id: str, version: int) -> bool:
    """Make the facts fresh for another second, after PostgreSQL said this version still holds.

    False when that very version is not stored as sold out: put the facts again.
    """
    return await _act(redis, voucher_id, "renew", version, FACTS_TTL_MS, FRESH_MS)


async def clear(redis: Redis, voucher_id: str, version: int) -> bool:
    """Write a tombstone at the version that made the voucher sell again; older puts are refused.

    False when something newer is stored already.
    """
    return await _act(redis, voucher_id, "clear", version, FACTS_TTL_MS)
