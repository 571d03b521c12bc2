"""/v1/holds"""

from typing import Any, Final

from litestar import Request, get, post
from litestar.response import Response

from api import answers, auth, bodies, idempotency
from api.docs import shape
from api.lifespan import Services
from core import holds
from core.holds import Extension, Hold, NewHold

Req = Request[Any, Any, Any]


@post(
    "/v1/holds",
    operation_id="holds.create",
    opt=shape(body=NewHold, answer=Hold, status=201),
)
async def create(request: Req) -> Response[bytes]:
    """Keep one use of a code for a checkout, 15 minutes unless said otherwise."""
    caller = await auth.secret_caller(request)
    raw, new = await bodies.received(request, NewHold)
    services: Services = request.app.state.services
    new = services.contexts.hidden(caller.project_id, new)
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            work.answer(201, await holds.create(work.conn, caller, new))
    return work.response()


@get("/v1/holds/{id:str}", operation_id="holds.get", opt=shape(answer=Hold))
async def show(request: Req, id: str) -> Response[bytes]:
    """Return a hold."""
    caller = await auth.secret_caller(request)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        return answers.ok(await holds.get(conn, caller, id))


@post(
    "/v1/holds/{id:str}/extend",
    operation_id="holds.extend",
    status_code=200,
    opt=shape(body=Extension, answer=Hold),
)
async def extend(request: Req, id: str) -> Response[bytes]:
    """Let a hold go on, so many seconds from now. The body may be empty."""
    caller = await auth.secret_caller(request)
    raw, body = await bodies.received(request, Extension, is_optional=True)
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            work.answer(200, await holds.extend(work.conn, caller, id, body.ttl_s))
    return work.response()


@post(
    "/v1/holds/{id:str}/release",
    operation_id="holds.release",
    status_code=200,
    opt=shape(answer=Hold),
)
async def release(request: Req, id: str) -> Response[bytes]:
    """Give a held use back."""
    caller = await auth.secret_caller(request)
    await bodies.received_nothing(request)
    async with idempotency.write(request, caller) as work:
        if not work.is_done:
            work.answer(200, await holds.release(work.conn, caller, id))
    return work.response()


ROUTES: Final = [create, show, extend, release]
