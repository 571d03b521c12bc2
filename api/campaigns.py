"""/v1/campaigns"""

from typing import Any, Final, Literal

from litestar import Request, get, patch, post
from litestar.response import Response

from api import answers, auth, bodies, idempotency, metrics, pagination
from api.docs import shape
from api.lifespan import Services
from core import campaigns
from core.campaigns import Campaign, CampaignPatch, NewCampaign

Req = Request[Any, Any, Any]


@post(
    "/v1/campaigns",
    operation_id="campaigns.create",
    opt=shape(body=NewCampaign, answer=Campaign, status=201),
)
async def create(request: Req) -> Response[bytes]:
    """Create a campaign; it is active at once."""
    caller = await auth.secret_caller(request)
    raw, new = await bodies.received(request, NewCampaign)
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            work.answer(201, await campaigns.create(work.conn, caller, new))
            metrics.count("campaign.created")
    return work.response()


@get(
    "/v1/campaigns",
    operation_id="campaigns.list",
    opt=shape(answer=pagination.Listed[Campaign], query=("status",)),
)
async def page(request: Req) -> Response[bytes]:
    """List campaigns, newest first."""
    caller = await auth.secret_caller(request)
    asked = pagination.asked(request, "cmp", "status")
    status: Any = pagination.one_of(asked, "status", "active", "paused", "ended")
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        rows = await campaigns.page(
            conn, caller, status=status, after=asked.after, limit=asked.limit + 1
        )
    return answers.ok(pagination.listed(rows, asked))


@get("/v1/campaigns/{id:str}", operation_id="campaigns.get", opt=shape(answer=Campaign))
async def show(request: Req, id: str) -> Response[bytes]:
    """Return a campaign."""
    caller = await auth.secret_caller(request)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        return answers.ok(await campaigns.get(conn, caller, id))


@patch(
    "/v1/campaigns/{id:str}",
    operation_id="campaigns.edit",
    opt=shape(body=CampaignPatch, answer=Campaign),
)
async def edit(request: Req, id: str) -> Response[bytes]:
    """Change a campaign's name, dates or metadata; null clears."""
    caller = await auth.secret_caller(request)
    raw, change = await bodies.received(request, CampaignPatch)
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            work.answer(200, await campaigns.edit(work.conn, caller, id, change))
    return work.response()


@post(
    "/v1/campaigns/{id:str}/pause",
    operation_id="campaigns.pause",
    status_code=200,
    opt=shape(answer=Campaign),
)
async def pause(request: Req, id: str) -> Response[bytes]:
    """Pause a campaign and with it all its vouchers."""
    return await _switch(request, id, "paused")


@post(
    "/v1/campaigns/{id:str}/resume",
    operation_id="campaigns.resume",
    status_code=200,
    opt=shape(answer=Campaign),
)
async def resume(request: Req, id: str) -> Response[bytes]:
    """Resume a paused campaign."""
    return await _switch(request, id, "active")


async def _switch(
    request: Req, public_id: str, status: Literal["active", "paused"]
) -> Response[bytes]:
    caller = await auth.secret_caller(request)
    await bodies.received_nothing(request)
    async with idempotency.write(request, caller) as work:
        if not work.is_done:
            work.answer(200, await campaigns.switch(work.conn, caller, public_id, status=status))
    return work.response()


ROUTES: Final = [create, page, show, edit, pause, resume]
