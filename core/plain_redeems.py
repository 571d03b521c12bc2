"""Plain redeems and claims, which the compiled doors take and answer by themselves.

What the general way has resolved once (the key, the address, whose voucher it is and who decides)
is taught to the doors here. A voucher's plain redeems are flown to PostgreSQL from here, several
vouchers at a time; whatever is told other than a win goes back to `redeemer` to be worded.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple
from uuid import UUID

import msgspec
import structlog

import core.db as db
from core import ids
from core.api_keys import Caller
from core.crowds import Crowds
from core.db.faults import StatementFailed
from core.errors import OutcomeUnknown, Unavailable
from core.hot import ClaimBackend
from core.hot.rust import CommitBatch, CommitQueue, Door, PlainTerms, RustBackend
from core.hot.rust_cluster import RustCluster
from core.live_leases import LiveLease
from core.redemptions import Terms, ms_of
from core.shared_commits import (
    BATCH_MAX,
    TOGETHER_MAX,
    Board,
    Decision,
    LotDecision,
    SharedCommits,
    starts_of,
)
from core.terms import TERMS_MAX, TermsCache

# Vouchers whose queue is kept: as many as terms are.
QUEUES_MAX: Final = TERMS_MAX

_log = structlog.get_logger("vauchflow.plain_redeems")

_encode = msgspec.json.Encoder().encode


class PlainRedeems:
    """What one process has taught its compiled doors. The parts are the caller's to close."""

    def __init__(
        self,
        door: Door,
        *,
        commits: SharedCommits,
        terms: TermsCache,
        backend: ClaimBackend,
        crowds: Crowds,
        receipt_key: bytes,
        sold_out: tuple[bytes, bytes],
    ) -> None:
        """Teach nothing yet.

        `receipt_key` signs the wins of leases. `sold_out` is that problem before and after a
        request's id.
        """
        self._door = door
        self._terms = terms
        self._backend = backend
        self._crowds = crowds
        self._receipt_key = receipt_key
        self._sold_out = sold_out
        self._flights = _Flights(commits)
        self._queues: dict[UUID, tuple[Terms, str, CommitQueue]] = {}

    def learn_claims(self, path: str, token: bytes, caller: Caller, live: LiveLease) -> None:
        """From now on take the claims that this key sends to this address to a live lease."""
        backend = self._backend
        if not isinstance(backend, RustBackend | RustCluster):
            return
        if not live.is_plain:
            row = live.row
            backend.set_terms(
                live.slot,
                _plain_terms(caller, live.terms, row.sale_id),
                live,
                str(row.lease_id),
                row.tag,
                row.seq_base,
                self._receipt_key,
                self._sold_out,
            )
            live.is_plain = True
        backend.learn(self._door, path, token, live.slot)

    def learn_redeems(
        self, path: str, token: bytes, caller: Caller, code_norm: str | None, sale_id: UUID | None
    ) -> None:
        """From now on take the redeems that this key sends to this address to PostgreSQL.

        Not where a crowd waits, nor where a campaign's limits bind vouchers together.
        """
        if sale_id is not None:
            terms = self._terms.of_sale(caller.project_id, sale_id)
        else:
            known = self._terms.peek(caller.project_id, code_norm) if code_norm else None
            terms = known[0] if known is not None else None
        if (
            terms is None
            or terms.authority != "pg"
            or not terms.is_plain
            or terms.campaign_id is not None
            or self._crowds.has(terms.voucher_id)
        ):
            return
        self._door.learn_redeem(path, token, self._queue(caller, terms))

    def begin(self, queue: CommitQueue) -> None:
        """Fly a queue that says that nobody does."""
        self._flights.begin(queue)

    def forget(self, voucher_id: UUID) -> None:
        """Send a voucher's redeems the general way until it is learnt anew; what waits is flown."""
        known = self._queues.pop(voucher_id, None)
        if known is not None:
            known[2].close()

    def _queue(self, caller: Caller, terms: Terms) -> CommitQueue:
        known = self._queues.get(terms.voucher_id)
        if known is not None and known[0] == terms and known[1] == caller.currency:
            return known[2]
        if len(self._queues) >= QUEUES_MAX:
            for voucher_id in list(self._queues)[: QUEUES_MAX // 2]:
                self.forget(voucher_id)
        self.forget(terms.voucher_id)
        queue = CommitQueue(terms, _plain_terms(caller, terms, terms.sale_id))
        self._queues[terms.voucher_id] = (terms, caller.currency, queue)
        return queue


class _Lot(NamedTuple):
    """A part of one voucher's batch."""

    terms: Terms
    batch: CommitBatch
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


class _Flights:
    """Flies plain queues: those of one project that wait share a statement and a commit."""

    def __init__(self, commits: SharedCommits) -> None:
        self._commits = commits
        self._board: Board[CommitQueue] = Board(commits, self._fly)
        self._loop = asyncio.get_running_loop()

    def begin(self, queue: CommitQueue) -> None:
        terms: Terms = queue.subject
        self._board.put(terms.project_id, queue)

    async def _fly(self, waiting: deque[CommitQueue]) -> None:
        flown: list[CommitQueue] = []
        lots: list[_Lot] = []
        count = 0
        while waiting and count < TOGETHER_MAX:
            one = waiting.popleft()
            batch = one.take(BATCH_MAX - count)
            if batch is not None:
                flown.append(one)
                lots.append(_Lot(one.subject, batch, 0, len(batch)))
                count += len(batch)
        try:
            if lots:
                await self._commit(sorted(lots, key=lambda lot: lot.terms.voucher_id))
        finally:
            for one in flown:
                self.begin(one)

    async def _commit(self, lots: list[_Lot]) -> None:
        """Have lots of different vouchers decided, in id order, and answer them."""
        try:
            await self._decide(lots)
        except StatementFailed as error:
            # One poisoned request must not harm the others: each alone, with the same ids.
            if sum(lot.size for lot in lots) == 1:
                lots[0].batch.fail(lots[0].start, error)
                return
            _log.warning("batch_failed", sqlstate=error.sqlstate, constraint=error.constraint)
            for lot in lots:
                for at in range(lot.start, lot.end):
                    await self._commit([lot._replace(start=at, end=at + 1)])
        except Exception as error:
            if not isinstance(error, Unavailable | OutcomeUnknown):
                _log.exception("batch_broken")
            for lot in lots:
                for at in range(lot.start, lot.end):
                    lot.batch.fail(at, error)
        else:
            self._commits.commits += 1
            self._commits.decided += sum(lot.size for lot in lots)

    async def _decide(self, lots: list[_Lot]) -> None:
        if len(lots) == 1:
            found = await self._commits.ask(_of_one(lots[0]))
            # The next flight leaves first: PostgreSQL works while these are answered.
            self._loop.call_soon(_answer, lots[0], found)
            return
        by_lot: list[list[Decision]] = [[] for _ in lots]
        for decision in await self._commits.ask(_of_several(lots)):
            by_lot[decision.lot - 1].append(decision)
        for lot, decided in zip(lots, by_lot, strict=True):
            self._loop.call_soon(_answer, lot, decided)


_COLUMNS: Final = (
    "ids", "keys", "fingerprints", "customers", "order_values", "discounts", "order_ids",
)  # fmt: skip


def _of_one(lot: _Lot) -> Callable[[db.Connection], Awaitable[list[Decision]]]:
    terms = lot.terms
    columns = dict(zip(_COLUMNS, lot.batch.columns(lot.start, lot.end), strict=True))

    async def send(conn: db.Connection) -> list[Decision]:
        return await db.many(
            conn, "redemptions.redeem_plain", Decision,
            project_id=terms.project_id, voucher_id=terms.voucher_id,
            version=terms.terms_version, sale_id=terms.sale_id, **columns,
        )  # fmt: skip

    return send


def _of_several(lots: list[_Lot]) -> Callable[[db.Connection], Awaitable[list[LotDecision]]]:
    # An array literal is its members between braces, so literals are joined as texts.
    parts = zip(*(lot.batch.columns(lot.start, lot.end) for lot in lots), strict=True)
    joined = ["{" + ",".join([part[1:-1] for part in column]) + "}" for column in parts]
    columns = dict(zip(_COLUMNS, joined, strict=True))

    async def send(conn: db.Connection) -> list[LotDecision]:
        return await db.many(
            conn, "redemptions.redeem_plain_lots", LotDecision,
            project_id=lots[0].terms.project_id,
            vouchers=[lot.terms.voucher_id for lot in lots],
            versions=[lot.terms.terms_version for lot in lots],
            sales=[lot.terms.sale_id for lot in lots],
            starts=starts_of([lot.size for lot in lots]), **columns,
        )  # fmt: skip

    return send


def _answer(lot: _Lot, found: Sequence[Decision]) -> None:
    batch, start = lot.batch, lot.start
    first = found[0]
    if first.ord == 0:
        assert first.seq is not None and first.redeemed_at is not None
        batch.win_from(start, lot.end, first.seq, first.remaining, ms_of(first.redeemed_at))
        return
    assert len(found) == lot.size, f"{lot.size} asked, {len(found)} answered"
    for decision in found:
        at = start + decision.ord - 1
        if decision.outcome == "redeemed":
            assert decision.seq is not None and decision.redeemed_at is not None
            at_ms = ms_of(decision.redeemed_at)
            batch.win_from(at, at + 1, decision.seq, decision.remaining, at_ms)
        else:
            batch.tell(at, decision)


def _plain_terms(caller: Caller, terms: Terms, sale_id: UUID | None) -> PlainTerms:
    """Tell the compiled module what `price` and `answer` would use; see hotpath/src/plain.rs."""
    tail = {
        "flash_sale_id": ids.format_id("fls", sale_id) if sale_id else None,
        "campaign_id": ids.format_id("cmp", terms.campaign_id) if terms.campaign_id else None,
        "metadata": None,
        "rolled_back_at": None,
        "rollback_reason": None,
    }
    return PlainTerms(
        terms.code_norm,
        _encode(terms.code).decode(),
        caller.currency,
        caller.exponent,
        terms.discount_bp if terms.discount_type == "PERCENT" else None,
        terms.discount_minor or 0,
        terms.min_order_minor or 0,
        "," + _encode(tail).decode()[1:],
    )
