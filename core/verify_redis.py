"""A live lease in Redis, held against the ledger. Reads only; part of `core.verify`.

The order is what keeps a moving sale from looking wrong: PostgreSQL's snapshot, then Redis, then
PostgreSQL's progress again. Redis's `issued` may be ahead of the first and its `accounted` behind
the last, never the other way round. A lease that seems wrong is read afresh until it looks right
or has looked wrong for `PATIENCE_S`: long enough for a fence, a trim or a settling under way.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final
from uuid import UUID

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from core import db, ids
from core.hot import keys

PATIENCE_S: Final = 5.0
PAUSE_S: Final = 0.25
# Idempotency records compared with their rows, evenly spread and the newest: a wrong one in a
# hundred is found nearly surely (1 - 0.99^500 = 99.3 %), in one call.
SAMPLE_MAX: Final = 500

_STATE_FIELDS: Final = ("lease", "state", "issued", "size", "accounted", "customer_limit")


class LiveLease(msgspec.Struct, frozen=True):
    """A lease that is out, as PostgreSQL's snapshot has it."""

    project_id: UUID
    id: UUID
    state: str
    size: int
    open_to: int
    seq_base: int
    sale_id: UUID
    name: str
    stock: int
    status: str
    last_id: str
    accounted: int
    same_key_count: int
    seq_max: int


class SampledWin(msgspec.Struct, frozen=True):
    """A row whose record Redis should have."""

    seq: int
    id: UUID
    idempotency_key: str
    fingerprint: bytes
    customer_id: str | None
    status: str


class View(msgspec.Struct):
    """What was found about one lease: (invariant, sentence) pairs, and a line for the report."""

    findings: list[tuple[str, str]]
    summary: str
    sampled: int = 0
    unchecked: list[str] = []


class InRedis(msgspec.Struct, frozen=True):
    """One atomic reading. `next_first`: the first seq of the first entry behind PostgreSQL's
    offset; None when there is no such entry."""

    state: str
    issued: int
    size: int
    accounted: int
    customer_limit: int
    last_id: str
    has_next: bool
    next_first: int | None


async def examine(redis: Redis, pool: db.Database, lease: LiveLease, project: UUID | None) -> View:
    """Compare one lease with Redis, again and again while something seems wrong.

    Raises: RedisError or OSError when Redis cannot be asked for as long as patience lasts.
    """
    deadline = time.monotonic() + PATIENCE_S
    before: LiveLease | None = lease
    while before is not None:
        is_last = time.monotonic() > deadline
        try:
            view = await _look(redis, pool, before, project)
        except (RedisError, OSError):
            if is_last:
                raise
            view = None
        if view is not None and (not view.findings or is_last):
            return view
        await asyncio.sleep(PAUSE_S)
        before = await _reread(pool, lease.id, project)
    return View([], _summary(lease, None, "settled meanwhile"))


async def _look(redis: Redis, pool: db.Database, before: LiveLease, project: UUID | None) -> View:
    found = await _read(redis, before)
    after = await _reread(pool, before.id, project)
    if after is None:
        return View([], _summary(before, found, "settled meanwhile"))
    if before.state in ("arming", "fenced") or after.state in ("arming", "fenced"):
        # Arming: nobody was answered yet. Fenced: Redis is known to differ, and settling decides.
        return View([], _summary(before, found, after.state))
    if found is None:
        return View([("I10", "Redis does not have it")], _summary(before, None, after.state))
    view = View(_compare(before, found, after), _summary(before, found, after.state))
    await _compare_sample(redis, pool, before, found, view)
    return view


async def _reread(pool: db.Database, lease_id: UUID, project: UUID | None) -> LiveLease | None:
    async with pool.connection(reads_only=True) as conn:
        live = await db.many(conn, "verify.live_leases", LiveLease, project=project)
    return next((lease for lease in live if lease.id == lease_id), None)


async def _read(redis: Redis, lease: LiveLease) -> InRedis | None:
    """Read state and stream in one MULTI, so that both are of one moment."""
    state_key, _, _, stream_key = keys.of_lease(str(lease.id))
    async with redis.pipeline(transaction=True) as pipe:
        pipe.hmget(state_key, list(_STATE_FIELDS))
        pipe.xinfo_stream(stream_key)
        pipe.xrange(stream_key, min=f"({lease.last_id}", count=1)
        state, stream, following = await pipe.execute(raise_on_error=False)
    if isinstance(state, ResponseError):
        raise state
    values: list[Any] = [None if value is None else value.decode() for value in state]
    if values[0] != str(lease.id):
        return None
    # No win yet: there is no stream, and XINFO says so with an error.
    last_id = "0-0" if isinstance(stream, Exception) else stream["last-generated-id"]
    entry = following[0][1] if not isinstance(following, Exception) and following else None
    first = entry.get(b"f", b"") if entry else b""
    return InRedis(
        state=values[1] or "",
        issued=int(values[2] or 0),
        size=int(values[3] or 0),
        accounted=int(values[4] or 0),
        customer_limit=int(values[5] or 0),
        last_id=last_id.decode() if isinstance(last_id, bytes) else str(last_id),
        has_next=entry is not None,
        next_first=int(first) if first.isdigit() else None,
    )


def _compare(before: LiveLease, found: InRedis, after: LiveLease) -> list[tuple[str, str]]:
    """Return what cannot be, whatever moved between the three readings."""
    wrong = []
    if before.accounted > found.issued:
        wrong.append(f"accounted {before.accounted:,} is above Redis's issued {found.issued:,}")
    if before.seq_max > found.issued:
        wrong.append(f"the ledger has seq {before.seq_max:,}, Redis issued {found.issued:,}")
    if found.accounted > after.accounted:
        wrong.append(
            f"Redis was told accounted {found.accounted:,}, PostgreSQL has {after.accounted:,}"
        )
    if found.issued > found.size:
        wrong.append(f"Redis issued {found.issued:,} of a size of {found.size:,}")
    if found.size > after.size:
        wrong.append(f"Redis has size {found.size:,}, PostgreSQL granted {after.size:,}")
    if _stream_id(before.last_id) > _stream_id(found.last_id):
        wrong.append(f"the offset {before.last_id} is behind the stream's end {found.last_id}")
    if not found.has_next and found.issued > before.accounted:
        wrong.append(
            f"{found.issued - before.accounted:,} wins above accounted {before.accounted:,} "
            "are not in the stream"
        )
    if found.next_first is not None and found.next_first != before.accounted + 1:
        wrong.append(
            f"the stream goes on with seq {found.next_first:,}, accounted is {before.accounted:,}"
        )
    return [("I10", sentence) for sentence in wrong]


async def _compare_sample(
    redis: Redis, pool: db.Database, lease: LiveLease, found: InRedis, view: View
) -> None:
    seqs = sample_seqs(lease.accounted)
    if not seqs:
        return
    async with pool.connection(reads_only=True) as conn:
        rows = await db.many(conn, "verify.sample", SampledWin, lease=lease.id, seqs=seqs)
    if not rows:
        return
    _, records_key, customers_key, _ = keys.of_lease(str(lease.id))
    # A field's name is never empty: whoever has no customer reads a field that nobody writes.
    async with redis.pipeline(transaction=True) as pipe:
        pipe.hmget(records_key, [row.idempotency_key for row in rows])
        pipe.hmget(customers_key, [row.customer_id or "" for row in rows])
        records, customers = await pipe.execute()
    view.sampled = len(rows)
    for row, record, customer in zip(rows, records, customers, strict=True):
        head = record.split(b"|", 2) if record else []
        # A claim without a key left no record; its redemption id stands in for the key.
        had_key = row.idempotency_key != ids.format_id("rdm", row.id)
        if had_key and head[:2] != [row.fingerprint.hex().encode(), str(row.seq).encode()]:
            stands = b"|".join(head[:2]).decode(errors="replace") or "nothing"
            view.findings.append(
                (
                    "I3",
                    f"key {row.idempotency_key} is {row.fingerprint.hex()}|{row.seq} in the "
                    f"ledger and {stands} in Redis",
                )
            )
        if found.customer_limit and row.customer_id is not None:
            count = int(customer.split(b"|", 1)[0]) if customer else 0
            if not (row.status == "redeemed") <= count <= found.customer_limit:
                view.findings.append(
                    (
                        "I5",
                        f"customer {row.customer_id} has won and Redis counts {count} of "
                        f"{found.customer_limit}",
                    )
                )


def sample_seqs(accounted: int) -> list[int]:
    """Return `SAMPLE_MAX` numbers up to `accounted`: half evenly spread, half the newest."""
    if accounted <= SAMPLE_MAX:
        return list(range(1, accounted + 1))
    half = SAMPLE_MAX // 2
    spread = {1 + i * (accounted - half) // half for i in range(half)}
    return sorted(spread | set(range(accounted - half + 1, accounted + 1)))


def _stream_id(text: str) -> tuple[int, int]:
    ms, _, number = text.partition("-")
    return int(ms), int(number or 0)


def _summary(lease: LiveLease, found: InRedis | None, state: str) -> str:
    claimed = "unknown" if found is None else f"{found.issued:,}"
    lag = "unknown" if found is None else f"{max(0, found.issued - lease.accounted):,}"
    return (
        f"live sale {ids.format_id('fls', lease.sale_id)} {lease.name!r} (fast, {lease.status}, "
        f"lease {state}): stock {lease.stock:,}, claimed {claimed}, settled "
        f"{lease.accounted - lease.same_key_count:,}, lag {lag}"
    )
