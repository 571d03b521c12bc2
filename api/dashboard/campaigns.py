"""Campaigns: list, make, edit with rules, copy, pause, end."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

import msgspec
from litestar import Request, get, post
from litestar.response import Response

from api import bodies, pagination
from api.dashboard import figures, forms, pages, rule_rows, visits
from api.dashboard.forms import Field
from api.dashboard.visits import Visit
from api.dashboard.vouchers import DISCOUNTS
from core import analytics, budgets, campaigns, db, redemptions, validations, vouchers
from core.analytics import Asked
from core.campaigns import Campaign, CampaignPatch, Move, NewCampaign
from core.errors import Fault, Invalid, Refusal
from core.rules import schedules
from core.validations import Question

Req = Request[Any, Any, Any]

_BASICS: Final = (Field("name", "Name", required=True),)
_DISCOUNT: Final = (
    Field(
        "rules.discount_type", "Discount", "choice", value="PERCENT",
        choices=(*DISCOUNTS, ("FREE_SHIPPING", "Free shipping")),
    ),
)  # fmt: skip
_LIMITS: Final = (
    Field("rules.discount_value", "Value", "number", hint="Percent, or money with decimals."),
    Field("rules.max_redemptions", "How often in all", "number", clears=True),
    Field("rules.min_order_value", "Least order value", "number", clears=True),
    Field("rules.starts_at", "Starts", "time", clears=True, hint="On the clock of its time zone."),
    Field("rules.expires_at", "Ends", "time", clears=True),
)
_BUDGET: Final = (
    Field("budget", "Budget of discount", "number", hint="Money given away in all; then it stops."),
)
_LATER: Final = (
    Field(
        "kind", "Codes", "choice", value="codes",
        choices=(
            ("codes", "Many codes, made by you"), ("standalone", "One code for everybody"),
            ("join_once", "One code for each customer"),
            ("automatic", "No code: applied by itself"),
        ),
    ),
    Field("code", "Code", hint="For one code for everybody; empty: one is drawn."),
    Field("rules.per_customer_limit", "How often for each customer", "number"),
    Field("status", "Begin as", "choice", choices=(("active", "Active"), ("draft", "Draft"))),
)  # fmt: skip
_ZONE: Final = (
    Field(
        "rules.time_zone",
        "Time zone",
        hint="Whose clock its dates, days and hours go by; empty: the project’s.",
    ),
)
_NEW: Final = (*_BASICS, *_DISCOUNT, *_LIMITS, *_BUDGET, *_LATER, *_ZONE)
# The cart that the editor tries the rules on.
CART: Final = (
    Field("try-price", "An item costs", "number", value="30", required=True),
    Field("try-quantity", "How many of it", "number", value="2", required=True),
    Field("try-tag", "Its tag"),
    Field("try-sku", "Its SKU"),
    Field("try-customer", "Customer"),
)
_EDIT: Final = (*_BASICS, *_LIMITS, *_BUDGET)
_RECENT_MAX: Final = 10


@get("/dashboard/{project:str}/campaigns", operation_id="dashboard.campaigns")
async def page(request: Req, project: str) -> Response[bytes]:
    """List campaigns, newest first."""
    visit = await visits.begun(request, project)
    asked = visit.asked("cmp", "status")
    status: Any = pagination.one_of(asked, "status", "draft", "active", "paused", "ended")
    async with visit.reading() as conn:
        rows = await campaigns.page(
            conn, visit.caller, status=status, after=asked.after, limit=asked.limit + 1
        )
    listed = pagination.listed(rows, asked)
    return visit.page(
        "campaigns.html", title="Campaigns", rows=listed.data, has_more=listed.has_more,
        status=status or "",
    )  # fmt: skip


@get("/dashboard/{project:str}/campaigns/new", operation_id="dashboard.campaigns.new")
async def new(request: Req, project: str) -> Response[bytes]:
    """Show the form of a campaign."""
    return _form(await visits.begun(request, project))


def _form(visit: Visit, fault: Fault | None = None) -> Response[bytes]:
    return visit.form(
        "New campaign", _NEW, template="campaign_form.html", fault=fault,
        back=("/campaigns", "Campaigns"), has_rows=True, **_asking(visit),
    )  # fmt: skip


def _asking(visit: Visit) -> dict[str, Any]:
    """Return what the editor offers beside plain fields."""
    return {
        "rows": rule_rows.posted(visit.given), "facts": rule_rows.FACTS,
        "tests": rule_rows.TESTS, "weekdays": rule_rows.WEEKDAYS, "cart": CART,
    }  # fmt: skip


def _zone(visit: Visit) -> str:
    """Return whose clock a form's dates go by: the campaign's, where it names one that is known."""
    named = visit.given.get("rules.time_zone", "").strip()
    try:
        return schedules.check_time_zone(named, field="rules.time_zone") if named else visit.zone
    except Invalid:
        return visit.zone


def _beyond(given: forms.Given, *, clears: bool) -> dict[str, Any]:
    """Return the members of a campaign's rules that are no plain fields."""
    conditions = rule_rows.read(given)
    budget = given.get("budget", "").strip()
    budgets = [{"of": "discount", "max": forms.number(budget)}] if budget else None
    found = {
        "rules.conditions": conditions, "rules.budgets": budgets,
        "rules.schedule": rule_rows.schedule(given),
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None or clears}


def _fields(all_: tuple[Field, ...], given: forms.Given) -> tuple[Field, ...]:
    """Return the fields that are members as they stand; a free shipping has no value."""
    is_free = given.get("rules.discount_type") == "FREE_SHIPPING"
    left_out = {"budget", "rules.discount_value"} if is_free else {"budget"}
    return tuple(one for one in all_ if one.name not in left_out)


@post("/dashboard/{project:str}/campaigns/new", operation_id="dashboard.campaigns.create")
async def create(request: Req, project: str) -> Response[bytes]:
    """Make a campaign and look at it."""
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> Campaign:
        more, fields = _beyond(visit.given, clears=False), _fields(_NEW, visit.given)
        return await campaigns.create(
            conn, visit.caller, forms.read(NewCampaign, fields, visit.given, _zone(visit), more)
        )

    try:
        made = await visit.once(work)
    except Fault as fault:
        return _form(visit, fault)
    return visit.redirect(f"/campaigns/{made.id}" if made else "/campaigns", "created")


@get("/dashboard/{project:str}/campaigns/{campaign:str}", operation_id="dashboard.campaigns.show")
async def show(request: Req, project: str, campaign: str) -> Response[bytes]:
    """Show a campaign: its terms in a sentence, its figures, its latest redemptions."""
    visit = await visits.begun(request, project)
    async with visit.reading() as conn:
        stored = await campaigns.find(conn, visit.caller, campaign)
        one = campaigns.show(stored, visit.caller)
        figured = await _figured(visit, conn, one)
        codes = await vouchers.page(
            conn, visit.caller, campaign_id=campaign, status=None, after=None, limit=_RECENT_MAX
        )
    recent, has_more = await _recent(visit, stored)
    return visit.page(
        "campaign.html", title=one.name, one=one, recent=recent, has_more=has_more, codes=codes,
        sentence=_sentence(one), **figured,
    )  # fmt: skip


def _sentence(one: Campaign) -> str:
    rules = one.rules
    words = rule_rows.sentences(rules.conditions)
    return words + rule_rows.times(rules.schedule, rules.time_zone)


async def _recent(
    visit: Visit, stored: campaigns.Stored
) -> tuple[list[redemptions.Redemption], bool]:
    return await redemptions.list_page(
        visit.services.database, visit.caller, redemptions.Filter(campaign_id=stored.id),
        before=None, limit=_RECENT_MAX,
    )  # fmt: skip


async def _figured(visit: Visit, conn: db.Connection, one: Campaign) -> dict[str, Any]:
    """Return what a campaign's page says of some days, and how much of its caps is gone."""
    span = figures.span_of(visit.request.query_params.get("days", ""))
    to_day = datetime.now(UTC).astimezone(ZoneInfo(visit.zone)).date()
    from_day = to_day - timedelta(days=span - 1)
    asked = Asked(from_day=from_day, to_day=to_day, unit=figures.grain_of(span))
    series = await analytics.of_campaign(conn, visit.caller, one.id, asked)
    return {
        "gone": (await budgets.gone(conn, visit.caller, [one]))[one.id], "series": series,
        "charts": [figures.redemptions(series), figures.discounts(series)], "span": span,
        "spans_all": figures.SPANS,
    }  # fmt: skip


@get(
    "/dashboard/{project:str}/campaigns/{campaign:str}/edit",
    operation_id="dashboard.campaigns.form",
)
async def edit_form(request: Req, project: str, campaign: str) -> Response[bytes]:
    """Show a campaign's form as it stands."""
    visit = await visits.begun(request, project)
    async with visit.reading() as conn:
        one = await campaigns.get(conn, visit.caller, campaign)
    visit.given = _given(one, _zone_of(visit, one))
    return _edit_form(visit, one)


def _zone_of(visit: Visit, one: Campaign) -> str:
    return str(one.rules.time_zone or visit.zone)


def _given(one: Campaign, zone: str) -> dict[str, str]:
    rules = one.rules
    given = {
        "name": one.name, "budget": _budget(one), **(rule_rows.stored(rules.conditions) or {}),
        **(rule_rows.stored_schedule(rules.schedule) or {}),
    }  # fmt: skip
    for field in _LIMITS:
        value = getattr(rules, field.name.removeprefix("rules."))
        is_time = isinstance(value, datetime)
        given[field.name] = forms.reading(value, zone) if is_time else pages.plain(value)
    return given


def _budget(one: Campaign) -> str:
    budgets = one.rules.budgets
    if not isinstance(budgets, list) or len(budgets) != 1:
        return ""
    if budgets[0].get("per") or budgets[0].get("period"):
        return ""
    return pages.plain(budgets[0]["max"]) if budgets[0]["of"] == "discount" else ""


def _edit_form(visit: Visit, one: Campaign, fault: Fault | None = None) -> Response[bytes]:
    return visit.form(
        f"Edit {one.name}", _EDIT, template="campaign_form.html", fault=fault, send="Save",
        back=(f"/campaigns/{one.id}", one.name), has_rows=_is_simple(one), **_asking(visit),
        fixed=[
            ("rules.discount_type", one.rules.discount_type),
            ("rules.time_zone", _zone_of(visit, one)),
        ],
    )  # fmt: skip


def _is_simple(one: Campaign) -> bool:
    """Whether the form can say all of a campaign's conditions and budgets."""
    has_budgets = isinstance(one.rules.budgets, list) and bool(one.rules.budgets)
    has_words = (
        rule_rows.stored(one.rules.conditions) is not None
        and rule_rows.stored_schedule(one.rules.schedule) is not None
    )
    return has_words and (not has_budgets or bool(_budget(one)))


@post(
    "/dashboard/{project:str}/campaigns/{campaign:str}/edit",
    operation_id="dashboard.campaigns.edit",
)
async def edit(request: Req, project: str, campaign: str) -> Response[bytes]:
    """Change a campaign; codes that are out follow at once."""
    visit = await visits.changing(request, project)
    async with visit.reading() as conn:
        one = await campaigns.get(conn, visit.caller, campaign)

    async def work(conn: db.Connection) -> Campaign | Refusal:
        return await campaigns.edit(conn, visit.caller, campaign, _change(visit, one))

    try:
        return await visit.act(work, f"/campaigns/{campaign}", "saved")
    except Fault as fault:
        return _edit_form(visit, one, fault)


def _change(visit: Visit, one: Campaign) -> CampaignPatch:
    more = _beyond(visit.given, clears=True) if _is_simple(one) else {}
    given = {"rules.discount_type": str(one.rules.discount_type), **visit.given}
    # What stays as it was is no new version of the terms.
    zone = _zone_of(visit, one)
    same = _given(one, zone)
    fields = tuple(
        field for field in _fields(_EDIT, given)
        if visit.given.get(field.name, "").strip() != same.get(field.name, "")
    )  # fmt: skip
    if all(visit.given.get(k, "").strip() == same.get(k, "") for k in _beyond_names()):
        more = {}
    return forms.read(CampaignPatch, fields, visit.given, zone, more)


def _beyond_names() -> list[str]:
    rows = [f"rule-{n}-{part}" for n in range(rule_rows.ROWS) for part in ("fact", "value")]
    days = [f"day-{key}" for key, _ in rule_rows.WEEKDAYS]
    tests = [f"rule-{n}-is" for n in range(rule_rows.ROWS)]
    return ["budget", "match", *rows, *tests, *days, "hours-from", "hours-to"]


NO_VALUE: Final = "With a value above, this says what a cart would get."


class _Tried(Exception):
    """Ends the transaction in which a campaign was only tried, so that nothing of it stays."""


@post("/dashboard/{project:str}/campaigns/preview", operation_id="dashboard.campaigns.preview")
async def preview(request: Req, project: str) -> Response[bytes]:
    """Say what a cart would get of a campaign as its form stands, or why not. Makes nothing."""
    visit = await visits.changing(request, project)
    found: dict[str, Any] = {"verdict": None, "wrong": "", "sentence": "", "rules": None}
    try:
        async with visit.services.database.transaction(visit.caller.project_id) as conn:
            found |= await _tried(visit, conn)
            raise _Tried
    except _Tried:
        pass
    except Fault as fault:
        has_value = fault.field != "rules.discount_value" or visit.given.get(fault.field)
        found["wrong"] = fault.detail if has_value else NO_VALUE
    return visit.page("campaign_preview.html", title="Preview", **found)


async def _tried(visit: Visit, conn: db.Connection) -> dict[str, Any]:
    """Make the campaign and a code of it, as if it ran already, and ask them."""
    given = {**visit.given, "kind": "codes", "code": "", "status": "active"}
    given |= {"rules.starts_at": "", "rules.expires_at": "", "name": given.get("name") or "Preview"}
    more, fields = _beyond(given, clears=False), _fields(_NEW, given)
    new = forms.read(NewCampaign, fields, given, visit.zone, more)
    made = await campaigns.create(conn, visit.caller, new)
    code = await vouchers.create(conn, visit.caller, vouchers.NewVoucher(campaign_id=made.id))
    verdict = (await validations.each(conn, visit.caller, [code.code], _cart(visit)))[0]
    why = rule_rows.why_not(verdict.because, verdict.detail or "")
    return {"verdict": verdict, "rules": made.rules, "sentence": _sentence(made), "why": why}


def _cart(visit: Visit) -> Question:
    """Return the cart to try on as the API would be asked. Raises: Invalid."""
    given = visit.given
    words = {"sku": given.get("try-sku", "").strip()}
    item: dict[str, Any] = {
        "unit_price": forms.number(given.get("try-price", "").strip() or "0"),
        "quantity": forms.number(given.get("try-quantity", "").strip() or "1"),
        "tags": forms.words(given.get("try-tag", "")),
        **{name: text for name, text in words.items() if text},
    }
    asked: dict[str, Any] = {"order": {"items": [item], "shipping": 5}}
    if customer := given.get("try-customer", "").strip():
        asked["customer_id"] = customer
    return bodies.decode(msgspec.json.encode(asked), Question)


async def _moved(request: Req, project: str, campaign: str, move: Move) -> Response[bytes]:
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> Campaign | Refusal:
        return await campaigns.switch(conn, visit.caller, campaign, move)

    done = {"activate": "activated", "pause": "paused", "resume": "resumed", "end": "ended"}
    return await visit.act(work, f"/campaigns/{campaign}", done[move])


@post(
    "/dashboard/{project:str}/campaigns/{campaign:str}/activate",
    operation_id="dashboard.campaigns.activate",
)
async def activate(request: Req, project: str, campaign: str) -> Response[bytes]:
    """Let a draft begin."""
    return await _moved(request, project, campaign, "activate")


@post(
    "/dashboard/{project:str}/campaigns/{campaign:str}/pause",
    operation_id="dashboard.campaigns.pause",
)
async def pause(request: Req, project: str, campaign: str) -> Response[bytes]:
    """Stop all its codes for a while."""
    return await _moved(request, project, campaign, "pause")


@post(
    "/dashboard/{project:str}/campaigns/{campaign:str}/resume",
    operation_id="dashboard.campaigns.resume",
)
async def resume(request: Req, project: str, campaign: str) -> Response[bytes]:
    """Let it go on."""
    return await _moved(request, project, campaign, "resume")


@post(
    "/dashboard/{project:str}/campaigns/{campaign:str}/end",
    operation_id="dashboard.campaigns.end",
)
async def finish(request: Req, project: str, campaign: str) -> Response[bytes]:
    """End it for good."""
    return await _moved(request, project, campaign, "end")


@post(
    "/dashboard/{project:str}/campaigns/{campaign:str}/clone",
    operation_id="dashboard.campaigns.clone",
)
async def clone(request: Req, project: str, campaign: str) -> Response[bytes]:
    """Make a draft with the same rules."""
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> Campaign:
        return await campaigns.clone(conn, visit.caller, campaign, None, None)

    made = await visit.once(work)
    return visit.redirect(f"/campaigns/{made.id}" if made else "/campaigns", "cloned")


ROUTES: Final = [
    page, new, preview, create, show, edit_form, edit, activate, pause, resume, finish, clone,
]  # fmt: skip
