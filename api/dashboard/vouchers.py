"""Vouchers: find, list, make, look at, switch; batches and their codes."""

import csv
import io
from collections.abc import Iterable
from typing import Any, Final

from litestar import Request, get, post
from litestar.response import Response

from api import pagination
from api.dashboard import forms, visits
from api.dashboard.forms import Field
from api.dashboard.visits import Visit
from core import batches, db, exports, redemptions, validations, vouchers
from core.batches import NewBatch
from core.errors import Fault, Invalid, NotFound, Refusal
from core.rules.cells import harmless
from core.validations import Question
from core.vouchers import NewVoucher, Voucher, VoucherPatch

Req = Request[Any, Any, Any]

DISCOUNTS: Final = (("PERCENT", "Percent"), ("AMOUNT", "Amount"), ("FIXED", "Fixed price"))
_TERMS: Final = (
    Field("discount_type", "Discount", "choice", choices=DISCOUNTS, value="PERCENT"),
    Field("discount_value", "Value", "number", hint="Percent, or money with its decimals."),
    Field("max_redemptions", "How often in all", "number", hint="Empty: without limit."),
    Field("per_customer_limit", "How often for each customer", "number"),
    Field("min_order_value", "Least order value", "number"),
    Field("campaign_id", "Campaign", hint="Its id, cmp_…; its discount and limits count, too."),
    Field("starts_at", "Starts", "time", hint="In the project’s time zone."),
    Field("expires_at", "Ends", "time"),
)
_VOUCHER: Final = (
    Field("code", "Code", hint="Empty: one is drawn that nobody guesses."), *_TERMS,
)  # fmt: skip
_BATCH: Final = (
    Field("count", "How many", "number", required=True, hint="Up to a million."),
    Field("code_config.prefix", "Codes begin with"),
    *_TERMS,
)
# Downloaded codes of one batch, asked for in the API's own parts; beyond it the API is the way.
CODES_MAX: Final = 1_000_000
# Parts of an export in one download: 100,000 vouchers, a few seconds. All are had from the API.
PARTS_MAX: Final = 10
_RECENT_MAX: Final = 20


@get("/dashboard/{project:str}/vouchers", operation_id="dashboard.vouchers")
async def page(request: Req, project: str) -> Response[bytes]:
    """List vouchers, newest first."""
    visit = await visits.begun(request, project)
    return await _list(visit)


async def _list(visit: Visit, **context: Any) -> Response[bytes]:
    asked = visit.asked("vch", "status", "campaign_id", "code")
    status: Any = pagination.one_of(asked, "status", "active", "disabled", "expired")
    campaign_id = asked.filters.get("campaign_id")
    async with visit.reading() as conn:
        rows = await vouchers.page(
            conn, visit.caller, campaign_id=campaign_id, status=status, after=asked.after,
            limit=asked.limit + 1,
        )  # fmt: skip
    listed = pagination.listed(rows, asked)
    return visit.page(
        "vouchers.html", 404 if context else 200, title="Vouchers", rows=listed.data,
        has_more=listed.has_more, status=status or "", campaign_id=campaign_id or "", **context,
    )  # fmt: skip


@get("/dashboard/{project:str}/vouchers/find", operation_id="dashboard.vouchers.find")
async def find(request: Req, project: str) -> Response[bytes]:
    """Go to the voucher with a code."""
    visit = await visits.begun(request, project)
    code = request.query_params.get("code", "").strip()
    try:
        async with visit.reading() as conn:
            found = await vouchers.get(conn, visit.caller, code)
    except NotFound:
        return await _list(visit, missed=code)
    return visit.redirect(f"/vouchers/{found.id}")


@get("/dashboard/{project:str}/vouchers.csv", operation_id="dashboard.vouchers.csv")
async def table(request: Req, project: str) -> Response[bytes]:
    """Download vouchers as CSV, as the API exports them."""
    visit = await visits.begun(request, project)
    given = pagination.parameters(request, "campaign_id")
    parts: list[bytes] = []
    after: str | None = None
    async with visit.reading() as conn:
        while len(parts) < PARTS_MAX and (after or not parts):
            part = await exports.part(
                conn, visit.caller, "csv", campaign_id=given.get("campaign_id"), after=after
            )
            parts.append(part.text)
            after = part.last
    return _download("vouchers.csv", b"".join(parts))


def _download(name: str, text: bytes) -> Response[bytes]:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(text, media_type="text/csv", headers=headers)


@get("/dashboard/{project:str}/vouchers/new", operation_id="dashboard.vouchers.new")
async def new(request: Req, project: str) -> Response[bytes]:
    """Show the form of a voucher."""
    visit = await visits.begun(request, project)
    visit.given = dict(pagination.parameters(request, "campaign_id"))
    return _voucher_form(visit)


def _voucher_form(visit: Visit, fault: Fault | None = None) -> Response[bytes]:
    return visit.form("New voucher", _VOUCHER, back=("/vouchers", "Vouchers"), fault=fault)


@post("/dashboard/{project:str}/vouchers/new", operation_id="dashboard.vouchers.create")
async def create(request: Req, project: str) -> Response[bytes]:
    """Make a voucher and look at it."""
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> Voucher:
        given = _discounted(visit.given)
        asked = forms.read(NewVoucher, _VOUCHER, given, visit.zone)
        return await vouchers.create(conn, visit.caller, asked)

    try:
        made = await visit.once(work)
    except Fault as fault:
        return _voucher_form(visit, fault)
    return visit.redirect(f"/vouchers/{made.id}" if made else "/vouchers", "created")


def _discounted(given: dict[str, str]) -> dict[str, str]:
    """Leave the kind of a discount out where there is none: the campaign's counts."""
    if given.get("discount_value", "").strip() or not given.get("campaign_id", "").strip():
        return given
    return {name: text for name, text in given.items() if name != "discount_type"}


def _dates(one: Voucher, zone: str) -> tuple[Field, ...]:
    return (
        Field("starts_at", "Starts", "time", clears=True, value=forms.reading(one.starts_at, zone)),
        Field("expires_at", "Ends", "time", clears=True, value=forms.reading(one.expires_at, zone)),
    )


@get("/dashboard/{project:str}/vouchers/{voucher:str}", operation_id="dashboard.vouchers.show")
async def show(request: Req, project: str, voucher: str) -> Response[bytes]:
    """Show a voucher: its terms, its life, and whether it would work."""
    visit = await visits.begun(request, project)
    async with visit.reading() as conn:
        one = await vouchers.get(conn, visit.caller, voucher)
    asked, verdict = await _asked(visit, one)
    recent, has_more = await redemptions.list_page(
        visit.services.database, visit.caller, redemptions.Filter(code=one.code), before=None,
        limit=_RECENT_MAX,
    )  # fmt: skip
    return visit.page(
        "voucher.html", title=one.code, one=one, recent=recent, has_more=has_more,
        dates=_dates(one, visit.zone), asked=asked, verdict=verdict, can_roll_back=True,
    )  # fmt: skip


async def _asked(visit: Visit, one: Voucher) -> tuple[dict[str, str], Any]:
    """Return what was asked of a voucher and its answer; taking nothing."""
    query = visit.request.query_params
    given = {name: query.get(name, "")[:255] for name in ("customer_id", "order_value")}
    if not any(given.values()):
        return {**given, "wrong": ""}, None
    fields = (Field("customer_id", ""), Field("order_value", "", "number"))
    try:
        question = forms.read(Question, fields, given, visit.zone)
        async with visit.reading() as conn:
            verdict = await validations.validate(conn, visit.caller, one.code, question)
    except Invalid as fault:
        return {**given, "wrong": fault.detail}, None
    return {**given, "wrong": ""}, verdict


@post(
    "/dashboard/{project:str}/vouchers/{voucher:str}/dates", operation_id="dashboard.vouchers.dates"
)
async def dates(request: Req, project: str, voucher: str) -> Response[bytes]:
    """Change when a voucher starts and ends."""
    visit = await visits.changing(request, project)
    fields = (
        Field("starts_at", "Starts", "time", clears=True),
        Field("expires_at", "Ends", "time", clears=True),
    )

    async def work(conn: db.Connection) -> Voucher | Refusal:
        change = forms.read(VoucherPatch, fields, visit.given, visit.zone)
        return await vouchers.edit(conn, visit.caller, voucher, change)

    return await visit.act(work, f"/vouchers/{voucher}", "saved")


@post(
    "/dashboard/{project:str}/vouchers/{voucher:str}/disable",
    operation_id="dashboard.vouchers.disable",
)
async def disable(request: Req, project: str, voucher: str) -> Response[bytes]:
    """Switch a voucher off."""
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> Voucher | Refusal:
        return await vouchers.switch(conn, visit.caller, voucher, status="disabled")

    return await visit.act(work, f"/vouchers/{voucher}", "disabled")


@post(
    "/dashboard/{project:str}/vouchers/{voucher:str}/enable",
    operation_id="dashboard.vouchers.enable",
)
async def enable(request: Req, project: str, voucher: str) -> Response[bytes]:
    """Switch a voucher on again."""
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> Voucher | Refusal:
        return await vouchers.switch(conn, visit.caller, voucher, status="active")

    return await visit.act(work, f"/vouchers/{voucher}", "enabled")


@get("/dashboard/{project:str}/batches", operation_id="dashboard.batches")
async def batch_page(request: Req, project: str) -> Response[bytes]:
    """List batches, newest first."""
    visit = await visits.begun(request, project)
    asked = visit.asked("bat")
    async with visit.reading() as conn:
        rows = await batches.page(conn, visit.caller, after=asked.after, limit=asked.limit + 1)
    listed = pagination.listed(rows, asked)
    return visit.page(
        "batches.html", title="Batches", rows=listed.data, has_more=listed.has_more
    )  # fmt: skip


@get("/dashboard/{project:str}/batches/new", operation_id="dashboard.batches.new")
async def batch_new(request: Req, project: str) -> Response[bytes]:
    """Show the form of a batch."""
    visit = await visits.begun(request, project)
    visit.given = dict(pagination.parameters(request, "campaign_id"))
    return _batch_form(visit)


def _batch_form(visit: Visit, fault: Fault | None = None) -> Response[bytes]:
    return visit.form(
        "Many vouchers at once", _BATCH, back=("/batches", "Batches"), fault=fault,
        lead="Each code is drawn so that nobody guesses another from it.",
    )  # fmt: skip


@post("/dashboard/{project:str}/batches/new", operation_id="dashboard.batches.create")
async def batch_create(request: Req, project: str) -> Response[bytes]:
    """Make many vouchers, and see them being made."""
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> batches.Batch:
        given = _discounted(visit.given)
        asked = forms.read(NewBatch, _BATCH, given, visit.zone)
        return await batches.create(conn, visit.caller, asked)

    try:
        made = await visit.once(work)
    except Fault as fault:
        return _batch_form(visit, fault)
    return visit.redirect(f"/batches/{made.id}" if made else "/batches", "created")


@get("/dashboard/{project:str}/batches/{batch:str}", operation_id="dashboard.batches.show")
async def batch_show(request: Req, project: str, batch: str) -> Response[bytes]:
    """Show how far a batch is."""
    visit = await visits.begun(request, project)
    async with visit.reading() as conn:
        one = await batches.get(conn, visit.caller, batch)
    return visit.page("batch.html", title=f"Batch of {one.count:,}", one=one)


@post(
    "/dashboard/{project:str}/batches/{batch:str}/cancel", operation_id="dashboard.batches.cancel"
)
async def batch_cancel(request: Req, project: str, batch: str) -> Response[bytes]:
    """Stop making a batch."""
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> batches.Batch:
        return await batches.switch(conn, visit.caller, batch, status="cancelled")

    return await visit.act(work, f"/batches/{batch}", "cancelled")


@get(
    "/dashboard/{project:str}/batches/{batch:str}/codes.csv", operation_id="dashboard.batches.codes"
)
async def batch_codes(request: Req, project: str, batch: str) -> Response[bytes]:
    """Download a batch's codes, in the order they were made."""
    visit = await visits.begun(request, project)
    found: list[str] = []
    async with visit.reading() as conn:
        while len(found) < CODES_MAX:
            after = found[-1] if found else None
            piece = await batches.codes_of(conn, visit.caller, batch, after=after)
            found += piece
            if len(piece) < batches.ATOMIC_MAX:
                break
    return _download("codes.csv", _column(found))


def _column(found: Iterable[str]) -> bytes:
    """Write codes as CSV; one that a spreadsheet would run gets an apostrophe in front."""
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow(("code",))
    lines.writerows((harmless(code),) for code in found)
    return text.getvalue().encode()


ROUTES: Final = [
    page, find, table, new, create, show, dates, disable, enable,
    batch_page, batch_new, batch_create, batch_show, batch_cancel, batch_codes,
]  # fmt: skip
