"""The fraud rules at work: in the worker, behind every redemption, and over past days to try them.

The worker reads what was told since the mark, project by project, and writes alerts and the mark
in one commit. What a rule's window needs is kept in memory; a worker that begins reads a day again
and finds the same, which an alert's key makes one. Nothing of this is in a redemption's way.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import msgspec
import structlog

from core import db, fraud, ids
from core.api_keys import Caller
from core.errors import Invalid, OutcomeUnknown, Unavailable
from core.events import KEEP_DAYS
from core.fraud import RuleSet, Subject
from core.rules.fraud import (
    DAY_S,
    WINDOW_S_MAX,
    Fact,
    FactKind,
    Finding,
    Reason,
    Rule,
    RuleName,
    applied,
)
from core.rules.patterns import Detector
from core.shapes import Instant

# Facts of one look: a second of the rules' work, in pieces. Rows of events as figures take them.
ROWS_MAX: Final = 500
FACTS_MAX: Final = 20_000
# Facts between which others have their turn in the process: some milliseconds.
PIECE: Final = 200
# Facts between which a transaction shows that it lives: half a second, of the ten it may be idle.
STAY: Final = 5_000
LOOK_S: Final = 0.5
# With much to do, rests so many times as long as a look took: a fact costs about what a win does,
# and redemptions come first. A burst of 200,000, five seconds of work, is looked at in a minute.
REST_RATIO: Final = 9
# Processes write down what was refused once a second; an event is looked at after that.
HOLD: Final = timedelta(seconds=2)
# Facts that one statement reads: some ten milliseconds, of which half are the process's.
PAGE: Final = 2_000
# A worker that was overtaken waits so long for the mark to stand still: longer than a look at much,
# or a day read again, and the rest after it. The other one may have ended.
TAKE_OVER_S: Final = 120.0
# What is read again of a project that this worker does not know: a day, and never more than this.
REBUILD_MAX: Final = 100_000
# Projects whose windows are in memory; of others they are read again.
PROJECTS_MAX: Final = 200
# What one trial looks at, and how much it shows of what it would have found.
DRY_RUN_MAX: Final = 50_000
SHOWN_MAX: Final = 100
# Who blocks where no person does.
ACTOR: Final = "fraud-rules"

_ZERO: Final = UUID(int=0)
_LAST: Final = UUID(int=(1 << 128) - 1)
_log = structlog.get_logger("vauchflow.detections")


class DryRun(RuleSet, kw_only=True, forbid_unknown_fields=True):
    """Rules to try, changed as they would be, and over which time; the last seven days if not said.

    Events are kept for 30 days, so that is how far back a trial can look.
    """

    from_: Instant | None = msgspec.field(name="from", default=None)
    to: Instant | None = None


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """An alert that a trial would have written."""

    rule: RuleName
    subject: Subject
    score: int
    reasons: list[Reason]
    at: datetime


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What rules would have found. `is_complete`: nothing was left out for being too much."""

    facts: int
    is_complete: bool
    alerts: int
    by_rule: dict[str, int]
    shown: list[Tried]


class _Mark(msgspec.Struct, frozen=True):
    event_id: UUID
    signal_number: int


class _Project(msgspec.Struct, frozen=True):
    id: UUID
    version: int


class _Page(msgspec.Struct, frozen=True):
    first_id: UUID
    last_id: UUID


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    kind: FactKind
    id: UUID
    at: datetime
    customer_id: str | None
    voucher_id: UUID | None
    campaign_id: UUID | None
    is_sale: bool
    order_value_minor: int
    discount_minor: int
    address: str | None
    device: str | None
    is_new: bool
    reason: str | None
    referrer_id: str | None
    traits: list[str]


class _Signal(msgspec.Struct, frozen=True):
    number: int
    at: datetime
    reason: str
    code: str
    customer_id: str | None
    address: str | None
    device: str | None


class _Span(msgspec.Struct, frozen=True, kw_only=True):
    """Events and signals after one mark up to another, signals also by time."""

    after: _Mark
    to: _Mark
    from_at: datetime
    to_at: datetime
    limit: int


class _Known(msgspec.Struct):
    """A project's rules at work, as of a mark."""

    detector: Detector
    rules: dict[RuleName, Rule]
    version: int


class Detections:
    """What one worker keeps in memory of the projects it has looked at."""

    def __init__(self, database: db.Database) -> None:
        """Know nothing yet."""
        self._database = database
        # What these have seen is what is before the mark; None: more than that, or who knows.
        self._known: dict[UUID, _Known] = {}
        self._mark: _Mark | None = None
        self._waits_until = 0.0

    async def look(self) -> bool:
        """Look at what was told since the mark; False where nothing was, or somebody else looks.

        Who was overtaken leaves it to the other one until the mark stands still: two in turns
        would read a day again at every look.

        Idempotent: an alert is written once for its rule, subject and window.
        Raises: Unavailable, OutcomeUnknown; the same is looked at again then.
        """
        async with self._database.transaction(None) as conn:
            mark = await db.one(conn, "detections.mark", _Mark)
            if mark is None or not self._goes_on(mark):
                return False
            to = await db.one(
                conn, "detections.ahead", _Mark, event_id=mark.event_id,
                signal_number=mark.signal_number, hold=HOLD, rows_max=ROWS_MAX,
                facts_max=FACTS_MAX,
            )  # fmt: skip
            assert to is not None
            if to != mark:
                await self._look(conn, mark, to)
        self._mark = to
        return to != mark

    def _goes_on(self, mark: _Mark) -> bool:
        """Say whether to go on from a mark; forget what memory lacks where another worker did."""
        was_at, self._mark = self._mark, mark
        if mark != was_at:
            self._known.clear()
            if was_at is not None:
                self._waits_until = time.monotonic() + TAKE_OVER_S
        return time.monotonic() >= self._waits_until

    async def _look(self, conn: db.Connection, mark: _Mark, to: _Mark) -> None:
        found = await db.many(
            conn, "detections.projects", _Project,
            event_id=mark.event_id, to_event_id=to.event_id,
            signal_number=mark.signal_number, to_signal_number=to.signal_number,
        )  # fmt: skip
        # From here on memory is ahead of the mark, until `look` has committed.
        self._mark = None
        for project in found:
            known = await self._knowing(conn, project, mark)
            span = _Span(after=mark, to=to, from_at=_BEGIN, to_at=_END, limit=REBUILD_MAX)
            facts = await _facts(conn, project.id, span)
            async for finding in _findings(known.detector, facts, conn):
                await _write(conn, project.id, finding, known.rules[finding.rule])
        await db.run(
            conn, "detections.move_mark", event_id=to.event_id, signal_number=to.signal_number
        )

    async def _knowing(self, conn: db.Connection, project: _Project, mark: _Mark) -> _Known:
        """Return a project's rules at work, which have seen the day before the mark."""
        known = self._known.pop(project.id, None)
        if known is None or known.version != project.version:
            rules = await fraud.rules_of(conn, project.id)
            known = _Known(Detector(rules), rules, project.version)
            await _rebuild(conn, project.id, known.detector, mark)
        while len(self._known) >= PROJECTS_MAX:
            del self._known[next(iter(self._known))]
        self._known[project.id] = known
        return known


_BEGIN: Final = datetime.min.replace(tzinfo=UTC)
_END: Final = datetime.max.replace(tzinfo=UTC)


def event_id_at(at: datetime) -> UUID:
    """Return the smallest id that an event of an instant can have."""
    return UUID(int=max(0, int(at.timestamp() * 1_000)) << 80)


async def _rebuild(conn: db.Connection, project_id: UUID, detector: Detector, mark: _Mark) -> None:
    if mark.event_id == _ZERO:
        return
    looked_at = datetime.fromtimestamp((mark.event_id.int >> 80) / 1_000, UTC)
    from_at = looked_at - timedelta(seconds=WINDOW_S_MAX)
    span = _Span(
        after=_Mark(event_id_at(from_at), 0), to=mark, from_at=from_at, to_at=_END,
        limit=REBUILD_MAX,
    )  # fmt: skip
    async for _ in _findings(detector, await _facts(conn, project_id, span), conn):
        pass


async def _facts(conn: db.Connection, project_id: UUID, span: _Span) -> list[Fact]:
    """Return what happened within a span, in the order of time."""
    pages = await db.many(
        conn, "detections.pages", _Page, project_id=project_id, event_id=span.after.event_id,
        to_event_id=span.to.event_id, limit=span.limit, page=PAGE,
    )  # fmt: skip
    facts: list[Fact] = []
    for page in pages:
        rows = await db.many(
            conn, "detections.facts", _Row,
            project_id=project_id, first_id=page.first_id, last_id=page.last_id,
        )  # fmt: skip
        facts += map(_of_row, rows)
    signals = await db.many(
        conn, "detections.signals", _Signal, project_id=project_id,
        signal_number=span.after.signal_number, to_signal_number=span.to.signal_number,
        from_at=span.from_at, to_at=span.to_at, limit=span.limit,
    )  # fmt: skip
    facts += map(_of_signal, signals)
    facts.sort(key=lambda fact: (fact.at_ms, fact.kind, fact.id))
    return facts


def _of_row(row: _Row) -> Fact:
    return Fact(
        at_ms=_ms_of(row.at),
        kind=row.kind,
        id=str(row.id),
        customer=row.customer_id,
        code=str(row.voucher_id or ""),
        campaign=str(row.campaign_id) if row.campaign_id else None,
        is_sale=row.is_sale,
        is_new=row.is_new,
        address=row.address,
        device=row.device,
        order_value_minor=row.order_value_minor,
        discount_minor=row.discount_minor,
        reason=row.reason,
        referrer=row.referrer_id,
        traits=tuple(row.traits),
    )


def _of_signal(signal: _Signal) -> Fact:
    return Fact(
        at_ms=_ms_of(signal.at),
        kind="refused",
        id=f"{signal.number:020}",
        customer=signal.customer_id,
        code=signal.code,
        address=signal.address,
        device=signal.device,
        reason=signal.reason,
    )


def _ms_of(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(milliseconds=1)


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


async def _findings(
    detector: Detector, facts: Iterable[Fact], conn: db.Connection | None = None
) -> AsyncIterator[Finding]:
    """Feed facts, and let others have their turn after every few.

    `conn`: a transaction that must not be taken for one that somebody forgot.
    """
    for place, fact in enumerate(facts):
        if place % PIECE == PIECE - 1:
            await asyncio.sleep(0)
        if conn is not None and place % STAY == STAY - 1:
            await db.value(conn, "detections.stay", bool)
        for finding in detector.feed(fact):
            yield finding


async def _write(conn: db.Connection, project_id: UUID, finding: Finding, rule: Rule) -> None:
    """Write an alert, or let it grow; a new one is told of, and blocks where its rule does."""
    alert_id = ids.new()
    written = await db.one(
        conn, "detections.write", UUID, project_id=project_id, id=alert_id, rule=finding.rule,
        subject_kind=finding.subject_kind, subject=finding.subject,
        window_at=_instant(finding.window_ms), at=_instant(finding.at_ms), score=finding.score,
        observed=finding.observed, expected=finding.expected,
        reasons=msgspec.to_builtins(finding.reasons),
        redemption_ids=[UUID(one) for one in finding.evidence], action=rule.action,
    )  # fmt: skip
    if written != alert_id:
        return
    await db.run(
        conn, "detections.tell",
        project_id=project_id, id=alert_id, rule=finding.rule, score=finding.score,
    )  # fmt: skip
    if rule.action == "block":
        alert = await db.one(conn, "fraud.by_id", fraud.Stored, project_id=project_id, id=alert_id)
        assert alert is not None
        expires_at = datetime.now(UTC) + timedelta(seconds=rule.block_for_s)
        await fraud.block_subject(conn, project_id, alert, ACTOR, expires_at)


def _instant(at_ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=at_ms)


async def try_out(database: db.Database, caller: Caller, asked: DryRun) -> Trial:
    """Say what rules would have found in past days. Changes nothing. Raises: Invalid.

    The day before is read as well, so that windows are full where the span begins. Cost: reads
    the span's redemptions, some ten thousand a second, in pieces.
    """
    rules = applied(asked.rules)
    now = datetime.now(UTC)
    to_at = min(asked.to or now, now)
    from_at = asked.from_ or to_at - timedelta(days=7)
    if not timedelta(0) < to_at - from_at <= timedelta(days=KEEP_DAYS):
        raise Invalid(f"from must be before to, by at most {KEEP_DAYS} days", field="from")
    before = from_at - timedelta(seconds=DAY_S)
    span = _Span(
        after=_Mark(event_id_at(before), 0), to=_Mark(event_id_at(to_at), (1 << 63) - 1),
        from_at=before, to_at=to_at, limit=DRY_RUN_MAX,
    )  # fmt: skip
    async with database.transaction(caller.project_id, reads_only=True) as conn:
        facts = await _facts(conn, caller.project_id, span)
    detector = Detector(rules)
    found: dict[tuple[str, str, str, int], Finding] = {}
    async for finding in _findings(detector, facts):
        if _instant(finding.at_ms) >= from_at:
            key = (finding.rule, finding.subject_kind, finding.subject, finding.window_ms)
            found[key] = finding
    by_rule: dict[str, int] = {}
    for finding in found.values():
        by_rule[finding.rule] = by_rule.get(finding.rule, 0) + 1
    worst = sorted(found.values(), key=lambda one: (-one.score, one.at_ms, one.subject))
    return Trial(
        facts=len(facts),
        is_complete=len(facts) < DRY_RUN_MAX,
        alerts=len(found),
        by_rule=dict(sorted(by_rule.items())),
        shown=[
            Tried(
                rule=one.rule,
                subject=fraud.subject_of(one.subject_kind, one.subject, None),
                score=one.score,
                reasons=list(one.reasons),
                at=_instant(one.at_ms),
            )
            for one in worst[:SHOWN_MAX]
        ],
    )


async def run(database: db.Database) -> None:
    """Look until cancelled. Several workers may run it; one at a time looks."""
    detections = Detections(database)
    while True:
        began = time.monotonic()
        found = False
        try:
            found = await detections.look()
        except (Unavailable, OutcomeUnknown) as error:
            _log.warning("fraud_rules_wait", error=str(error))
        except Exception:
            _log.exception("fraud_rules_broken")
        await asyncio.sleep(
            max(LOOK_S, (time.monotonic() - began) * REST_RATIO) if found else LOOK_S
        )
