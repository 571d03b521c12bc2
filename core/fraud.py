"""Fraud alerts: what the rules found, what somebody decided about it, and the rules themselves.

`core.detections` finds; here alerts are read and decided, and rules are set. An alert is decided
once: dismissed lifts the block it made, confirmed keeps or makes one.
"""

from collections.abc import Iterable
from datetime import date, datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec

from core import audit_log, blocks, db, ids
from core.api_keys import Caller
from core.errors import Invalid, NotFound, Refusal
from core.rules import codes, fraud, money
from core.rules.fraud import Action, Reason, Rule, RuleChange, RuleName, SubjectKind
from core.shapes import Amount

Status = Literal["open", "acknowledged", "dismissed", "confirmed"]
STATUSES: Final[tuple[Status, ...]] = ("open", "acknowledged", "dismissed", "confirmed")
# What `GET /v1/analytics/fraud` shows of a span, and how long one may be.
TOP_MAX: Final = 10
DAYS_MAX: Final = 366


class RuleSet(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The changes of a project; rules that are left out are as they come."""

    rules: dict[RuleName, RuleChange]


class ShownRule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule as it stands, what it counts, and how it comes."""

    meaning: str
    enabled: bool
    action: Action
    threshold: int
    window_s: int | None
    factor: int | None
    block_for_s: int
    is_default: bool


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """All rules of a project, by name."""

    rules: dict[RuleName, ShownRule]
    updated_at: datetime | None


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A row of vf.fraud_alerts. Of codes, campaigns and redemptions `subject` is a uuid."""

    id: UUID
    rule: RuleName
    subject_kind: SubjectKind
    subject: str
    subject_name: str | None
    window_at: datetime
    at: datetime
    score: int
    observed: int
    expected: int
    reasons: list[Reason]
    redemption_ids: list[UUID]
    action: Action
    status: Status
    note: str | None
    decided_by: str | None
    decided_at: datetime | None
    created_at: datetime
    is_blocked: bool


class Subject(msgspec.Struct, frozen=True):
    """Whom or what an alert is about. `id`: the shop's own, a public one, or a keyed hash.

    `name`: a code, or a campaign's name.
    """

    kind: SubjectKind
    id: str
    name: str | None


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """An alert as the API shows it. `reasons` begins with the rule's own."""

    id: str
    rule: RuleName
    subject: Subject
    score: int
    reasons: list[Reason]
    status: Status
    action: Action
    is_blocked: bool
    redemption_ids: list[str]
    at: datetime
    note: str | None
    decided_by: str | None
    decided_at: datetime | None
    created_at: datetime


class Decision(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What somebody says of an alert. `block`: of a confirmed one; as its rule asks if left out."""

    note: Annotated[str, msgspec.Meta(min_length=1, max_length=1_000)] | None = None
    block: bool | None = None


class Count(msgspec.Struct, frozen=True):
    """So many alerts of something."""

    name: str
    alerts: int


class DayCount(msgspec.Struct, frozen=True):
    """The alerts of a day, and how many of them were confirmed."""

    day: str
    alerts: int
    confirmed: int


class TopSubject(msgspec.Struct, frozen=True):
    """Somebody or something that alerts of a span are about, and the highest score of them."""

    subject: Subject
    alerts: int
    score: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The alerts of a span, by state, rule, day and subject, and the block list as it stands."""

    from_: str = msgspec.field(name="from")
    to: str
    time_zone: str
    alerts: int
    undecided: int
    by_status: dict[str, int]
    by_rule: dict[str, int]
    by_action: dict[str, int]
    days: list[DayCount]
    top_subjects: list[TopSubject]
    discount_at_risk: Amount
    currency: str
    blocks: dict[str, int]


class _StoredRules(msgspec.Struct, frozen=True):
    rules: dict[RuleName, RuleChange]
    version: int
    updated_at: datetime | None


class _Total(msgspec.Struct, frozen=True):
    kind: str
    name: str
    alerts: int


class _Subject(msgspec.Struct, frozen=True):
    kind: SubjectKind
    subject: str
    subject_name: str | None
    alerts: int
    score: int


async def rules_of(conn: db.Connection, project_id: UUID) -> dict[RuleName, Rule]:
    """Return the rules of a project as they apply."""
    stored = await _stored(conn, project_id)
    return fraud.applied(stored.rules)


async def _stored(conn: db.Connection, project_id: UUID) -> _StoredRules:
    found = await db.one(conn, "fraud.rules", _StoredRules, project_id=project_id)
    return found or _StoredRules({}, 0, None)


async def rules(conn: db.Connection, caller: Caller) -> Rules:
    """Return the rules as they stand."""
    stored = await _stored(conn, caller.project_id)
    applied = fraud.applied(stored.rules)
    return Rules(
        rules={
            name: ShownRule(
                meaning=fraud.MEANINGS[name],
                is_default=rule == fraud.DEFAULTS[name],
                **msgspec.structs.asdict(rule),
            )
            for name, rule in applied.items()
        },
        updated_at=stored.updated_at,
    )


async def set_rules(conn: db.Connection, caller: Caller, new: RuleSet) -> Rules:
    """Replace a project's changes. What was found stays found. Idempotent. Raises: Invalid."""
    fraud.applied(new.rules)
    before = await rules(conn, caller)
    told = {name: _given(change) for name, change in new.rules.items()}
    await db.run(
        conn, "fraud.set_rules",
        project_id=caller.project_id, rules={name: one for name, one in told.items() if one},
    )  # fmt: skip
    after = await rules(conn, caller)
    changes = audit_log.changed(_plain(before), _plain(after))
    if changes["after"]:
        await audit_log.write(conn, caller, "fraud_rules.changed", "fraud_rules", **changes)
    return after


def _given(change: RuleChange) -> dict[str, Any]:
    told = msgspec.structs.asdict(change)
    return {name: value for name, value in told.items() if value is not None}


def _plain(shown: Rules) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(shown.rules)
    return plain


async def page(
    conn: db.Connection, caller: Caller, *, narrow: dict[str, Any], after: UUID | None, limit: int
) -> list[Alert]:
    """Return up to `limit` alerts, newest first.

    `narrow` has status, rule, action, kind and subject; None does not narrow.
    """
    rows = await db.many(
        conn, "fraud.page", Stored,
        project_id=caller.project_id, after=after, limit=limit, **narrow,
    )  # fmt: skip
    return [show(row) for row in rows]


async def get(conn: db.Connection, caller: Caller, public_id: str) -> Alert:
    """Return an alert. Raises: NotFound."""
    return show(await _find(conn, caller, public_id))


async def of_ids(
    conn: db.Connection, caller: Caller, alert_ids: Iterable[UUID]
) -> dict[UUID, Alert]:
    """Return some alerts."""
    rows = await db.many(
        conn, "fraud.by_ids", Stored, project_id=caller.project_id, ids=list(alert_ids)
    )
    return {row.id: show(row) for row in rows}


async def _find(conn: db.Connection, caller: Caller, public_id: str) -> Stored:
    alert_id = ids.parse_id("fra", public_id)
    params = {"project_id": caller.project_id, "id": alert_id}
    row = await db.one(conn, "fraud.by_id", Stored, **params) if alert_id else None
    if row is None:
        raise NotFound("There is no such fraud alert in this project.")
    return row


async def decide(
    conn: db.Connection, caller: Caller, public_id: str, status: Status, decision: Decision
) -> Alert | Refusal:
    """Acknowledge, dismiss or confirm an alert. Idempotent.

    Refuses: ended, where it was dismissed or confirmed before. Raises: NotFound, Invalid.
    Concurrency: a conditional write; of two who decide at once the second hears what was decided.
    """
    stored = await _find(conn, caller, public_id)
    if stored.status == status:
        return show(stored)
    if decision.block is not None and status != "confirmed":
        raise Invalid("block is said of an alert that is confirmed", field="block")
    changed = await db.run(
        conn, "fraud.decide",
        project_id=caller.project_id, id=stored.id, status=status, note=decision.note,
        decided_by=caller.actor,
    )  # fmt: skip
    if not changed:
        stored = await _find(conn, caller, public_id)
        if stored.status == status:
            return show(stored)
        return Refusal("ended", "This alert was decided before.", {"status": stored.status})
    if status == "dismissed":
        await db.run(
            conn, "blocks.remove_of_alert", project_id=caller.project_id, alert_id=stored.id
        )
    elif status == "confirmed":
        blocks_it = decision.block if decision.block is not None else stored.action != "alert"
        if blocks_it:
            await block_subject(conn, caller.project_id, stored, caller.actor, None)
    await audit_log.write(
        conn, caller, f"fraud_alert.{status}", public_id,
        {"rule": stored.rule}, before={"status": stored.status}, after={"status": status},
    )  # fmt: skip
    return await get(conn, caller, public_id)


async def block_subject(
    conn: db.Connection,
    project_id: UUID,
    alert: Stored,
    actor: str,
    expires_at: datetime | None,
) -> None:
    """Put an alert's subject on the block list; one that is there already stays as it is.

    Where the list is full it is not blocked, as the alert then shows.
    Campaigns and redemptions cannot be blocked: pause the one, roll the other back.
    """
    value: str | None = alert.subject
    if alert.subject_kind == "code":
        value = codes.normalise(alert.subject_name or "")
    if alert.subject_kind in blocks.KINDS and value is not None:
        await db.run(
            conn, "blocks.add",
            project_id=project_id, id=ids.new(), kind=alert.subject_kind, value=value,
            reason=f"fraud: {alert.rule}", alert_id=alert.id, created_by=actor,
            expires_at=expires_at, blocks_max=blocks.BLOCKS_MAX,
        )  # fmt: skip


async def report(
    conn: db.Connection, caller: Caller, from_day: date, to_day: date, zone: str
) -> Report:
    """Return what alerts of some days add up to, in a time zone. Raises: Invalid."""
    if not 0 <= (to_day - from_day).days < DAYS_MAX:
        raise Invalid(f"from must be before to, by at most {DAYS_MAX} days", field="from")
    span = {
        "project_id": caller.project_id, "from_day": from_day, "to_day": to_day, "time_zone": zone,
    }  # fmt: skip
    totals = await db.many(conn, "fraud.totals", _Total, **span)
    days = await db.many(conn, "fraud.days", DayCount, **span)
    top = await db.many(conn, "fraud.top", _Subject, limit=TOP_MAX, **span)
    at_risk = await db.value(conn, "fraud.discount_at_risk", int, **span)
    blocked = await db.many(conn, "fraud.block_counts", Count, project_id=caller.project_id)
    by_kind: dict[str, dict[str, int]] = {"status": {}, "rule": {}, "action": {}}
    for one in totals:
        by_kind[one.kind][one.name] = one.alerts
    by_status: dict[str, int] = {one: by_kind["status"].get(one, 0) for one in STATUSES}
    return Report(
        from_=from_day.isoformat(),
        to=to_day.isoformat(),
        time_zone=zone,
        alerts=sum(by_status.values()),
        undecided=by_status["open"] + by_status["acknowledged"],
        by_status=by_status,
        by_rule=by_kind["rule"],
        by_action=by_kind["action"],
        days=days,
        top_subjects=[
            TopSubject(subject_of(one.kind, one.subject, one.subject_name), one.alerts, one.score)
            for one in top
        ],
        discount_at_risk=money.json_amount(at_risk, caller.exponent),
        currency=caller.currency,
        blocks={**dict.fromkeys(blocks.KINDS, 0), **{one.name: one.alerts for one in blocked}},
    )


_PREFIXES: Final[dict[SubjectKind, ids.Prefix]] = {
    "code": "vch", "campaign": "cmp", "redemption": "rdm",
}  # fmt: skip


def subject_of(kind: SubjectKind, subject: str, name: str | None) -> Subject:
    """Write whom or what an alert is about as the API shows it."""
    prefix = _PREFIXES.get(kind)
    return Subject(kind, ids.format_id(prefix, UUID(subject)) if prefix else subject, name)


def stored_subject(text: str | None) -> str | None:
    """Return what a subject that the API showed is stored as."""
    for prefix in _PREFIXES.values():
        found = ids.parse_id(prefix, text or "")
        if found is not None:
            return str(found)
    return text


def show(row: Stored) -> Alert:
    """Write a row as the API shows it."""
    return Alert(
        id=ids.format_id("fra", row.id),
        rule=row.rule,
        subject=subject_of(row.subject_kind, row.subject, row.subject_name),
        score=row.score,
        reasons=row.reasons,
        status=row.status,
        action=row.action,
        is_blocked=row.is_blocked,
        redemption_ids=[ids.format_id("rdm", one) for one in row.redemption_ids],
        at=row.at,
        note=row.note,
        decided_by=row.decided_by,
        decided_at=row.decided_at,
        created_at=row.created_at,
    )
