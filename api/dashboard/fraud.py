"""Fraud: alerts with their reasons, what somebody decides about them, rules, and the block list."""

from datetime import timedelta
from typing import Any, Final, get_args

from litestar import Request, get, post
from litestar.response import Response

from api import pagination
from api.dashboard import forms, visits
from api.dashboard.forms import Field
from api.dashboard.visits import Visit
from core import analytics, blocks, db, fraud
from core.blocks import NewBlock
from core.errors import Fault, Refusal
from core.fraud import Alert, Decision, Rules, RuleSet
from core.rules.fraud import RuleName

Req = Request[Any, Any, Any]

DAYS: Final = 30
_FILTERS: Final = ("status", "rule")
_ACTIONS: Final = (
    ("alert", "Tell"), ("review", "Tell, and let somebody decide"), ("block", "Block at once"),
)  # fmt: skip
_RULE: Final = (
    Field("enabled", "It looks", "tick"),
    Field("action", "What it does", "choice", choices=_ACTIONS),
    Field("threshold", "From how many on", "number"),
    Field("window_s", "Within", "number", suffix="seconds"),
    Field("factor", "And so many times what is usual", "number"),
    Field("block_for_s", "A block holds for", "number", suffix="seconds"),
)
_BLOCK: Final = (
    Field(
        "kind", "What", "choice", value="customer",
        choices=tuple((kind, kind.capitalize()) for kind in blocks.KINDS),
    ),
    Field("value", "Which", required=True, hint="As the redemption names it."),
    Field("reason", "Why"),
    Field("expires_in_s", "For", "number", suffix="seconds", hint="Empty: until it is lifted."),
)  # fmt: skip
_DECISION: Final = (Field("note", "Note", "area", hint="For those who look at it later."),)


@get("/dashboard/{project:str}/fraud", operation_id="dashboard.fraud")
async def page(request: Req, project: str) -> Response[bytes]:
    """List alerts, newest first, with what the last 30 days add up to."""
    visit = await visits.begun(request, project)
    asked = visit.asked("fra", *_FILTERS)
    narrow = _narrowed(asked)
    async with visit.reading() as conn:
        rows = await fraud.page(
            conn, visit.caller, narrow=narrow, after=asked.after, limit=asked.limit + 1
        )
        report = await _report(conn, visit)
    listed = pagination.listed(rows, asked)
    return visit.page(
        "fraud.html", title="Fraud", rows=listed.data, has_more=listed.has_more, report=report,
        asked=narrow, statuses=fraud.STATUSES, rules=get_args(RuleName),
        days=DAYS,
    )  # fmt: skip


def _narrowed(asked: pagination.Page) -> dict[str, Any]:
    return {
        "status": pagination.one_of(asked, "status", *fraud.STATUSES),
        "rule": pagination.one_of(asked, "rule", *get_args(RuleName)),
        **dict.fromkeys(("action", "kind", "subject")),
    }


async def _report(conn: db.Connection, visit: Visit) -> fraud.Report:
    today = await analytics.today(conn, visit.zone)
    from_day = today - timedelta(days=DAYS - 1)
    return await fraud.report(conn, visit.caller, from_day, today, visit.zone)


@get("/dashboard/{project:str}/fraud/alerts/{alert:str}", operation_id="dashboard.fraud.show")
async def show(request: Req, project: str, alert: str) -> Response[bytes]:
    """Show an alert: whom it is about, why, and what can be done."""
    visit = await visits.begun(request, project)
    async with visit.reading() as conn:
        one = await fraud.get(conn, visit.caller, alert)
    return visit.page(
        "fraud_alert.html", title=_title(one), one=one, fields=_DECISION,
        can_block=one.subject.kind in blocks.KINDS,
    )  # fmt: skip


def _title(one: Alert) -> str:
    return f"{one.subject.kind.capitalize()} {one.subject.name or one.subject.id}"


async def _decided(
    request: Req, project: str, alert: str, status: fraud.Status, block: bool | None = None
) -> Response[bytes]:
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> Alert | Refusal:
        decision = forms.read(
            Decision, _DECISION, visit.given, visit.zone, {} if block is None else {"block": block}
        )
        return await fraud.decide(conn, visit.caller, alert, status, decision)

    return await visit.act(work, f"/fraud/alerts/{alert}", "saved")


@post(
    "/dashboard/{project:str}/fraud/alerts/{alert:str}/acknowledge",
    operation_id="dashboard.fraud.acknowledge",
)
async def acknowledge(request: Req, project: str, alert: str) -> Response[bytes]:
    """Say that somebody is looking at it."""
    return await _decided(request, project, alert, "acknowledged")


@post(
    "/dashboard/{project:str}/fraud/alerts/{alert:str}/dismiss",
    operation_id="dashboard.fraud.dismiss",
)
async def dismiss(request: Req, project: str, alert: str) -> Response[bytes]:
    """Say that it is no fraud, and lift the block that the alert made."""
    return await _decided(request, project, alert, "dismissed")


@post(
    "/dashboard/{project:str}/fraud/alerts/{alert:str}/confirm",
    operation_id="dashboard.fraud.confirm",
)
async def confirm(request: Req, project: str, alert: str) -> Response[bytes]:
    """Say that it is fraud, and block nobody."""
    return await _decided(request, project, alert, "confirmed", block=False)


@post(
    "/dashboard/{project:str}/fraud/alerts/{alert:str}/block",
    operation_id="dashboard.fraud.block",
)
async def block(request: Req, project: str, alert: str) -> Response[bytes]:
    """Say that it is fraud, and block its subject."""
    return await _decided(request, project, alert, "confirmed", block=True)


@get("/dashboard/{project:str}/fraud/rules", operation_id="dashboard.fraud.rules")
async def rules(request: Req, project: str) -> Response[bytes]:
    """Show the rules as they stand."""
    return await _rules(await visits.begun(request, project))


async def _rules(visit: Visit, fault: Fault | None = None, name: str = "") -> Response[bytes]:
    async with visit.reading() as conn:
        found = await fraud.rules(conn, visit.caller)
    return visit.page(
        "fraud_rules.html", 400 if fault else 200, title="Fraud rules", found=found.rules,
        fields=_RULE, told=fault.detail if fault else None, wrong_rule=name, given=visit.given,
    )  # fmt: skip


@post("/dashboard/{project:str}/fraud/rules/{rule:str}", operation_id="dashboard.fraud.rule")
async def set_rule(request: Req, project: str, rule: str) -> Response[bytes]:
    """Change one rule; the others stay as they are."""
    visit = await visits.changing(request, project)
    try:
        done = await visit.once(lambda conn: _set(conn, visit, rule))
    except Fault as fault:
        return await _rules(visit, fault, rule)
    return visit.redirect("/fraud/rules", "saved" if done else "")


async def _set(conn: db.Connection, visit: Visit, name: str) -> Rules:
    before = await fraud.rules(conn, visit.caller)
    members = ("enabled", "action", "threshold", "window_s", "factor", "block_for_s")
    kept: dict[str, Any] = {
        one: {member: getattr(rule, member) for member in members}
        for one, rule in before.rules.items()
        if not rule.is_default and one != name
    }
    prefixed = tuple(
        Field(f"rules.{name}.{one.name}", one.label, one.kind, choices=one.choices) for one in _RULE
    )
    given = {f"rules.{name}.{key}": text for key, text in visit.given.items()}
    more = {f"rules.{one}": members for one, members in kept.items()}
    asked = forms.read(RuleSet, prefixed, given, visit.zone, more)
    return await fraud.set_rules(conn, visit.caller, asked)


@get("/dashboard/{project:str}/fraud/blocks", operation_id="dashboard.fraud.blocks")
async def block_list(request: Req, project: str) -> Response[bytes]:
    """List what is blocked, newest first."""
    return await _blocks(await visits.begun(request, project))


async def _blocks(visit: Visit, fault: Fault | None = None) -> Response[bytes]:
    asked = visit.asked("blk", "kind")
    kind = pagination.one_of(asked, "kind", *blocks.KINDS)
    async with visit.reading() as conn:
        rows = await blocks.page(
            conn, visit.caller, kind=kind, after=asked.after, limit=asked.limit + 1
        )
    listed = pagination.listed(rows, asked)
    return visit.page(
        "fraud_blocks.html", 400 if fault else 200, title="Blocked", rows=listed.data,
        has_more=listed.has_more, kind=kind or "", kinds=blocks.KINDS, fields=_BLOCK,
        told=fault.detail if fault else None, given=visit.given,
    )  # fmt: skip


@post("/dashboard/{project:str}/fraud/blocks", operation_id="dashboard.fraud.blocks.create")
async def add_block(request: Req, project: str) -> Response[bytes]:
    """Block somebody or something."""
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> blocks.Block:
        asked = forms.read(NewBlock, _BLOCK, visit.given, visit.zone)
        return await blocks.create(conn, visit.caller, visit.services.contexts, asked)

    try:
        return await visit.act(work, "/fraud/blocks", "blocked")
    except Fault as fault:
        return await _blocks(visit, fault)


@post(
    "/dashboard/{project:str}/fraud/blocks/{block:str}/lift",
    operation_id="dashboard.fraud.blocks.lift",
)
async def lift_block(request: Req, project: str, block: str) -> Response[bytes]:
    """Let somebody or something redeem again."""
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> None:
        await blocks.remove(conn, visit.caller, block)

    return await visit.act(work, "/fraud/blocks", "lifted")


ROUTES: Final = [
    page, show, acknowledge, dismiss, confirm, block, rules, set_rule, block_list, add_block,
    lift_block,
]  # fmt: skip
