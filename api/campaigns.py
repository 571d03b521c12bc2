"""/v1/campaigns"""

from typing import Any, Final

from litestar import Request, get, patch, post
from litestar.response import Response

from api import answers, auth, bodies, idempotency, metrics, pagination
from api.docs import shape
from api.lifespan import Services
from core import campaigns, publications
from core.campaigns import Campaign, CampaignPatch, Move, NewCampaign
from core.publications import Cloned, NewCode
from core.vouchers import Voucher

Req = Request[Any, Any, Any]
_PHASES: Final = ("draft", "scheduled", "active", "paused", "ended")


@post(
    "/v1/campaigns",
    operation_id="campaigns.create",
    opt=shape(body=NewCampaign, answer=Campaign, status=201),
)
async def create(request: Req) -> Response[bytes]:
    """Create a campaign, a draft or active at once, with its code where it has one for all."""
    caller = await auth.secret_caller(request)
    raw, new = await bodies.received(request, NewCampaign)
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            work.answer(201, await publications.launch(work.conn, caller, new))
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
    status: Any = pagination.one_of(asked, "status", *_PHASES)
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
    """Change a campaign's name, metadata or rules; `effect` says what that does to its codes."""
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
    return await _switch(request, id, "pause")


@post(
    "/v1/campaigns/{id:str}/resume",
    operation_id="campaigns.resume",
    status_code=200,
    opt=shape(answer=Campaign),
)
async def resume(request: Req, id: str) -> Response[bytes]:
    """Resume a paused campaign."""
    return await _switch(request, id, "resume")


@post(
    "/v1/campaigns/{id:str}/activate",
    operation_id="campaigns.activate",
    status_code=200,
    opt=shape(answer=Campaign),
)
async def activate(request: Req, id: str) -> Response[bytes]:
    """Let a draft begin, at its start or at once."""
    return await _switch(request, id, "activate")


@post(
    "/v1/campaigns/{id:str}/end",
    operation_id="campaigns.end",
    status_code=200,
    opt=shape(answer=Campaign),
)
async def finish(request: Req, id: str) -> Response[bytes]:
    """End a campaign for good."""
    return await _switch(request, id, "end")


@post(
    "/v1/campaigns/{id:str}/clone",
    operation_id="campaigns.clone",
    opt=shape(body=Cloned, answer=Campaign, status=201),
)
async def clone(request: Req, id: str) -> Response[bytes]:
    """Make a draft with the same rules and codes of its own. The body may be empty."""
    caller = await auth.secret_caller(request)
    raw, new = await bodies.received(request, Cloned, is_optional=True)
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            work.answer(201, await publications.clone(work.conn, caller, id, new))
            metrics.count("campaign.created")
    return work.response()


@post(
    "/v1/campaigns/{id:str}/codes",
    operation_id="campaigns.issue",
    status_code=200,
    opt=shape(body=NewCode, answer=Voucher),
)
async def issue(request: Req, id: str) -> Response[bytes]:
    """Give a customer a code of a campaign; where each gets one, a retry gets the same."""
    caller = await auth.secret_caller(request)
    raw, new = await bodies.received(request, NewCode, is_optional=True)
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            work.answer(200, await publications.issue(work.conn, caller, id, new))
    return work.response()


async def _switch(request: Req, public_id: str, move: Move) -> Response[bytes]:
    caller = await auth.secret_caller(request)
    await bodies.received_nothing(request)
    async with idempotency.write(request, caller) as work:
        if not work.is_done:
            work.answer(200, await campaigns.switch(work.conn, caller, public_id, move))
    return work.response()


ROUTES: Final = [create, page, show, edit, activate, pause, resume, finish, clone, issue]
