"""/v1/vouchers"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

from litestar import Request, get, patch, post
from litestar.response import Response

from api import answers, auth, bodies, idempotency, metrics, pagination
from api.docs import shape
from api.lifespan import Services
from core import attempts, lookups, validations, vouchers
from core.api_keys import Caller
from core.errors import NotFound
from core.validations import Question, Verdict
from core.vouchers import NewVoucher, Voucher, VoucherPatch

Req = Request[Any, Any, Any]


@post(
    "/v1/vouchers",
    operation_id="vouchers.create",
    opt=shape(body=NewVoucher, answer=Voucher, status=201),
)
async def create(request: Req) -> Response[bytes]:
    """Create a voucher; without a code a random one is drawn."""
    caller = await auth.secret_caller(request)
    raw, new = await bodies.received(request, NewVoucher)
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            work.answer(201, await vouchers.create(work.conn, caller, new))
            metrics.count("voucher.created")
    return work.response()


@get(
    "/v1/vouchers",
    operation_id="vouchers.list",
    opt=shape(answer=pagination.Listed[Voucher], query=("campaign_id", "status")),
)
async def page(request: Req) -> Response[bytes]:
    """List vouchers, newest first."""
    caller = await auth.secret_caller(request)
    asked = pagination.asked(request, "vch", "campaign_id", "status")
    status: Any = pagination.one_of(asked, "status", "active", "disabled", "expired")
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        rows = await vouchers.page(
            conn, caller, campaign_id=asked.filters.get("campaign_id"), status=status,
            after=asked.after, limit=asked.limit + 1,
        )  # fmt: skip
    return answers.ok(pagination.listed(rows, asked))


@get("/v1/vouchers/{code:str}", operation_id="vouchers.get", opt=shape(answer=Voucher))
async def show(request: Req, code: str) -> Response[bytes]:
    """Return a voucher by its code or id."""
    caller = await auth.secret_caller(request)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        return answers.ok(await vouchers.get(conn, caller, code))


@patch(
    "/v1/vouchers/{code:str}",
    operation_id="vouchers.edit",
    opt=shape(body=VoucherPatch, answer=Voucher),
)
async def edit(request: Req, code: str) -> Response[bytes]:
    """Change a voucher's dates or metadata; null clears."""
    caller = await auth.secret_caller(request)
    raw, change = await bodies.received(request, VoucherPatch)
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            work.answer(200, await vouchers.edit(work.conn, caller, code, change))
    return work.response()


@post(
    "/v1/vouchers/{code:str}/validate",
    operation_id="vouchers.validate",
    status_code=200,
    opt=shape(body=Question, answer=Verdict, for_browsers=True),
)
async def validate(request: Req, code: str) -> Response[bytes]:
    """Say whether a redemption would work and what it would take off; consumes nothing."""
    caller = await auth.any_caller(request)
    _, question = await bodies.received(request, Question)
    services: Services = request.app.state.services
    async with _noted(request, caller, code, question) as noted:
        asker = auth.asker_of(request, caller, question.customer_id)
        async with (
            lookups.counted(services.database, asker),
            services.database.transaction(caller.project_id) as conn,
        ):
            await validations.meet(conn, caller, question)
            noted.append(await validations.look_up(conn, asker, code, question))
    return answers.ok(noted[0])


@asynccontextmanager
async def _noted(
    request: Req, caller: Caller, code: str, question: Question
) -> AsyncIterator[list[Verdict]]:
    """Count a verdict; keep one that says no, and that a code is unknown, for the fraud rules."""
    verdicts: list[Verdict] = []
    try:
        yield verdicts
    except NotFound as fault:
        _note(request, caller, code, question, fault.code)
        raise
    reason = attempts.VALID if verdicts[0].valid else verdicts[0].code
    services: Services = request.app.state.services
    services.attempts.count(caller.project_id, "validate", reason)
    if not verdicts[0].valid:
        _note(request, caller, code, question, reason)


def _note(request: Req, caller: Caller, code: str, question: Question, reason: str) -> None:
    """Keep what was refused for the fraud rules; a browser is at the address it asks from."""
    services: Services = request.app.state.services
    context = None
    if not caller.is_secret:
        visitor = auth.visitor_of(request)
        context = services.contexts.of_peer(caller.project_id, visitor.address)
    services.signals.note(caller.project_id, reason, code, question.customer_id, context)


@post(
    "/v1/vouchers/{code:str}/disable",
    operation_id="vouchers.disable",
    status_code=200,
    opt=shape(answer=Voucher),
)
async def disable(request: Req, code: str) -> Response[bytes]:
    """Switch a voucher off."""
    return await _switch(request, code, "disabled")


@post(
    "/v1/vouchers/{code:str}/enable",
    operation_id="vouchers.enable",
    status_code=200,
    opt=shape(answer=Voucher),
)
async def enable(request: Req, code: str) -> Response[bytes]:
    """Switch a voucher on again."""
    return await _switch(request, code, "active")


async def _switch(
    request: Req, code: str, status: Literal["active", "disabled"]
) -> Response[bytes]:
    caller = await auth.secret_caller(request)
    await bodies.received_nothing(request)
    async with idempotency.write(request, caller) as work:
        if not work.is_done:
            work.answer(200, await vouchers.switch(work.conn, caller, code, status=status))
    return work.response()


ROUTES: Final = [create, page, show, edit, validate, disable, enable]
