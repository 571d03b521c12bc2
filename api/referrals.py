"""/v1/referrals"""

from typing import Annotated, Any, Final

import msgspec
from litestar import Request, get, post
from litestar.response import Response

from api import answers, auth, bodies, idempotency, pagination
from api.docs import shape
from api.lifespan import Services
from core import attributions, conversions, referrals
from core.attributions import Attribution, Invitation
from core.conversions import Conversion
from core.errors import Invalid
from core.referrals import Event, Referral, Tree

Req = Request[Any, Any, Any]
_FILTERS: Final = ("program_id", "referrer_id", "referee_id", "status", "review")


class Reversal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a conversion is undone."""

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=500)] | None = None


@post(
    "/v1/referrals/invite",
    operation_id="referrals.invite",
    opt=shape(body=Invitation, answer=Referral, status=201),
)
async def invite(request: Req) -> Response[bytes]:
    """Write down whom a customer invited, to recognise them when they come."""
    caller = await auth.secret_caller(request)
    raw, new = await bodies.received(request, Invitation)
    services: Services = request.app.state.services
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            made = await attributions.invite(work.conn, caller, services.people, new)
            work.answer(201, made)
    return work.response()


@post(
    "/v1/referrals/attribute",
    operation_id="referrals.attribute",
    status_code=200,
    opt=shape(body=Attribution, answer=Referral),
)
async def attribute(request: Req) -> Response[bytes]:
    """Attribute a customer to the owner of a code; what is not believed waits for review."""
    caller = await auth.secret_caller(request)
    raw, new = await bodies.received(request, Attribution)
    services: Services = request.app.state.services
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            told = await attributions.attribute(work.conn, caller, services.people, new)
            work.answer(200, told, commits=True)
    return work.response()


@post(
    "/v1/referrals/convert",
    operation_id="referrals.convert",
    status_code=200,
    opt=shape(body=Conversion, answer=Referral),
)
async def convert(request: Req) -> Response[bytes]:
    """Convert a customer's attribution; both sides are rewarded once."""
    caller = await auth.secret_caller(request)
    raw, new = await bodies.received(request, Conversion)
    services: Services = request.app.state.services
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            done = await conversions.convert(work.conn, caller, services.vault, new)
            work.answer(200, done)
    return work.response()


@get(
    "/v1/referrals",
    operation_id="referrals.list",
    opt=shape(answer=pagination.Listed[Referral], query=_FILTERS),
)
async def page(request: Req) -> Response[bytes]:
    """List referrals, newest first; `review=open` is the review list."""
    caller = await auth.secret_caller(request)
    asked = pagination.asked(request, "rfa", *_FILTERS)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        rows = await referrals.page(
            conn, caller, narrow=_narrowed(asked), after=asked.after, limit=asked.limit + 1
        )
    return answers.ok(pagination.listed(rows, asked))


def _narrowed(asked: pagination.Page) -> dict[str, Any]:
    return {
        "program_id": pagination.id_of(asked, "program_id", "rfp"),
        "referrer_id": asked.filters.get("referrer_id"),
        "referee_id": asked.filters.get("referee_id"),
        "status": pagination.one_of(
            asked, "status", "invited", "attributed", "converted", "rewarded", "rejected",
            "reversed",
        ),
        "review": pagination.one_of(asked, "review", "open", "approved", "rejected", "lapsed"),
    }  # fmt: skip


@get(
    "/v1/referrals/tree",
    operation_id="referrals.tree",
    opt=shape(answer=Tree, query=("customer_id",)),
)
async def tree(request: Req) -> Response[bytes]:
    """Return whom a customer came through, and everybody who came through them."""
    caller = await auth.secret_caller(request)
    given = pagination.parameters(request, "customer_id")
    if not given:
        raise Invalid("customer_id is required", field="customer_id")
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        return answers.ok(await referrals.tree(conn, caller, given["customer_id"]))


@get("/v1/referrals/{id:str}", operation_id="referrals.get", opt=shape(answer=Referral))
async def show(request: Req, id: str) -> Response[bytes]:
    """Return a referral with its rewards."""
    caller = await auth.secret_caller(request)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        return answers.ok(await referrals.get(conn, caller, id))


@get(
    "/v1/referrals/{id:str}/history",
    operation_id="referrals.history",
    opt=shape(answer=list[Event]),
)
async def history(request: Req, id: str) -> Response[bytes]:
    """Return what happened to a referral, in order."""
    caller = await auth.secret_caller(request)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        return answers.ok(await referrals.history(conn, caller, id))


@post(
    "/v1/referrals/{id:str}/approve",
    operation_id="referrals.approve",
    status_code=200,
    opt=shape(answer=Referral),
)
async def approve(request: Req, id: str) -> Response[bytes]:
    """Believe a rejected attribution after all."""
    return await _decided(request, id, "approved")


@post(
    "/v1/referrals/{id:str}/reject",
    operation_id="referrals.reject",
    status_code=200,
    opt=shape(answer=Referral),
)
async def reject(request: Req, id: str) -> Response[bytes]:
    """Reject an attribution for good."""
    return await _decided(request, id, "rejected")


async def _decided(request: Req, public_id: str, review: Any) -> Response[bytes]:
    caller = await auth.secret_caller(request)
    await bodies.received_nothing(request)
    async with idempotency.write(request, caller) as work:
        if not work.is_done:
            decided = await attributions.decide(work.conn, caller, public_id, review=review)
            work.answer(200, decided)
    return work.response()


@post(
    "/v1/referrals/{id:str}/reverse",
    operation_id="referrals.reverse",
    status_code=200,
    opt=shape(body=Reversal, answer=Referral),
)
async def reverse(request: Req, id: str) -> Response[bytes]:
    """Take both rewards back; what was spent of them is shown as debt. The body may be empty."""
    caller = await auth.secret_caller(request)
    raw, body = await bodies.received(request, Reversal, is_optional=True)
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            work.answer(200, await conversions.reverse(work.conn, caller, id, body.reason))
    return work.response()


ROUTES: Final = [
    invite, attribute, convert, page, tree, show, history, approve, reject, reverse,
]  # fmt: skip
