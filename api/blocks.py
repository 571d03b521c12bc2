"""/v1/fraud/blocks"""

from typing import Any, Final

from litestar import Request, delete, get, post
from litestar.response import Response

from api import answers, auth, bodies, idempotency, pagination
from api.docs import shape
from api.lifespan import Services
from core import blocks
from core.blocks import Block, NewBlock

Req = Request[Any, Any, Any]


@post(
    "/v1/fraud/blocks",
    operation_id="fraud.blocks.create",
    opt=shape(body=NewBlock, answer=Block, status=201),
)
async def create(request: Req) -> Response[bytes]:
    """Block a customer, code, address or device: what they redeem is refused as `blocked`."""
    caller = await auth.secret_caller(request)
    raw, new = await bodies.received(request, NewBlock)
    services: Services = request.app.state.services
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            work.answer(201, await blocks.create(work.conn, caller, services.contexts, new))
    return work.response()


@get(
    "/v1/fraud/blocks",
    operation_id="fraud.blocks.list",
    opt=shape(answer=pagination.Listed[Block], query=("kind",)),
)
async def page(request: Req) -> Response[bytes]:
    """List what is blocked, newest first."""
    caller = await auth.secret_caller(request)
    asked = pagination.asked(request, "blk", "kind")
    kind = pagination.one_of(asked, "kind", *blocks.KINDS)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        rows = await blocks.page(conn, caller, kind=kind, after=asked.after, limit=asked.limit + 1)
    return answers.ok(pagination.listed(rows, asked))


@get("/v1/fraud/blocks/{id:str}", operation_id="fraud.blocks.get", opt=shape(answer=Block))
async def show(request: Req, id: str) -> Response[bytes]:
    """Return a block."""
    caller = await auth.secret_caller(request)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        return answers.ok(await blocks.get(conn, caller, id))


@delete(
    "/v1/fraud/blocks/{id:str}",
    operation_id="fraud.blocks.remove",
    status_code=200,
    opt=shape(answer=dict[str, bool]),
)
async def remove(request: Req, id: str) -> Response[bytes]:
    """Take a block off the list."""
    caller = await auth.secret_caller(request)
    await bodies.received_nothing(request)
    async with idempotency.write(request, caller) as work:
        if not work.is_done:
            await blocks.remove(work.conn, caller, id)
            work.answer(200, {"deleted": True})
    return work.response()


ROUTES: Final = [create, page, show, remove]
