"""The write-behind of fast sales: every win from Redis's stream into the ledger, exactly once.

One task a lease reads the stream in order and writes rows and offset in one commit; a second
reconciler finds the offset moved and stands back. It also makes Redis follow what PostgreSQL
says of a sale, and settles leases that are drained. Nothing here answers a client.
"""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

import core.db as db
from core import history, ids
from core.endings import end
from core.errors import OutcomeUnknown, Unavailable
from core.hot import leases, wins
from core.hot.nodes import connect, node_of
from core.live_leases import SILENT_AFTER, Judgement
from core.settings import Settings

# New leases are noticed within a third of a second; a lease lives for minutes.
LOOK_S: Final = 0.3
# Wins of one commit: 4,000 rows are 20 to 40 ms of PostgreSQL, so a stop never waits long.
WINS_MAX: Final = 4_000
# Entries of one read; an entry holds up to 256 wins.
ENTRIES_MAX: Final = 64
# How long a read waits for the first win before the lease's state is looked at again.
BLOCK_MS: Final = 200
# A commit costs a millisecond or two beside its rows. While wins come in, this pause between
# commits gathers them, which keeps that below a tenth and the lag below a blink.
LINGER_S: Final = 0.02
# After a fault of either store, and after another reconciler was found at work.
PAUSE_S: Final = 0.5
TRIM_S: Final = 10.0
# How often a live Redis is asked whether it is still set up as it was when the lease was armed.
DRIFT_S: Final = 3.0
# An arming that nobody finished for so long is taken back; loading a million records takes less.
ARMING_S: Final = 30.0
# A settled lease is served for a moment, so that a claim that is on its way is answered; its
# stream stays for `trim_keep_s`.
SERVE_SETTLED_S: Final = 5
# One lease's stream in Redis: a million wins and a half. Beyond it the oldest settled ones go,
# however young: a full Redis sells nothing.
STREAM_BYTES_MAX: Final = 256 * 1_048_576
# A rollback stamps its row before it commits, and a statement may take five seconds: what came in
# while the last page was read is read again. Releasing twice does nothing.
ROLLBACK_OVERLAP: Final = timedelta(seconds=10)
ROLLBACKS_MAX: Final = 1_000
ROLLBACK_S: Final = 1.0

_log = structlog.get_logger("vauchflow.reconciler")
_FAULTS: Final = (Unavailable, OutcomeUnknown, RedisError, OSError)


class LeaseAtWork(msgspec.Struct, frozen=True):
    """A lease that is out, as PostgreSQL has it."""

    project_id: UUID
    lease_id: UUID
    tag: int
    voucher_id: UUID
    sale_id: UUID
    state: str
    size: int
    open_to: int
    backlog_max: int
    run_id: str
    judged: int
    armed_at: datetime
    last_id: str
    accounted: int
    is_paused: bool
    starts_at: datetime | None
    ends_at: datetime | None
    now: datetime


class _Applied(msgspec.Struct):
    outcome: str
    inserted: int
    replayed: int
    same_key: int
    quarantined: int
    accounted: int


class _Settled(msgspec.Struct):
    outcome: str
    open_to: int | None
    returned: int | None
    burned: int | None


class _Seals(msgspec.Struct):
    waiting: int
    silent: int
    mark: int


class _RolledBack(msgspec.Struct):
    id: UUID
    customer_id: str
    rolled_back_at: datetime


class _Progress(msgspec.Struct):
    last_id: str
    accounted: int


async def run(settings: Settings) -> None:
    """Reconcile until cancelled. Run as many as you like: only one at a time gets anywhere."""
    database = await db.Database.open(
        settings.database_dsn("worker"),
        size_min=0,
        size_max=settings.pool_size_max,
        application_name="vauchflow-reconciler",
        **({} if settings.prepared_statements else {"statement_cache_size": 0}),
    )
    client = connect(settings.redis_url)
    reconciler = Reconciler(database, client, settings)
    try:
        await reconciler.run()
    finally:
        await reconciler.stop()
        await client.aclose()
        await database.close()


class Reconciler:
    """Looks for leases that are out and keeps one task for each."""

    def __init__(self, database: db.Database, redis_client: Redis, settings: Settings) -> None:
        """Everything given is the caller's to close, after `stop`."""
        self.database = database
        self.redis = redis_client
        self.trim_keep_s = settings.trim_keep_s
        self._tasks: dict[UUID, asyncio.Task[None]] = {}
        self._at_work: dict[UUID, LeaseAtWork] = {}
        self._checked_at = 0.0
        self._surveyed: datetime | None = None

    async def run(self) -> None:
        """Look for leases for ever."""
        while True:
            try:
                await self.look()
                await self._check_drift()
            except _FAULTS as error:
                _log.warning("look_failed", error=str(error))
            except Exception:
                _log.exception("look_broken")
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Start a task for every lease that has none; tell the others what PostgreSQL says now."""
        rows = []
        if await self._history_is_sound():
            async with self.database.connection(reads_only=True) as conn:
                rows = await db.many(conn, "reconciler.leases", LeaseAtWork)
        self._at_work = {row.lease_id: row for row in rows}
        for row in rows:
            task = self._tasks.get(row.lease_id)
            if task is None or task.done():
                self._tasks[row.lease_id] = asyncio.create_task(self._follow(row.lease_id))
        for lease_id in [at for at, task in self._tasks.items() if task.done()]:
            if lease_id not in self._at_work:
                del self._tasks[lease_id]

    async def _history_is_sound(self) -> bool:
        """Say whether this PostgreSQL may be written to; accept one that lacks nothing.

        Redis is asked what it knows when the history is another one, and once whenever PostgreSQL
        was started: a copy put back by hand continues the very same history.
        """
        async with self.database.connection() as conn:
            seen = await history.read(conn)
            if seen.is_accepted and seen.started_at == self._surveyed:
                return True
            if seen.held_for is not None:
                return False
            found = await history.survey(conn, self.redis)
            lacking = [one.sentence for one in found if not one.is_waiting]
            if lacking:
                await history.hold(conn, lacking[0])
                _log.error("history_held", findings=lacking)
                return False
            if not seen.is_accepted:
                await history.accept(conn, seen)
                _log.warning("history_accepted", was=seen.accepted, now=seen.current)
            await history.sweep(conn, self.redis, serve_s=SERVE_SETTLED_S, keep_s=self.trim_keep_s)
        self._surveyed = seen.started_at
        return seen.is_accepted

    async def _check_drift(self) -> None:
        """Fence what is live when Redis was set to forget: the next win might not be kept."""
        is_live = any(row.state == "open" for row in self._at_work.values())
        if not is_live or time.monotonic() - self._checked_at < DRIFT_S:
            return
        self._checked_at = time.monotonic()
        held: dict[Redis, list[UUID]] = {}
        for lease_id in list(self._at_work):
            held.setdefault(await node_of(self.redis, str(lease_id)), []).append(lease_id)
        for node, lease_ids in held.items():
            try:
                await self._check_node(node, lease_ids)
            except _FAULTS as error:
                _log.warning("check_failed", error=str(error))

    async def _check_node(self, node: Redis, lease_ids: list[UUID]) -> None:
        asked_at_s = time.monotonic()
        async with self.database.connection(reads_only=True) as conn:
            now = await db.value(conn, "flash_sales.clock", datetime)
        facts = await leases.server_facts(node, int(now.timestamp() * 1000), asked_at_s)
        faults = leases.arming_faults(facts)
        if not faults:
            return
        for lease_id in lease_ids:
            async with self.database.connection() as conn:
                await db.run(conn, "reconciler.fence", lease_id=lease_id, reason=faults[0])
        _log.error("redis_drifted", faults=faults)

    async def stop(self) -> None:
        """End every task between two commits."""
        await asyncio.gather(*(end(task) for task in self._tasks.values()))

    async def _follow(self, lease_id: UUID) -> None:
        follower = Follower(self, lease_id)
        while (row := self._at_work.get(lease_id)) is not None:
            try:
                if await follower.step(row):
                    await leases.retire(
                        self.redis,
                        str(lease_id),
                        serve_s=SERVE_SETTLED_S,
                        keep_s=self.trim_keep_s,
                    )
                    return
            except _FAULTS as error:
                _log.warning("lease_stuck", lease=str(lease_id), error=str(error))
                follower.forget()
                await asyncio.sleep(PAUSE_S)
            except asyncio.CancelledError:
                raise
            except Exception:
                _log.exception("lease_broken", lease=str(lease_id))
                follower.forget()
                await asyncio.sleep(PAUSE_S)


class Follower:
    """Follows the stream of one lease."""

    def __init__(self, reconciler: Reconciler, lease_id: UUID) -> None:
        """Know nothing yet; the offset is read from PostgreSQL."""
        self._database = reconciler.database
        self._redis = reconciler.redis
        self._trim_keep_s = reconciler.trim_keep_s
        self._lease_id = lease_id
        self._last_id: str | None = None
        self._accounted = 0
        self._trimmed_at = time.monotonic()
        self._released_to = datetime.fromtimestamp(0, UTC)
        self._released_at = 0.0
        self._released: dict[UUID, datetime] = {}

    def forget(self) -> None:
        """Read the offset again before the next write."""
        self._last_id = None

    async def step(self, row: LeaseAtWork) -> bool:
        """Do one round: follow PostgreSQL's wishes, settle what came, settle the lease if it ends.

        True when the lease is settled.
        """
        if row.state == "arming":
            return await self._abandon_arming(row)
        if self._last_id is None:
            await self._read_offset()
        state = await leases.read_state(self._redis, str(self._lease_id))
        if state is None and row.state in ("open", "draining"):
            return await self._fence_lost()
        if (
            state is not None
            and row.state == "open"
            and state.accounted > self._accounted
            and await self._has_gone_back(state.accounted)
        ):
            await asyncio.sleep(LOOK_S)
            return False
        await self._make_follow(row, state)
        settled_any = await self._settle_next(row, waits=row.state == "open")
        await self._trim()
        if row.state == "open":
            await self._release_customers()
            if settled_any:
                await asyncio.sleep(LINGER_S)
            return False
        if settled_any:
            return False
        return await self._settle_drained(row)

    async def _read_offset(self) -> None:
        async with self._database.connection(reads_only=True) as conn:
            progress = await db.one(conn, "reconciler.progress", _Progress, lease_id=self._lease_id)
        assert progress is not None, "a lease has its progress from the start"
        self._last_id, self._accounted = progress.last_id, progress.accounted

    async def _fence_lost(self) -> bool:
        """Stop a lease that an answering Redis no longer has: keys were deleted, or all of them."""
        async with self._database.connection() as conn:
            await db.run(
                conn,
                "reconciler.fence",
                lease_id=self._lease_id,
                reason="the lease is gone from Redis",
            )
        await asyncio.sleep(LOOK_S)
        return False

    async def _has_gone_back(self, told: int) -> bool:
        """Say whether PostgreSQL has less than Redis was told it has; then redeeming stops.

        Redis is told after the commit: who reads PostgreSQL afterwards must find it there.
        """
        await self._read_offset()
        if self._accounted >= told:
            return False
        reason = f"Redis heard of {told} in the ledger, which has {self._accounted}"
        _log.error("postgresql_went_back", lease=str(self._lease_id), reason=reason)
        async with self._database.connection() as conn:
            await history.hold(conn, f"lease {self._lease_id}: {reason}")
        return True

    async def _make_follow(self, row: LeaseAtWork, state: leases.LeaseState | None) -> None:
        """Repeat to Redis what PostgreSQL says, for the process that said it first and died."""
        if state is None:
            return
        wanted: leases.State = "open"
        if row.state == "fenced":
            wanted = "fenced"
        elif row.state == "draining":
            wanted = "closed"
        elif row.is_paused:
            wanted = "paused"
        if state.state != wanted and state.state != "fenced":
            await leases.set_state(self._redis, str(self._lease_id), wanted)
        if row.state == "open":
            if state.size < row.size:
                await leases.grow(self._redis, str(self._lease_id), row.size)
            end_ms = int(row.ends_at.timestamp() * 1000) if row.ends_at else 0
            if state.end_ms != end_ms:
                await leases.set_end(self._redis, str(self._lease_id), end_ms)
            if state.accounted < self._accounted:
                await leases.raise_accounted(self._redis, str(self._lease_id), self._accounted)

    async def _settle_next(self, row: LeaseAtWork, *, waits: bool) -> bool:
        """Write the next wins. False: there are none."""
        assert self._last_id is not None
        run_id, raw = await leases.read_raw(
            self._redis,
            str(self._lease_id),
            self._last_id,
            ENTRIES_MAX,
            block_ms=BLOCK_MS if waits else None,
        )
        if not raw:
            return False
        while raw:
            told = wins.columns(raw, self._lease_id, row.tag, WINS_MAX)
            if told is None:
                await self._settle_closely(row, run_id, leases.decoded(raw))
                return True
            taken, columns = told
            await self._apply_plain(row, run_id, raw[taken - 1][0].decode(), columns)
            del raw[:taken]
        return True

    async def _settle_closely(
        self, row: LeaseAtWork, run_id: str, entries: list[leases.StreamEntry]
    ) -> None:
        """Write entries of which one cannot be read, and put that one into quarantine."""
        while entries:
            taken: list[leases.StreamEntry] = []
            rows = 0
            while entries and (not taken or rows + len(entries[0].wins) <= WINS_MAX):
                entry = entries.pop(0)
                taken.append(entry)
                rows += len(entry.wins)
                if entry.fault is not None:
                    break
            last = taken[-1]
            until = await self._end_of_poison(last, entries) if last.fault is not None else 0
            await self._apply(row, run_id, taken, until)

    async def _end_of_poison(
        self, entry: leases.StreamEntry, following: list[leases.StreamEntry]
    ) -> int:
        """Return the last number an unreadable entry can hold: what follows begins above it."""
        _log.error("entry_unreadable", lease=str(self._lease_id), entry=entry.id, fault=entry.fault)
        state = await leases.read_state(self._redis, str(self._lease_id))
        if not following:
            following = await leases.read_wins(self._redis, str(self._lease_id), entry.id, 1)
        if following and following[0].wins:
            return following[0].wins[0].seq - 1
        return state.issued if state is not None else 0

    async def _apply(
        self, row: LeaseAtWork, run_id: str, taken: list[leases.StreamEntry], poison_until: int
    ) -> None:
        params = wins.columns_closely(row.tag, row.lease_id, taken, self._accounted, poison_until)
        async with self._database.connection() as conn:
            done = await db.one(
                conn,
                "reconciler.settle_wins",
                _Applied,
                project_id=row.project_id,
                lease_id=self._lease_id,
                run_id=run_id,
                judged=row.judged,
                from_id=self._last_id,
                to_id=taken[-1].id,
                **params,
            )
        await self._note(row, done, taken[-1].id)

    async def _apply_plain(
        self, row: LeaseAtWork, run_id: str, to_id: str, columns: dict[str, str | None]
    ) -> None:
        async with self._database.connection() as conn:
            done = await db.one(
                conn,
                "reconciler.settle_plain",
                _Applied,
                project_id=row.project_id,
                lease_id=self._lease_id,
                run_id=run_id,
                judged=row.judged,
                from_id=self._last_id,
                to_id=to_id,
                **columns,
            )
        await self._note(row, done, to_id)

    async def _note(self, row: LeaseAtWork, done: _Applied | None, to_id: str) -> None:
        """Go on from what was committed, and let Redis hear how far it is."""
        assert done is not None
        if done.outcome != "applied":
            self.forget()
            raise Unavailable(
                f"another reconciler is at work on this lease, or another Redis: {done.outcome}"
            )
        if done.quarantined:
            _log.error("wins_quarantined", lease=str(self._lease_id), count=done.quarantined)
        self._last_id = to_id
        self._accounted = done.accounted
        stored = await leases.raise_accounted(self._redis, str(self._lease_id), self._accounted)
        if stored is not None and stored > self._accounted and row.state == "open":
            await self._has_gone_back(stored)

    async def _release_customers(self) -> None:
        """Let Redis release the customers of rolled back wins, whatever it missed of them."""
        now = time.monotonic()
        if now - self._released_at < ROLLBACK_S:
            return
        self._released_at = now
        since = self._released_to - ROLLBACK_OVERLAP
        while True:
            async with self._database.connection(reads_only=True) as conn:
                rows = await db.many(
                    conn,
                    "reconciler.rolled_back",
                    _RolledBack,
                    lease_id=self._lease_id,
                    since=since,
                    limit=ROLLBACKS_MAX,
                )
            for row in rows:
                if row.id not in self._released:
                    reference = ids.format_id("rdm", row.id)
                    await leases.release(
                        self._redis, str(self._lease_id), row.customer_id, reference
                    )
                    self._released[row.id] = row.rolled_back_at
            if rows:
                since = self._released_to = rows[-1].rolled_back_at
            if len(rows) < ROLLBACKS_MAX:
                break
        horizon = self._released_to - ROLLBACK_OVERLAP
        self._released = {at: when for at, when in self._released.items() if when > horizon}

    async def _trim(self) -> None:
        now = time.monotonic()
        if now - self._trimmed_at < TRIM_S or self._last_id is None or self._last_id == "0-0":
            return
        self._trimmed_at = now
        lease_id = str(self._lease_id)
        at_ms = int(self._last_id.partition("-")[0]) - self._trim_keep_s * 1000
        await leases.trim(self._redis, lease_id, f"{at_ms}-0")
        cut = await leases.trim_to_bytes(self._redis, lease_id, STREAM_BYTES_MAX, self._last_id)
        if cut:
            _log.warning("stream_cut", lease=lease_id, entries=cut, bytes_max=STREAM_BYTES_MAX)

    async def _abandon_arming(self, row: LeaseAtWork) -> bool:
        if row.now - row.armed_at < timedelta(seconds=ARMING_S):
            await asyncio.sleep(LOOK_S)
            return False
        # Nobody was answered: the lease never opened.
        await leases.set_state(self._redis, str(self._lease_id), "closed")
        return await self._settle(row, None, 0)

    async def _settle_drained(self, row: LeaseAtWork) -> bool:
        """Settle a lease whose stream is at its end."""
        if row.state == "draining":
            run_id, state = await leases.read_state_of(self._redis, str(self._lease_id))
            if run_id != row.run_id:
                await self._judge(row, run_id, state)
            elif state is not None and state.state == "closed":
                if state.issued > self._accounted:
                    return False
                return await self._settle(row, run_id, state.issued)
            await asyncio.sleep(LOOK_S)
            return False
        async with self._database.connection(reads_only=True) as conn:
            seals = await db.one(
                conn,
                "reconciler.seals",
                _Seals,
                lease_id=self._lease_id,
                silent_after=SILENT_AFTER,
            )
        assert seals is not None
        if seals.waiting:
            await asyncio.sleep(LOOK_S)
            return False
        # All marks known: nothing above the highest was answered. Else the backlog bounds it,
        # counted from what is in the ledger at that very commit.
        open_to = None if seals.silent else max(self._accounted, seals.mark)
        return await self._settle(row, None, open_to)

    async def _judge(self, row: LeaseAtWork, run_id: str, state: leases.LeaseState | None) -> None:
        """Ask for a judgement of a Redis that came back while nobody serves the lease any more."""
        async with self._database.connection() as conn:
            judgement = await db.one(
                conn,
                "lease_workers.judge",
                Judgement,
                project_id=row.project_id,
                lease_id=self._lease_id,
                run_id_old=row.run_id,
                run_id_new=run_id,
                issued=state.issued if state is not None and state.ready else None,
                deadline=SILENT_AFTER,
            )
        assert judgement is not None
        if judgement.outcome != "waiting":
            _log.warning("lease_judged", lease=str(self._lease_id), outcome=judgement.outcome)

    async def _settle(self, row: LeaseAtWork, run_id: str | None, open_to: int | None) -> bool:
        async with self._database.connection() as conn:
            done = await db.one(
                conn,
                "reconciler.settle_lease",
                _Settled,
                project_id=row.project_id,
                lease_id=self._lease_id,
                state=row.state,
                run_id=run_id,
                open_to=open_to,
                last_id=self._last_id or row.last_id,
            )
            if done is None or done.outcome == "changed":
                _log.info("lease_changed", lease=str(self._lease_id), seen=row.state)
                self.forget()
                await asyncio.sleep(LOOK_S)
                return False
            await db.run(conn, "reconciler.drop_workers", lease_id=self._lease_id)
        _log.info(
            "lease_settled",
            lease=str(self._lease_id),
            outcome=done.outcome,
            open_to=done.open_to,
            returned=done.returned,
            burned=done.burned,
        )
        return done.outcome in ("settled", "not_found")
