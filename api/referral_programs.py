"""/v1/referral-programs"""

from typing import Any, Final, Literal

from litestar import Request, get, post
from litestar.response import Response

from api import answers, auth, bodies, idempotency, pagination
from api.docs import shape
from api.lifespan import Services
from core import attributions, referral_programs
from core.attributions import NewReferralCode
from core.referral_programs import NewProgram, Program, ReferralCode

Req = Request[Any, Any, Any]


@post(
    "/v1/referral-programs",
    operation_id="referral_programs.create",
    opt=shape(body=NewProgram, answer=Program, status=201),
)
async def create(request: Req) -> Response[bytes]:
    """Create a referral program. Its terms never change."""
    caller = await auth.secret_caller(request)
    raw, new = await bodies.received(request, NewProgram)
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            work.answer(201, await referral_programs.create(work.conn, caller, new))
    return work.response()


@get(
    "/v1/referral-programs",
    operation_id="referral_programs.list",
    opt=shape(answer=pagination.Listed[Program]),
)
async def page(request: Req) -> Response[bytes]:
    """List referral programs, newest first."""
    caller = await auth.secret_caller(request)
    asked = pagination.asked(request, "rfp")
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        rows = await referral_programs.page(conn, caller, after=asked.after, limit=asked.limit + 1)
    return answers.ok(pagination.listed(rows, asked))


@get(
    "/v1/referral-programs/{id:str}",
    operation_id="referral_programs.get",
    opt=shape(answer=Program),
)
async def show(request: Req, id: str) -> Response[bytes]:
    """Return a referral program."""
    caller = await auth.secret_caller(request)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        return answers.ok(await referral_programs.get(conn, caller, id))


@post(
    "/v1/referral-programs/{id:str}/codes",
    operation_id="referral_programs.code",
    status_code=200,
    opt=shape(body=NewReferralCode, answer=ReferralCode),
)
async def code(request: Req, id: str) -> Response[bytes]:
    """Return a customer's code, made at the first call; the customer may choose how it reads."""
    caller = await auth.secret_caller(request)
    raw, new = await bodies.received(request, NewReferralCode)
    services: Services = request.app.state.services
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            made = await attributions.code_of(work.conn, caller, services.people, id, new)
            work.answer(200, made)
    return work.response()


@post(
    "/v1/referral-programs/{id:str}/pause",
    operation_id="referral_programs.pause",
    status_code=200,
    opt=shape(answer=Program),
)
async def pause(request: Req, id: str) -> Response[bytes]:
    """Stop attributing and converting for a while."""
    return await _switched(request, id, "paused")


@post(
    "/v1/referral-programs/{id:str}/resume",
    operation_id="referral_programs.resume",
    status_code=200,
    opt=shape(answer=Program),
)
async def resume(request: Req, id: str) -> Response[bytes]:
    """Let a paused program go on."""
    return await _switched(request, id, "active")


@post(
    "/v1/referral-programs/{id:str}/end",
    operation_id="referral_programs.end",
    status_code=200,
    opt=shape(answer=Program),
)
async def end(request: Req, id: str) -> Response[bytes]:
    """End a program for good; rewards that were promised are still issued."""
    return await _switched(request, id, "ended")


async def _switched(
    request: Req, public_id: str, status: Literal["active", "paused", "ended"]
) -> Response[bytes]:
    caller = await auth.secret_caller(request)
    await bodies.received_nothing(request)
    async with idempotency.write(request, caller) as work:
        if not work.is_done:
            changed = await referral_programs.switch(work.conn, caller, public_id, status=status)
            work.answer(200, changed)
    return work.response()


ROUTES: Final = [create, page, show, code, pause, resume, end]
