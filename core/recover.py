"""`recover`: give a restored or promoted PostgreSQL back what Redis kept of fast sales.

Leases that the ledger does not know, or knows less of than Redis, are put into it fenced; then the
ordinary way of a fence does the rest: what is in their streams is written, the lease is settled,
and the worker arms the sale anew. At the end the books are verified.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec
import redis.asyncio
import redis.exceptions

import core.db as db
from core import history, ids, verify
from core.endings import end
from core.errors import Unavailable
from core.history import Finding
from core.hot import leases
from core.hot.nodes import connect, node_of
from core.reconciler import Reconciler
from core.settings import Settings

# A stream of a million wins is written in about half a minute; a silent worker is waited for ten
# seconds. Beyond this something is stuck, and saying so is better than waiting.
SETTLE_S_MAX: Final = 300.0
SETTLE_POLL_S: Final = 0.3
# A voucher's leases are recovered one after the other, each when the one before has settled.
ROUNDS_MAX: Final = 50
PAGE: Final = 1_000

Say = Callable[[str], None]


class _Recovered(msgspec.Struct):
    outcome: str
    size: int


_WHY_NOT: Final = {
    "no_sale": "the ledger has no such sale: it was made after the moment it was restored to",
    "no_room": "the units it sold were sold by others since",
    "no_facts": "it was armed by a version that did not keep what is needed for it",
}


async def run(settings: Settings, *, is_replaced: bool, say: Say = print) -> int:
    """Recover what can be, name what cannot, verify; returns 0 only when nothing is wrong.

    `is_replaced`: Redis's data is not what was answered (an old backup was put back by hand), so
    every live lease is written off as far as its backlog may reach, and Redis is not believed.
    Idempotent: run it again after anything that went wrong. Safe beside a running reconciler.
    Raises: Unavailable when a store is away.
    """
    database = await db.Database.open(
        settings.database_dsn("worker"),
        size_min=0,
        size_max=settings.pool_size_max,
        application_name="vauchflow recover",
        **({} if settings.prepared_statements else {"statement_cache_size": 0}),
    )
    client = connect(settings.redis_url)
    reconciler = Reconciler(database, client, settings)
    try:
        lost = await _recover(database, client, reconciler, is_replaced, say)
    except (redis.exceptions.RedisError, OSError) as error:
        raise Unavailable(f"Redis cannot be asked: {error}.") from error
    finally:
        await reconciler.stop()
        await client.aclose()
        await database.close()
    status = await verify.run(settings)
    return status or int(lost > 0)


async def _recover(
    database: db.Database,
    client: redis.asyncio.Redis,
    reconciler: Reconciler,
    is_replaced: bool,
    say: Say,
) -> int:
    """Do it; returns how many answered wins the ledger could not take back."""
    async with database.connection(reads_only=True) as conn:
        seen = await history.read(conn)
        began = await db.value(conn, "flash_sales.clock", datetime)
    if seen.accepted != seen.current:
        say(f"PostgreSQL continues another history: {seen.current}, accepted is {seen.accepted}")
    if seen.held_for is not None:
        say(f"redeeming is stopped since {seen.changed_at:%Y-%m-%d %H:%M:%S} UTC: {seen.held_for}")
    lost = 0
    if is_replaced:
        async with database.connection() as conn:
            await history.distrust(conn, "an operator said that Redis's data was replaced")
            await history.accept(conn, seen)
        await _settle(database, reconciler, say)
    else:
        heard: dict[str, str] = {}
        for _ in range(ROUNDS_MAX):
            async with database.transaction(None) as conn:
                findings = await history.survey(conn, client)
                await history.accept(conn, await history.read(conn))
                outcomes = [await _give_back(conn, client, one, heard, say) for one in findings]
            for finding, outcome in zip(findings, outcomes, strict=True):
                lost += await _name_lost(client, finding, outcome, reconciler.trim_keep_s, say)
            await _settle(database, reconciler, say)
            if not any(outcome.outcome == "busy" for outcome in outcomes):
                break
    async with database.connection(reads_only=True) as conn:
        losses = await history.losses(conn, began)
    for loss in losses:
        say(history.sentence_of(loss))
    return lost


async def _give_back(
    conn: db.Connection,
    client: redis.asyncio.Redis,
    finding: Finding,
    heard: dict[str, str],
    say: Say,
) -> _Recovered:
    """Put a lease into the ledger, fenced. `heard`: the states of leases before they were."""
    lease = finding.lease
    say(finding.sentence)
    if not (lease.tag and lease.sale and lease.project):
        return _Recovered("no_facts", 0)
    state, issued = heard.setdefault(lease.lease_id, lease.state), lease.issued
    if lease.state in ("open", "paused"):
        # A worker that PostgreSQL does not reach goes on claiming: first it gets no more numbers.
        fenced = await leases.set_state(client, lease.lease_id, "fenced")
        issued = fenced.issued if fenced is not None else issued
    info = await (await node_of(client, lease.lease_id)).info("server")
    done = await db.one(
        conn,
        "history.recover_lease",
        _Recovered,
        project_id=UUID(lease.project),
        lease_id=UUID(lease.lease_id),
        tag=lease.tag,
        sale_id=UUID(lease.sale),
        seq_base=lease.seq_base,
        issued=issued,
        backlog_max=lease.backlog_max,
        run_id=str(info["run_id"]),
        redis_state=state,
        reason="PostgreSQL was restored: " + finding.sentence,
    )
    assert done is not None
    return done


async def _name_lost(
    client: redis.asyncio.Redis, finding: Finding, done: _Recovered, keep_s: int, say: Say
) -> int:
    """Name every answered win for which the ledger has no place."""
    if done.outcome in ("busy", "settled"):
        return 0
    lease, count, after = finding.lease, 0, "0-0"
    why = _WHY_NOT.get(done.outcome, _WHY_NOT["no_room"])
    if done.size >= lease.issued:
        return 0
    while entries := await leases.read_wins(client, lease.lease_id, after, PAGE):
        after = entries[-1].id
        for win in (win for entry in entries for win in entry.wins if win.seq > done.size):
            name = ids.format_id("rdm", ids.win_id(lease.tag, UUID(lease.lease_id), win.seq))
            say(f"not in the ledger: {name}, customer {win.customer}, key {win.key}: {why}")
            count += 1
    if done.outcome in _WHY_NOT:
        await leases.give_up(client, lease.lease_id, keep_s=keep_s)
    return count


async def _settle(database: db.Database, reconciler: Reconciler, say: Say) -> None:
    """Write what the fenced leases' streams hold and settle them. Raises: Unavailable."""
    reconciling = asyncio.create_task(reconciler.run())
    deadline = time.monotonic() + SETTLE_S_MAX
    try:
        while True:
            async with database.connection(reads_only=True) as conn:
                left = await history.unsettled(conn)
            if not left:
                return
            if time.monotonic() > deadline:
                raise Unavailable(f"{len(left)} lease(s) do not settle; see the log, and again.")
            await asyncio.sleep(SETTLE_POLL_S)
    finally:
        await end(reconciling)
