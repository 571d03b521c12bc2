"""Customers: the list, a person's page, and forgetting them."""

from typing import Any, Final

from litestar import Request, get, post
from litestar.response import Response

from api import pagination
from api.dashboard import forms, visits
from api.dashboard.forms import Field
from api.dashboard.visits import Visit
from core import customers, db, redemptions, segments
from core.customers import Customer, Erased, NewCustomer
from core.errors import Fault, NotFound, Refusal

Req = Request[Any, Any, Any]

_CUSTOMER: Final = (
    Field("customer_id", "Customer id", required=True, hint="As your shop calls them."),
    Field("name", "Name"),
    Field("email", "E-mail", "email"),
)
_RECENT_MAX: Final = 20


@get("/dashboard/{project:str}/customers", operation_id="dashboard.customers")
async def page(request: Req, project: str) -> Response[bytes]:
    """List registered customers, newest first."""
    return await _list(await visits.begun(request, project))


async def _list(visit: Visit, **context: Any) -> Response[bytes]:
    asked = visit.asked("cus", "email", "id")
    email = asked.filters.get("email")
    async with visit.reading() as conn:
        rows = await customers.page(
            conn, visit.caller, email=email, after=asked.after, limit=asked.limit + 1
        )
    listed = pagination.listed(rows, asked)
    return visit.page(
        "customers.html", 404 if context else 200, title="Customers", rows=listed.data,
        has_more=listed.has_more, email=email or "", **context,
    )  # fmt: skip


@get("/dashboard/{project:str}/customers/new", operation_id="dashboard.customers.new")
async def new(request: Req, project: str) -> Response[bytes]:
    """Show the form of a customer."""
    return _form(await visits.begun(request, project))


def _form(visit: Visit, fault: Fault | None = None) -> Response[bytes]:
    back = ("/customers", "Customers")
    return visit.form("Register a customer", _CUSTOMER, back=back, fault=fault, send="Register")


@post("/dashboard/{project:str}/customers/new", operation_id="dashboard.customers.create")
async def create(request: Req, project: str) -> Response[bytes]:
    """Register a customer and look at their page."""
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> Customer:
        asked = forms.read(NewCustomer, _CUSTOMER, visit.given, visit.zone)
        return await customers.register(conn, visit.caller, asked)

    try:
        made = await visit.once(work)
    except Fault as fault:
        return _form(visit, fault)
    return visit.redirect(f"/customers/person?id={made.id}" if made else "/customers", "saved")


@get("/dashboard/{project:str}/customers/person", operation_id="dashboard.customers.show")
async def show(request: Req, project: str) -> Response[bytes]:
    """Show a person: what they redeemed, what is theirs, where they belong."""
    visit = await visits.begun(request, project)
    name = request.query_params.get("id", "")
    try:
        async with visit.reading() as conn:
            one = await customers.get(conn, visit.caller, name)
            wallet = await customers.wallet(conn, visit.caller, name, after=None, limit=_RECENT_MAX)
            found = await customers.segments_of(conn, visit.caller, name)
            groups = await segments.names(conn, visit.caller, found)
    except NotFound:
        return await _list(visit, missed=name)
    return await _shown(visit, one, wallet=wallet, groups=groups)


async def _shown(visit: Visit, one: Customer, **context: Any) -> Response[bytes]:
    recent, has_more = await redemptions.list_page(
        visit.services.database, visit.caller, redemptions.Filter(customer_id=one.customer_id),
        before=None, limit=_RECENT_MAX,
    )  # fmt: skip
    title = one.name or one.customer_id
    return visit.page(
        "customer.html", title=title, one=one, recent=recent, has_more=has_more, **context
    )


@get("/dashboard/{project:str}/customers/erase", operation_id="dashboard.customers.erase_page")
async def erase_page(request: Req, project: str) -> Response[bytes]:
    """Say what erasing a person means, and ask for their id."""
    visit = await visits.begun(request, project)
    return await _erase_page(visit, request.query_params.get("id", ""))


async def _erase_page(visit: Visit, name: str, told: str | None = None) -> Response[bytes]:
    async with visit.reading() as conn:
        one = await customers.get(conn, visit.caller, name)
    status = 400 if told else 200
    return visit.page("customer_erase.html", status, title="Erase a person", one=one, told=told)


@post("/dashboard/{project:str}/customers/erase", operation_id="dashboard.customers.erase")
async def erase(request: Req, project: str) -> Response[bytes]:
    """Forget a person whose id was typed; their redemptions stay under a random name."""
    visit = await visits.changing(request, project)
    name = visit.given.get("id", "")
    if visit.given.get("confirm", "").strip() != name.strip():
        return await _erase_page(visit, name, "Nobody was erased: what was typed is not their id.")

    async def work(conn: db.Connection) -> Erased | Refusal:
        return await customers.erase(conn, visit.caller, name)

    return await visit.act(work, "/customers", "erased")


ROUTES: Final = [page, new, create, show, erase_page, erase]
