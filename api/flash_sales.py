"""/v1/flash-sales. The claim itself is answered by `api.doors`."""

from typing import Any, Final
from uuid import UUID

import msgspec
from litestar import Request, get, patch, post
from litestar.response import Response

from api import answers, auth, bodies, docs, idempotency, pagination
from api.docs import shape
from api.lifespan import Services
from core import audit_log, customer_tokens, db, flash_sales, ids, releases
from core.api_keys import Caller
from core.errors import NotFound, Refusal
from core.flash_sales import FlashSale, FlashSalePatch, NewFlashSale, SaleDesk
from core.redemptions import NewRedemption, Redemption
from core.releases import Release, Released, WrittenOff

Req = Request[Any, Any, Any]

docs.HOT.append(
    docs.Hot(
        "POST",
        "/v1/flash-sales/{id}/claim",
        "flash_sales.claim",
        "Claim one unit of an open sale.",
        docs.Shape(NewRedemption, Redemption, 200, for_browsers=True, asker="program"),
    )
)


class ClaimSecret(msgspec.Struct, frozen=True):
    """What a shop signs a sale's customer tokens with, on its server."""

    secret: str


def desk_of(request: Req) -> SaleDesk:
    """Return this worker's desk; every worker that serves has one."""
    services: Services = request.app.state.services
    assert services.doors is not None
    return services.doors.desk


async def _shown(request: Req, caller: Caller, sale_id: UUID) -> FlashSale:
    desk = desk_of(request)
    row = await desk.read(caller.project_id, sale_id)
    return await flash_sales.show(desk.redis, row, caller)


def _id_of(public_id: str) -> UUID:
    sale_id = ids.parse_id("fls", public_id)
    if sale_id is None:
        raise NotFound(flash_sales.NO_SALE)
    return sale_id


def _answered(request: Req, answer: FlashSale | Refusal) -> Response[bytes]:
    if isinstance(answer, Refusal):
        return answers.refused(request, answer)
    return answers.ok(answer)


@post(
    "/v1/flash-sales",
    operation_id="flash_sales.create",
    opt=shape(body=NewFlashSale, answer=FlashSale, status=201),
)
async def create(request: Req) -> Response[bytes]:
    """Create a flash sale, with a code of its own or on an existing voucher."""
    caller = await auth.secret_caller(request)
    raw, new = await bodies.received(request, NewFlashSale)
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            made = await flash_sales.create(work.conn, caller, new)
            work.answer(201, await _made(request, work.conn, caller, made))
    return work.response()


async def _made(
    request: Req, conn: db.Connection, caller: Caller, made: UUID | Refusal
) -> FlashSale | Refusal:
    if isinstance(made, Refusal):
        return made
    row = await flash_sales.read_row(conn, caller.project_id, made)
    assert row is not None
    return await flash_sales.show(desk_of(request).redis, row, caller)


@get(
    "/v1/flash-sales",
    operation_id="flash_sales.list",
    opt=shape(answer=pagination.Listed[FlashSale]),
)
async def page(request: Req) -> Response[bytes]:
    """List flash sales, newest first."""
    caller = await auth.secret_caller(request)
    asked = pagination.asked(request, "fls")
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        found = await flash_sales.page(conn, caller, after=asked.after, limit=asked.limit + 1)
    sales = [await _shown(request, caller, sale_id) for sale_id in found[: asked.limit]]
    return answers.ok(pagination.Listed(sales, len(found) > asked.limit))


@get(
    "/v1/flash-sales/{sale:str}",
    operation_id="flash_sales.get",
    opt=shape(answer=FlashSale, for_browsers=True),
)
async def show(request: Req, sale: str) -> Response[bytes]:
    """Return a sale with its stock, what is claimed and settled, and the lag between them."""
    caller = await auth.any_caller(request)
    return answers.ok(await _shown(request, caller, _id_of(sale)))


@patch(
    "/v1/flash-sales/{sale:str}",
    operation_id="flash_sales.edit",
    opt=shape(body=FlashSalePatch, answer=FlashSale),
)
async def edit(request: Req, sale: str) -> Response[bytes]:
    """Raise the stock, move the window, change the name. The terms are frozen."""
    caller = await auth.secret_caller(request)
    _, change = await bodies.received(request, FlashSalePatch)
    sale_id = _id_of(sale)
    refused = await desk_of(request).patch(caller.project_id, sale_id, change, caller=caller)
    return _answered(request, refused or await _shown(request, caller, sale_id))


@post(
    "/v1/flash-sales/{sale:str}/open",
    operation_id="flash_sales.open",
    status_code=200,
    opt=shape(answer=FlashSale),
)
async def open_(request: Req, sale: str) -> Response[bytes]:
    """Open a sale now, or end its pause; answered when every worker serves it."""
    caller = await auth.secret_caller(request)
    await bodies.received_nothing(request)
    sale_id = _id_of(sale)
    refused = await desk_of(request).open(caller.project_id, sale_id, by_hand=True, caller=caller)
    return _answered(request, refused or await _shown(request, caller, sale_id))


@post(
    "/v1/flash-sales/{sale:str}/pause",
    operation_id="flash_sales.pause",
    status_code=200,
    opt=shape(answer=FlashSale),
)
async def pause(request: Req, sale: str) -> Response[bytes]:
    """Pause an open sale; `open` ends the pause."""
    caller = await auth.secret_caller(request)
    await bodies.received_nothing(request)
    sale_id = _id_of(sale)
    refused = await desk_of(request).pause(caller.project_id, sale_id, caller=caller)
    return _answered(request, refused or await _shown(request, caller, sale_id))


@post(
    "/v1/flash-sales/{sale:str}/close",
    operation_id="flash_sales.close",
    status_code=200,
    opt=shape(answer=FlashSale),
)
async def close(request: Req, sale: str) -> Response[bytes]:
    """End a sale for good. What was won is settled within moments."""
    caller = await auth.secret_caller(request)
    await bodies.received_nothing(request)
    sale_id = _id_of(sale)
    await desk_of(request).close(caller.project_id, sale_id, caller=caller)
    return answers.ok(await _shown(request, caller, sale_id))


@get(
    "/v1/flash-sales/{sale:str}/written-off",
    operation_id="flash_sales.written_off",
    opt=shape(answer=pagination.Listed[WrittenOff]),
)
async def written_off(request: Req, sale: str) -> Response[bytes]:
    """List the numbers that were lost with Redis's data, lowest first.

    `starting_after` is the last number of the page before.
    """
    caller = await auth.secret_caller(request)
    limit, after = pagination.asked_by_number(request)
    row = await desk_of(request).read(caller.project_id, _id_of(sale))
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        found = await releases.page(conn, caller, row.id, after, limit + 1)
    return answers.ok(pagination.Listed(found[:limit], len(found) > limit))


@post(
    "/v1/flash-sales/{sale:str}/release",
    operation_id="flash_sales.release",
    status_code=200,
    opt=shape(body=Release, answer=Released),
)
async def release(request: Req, sale: str) -> Response[bytes]:
    """Sell the units of lost numbers again, all that are named or none.

    Whoever kept the answer to a claim could still present its receipt; of a released number it is
    void. Release what you know that nobody holds.
    """
    caller = await auth.secret_caller(request)
    _, asked = await bodies.received(request, Release)
    desk = desk_of(request)
    row = await desk.read(caller.project_id, _id_of(sale))
    done = await releases.release(desk.database, desk.leases, caller, row.id, asked)
    return answers.refused(request, done) if isinstance(done, Refusal) else answers.ok(done)


@post(
    "/v1/flash-sales/{sale:str}/claim-secret",
    operation_id="flash_sales.claim_secret",
    status_code=200,
    opt=shape(answer=ClaimSecret),
)
async def claim_secret(request: Req, sale: str) -> Response[bytes]:
    """Return what the shop's server signs this sale's customer tokens with; keep it there."""
    caller = await auth.secret_caller(request)
    await bodies.received_nothing(request)
    row = await desk_of(request).read(caller.project_id, _id_of(sale))
    services: Services = request.app.state.services
    secret = customer_tokens.secret_of(services.settings.secret, row.id)
    async with services.database.transaction(caller.project_id) as conn:
        await audit_log.write(conn, caller, "flash_sale.claim_secret_shown", sale)
    return answers.ok(ClaimSecret(secret))


ROUTES: Final = [
    create,
    page,
    show,
    edit,
    open_,
    pause,
    close,
    claim_secret,
    written_off,
    release,
]
