"""/v1/redemptions, and the rollback of one. The redeem itself is answered by `api.doors`."""

from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from litestar import Request, get, post
from litestar.response import Response

from api import answers, auth, bodies, docs, idempotency, pagination
from api.docs import shape
from api.flash_sales import desk_of
from api.lifespan import Services
from core import checkouts, conversions, db, ids, lookups, receipts, redemptions
from core.api_keys import Caller
from core.checkouts import Checkout, NewCheckout
from core.errors import NotFound, Refusal
from core.gift_cards import ledger
from core.lookups import Asker
from core.receipts import Presented
from core.redemptions import Filter, NewRedemption, Redemption
from core.rules import money
from core.shapes import Amount

Req = Request[Any, Any, Any]
# A sentence or two for whoever reads the books.
Reason = Annotated[str, msgspec.Meta(min_length=1, max_length=500)]

docs.HOT.append(
    docs.Hot(
        "POST",
        "/v1/vouchers/{code}/redeem",
        "vouchers.redeem",
        "Redeem a voucher, also one that is in a flash sale.",
        docs.Shape(NewRedemption, Redemption, 200, asker="program"),
    )
)
_FILTERS: Final = (
    "code", "campaign_id", "flash_sale_id", "customer_id", "order_id", "status", "from", "to",
)  # fmt: skip


class Rollback(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a redemption is given back; with `amount` only so much of its discount."""

    reason: Reason | None = None
    amount: Amount = msgspec.field(default_factory=msgspec.Raw)


class RollbackOf(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which redemption of a voucher is given back, and why."""

    redemption_id: str
    reason: Reason | None = None


def _id_of(public_id: str) -> Any:
    found = ids.parse_id("rdm", public_id)
    if found is None:
        raise NotFound(redemptions.NO_REDEMPTION)
    return found


@get(
    "/v1/redemptions",
    operation_id="redemptions.list",
    opt=shape(answer=pagination.Listed[Redemption], query=_FILTERS),
)
async def page(request: Req) -> Response[bytes]:
    """List redemptions, newest first, narrowed by code, customer, order, sale and dates."""
    caller = await auth.secret_caller(request)
    asked = pagination.asked(request, "rdm", *_FILTERS)
    services: Services = request.app.state.services
    rows, has_more = await redemptions.list_page(
        services.database, caller, _narrowed(asked), before=asked.after, limit=asked.limit
    )
    return answers.ok(pagination.Listed(rows, has_more))


def _narrowed(asked: pagination.Page) -> Filter:
    return Filter(
        code=asked.filters.get("code"),
        campaign_id=pagination.id_of(asked, "campaign_id", "cmp"),
        sale_id=pagination.id_of(asked, "flash_sale_id", "fls"),
        customer_id=asked.filters.get("customer_id"),
        order_id=asked.filters.get("order_id"),
        status=pagination.one_of(asked, "status", "redeemed", "rolled_back"),
        from_at=pagination.instant_of(asked, "from"),
        to_at=pagination.instant_of(asked, "to", is_end=True),
    )


@post(
    "/v1/redemptions",
    operation_id="redemptions.create",
    status_code=200,
    opt=shape(body=NewCheckout, answer=Checkout),
)
async def create(request: Req) -> Response[bytes]:
    """Redeem up to 30 codes for one order, all or none or the best, and pay with gift cards."""
    caller = await auth.secret_caller(request)
    raw, new = await bodies.received(request, NewCheckout)
    asker = auth.asker_of(request, caller, new.customer_id)
    services: Services = request.app.state.services
    async with (
        lookups.counted(services.database, asker),
        services.meter.room_for_redemptions(
            caller, len(new.codes), is_replay=lambda: idempotency.is_replay(request, caller)
        ),
        idempotency.write(request, caller, raw) as work,
    ):
        if not work.is_done:
            work.answer(200, await _done(work.conn, services, asker, new))
    return work.response()


async def _done(
    conn: db.Connection, services: Services, asker: Asker, new: NewCheckout
) -> Checkout | Refusal:
    """Redeem; what was refused is counted, and kept for the fraud rules."""
    new = services.contexts.hidden(asker.caller.project_id, new)
    done = await checkouts.check_out(conn, asker, services.vault, new)
    if isinstance(done, Refusal):
        services.attempts.count(asker.caller.project_id, "redeem", done.code)
        code = str(done.extra.get("voucher", new.codes[0]))
        services.signals.note(
            asker.caller.project_id, done.code, code, new.customer_id, new.context
        )
    return done


@get(
    "/v1/redemptions/{redemption:str}",
    operation_id="redemptions.get",
    opt=shape(answer=Redemption),
)
async def show(request: Req, redemption: str) -> Response[bytes]:
    """Return one redemption."""
    caller = await auth.secret_caller(request)
    services: Services = request.app.state.services
    found = await redemptions.read(services.database, caller, _id_of(redemption))
    if isinstance(found, Refusal):
        return answers.refused(request, found)
    return answers.ok(services.receipts.signed(found))


@post(
    "/v1/redemptions/{redemption:str}/rollback",
    operation_id="redemptions.rollback",
    status_code=200,
    opt=shape(body=Rollback, answer=Redemption),
)
async def rollback(request: Req, redemption: str) -> Response[bytes]:
    """Give a redemption's unit back, once, within 30 minutes. The body may be empty."""
    caller = await auth.secret_caller(request)
    raw, body = await bodies.received(request, Rollback, is_optional=True)
    if money.is_given(body.amount):
        return await _rolled_back_in_part(request, caller, raw, redemption, body)
    return await _rolled_back(request, caller, raw, redemption, body.reason, None)


@post(
    "/v1/vouchers/{code:str}/rollback",
    operation_id="vouchers.rollback",
    status_code=200,
    opt=shape(body=RollbackOf, answer=Redemption),
)
async def rollback_of(request: Req, code: str) -> Response[bytes]:
    """Give a redemption of this voucher back: an alias of the redemption's own rollback."""
    caller = await auth.secret_caller(request)
    raw, body = await bodies.received(request, RollbackOf)
    return await _rolled_back(request, caller, raw, body.redemption_id, body.reason, code)


async def _rolled_back_in_part(
    request: Req, caller: Caller, raw: bytes, public_id: str, body: Rollback
) -> Response[bytes]:
    redemption_id = _id_of(public_id)
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            refused = await redemptions.roll_back_part(
                work.conn, caller, redemption_id, body.amount, body.reason
            )
            shown = refused or await redemptions.shown(work.conn, caller, redemption_id)
            work.answer(200, shown)
    return work.response()


async def _rolled_back(
    request: Req, caller: Caller, raw: bytes, public_id: str, reason: str | None, code: str | None
) -> Response[bytes]:
    redemption_id = _id_of(public_id)
    done: redemptions.RolledBack | Refusal | None = None
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            done = await roll_back(work.conn, caller, redemption_id, reason, code=code)
            if isinstance(done, Refusal):
                work.answer(200, done)
            work.answer(200, await redemptions.shown(work.conn, caller, redemption_id))
    if isinstance(done, redemptions.RolledBack):
        await desk_of(request).leases.give_back(caller.project_id, redemption_id, done)
    return work.response()


async def roll_back(
    conn: db.Connection,
    caller: Caller,
    redemption_id: UUID,
    reason: str | None,
    *,
    code: str | None = None,
) -> redemptions.RolledBack | Refusal:
    """Roll a redemption back, with what gift cards paid and referrals earned for it.

    After the commit the desk's leases get it back. Refuses and raises as
    `redemptions.roll_back`.
    """
    done = await redemptions.roll_back(conn, caller, redemption_id, reason, code=code)
    if not isinstance(done, Refusal):
        await ledger.refund_redemption(conn, caller, redemption_id, reason)
        await conversions.reverse_redemption(conn, caller, redemption_id, reason)
    return done


@post(
    "/v1/redemptions/claim-receipt",
    operation_id="redemptions.claim_receipt",
    status_code=200,
    opt=shape(body=Presented, answer=Redemption),
)
async def claim_receipt(request: Req) -> Response[bytes]:
    """Write a redemption that a flash sale answered and then lost, by the answer it gave.

    Send the answer as it was received, and the `Idempotency-Key` of the claim if it had one.
    """
    caller = await auth.secret_caller(request)
    _, presented = await bodies.received(request, Presented)
    header = next((v for k, v in request.scope["headers"] if k == b"idempotency-key"), None)
    services: Services = request.app.state.services
    found = await receipts.claim(
        services.database,
        desk_of(request).leases,
        services.receipts,
        caller,
        presented,
        idempotency.key_of(header),
    )
    return answers.refused(request, found) if isinstance(found, Refusal) else answers.ok(found)


ROUTES: Final = [page, create, show, claim_receipt, rollback, rollback_of]
