"""Flash sales: made, opened, watched while they sell, paused, closed, and what the books say."""

from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from litestar import Request, get, post
from litestar.response import Response

from api import metrics
from api.dashboard import figures, forms, visits
from api.dashboard.forms import Field
from api.dashboard.visits import Visit
from core import analytics, db, flash_sales, ids, sale_checks, verifications
from core.analytics import Asked
from core.errors import Fault, NotFound, Refusal
from core.flash_sales import FlashSale, FlashSalePatch, NewFlashSale, SaleRow
from core.sale_checks import Check

Req = Request[Any, Any, Any]

_SALE: Final = (
    Field("name", "Name", required=True),
    Field("stock", "Stock", "number", required=True, hint="Units; it can be raised later."),
    Field("code", "Code", hint="Empty: one is drawn. Shoppers redeem it, or your page claims."),
    Field(
        "discount_type", "Discount", "choice", value="PERCENT",
        choices=(("PERCENT", "Percent"), ("AMOUNT", "Amount")),
    ),
    Field("discount_value", "Value", "number", required=True),
    Field("per_customer_limit", "How often for each customer", "number", value="1"),
    Field("min_order_value", "Least order value", "number"),
    Field(
        "durability", "Mode", "choice", value="fast",
        choices=(("fast", "Fast: Redis decides"), ("strict", "Strict: PostgreSQL decides")),
        hint="Neither ever sells more than the stock.",
    ),
    Field("starts_at", "Opens by itself", "time", hint="Empty: you open it by hand."),
    Field("ends_at", "Closes by itself", "time"),
)  # fmt: skip
_STOCK: Final = (Field("stock", "Stock", "number", required=True),)


def _id_of(public_id: str) -> UUID:
    sale_id = ids.parse_id("fls", public_id)
    if sale_id is None:
        raise NotFound(flash_sales.NO_SALE)
    return sale_id


async def shown(visit: Visit, sale_id: UUID) -> FlashSale:
    """Return a sale as it stands in both stores. Raises: NotFound. Cost: one read of each."""
    row = await visit.desk.read(visit.caller.project_id, sale_id)
    return await flash_sales.show(visit.desk.redis, row, visit.caller)


@get("/dashboard/{project:str}/flash-sales", operation_id="dashboard.flash_sales")
async def page(request: Req, project: str) -> Response[bytes]:
    """List flash sales, newest first."""
    visit = await visits.begun(request, project)
    asked = visit.asked("fls")
    async with visit.reading() as conn:
        found = await flash_sales.page(conn, visit.caller, after=asked.after, limit=asked.limit + 1)
    rows = [await shown(visit, sale_id) for sale_id in found[: asked.limit]]
    return visit.page(
        "flash_sales.html", title="Flash sales", rows=rows, has_more=len(found) > asked.limit
    )  # fmt: skip


@get("/dashboard/{project:str}/flash-sales/new", operation_id="dashboard.flash_sales.new")
async def new(request: Req, project: str) -> Response[bytes]:
    """Show the form of a sale."""
    return _form(await visits.begun(request, project))


def _form(
    visit: Visit, fault: Fault | None = None, refusal: Refusal | None = None
) -> Response[bytes]:
    return visit.form(
        "New flash sale", _SALE, back=("/flash-sales", "Flash sales"), fault=fault,
        refusal=refusal,
    )  # fmt: skip


@post("/dashboard/{project:str}/flash-sales/new", operation_id="dashboard.flash_sales.create")
async def create(request: Req, project: str) -> Response[bytes]:
    """Make a sale and look at it."""
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> UUID | Refusal:
        asked = forms.read(NewFlashSale, _SALE, visit.given, visit.zone)
        return await flash_sales.create(conn, visit.caller, asked)

    try:
        made = await visit.once(work)
    except Fault as fault:
        return _form(visit, fault)
    if isinstance(made, Refusal):
        return _form(visit, refusal=made)
    then = f"/flash-sales/{ids.format_id('fls', made)}" if made else "/flash-sales"
    return visit.redirect(then, "created")


@get("/dashboard/{project:str}/flash-sales/{sale:str}", operation_id="dashboard.flash_sales.show")
async def show(request: Req, project: str, sale: str) -> Response[bytes]:
    """Show a sale: what it depends on before it opens, how it sells, what the books say after."""
    visit = await visits.begun(request, project)
    row = await visit.desk.read(visit.caller.project_id, _id_of(sale))
    one = await flash_sales.show(visit.desk.redis, row, visit.caller)
    return visit.page(
        "flash_sale.html", title=one.name, one=one, at=datetime.now(UTC), tally=_tally(),
        checks=await _before(visit, row, one), stock=_stock(one), **await _after(visit, row, one),
    )  # fmt: skip


def _stock(one: FlashSale) -> Field:
    return Field("stock", "Stock", "number", required=True, value=str(one.stock))


def _tally() -> metrics.Tally:
    return metrics.tally(("claim", "redeem"))


async def _before(visit: Visit, row: SaleRow, one: FlashSale) -> list[Check]:
    if one.status not in ("scheduled", "paused"):
        return []
    async with visit.reading() as conn:
        return await sale_checks.before(conn, visit.desk.redis, row)


async def _after(visit: Visit, row: SaleRow, one: FlashSale) -> dict[str, Any]:
    """Return what a sale that is over came to: its settlement, and how it sold by the second."""
    async with visit.reading() as conn:
        looks = await verifications.latest(conn)
        told: dict[str, Any] = {
            "looks": looks, "looked_at": _latest(looks), "settlement": None, "charts": [],
            "violations": sum(look.violations for look in looks),
        }  # fmt: skip
        if one.status not in ("closed", "settled") or one.lag:
            return told
        settlement = await sale_checks.after(conn, visit.caller, row)
        told["settlement"] = settlement
        if settlement.first_at is not None:
            day = settlement.first_at.astimezone(ZoneInfo(visit.zone)).date()
            asked = Asked(from_day=day, to_day=day, unit="second")
            series = await analytics.of_sale(conn, visit.caller, one.id, asked)
            told["charts"] = figures.by_second(series)
    return told


def _latest(looks: list[verifications.Verification]) -> datetime | None:
    return min((datetime.fromtimestamp(one.checked_at_s, UTC) for one in looks), default=None)


@get(
    "/dashboard/{project:str}/flash-sales/{sale:str}/live",
    operation_id="dashboard.flash_sales.live",
)
async def live(request: Req, project: str, sale: str) -> Response[bytes]:
    """Return the figures of a sale alone, for the page that watches it."""
    visit = await visits.begun(request, project)
    one = await shown(visit, _id_of(sale))
    return visit.page(
        "flash_sale_figures.html", title=one.name, one=one, at=datetime.now(UTC), tally=_tally()
    )


@post(
    "/dashboard/{project:str}/flash-sales/{sale:str}/open",
    operation_id="dashboard.flash_sales.open",
)
async def open_(request: Req, project: str, sale: str) -> Response[bytes]:
    """Open a sale, or end its pause; answered when every worker serves it."""
    visit = await visits.changing(request, project)
    refused = await visit.desk.open(
        visit.caller.project_id, _id_of(sale), by_hand=True, caller=visit.caller
    )
    return visit.refused(refused) if refused else visit.redirect(f"/flash-sales/{sale}", "opened")


@post(
    "/dashboard/{project:str}/flash-sales/{sale:str}/pause",
    operation_id="dashboard.flash_sales.pause",
)
async def pause(request: Req, project: str, sale: str) -> Response[bytes]:
    """Pause an open sale."""
    visit = await visits.changing(request, project)
    refused = await visit.desk.pause(visit.caller.project_id, _id_of(sale), caller=visit.caller)
    return visit.refused(refused) if refused else visit.redirect(f"/flash-sales/{sale}", "paused")


@post(
    "/dashboard/{project:str}/flash-sales/{sale:str}/close",
    operation_id="dashboard.flash_sales.close",
)
async def close(request: Req, project: str, sale: str) -> Response[bytes]:
    """End a sale for good."""
    visit = await visits.changing(request, project)
    await visit.desk.close(visit.caller.project_id, _id_of(sale), caller=visit.caller)
    return visit.redirect(f"/flash-sales/{sale}", "closed")


@post(
    "/dashboard/{project:str}/flash-sales/{sale:str}/stock",
    operation_id="dashboard.flash_sales.stock",
)
async def stock(request: Req, project: str, sale: str) -> Response[bytes]:
    """Raise a sale's stock, also while it sells."""
    visit = await visits.changing(request, project)
    change = forms.read(FlashSalePatch, _STOCK, visit.given, visit.zone)
    refused = await visit.desk.patch(
        visit.caller.project_id, _id_of(sale), change, caller=visit.caller
    )
    return visit.refused(refused) if refused else visit.redirect(f"/flash-sales/{sale}", "saved")


ROUTES: Final = [page, new, create, show, live, open_, pause, close, stock]
