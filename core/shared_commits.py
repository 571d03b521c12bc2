"""Concurrent redeems of one voucher become one statement and one commit, and small ones share it.

Batches form by arrival: while a statement of a voucher (or of a limited campaign) is under way,
what arrives waits, and goes together next; never by a timer. While all connections are busy,
vouchers wait too, and the next flight takes several. A statement is one autocommit function call,
so that a process that freezes holds no locks. This module knows nothing of prices.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from itertools import accumulate
from typing import Any, Final, Generic, TypeVar
from uuid import UUID

import msgspec
import structlog

import core.db as db
from core.db.faults import StatementFailed
from core.errors import OutcomeUnknown, Unavailable

# One commit is 1 to 3 ms; 256 requests in one are far beyond where the fsync dominates, and still
# answer well under 50 ms.
BATCH_MAX: Final = 256
# A flight takes vouchers until it has so many requests: 64 amortise a commit well below what
# deciding them costs, and a hot voucher beyond that flies alone.
TOGETHER_MAX: Final = 64
# Waiting requests of one process: a third of a second of work at 12,000 a second.
QUEUE_MAX: Final = 4_096
# Statements under way at once, each on its own connection: hot vouchers of a process in parallel.
FLIGHTS_MAX: Final = 4
# A request that was not sent within a second is answered "not applied": its client is about to
# give up, and the answer must be true when it does.
WAIT_S_MAX: Final = 1.0
# A statement whose answer was lost is asked again with the same keys, which is idempotent; three
# times at these pauses cover a PostgreSQL that restarts within the second.
UNKNOWN_PAUSES_S: Final = (0.02, 0.2, 0.6)
# Deadlocks and lock timeouts were rolled back whole; they are run again as they are.
ROLLED_BACK_TRIES: Final = 4

_log = structlog.get_logger("vauchflow.shared_commits")


class Ask(msgspec.Struct, eq=False):
    """One priced request. `key` is the caller's, or the redemption's own id.

    The versions say with which terms it was priced; PostgreSQL decides nothing under others.
    """

    project_id: UUID
    voucher_id: UUID
    version: int
    campaign_id: UUID | None
    campaign_version: int | None
    sale_id: UUID | None
    id: UUID
    key: str
    fingerprint: bytes
    customer_id: str | None
    order_value_minor: int
    discount_minor: int
    order_id: str | None
    metadata: str | None
    deadline: float = 0.0
    future: "asyncio.Future[Decision] | None" = None
    # Retries of this very request that came while it waited: they get its answer.
    echoes: "list[asyncio.Future[Decision]] | None" = None


class Decision(msgspec.Struct):
    """What PostgreSQL answered to one request of an array; `ord` counts from 1.

    The one with ord 0 answers all: every request won.
    """

    ord: int
    outcome: str
    id: UUID | None
    seq: int | None
    remaining: int | None
    redeemed_at: datetime | None
    order_value_minor: int | None
    discount_minor: int | None
    existing: UUID | None
    sale: UUID | None


D = TypeVar("D", bound=Decision)


class LotDecision(Decision, kw_only=True):
    """A Decision of one voucher among several; `ord` counts in its lot, lots from 1."""

    lot: int


class _Group:
    __slots__ = ("is_flying", "lane", "scope", "waiting")

    def __init__(self, scope: UUID, lane: UUID) -> None:
        self.scope = scope
        self.lane = lane
        self.waiting: deque[Ask] = deque()
        self.is_flying = False


Q = TypeVar("Q")


class _Lane(Generic[Q]):
    __slots__ = ("flying", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Q] = deque()
        self.flying = 0


class Board(Generic[Q]):
    """Queues that wait for a connection, by lane: those of one lane may fly together.

    `fly` is given a lane's waiting queues and takes from their front what it flies. Who is in the
    air is not on the board; whoever has more to fly afterwards is put there again.
    """

    def __init__(
        self, commits: "SharedCommits", fly: Callable[[deque[Q]], Awaitable[None]]
    ) -> None:
        """Start empty; at most FLIGHTS_MAX of all boards of `commits` fly at once."""
        self._commits = commits
        self._fly = fly
        self._lanes: dict[UUID, _Lane[Q]] = {}

    def put(self, lane: UUID, queue: Q) -> None:
        """Have a queue flown."""
        found = self._lanes.get(lane)
        if found is None:
            found = self._lanes[lane] = _Lane()
        found.waiting.append(queue)
        if found.flying < FLIGHTS_MAX:
            found.flying += 1
            self._commits.start(self._run(lane, found))

    async def _run(self, key: UUID, lane: _Lane[Q]) -> None:
        try:
            while lane.waiting:
                async with self._commits.flights:
                    if lane.waiting:
                        await self._fly(lane.waiting)
        finally:
            lane.flying -= 1
            if lane.flying == 0:
                del self._lanes[key]


class SharedCommits:
    """The queues of one process. Give it a pool of `FLIGHTS_MAX` connections of its own."""

    def __init__(self, database: db.Database) -> None:
        """Start empty; the pool is the caller's to close."""
        self._database = database
        self._groups: dict[UUID, _Group] = {}
        self._board = Board(self, self._fly)
        self._queued = 0
        self.flights = asyncio.Semaphore(FLIGHTS_MAX)
        self._tasks: set[asyncio.Task[None]] = set()
        self.commits = 0
        self.decided = 0

    def submit(self, ask: Ask) -> "asyncio.Future[Decision]":
        """Queue one request; the future gets its Decision.

        Raises at once: Unavailable (overloaded) when QUEUE_MAX requests wait.
        The future raises: Unavailable (not applied), OutcomeUnknown (ask again with the key).
        Idempotent on (project, voucher, key). A cancelled future cancels nothing.
        """
        if self._queued >= QUEUE_MAX:
            raise Unavailable(code="overloaded")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Decision] = loop.create_future()
        ask.future = future
        ask.deadline = time.monotonic() + WAIT_S_MAX
        scope = ask.campaign_id or ask.voucher_id
        group = self._groups.get(scope)
        if group is None:
            # A campaign's row is shared by its vouchers already; others share a project's flights.
            group = self._groups[scope] = _Group(scope, ask.campaign_id or ask.project_id)
        group.waiting.append(ask)
        self._queued += 1
        if not group.is_flying:
            group.is_flying = True
            self._board.put(group.lane, group)
        return future

    def start(self, flying: Coroutine[Any, Any, None]) -> None:
        """Run what flies a queue; `drain` waits for it."""
        task = asyncio.get_running_loop().create_task(flying)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self) -> None:
        """Wait until everything that was queued is answered."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _fly(self, waiting: deque[_Group]) -> None:
        groups: list[_Group] = []
        batch: list[Ask] = []
        try:
            while waiting and len(batch) < TOGETHER_MAX:
                group = waiting.popleft()
                groups.append(group)
                batch += self._take(group, BATCH_MAX - len(batch))
            if batch:
                await self._commit(batch)
        finally:
            for group in groups:
                if group.waiting:
                    self._board.put(group.lane, group)
                else:
                    group.is_flying = False
                    del self._groups[group.scope]

    def _take(self, group: _Group, batch_max: int) -> list[Ask]:
        """Take the next batch: one pricing a voucher, each key once.

        A retry that waits beside its first try gets the same answer. What does not fit stays in
        front of the queue in its order.
        """
        now = time.monotonic()
        batch: list[Ask] = []
        later: list[Ask] = []
        by_key: dict[tuple[UUID, str], Ask] = {}
        versions: dict[UUID | None, tuple[object, ...]] = {}
        waiting = group.waiting
        while waiting and len(batch) < batch_max:
            ask = waiting.popleft()
            if ask.deadline < now:
                self._queued -= 1
                _fail(ask, Unavailable("Nothing was applied: the queue did not move in time."))
                continue
            first = by_key.get((ask.voucher_id, ask.key))
            if first is not None and first.fingerprint == ask.fingerprint:
                assert ask.future is not None
                self._queued -= 1
                first.echoes = [*(first.echoes or ()), ask.future]
                continue
            priced = (ask.version, ask.campaign_id, ask.sale_id)
            if (
                first is not None
                or versions.setdefault(ask.voucher_id, priced) != priced
                or versions.setdefault(None, (ask.campaign_version,)) != (ask.campaign_version,)
            ):
                later.append(ask)
                continue
            by_key[ask.voucher_id, ask.key] = ask
            batch.append(ask)
        waiting.extendleft(reversed(later))
        self._queued -= len(batch)
        return batch

    async def _commit(self, batch: list[Ask]) -> None:
        try:
            decisions = await self._decide(batch)
        except StatementFailed as error:
            # One poisoned request must not harm the others: each alone, with the same ids.
            if len(batch) == 1:
                _fail(batch[0], error)
                return
            _log.warning("batch_failed", sqlstate=error.sqlstate, constraint=error.constraint)
            for ask in batch:
                await self._commit([ask])
            return
        except Exception as error:
            if not isinstance(error, Unavailable | OutcomeUnknown):
                _log.exception("batch_broken")
            for ask in batch:
                _fail(ask, error)
            return
        self.commits += 1
        self.decided += len(batch)
        for ask, decision in decisions:
            for future in _waiting_for(ask):
                future.set_result(decision)

    async def _decide(self, batch: list[Ask]) -> list[tuple[Ask, Decision]]:
        has_many = len({ask.voucher_id for ask in batch}) > 1
        if has_many and batch[0].campaign_id is None:
            return await self._decide_lots(batch)
        call = _call_of_campaign if has_many else _call_of_many
        ordered, name, params = call(batch)
        found = await self.ask(lambda conn: db.many(conn, name, Decision, **params))
        if len(found) == 1 and found[0].ord == 0:
            return _each_of(ordered, found[0])
        assert len(found) == len(batch), f"{len(batch)} asked, {len(found)} answered"
        return [(ordered[decision.ord - 1], decision) for decision in found]

    async def _decide_lots(self, batch: list[Ask]) -> list[tuple[Ask, Decision]]:
        lots, params = _in_lots(batch)
        found = await self.ask(
            lambda conn: db.many(conn, "redemptions.redeem_lots", LotDecision, **params)
        )
        decided: list[tuple[Ask, Decision]] = []
        for decision in found:
            lot = lots[decision.lot - 1]
            if decision.ord == 0:
                decided += _each_of(lot, decision)
            else:
                decided.append((lot[decision.ord - 1], decision))
        assert len(decided) == len(batch), f"{len(batch)} asked, {len(decided)} answered"
        return decided

    async def ask(self, send: "Callable[[db.Connection], Awaitable[list[D]]]") -> "list[D]":
        """Have one idempotent statement answered, asking again where its answer was lost.

        Raises: Unavailable and RolledBack (not applied), OutcomeUnknown, StatementFailed.
        """
        is_unknown = False
        rolled_back = 0
        pauses = iter(UNKNOWN_PAUSES_S)
        while True:
            try:
                async with self._database.connection() as conn:
                    return await send(conn)
            except db.RolledBack:
                rolled_back += 1
                if rolled_back == ROLLED_BACK_TRIES:
                    raise
            except (OutcomeUnknown, Unavailable) as error:
                is_unknown = is_unknown or isinstance(error, OutcomeUnknown)
                pause = next(pauses, None)
                if not is_unknown:
                    raise
                if pause is None:
                    raise OutcomeUnknown from error
                await asyncio.sleep(pause)


def starts_of(sizes: list[int]) -> list[int]:
    """Return where each lot begins, counted from 1."""
    return [start - size + 1 for start, size in zip(accumulate(sizes), sizes, strict=True)]


def _each_of(batch: list[Ask], first: Decision) -> list[tuple[Ask, Decision]]:
    """Spread one answer over a batch in which every request won: numbers rise, the rest falls."""
    assert first.seq is not None
    return [
        (
            ask,
            Decision(
                place + 1,
                first.outcome,
                ask.id,
                first.seq + place,
                None if first.remaining is None else first.remaining - place,
                first.redeemed_at,
                ask.order_value_minor,
                ask.discount_minor,
                None,
                first.sale,
            ),
        )
        for place, ask in enumerate(batch)
    ]


Call = Callable[[list[Ask]], tuple[list[Ask], str, dict[str, Any]]]


def _call_of_many(batch: list[Ask]) -> tuple[list[Ask], str, dict[str, Any]]:
    first = batch[0]
    params = {
        "project_id": first.project_id,
        "voucher_id": first.voucher_id,
        "version": first.version,
        "campaign_id": first.campaign_id,
        "campaign_version": first.campaign_version,
        "sale_id": first.sale_id,
        **_arrays(batch),
    }
    return batch, "redemptions.redeem_many", params


def _call_of_campaign(batch: list[Ask]) -> tuple[list[Ask], str, dict[str, Any]]:
    lots, params = _in_lots(batch)
    of_campaign = {
        "campaign_id": batch[0].campaign_id, "campaign_version": batch[0].campaign_version,
    }  # fmt: skip
    ordered = [ask for lot in lots for ask in lot]
    return ordered, "redemptions.redeem_campaign", {**of_campaign, **params}


def _in_lots(batch: list[Ask]) -> tuple[list[list[Ask]], dict[str, Any]]:
    """Part a batch into lots, a voucher each, in id order, in which every statement locks them."""
    by_voucher: dict[UUID, list[Ask]] = {}
    for ask in batch:
        by_voucher.setdefault(ask.voucher_id, []).append(ask)
    lots = [by_voucher[voucher_id] for voucher_id in sorted(by_voucher)]
    firsts = [lot[0] for lot in lots]
    return lots, {
        "project_id": firsts[0].project_id,
        "vouchers": [ask.voucher_id for ask in firsts],
        "versions": [ask.version for ask in firsts],
        "sales": [ask.sale_id for ask in firsts],
        "starts": starts_of([len(lot) for lot in lots]),
        **_arrays([ask for lot in lots for ask in lot]),
    }


def _arrays(batch: list[Ask]) -> dict[str, Any]:
    return {
        "ids": [ask.id for ask in batch],
        "keys": [ask.key for ask in batch],
        "fingerprints": [ask.fingerprint for ask in batch],
        "customers": [ask.customer_id for ask in batch],
        "order_values": [ask.order_value_minor for ask in batch],
        "discounts": [ask.discount_minor for ask in batch],
        "order_ids": [ask.order_id for ask in batch],
        "metadata": [ask.metadata for ask in batch],
    }


def _waiting_for(ask: Ask) -> "list[asyncio.Future[Decision]]":
    futures = [] if ask.future is None else [ask.future]
    return [future for future in futures + (ask.echoes or []) if not future.done()]


def _fail(ask: Ask, error: Exception) -> None:
    for future in _waiting_for(ask):
        future.set_exception(error)
        # A waiter that has gone away must not turn into "exception was never retrieved".
        future.exception()
