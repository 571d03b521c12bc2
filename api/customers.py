"""/v1/customers, and the export and erasure that the law gives a person."""

import csv
import io
from typing import Any, Final

import msgspec
from litestar import Request, get, patch, post
from litestar.response import Response

from api import answers, auth, bodies, docs, idempotency, pagination
from api.docs import shape
from api.flash_sales import desk_of
from api.lifespan import Services
from core import customers, erasures
from core.customers import Customer, CustomerPatch, Erased, Export, NewCustomer
from core.rules.cells import harmless
from core.vouchers import Voucher

Req = Request[Any, Any, Any]


@post(
    "/v1/customers",
    operation_id="customers.register",
    status_code=200,
    opt=shape(body=NewCustomer, answer=Customer),
)
async def register(request: Req) -> Response[bytes]:
    """Register a customer by the shop's own id, or change what is given of one who is."""
    caller = await auth.secret_caller(request)
    raw, new = await bodies.received(request, NewCustomer)
    async with idempotency.write(request, caller, raw) as work:
        # A name is not kept beside a key: who is forgotten must be forgotten there, too.
        if not work.is_done:
            done = await customers.register(work.conn, caller, new)
            work.answer(200, done, kept={})
        else:
            work.answer(200, await customers.get(work.conn, caller, new.customer_id), kept={})
    return work.response()


@get(
    "/v1/customers",
    operation_id="customers.list",
    opt=shape(answer=pagination.Listed[Customer], query=("email",)),
)
async def page(request: Req) -> Response[bytes]:
    """List registered customers, newest first."""
    caller = await auth.secret_caller(request)
    asked = pagination.asked(request, "cus", "email")
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        rows = await customers.page(
            conn, caller, email=asked.filters.get("email"), after=asked.after,
            limit=asked.limit + 1,
        )  # fmt: skip
    return answers.ok(pagination.listed(rows, asked))


@get("/v1/customers/{customer:str}", operation_id="customers.get", opt=shape(answer=Customer))
async def show(request: Req, customer: str) -> Response[bytes]:
    """Return a customer by the shop's id or the `cus_…` one, registered or in the books."""
    caller = await auth.secret_caller(request)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        return answers.ok(await customers.get(conn, caller, customer))


@patch(
    "/v1/customers/{customer:str}",
    operation_id="customers.edit",
    opt=shape(body=CustomerPatch, answer=Customer),
)
async def edit(request: Req, customer: str) -> Response[bytes]:
    """Change a registered customer; null clears."""
    caller = await auth.secret_caller(request)
    raw, change = await bodies.received(request, CustomerPatch)
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            done = await customers.edit(work.conn, caller, customer, change)
            work.answer(200, done, kept={})
        else:
            work.answer(200, await customers.get(work.conn, caller, customer), kept={})
    return work.response()


@get(
    "/v1/customers/{customer:str}/export",
    operation_id="customers.export",
    opt=shape(answer=Export, gives=(docs.JSON, docs.CSV)),
)
async def export(request: Req, customer: str) -> Response[bytes]:
    """Return what promotions keep of a customer; the redemptions as CSV by Accept."""
    caller = await auth.secret_caller(request)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        found = await customers.export(conn, caller, customer)
    if "text/csv" in request.headers.get("accept", ""):
        return Response(_table(found), media_type="text/csv")
    return answers.ok(found)


def _table(found: Export) -> bytes:
    """Write a person's redemptions as CSV, a line each; who it is stands in each line."""
    names = (
        "redemption_id", "status", "code", "discount_applied", "order_value", "currency",
        "order_id", "redeemed_at", "rolled_back_at", "flash_sale_id", "campaign_id", "metadata",
    )  # fmt: skip
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow(("customer_id", "name", "email", *names))
    person = (found.customer.customer_id, found.customer.name, found.customer.email)
    for redemption in found.redemptions:
        cells = (_cell(getattr(redemption, name)) for name in names)
        lines.writerow((*(_cell(part) for part in person), *cells))
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, msgspec.Raw):
        return bytes(value).decode()
    written = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return harmless(written)


@get(
    "/v1/customers/{customer:str}/wallet",
    operation_id="customers.wallet.list",
    opt=shape(answer=pagination.Listed[Voucher]),
)
async def wallet(request: Req, customer: str) -> Response[bytes]:
    """List the vouchers that are a customer's, newest first."""
    caller = await auth.secret_caller(request)
    asked = pagination.asked(request, "vch")
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        rows = await customers.wallet(
            conn, caller, customer, after=asked.after, limit=asked.limit + 1
        )
    return answers.ok(pagination.listed(rows, asked))


class Belongs(msgspec.Struct, frozen=True):
    """The segments a customer belongs to at this moment."""

    segments: list[str]


@get(
    "/v1/customers/{customer:str}/segments",
    operation_id="customers.segments",
    opt=shape(answer=Belongs),
)
async def segments(request: Req, customer: str) -> Response[bytes]:
    """Return the segments a customer belongs to at this moment."""
    caller = await auth.secret_caller(request)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        return answers.ok(Belongs(await customers.segments_of(conn, caller, customer)))


@post(
    "/v1/customers/{customer:str}/erase",
    operation_id="customers.erase",
    status_code=200,
    opt=shape(answer=Erased),
)
async def erase(request: Req, customer: str) -> Response[bytes]:
    """Forget a person; their redemptions stay in the books under a random name."""
    caller = await auth.secret_caller(request)
    await bodies.received_nothing(request)
    services: Services = request.app.state.services
    desk = desk_of(request).leases
    begun = await erasures.begin(services.database, desk, caller, customer)
    async with idempotency.write(
        request, caller, statement_timeout_ms=customers.ERASE_TIMEOUT_MS
    ) as work:
        if not work.is_done:
            done = await customers.erase(work.conn, caller, customer, begun.pseudonym)
            work.answer(200, done)
    await erasures.end(desk, caller, begun)
    return work.response()


ROUTES: Final = [register, page, show, edit, export, wallet, segments, erase]
