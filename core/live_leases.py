"""What one API worker knows of the leases that are out, and its part in keeping them honest.

The keeper polls PostgreSQL for leases, registers this worker for each before the first claim goes
out, opens their slots, and when Redis came back as another process it seals, tells its mark and
asks PostgreSQL to judge. Claims never wait for it: what it knows is in two dictionaries.
"""

import asyncio
import contextlib
import time
from datetime import datetime, timedelta
from typing import Any, Final, Protocol
from uuid import UUID

import msgspec
import structlog

import core.db as db
from core.endings import end
from core.errors import OutcomeUnknown, Unavailable
from core.hot import ClaimBackend, leases
from core.hot.nodes import node_of
from core.redemptions import Terms
from core.terms import TermsCache

# A sale opens within a third of a second on every worker, for five small reads a second.
POLL_S: Final = 0.2
BEAT_S: Final = 1.0
# Three missed beats: `open` no longer waits for such a worker.
ALIVE_WITHIN: Final = timedelta(seconds=3)
# A worker that is registered for a lease and silent for so long when Redis came back as another
# process is taken for lost, with its mark. A respawned worker is back within two or three.
SILENT_AFTER: Final = timedelta(seconds=10)

_log = structlog.get_logger("vauchflow.live_leases")


class LeaseRow(msgspec.Struct, frozen=True):
    """One lease that is out, as `vf.live_leases` tells it."""

    project_id: UUID
    sale_id: UUID
    voucher_id: UUID
    lease_id: UUID
    tag: int
    state: str
    size: int
    seq_base: int
    run_id: str
    judged: int
    code_norm: str
    is_held: bool


class LiveLease:
    """A lease this worker serves: where its claims go and how they are priced."""

    __slots__ = (
        "is_plain",
        "knows_mark",
        "lease_bytes",
        "row",
        "sealed_at",
        "serving_size",
        "slot",
        "sold_out_until",
        "terms",
    )

    def __init__(self, row: LeaseRow, terms: Terms, slot: int, *, knows_mark: bool) -> None:
        """Serve a lease through a slot of the backend.

        `knows_mark`: false when this seat served the lease before its node was restarted.
        `sold_out_until` is on this process's monotonic clock. `sealed_at` is
        set while PostgreSQL judges whether Redis may go on: a later judgement than this one says.
        `is_plain`: the compiled backend has the terms and may answer plain claims by itself.
        """
        self.row = row
        self.lease_bytes = row.lease_id.bytes
        self.terms = terms
        self.slot = slot
        self.serving_size = 0
        self.sold_out_until = 0.0
        self.sealed_at: int | None = None
        self.knows_mark = knows_mark
        self.is_plain = False


class Seat(Protocol):
    """A worker's place on its node; the next worker to sit there inherits its marks file."""

    @property
    def worker_id(self) -> str: ...
    @property
    def node_id(self) -> str: ...
    def marks_of_dead(self, worker_id: str) -> dict[str, int] | None: ...


class Judgement(msgspec.Struct):
    """What PostgreSQL decided of a lease whose Redis came back as another process."""

    outcome: str
    run_id: str | None


class _Neighbour(msgspec.Struct):
    worker_id: str
    seen_at: datetime


class _Joined(msgspec.Struct):
    joined: bool
    was_registered: bool


class LeaseKeeper:
    """The live leases of one API worker."""

    def __init__(
        self,
        database: db.Database,
        redis: Any,
        backend: ClaimBackend,
        terms: TermsCache,
        seat: Seat,
    ) -> None:
        """Everything given is the caller's to close, after `stop`."""
        self._database = database
        self._redis = redis
        self._backend = backend
        self._terms = terms
        self._seat = seat
        self._task: asyncio.Task[None] | None = None
        self._beat_at = 0.0
        self._has_looked = False
        self._live: dict[UUID, LiveLease] = {}
        self.by_sale: dict[UUID, LiveLease] = {}
        self.by_code: dict[tuple[UUID, str], LiveLease] = {}

    async def start(self) -> None:
        """Sit down and look once, so that the first request finds what is live."""
        with contextlib.suppress(Unavailable, OutcomeUnknown):
            await self.look()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop looking and tell PostgreSQL that this worker has gone."""
        if self._task is not None:
            await end(self._task)
        with contextlib.suppress(Unavailable, OutcomeUnknown):
            async with self._database.connection() as conn:
                await db.run(conn, "lease_workers.leave", worker_id=self._seat.worker_id)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self.look()
            except (Unavailable, OutcomeUnknown) as error:
                # PostgreSQL is away: what is live stays live, and Redis goes on deciding.
                _log.debug("look_failed", error=str(error))
            except Exception:
                _log.exception("look_broken")

    async def look(self) -> None:
        """Read what is out and bring slots, registrations and seals in line with it."""
        async with self._database.connection() as conn:
            now = time.monotonic()
            if now - self._beat_at >= BEAT_S:
                await db.run(
                    conn,
                    "lease_workers.beat",
                    worker_id=self._seat.worker_id,
                    node_id=self._seat.node_id,
                )
                if self._live:
                    await db.run(conn, "lease_workers.seen", worker_id=self._seat.worker_id)
                self._beat_at = now
            rows = await db.many(conn, "lease_workers.live", LeaseRow)
        if not self._has_looked:
            # What a predecessor left in the marks file of leases that are settled is of no use.
            self._backend.keep_marks([str(row.lease_id) for row in rows])
            self._has_looked = True
        for lease_id in self._live.keys() - {row.lease_id for row in rows}:
            self._forget(self._live.pop(lease_id))
        for row in rows:
            await self._serve(row)
        if any(row.is_held for row in rows):
            # This database may lack what was won here: nothing more until it is accepted, and
            # then each lease is judged like after a change of Redis.
            for live in self._live.values():
                self._backend.seal(live.slot)
                live.sealed_at = None
        elif self._live:
            await self._keep_honest()

    def _forget(self, live: LiveLease) -> None:
        self._backend.close_slot(live.slot)
        self.by_sale.pop(live.row.sale_id, None)
        self.by_code.pop((live.row.project_id, live.row.code_norm), None)

    async def _serve(self, row: LeaseRow) -> None:
        live = self._live.get(row.lease_id)
        if live is None:
            terms = await self._terms.load(row.project_id, row.code_norm)
            if terms is None or row.state == "arming":
                return
            live = await self._join(row, terms)
            if live is None:
                return
        live.row = row
        if live.serving_size != row.size:
            live.sold_out_until = 0.0
            self._backend.forget_sold_out(live.slot)
            async with self._database.connection() as conn:
                await db.run(
                    conn,
                    "lease_workers.serve",
                    lease_id=row.lease_id,
                    worker_id=self._seat.worker_id,
                    size=row.size,
                )
            live.serving_size = row.size

    async def _join(self, row: LeaseRow, terms: Terms) -> LiveLease | None:
        """Take a seat at a lease; None where it is over or served by another Redis by now.

        Of a fenced lease only the mark is of interest, and only if this seat served it before.
        """
        lease_id = str(row.lease_id)
        async with self._database.connection() as conn:
            seated = await db.one(
                conn,
                "lease_workers.join",
                _Joined,
                project_id=row.project_id,
                lease_id=row.lease_id,
                worker_id=self._seat.worker_id,
                node_id=self._seat.node_id,
                run_id=row.run_id,
            )
        assert seated is not None
        if not seated.joined and not (row.state == "fenced" and seated.was_registered):
            return None
        slot = self._backend.open_lease(lease_id, row.run_id)
        knows_mark = not (seated.was_registered and self._backend.status().marks_lost)
        live = LiveLease(row, terms, slot, knows_mark=knows_mark)
        self._live[row.lease_id] = live
        if seated.joined:
            self.by_sale[row.sale_id] = live
            self.by_code[row.project_id, row.code_norm] = live
        else:
            self._backend.seal(slot)
        return live

    async def _keep_honest(self) -> None:
        """Seal, tell and unseal wherever the Redis that answers is not the one PostgreSQL knows."""
        slots = self._backend.status().slots
        for live in list(self._live.values()):
            slot = slots.get(live.slot)
            if slot is None or slot.run_id is None:
                continue
            is_same = live.row.run_id == slot.run_id and not slot.sealed
            if is_same and live.row.state != "fenced":
                continue
            await self._judge(live, slot.run_id, slot.sealed_reason)

    async def _judge(self, live: LiveLease, run_id: str, reason: str | None) -> None:
        if live.row.state in ("fenced", "settled"):
            await self._tell(live, self._backend.seal(live.slot), run_id)
            return
        row = live.row
        if live.sealed_at is not None and live.sealed_at < row.judged and row.run_id == run_id:
            await self._unseal(live)
            return
        if live.sealed_at is None:
            # Sealed only because a connection was another process's: the lease's last judgement
            # will do, once the two are the same. Else Redis is in doubt: a new one is needed.
            live.sealed_at = row.judged - (reason == "run_id" or row.run_id != run_id)
        if not await self._tell(live, self._backend.seal(live.slot), run_id):
            return
        state = await self._state_of(row.lease_id, run_id)
        if state is _UNSURE:
            return
        if reason == "seq_not_above_mark":
            # It gave a number out twice, and may by now have issued as many as were answered.
            state = None
        async with self._database.connection() as conn:
            judgement = await db.one(
                conn,
                "lease_workers.judge",
                Judgement,
                project_id=row.project_id,
                lease_id=row.lease_id,
                run_id_old=row.run_id,
                run_id_new=run_id,
                issued=state,
                deadline=SILENT_AFTER,
            )
        if judgement is not None and judgement.outcome != "waiting":
            _log.warning("lease_judged", lease=str(row.lease_id), outcome=judgement.outcome)

    async def _unseal(self, live: LiveLease) -> None:
        """Open the slot again, after PostgreSQL has agreed that the seal counts no more."""
        row = live.row
        async with self._database.connection() as conn:
            may_open = await db.value(
                conn,
                "lease_workers.unseal",
                bool,
                project_id=row.project_id,
                lease_id=row.lease_id,
                worker_id=self._seat.worker_id,
                run_id=row.run_id,
                judged=row.judged,
            )
        if may_open:
            self._backend.reopen(live.slot, row.run_id)
            live.sealed_at = None
            _log.info("lease_unsealed", lease=str(row.lease_id), run_id=row.run_id)

    async def _tell(self, live: LiveLease, mark: int, run_id: str) -> bool:
        """Write this worker's seal, and those of dead neighbours whose marks it can read.

        False: something was judged since this worker looked, so it has to look again.
        """
        lease_id = live.row.lease_id
        told: dict[str, Any] = {
            "project_id": live.row.project_id,
            "lease_id": lease_id,
            "node_id": self._seat.node_id,
            "run_id": run_id,
            "judged": live.row.judged,
        }
        async with self._database.connection() as conn:
            counts = await db.value(
                conn,
                "lease_workers.seal",
                bool,
                worker_id=self._seat.worker_id,
                mark=mark if live.knows_mark else None,
                seen_at=None,
                **told,
            )
            neighbours = await db.many(
                conn,
                "lease_workers.unsealed_neighbours",
                _Neighbour,
                lease_id=lease_id,
                node_id=self._seat.node_id,
                worker_id=self._seat.worker_id,
                run_id=run_id,
            )
            for neighbour in neighbours:
                marks = self._seat.marks_of_dead(neighbour.worker_id)
                if marks is not None:
                    await db.value(
                        conn,
                        "lease_workers.seal",
                        bool,
                        worker_id=neighbour.worker_id,
                        mark=marks.get(str(lease_id), 0),
                        seen_at=neighbour.seen_at,
                        **told,
                    )
        return counts

    async def _state_of(self, lease_id: UUID, run_id: str) -> int | object | None:
        """Return what this very Redis process has issued, None when it lacks the lease."""
        try:
            redis = await node_of(self._redis, str(lease_id))
            before = await redis.info("server")
            state = await leases.read_state(redis, str(lease_id))
            after = await redis.info("server")
        except Exception as error:
            _log.debug("redis_unread", error=str(error))
            return _UNSURE
        if before["run_id"] != run_id or after["run_id"] != run_id:
            return _UNSURE
        return state.issued if state is not None and state.ready else None


_UNSURE: Final = object()
