"""Whether PostgreSQL still holds what Redis was told it holds.

A database that was restored or promoted may lack commits that Redis has heard of, or whole leases.
Until that is known, nothing may be redeemed in it: `vf.history` is the gate, and every insert of a
redemption or a lease passes it. This module asks both stores; it is the reconciler that accepts
what lacks nothing, and `recover` that gives back what is missing.
"""

from datetime import datetime
from uuid import UUID

import msgspec
from redis.asyncio import Redis

import core.db as db
from core import ids
from core.hot import leases


class History(msgspec.Struct, frozen=True):
    """The history that is accepted and the one this database continues."""

    accepted: str
    current: str
    held_for: str | None
    changed_at: datetime
    started_at: datetime

    @property
    def is_accepted(self) -> bool:
        """Whether redeeming goes on."""
        return self.held_for is None and self.accepted == self.current


class Finding(msgspec.Struct, frozen=True):
    """A lease of which Redis knows more than the ledger.

    `is_waiting`: its sale has a fenced lease, and `recover` comes back to it when that has settled.
    """

    lease: leases.Held
    sentence: str
    is_waiting: bool


class Loss(msgspec.Struct, frozen=True):
    """A lease that was fenced and settled; `numbers` are those of its sale that are written off."""

    sale_id: UUID
    name: str
    settled_at: datetime
    fence_reason: str
    burned: int
    numbers: str


class _InLedger(msgspec.Struct, frozen=True):
    id: UUID
    state: str
    size: int
    accounted: int


class _Fenced(msgspec.Struct, frozen=True):
    sale_id: UUID
    name: str
    fence_reason: str | None


async def read(conn: db.Connection) -> History:
    """Return where the gate stands."""
    found = await db.one(conn, "history.read", History)
    assert found is not None, "migrating writes the one row"
    return found


async def survey(conn: db.Connection, redis: Redis) -> list[Finding]:
    """Hold every lease that Redis has against the ledger; empty when the ledger lacks nothing.

    Redis is read first, and is told second of everything, so what it knows must be in PostgreSQL.
    Raises: RedisError; OSError. Cost: one pass over Redis's key names.
    """
    held = [lease async for lease in leases.held(redis) if not lease.is_given_up]
    rows = await db.many(
        conn, "history.leases", _InLedger, leases=[UUID(lease.lease_id) for lease in held]
    )
    ledger = {str(row.id): row for row in rows}
    fenced_sales = {str(row.sale_id) for row in await db.many(conn, "history.fenced", _Fenced)}
    findings = []
    for lease in sorted(held, key=lambda lease: lease.tag):
        row = ledger.get(lease.lease_id)
        if row is None:
            if lease.issued:
                sentence = f"the ledger has no lease {lease.lease_id}, of which {lease.issued} won"
                findings.append(Finding(lease, sentence, lease.sale in fenced_sales))
            continue
        lacks = _lacks(lease, row)
        if lacks:
            findings.append(Finding(lease, f"lease {lease.lease_id}: {lacks}", False))
    return findings


def _lacks(lease: leases.Held, row: _InLedger) -> str:
    if row.state in ("settled", "fenced"):
        return ""
    if lease.accounted > row.accounted:
        return f"Redis heard of {lease.accounted} in the ledger, which has {row.accounted}"
    if lease.size > row.size:
        return f"Redis heard of a grant of {lease.size}, the ledger granted {row.size}"
    if lease.is_settled or (lease.state in ("closed", "fenced") and row.state == "open"):
        return "Redis heard that it was over, in the ledger it is open"
    return ""


async def accept(conn: db.Connection, seen: History) -> None:
    """Let this database redeem, unless somebody has decided otherwise since it was read."""
    await db.run(
        conn,
        "history.accept",
        current=seen.current,
        accepted=seen.accepted,
        held_for=seen.held_for,
    )


async def hold(conn: db.Connection, reason: str) -> None:
    """Stop redeeming until `recover`. Idempotent: the first reason stays."""
    await db.run(conn, "history.hold", reason=reason)


async def distrust(conn: db.Connection, reason: str) -> None:
    """Fence every lease that is out, and settle it as far as its backlog may reach."""
    await db.run(conn, "history.distrust", reason=reason)


async def unsettled(conn: db.Connection) -> list[UUID]:
    """Return the fenced leases that are still to be settled."""
    return await db.many(conn, "history.unsettled", UUID)


async def losses(conn: db.Connection, since: datetime) -> list[Loss]:
    """Return the leases that were fenced and have settled since an instant."""
    return await db.many(conn, "history.losses", Loss, since=since)


async def fenced(conn: db.Connection) -> list[str]:
    """Return a sentence for each lease that is fenced now."""
    return [
        f"sale {ids.format_id('fls', row.sale_id)} {row.name!r} is fenced: {row.fence_reason}"
        for row in await db.many(conn, "history.fenced", _Fenced)
    ]


def sentence_of(loss: Loss) -> str:
    """Say what became of a fenced lease, number by number."""
    name = ids.format_id("fls", loss.sale_id)
    told = f"sale {name} {loss.name!r}, {loss.settled_at:%Y-%m-%d %H:%M:%S} UTC"
    off = f"{loss.burned} written off: numbers {loss.numbers}" if loss.burned else "nothing lost"
    return f"{told}: fenced ({loss.fence_reason}) and settled, {off}"


async def sweep(conn: db.Connection, redis: Redis, *, serve_s: int, keep_s: int) -> None:
    """Let settled leases fade that a reconciler left in Redis by dying right after settling."""
    held = [lease async for lease in leases.held(redis) if not lease.is_fading]
    rows = await db.many(
        conn, "history.leases", _InLedger, leases=[UUID(lease.lease_id) for lease in held]
    )
    for row in rows:
        if row.state == "settled":
            await leases.retire(redis, str(row.id), serve_s=serve_s, keep_s=keep_s)
