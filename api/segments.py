"""/v1/segments"""

from typing import Any, Final

from litestar import Request, get, patch, post
from litestar.response import Response

from api import answers, auth, bodies, idempotency, pagination
from api.docs import shape
from api.lifespan import Services
from core import segments
from core.segments import (
    MemberList,
    MembersPatch,
    NewSegment,
    Segment,
    SegmentPatch,
)

Req = Request[Any, Any, Any]


@post(
    "/v1/segments",
    operation_id="segments.create",
    opt=shape(body=NewSegment, answer=Segment, status=201),
)
async def create(request: Req) -> Response[bytes]:
    """Create a segment: a list of customers, or a rule over what is known of them."""
    caller = await auth.secret_caller(request)
    raw, new = await bodies.received(request, NewSegment)
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            work.answer(201, await segments.create(work.conn, caller, new))
    return work.response()


@get(
    "/v1/segments",
    operation_id="segments.list",
    opt=shape(answer=pagination.Listed[Segment]),
)
async def page(request: Req) -> Response[bytes]:
    """List segments, newest first."""
    caller = await auth.secret_caller(request)
    asked = pagination.asked(request, "seg")
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        rows = await segments.page(conn, caller, after=asked.after, limit=asked.limit + 1)
    return answers.ok(pagination.listed(rows, asked))


@get("/v1/segments/{id:str}", operation_id="segments.get", opt=shape(answer=Segment))
async def show(request: Req, id: str) -> Response[bytes]:
    """Return a segment."""
    caller = await auth.secret_caller(request)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        return answers.ok(await segments.get(conn, caller, id))


@patch(
    "/v1/segments/{id:str}",
    operation_id="segments.edit",
    opt=shape(body=SegmentPatch, answer=Segment),
)
async def edit(request: Req, id: str) -> Response[bytes]:
    """Change a segment's name or rule; it counts from the next question on."""
    caller = await auth.secret_caller(request)
    raw, change = await bodies.received(request, SegmentPatch)
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            work.answer(200, await segments.edit(work.conn, caller, id, change))
    return work.response()


@get(
    "/v1/segments/{id:str}/members",
    operation_id="segments.members",
    opt=shape(answer=MemberList, query=("starting_after",)),
)
async def members(request: Req, id: str) -> Response[bytes]:
    """Return up to 1,000 customers of a list, those after `starting_after`, one of them."""
    caller = await auth.secret_caller(request)
    after = pagination.parameters(request, "starting_after").get("starting_after")
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        return answers.ok(await segments.members(conn, caller, id, after=after))


@post(
    "/v1/segments/{id:str}/members",
    operation_id="segments.change_members",
    status_code=200,
    opt=shape(body=MembersPatch, answer=Segment),
)
async def change_members(request: Req, id: str) -> Response[bytes]:
    """Put customers on a list, and take others off it."""
    caller = await auth.secret_caller(request)
    raw, change = await bodies.received(request, MembersPatch)
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            done = await segments.change_members(work.conn, caller, id, change)
            work.answer(200, done)
    return work.response()


ROUTES: Final = [create, page, show, edit, members, change_members]
