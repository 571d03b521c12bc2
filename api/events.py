"""/v1/events"""

from typing import Any, Final

from litestar import Request, get
from litestar.response import Response

from api import answers, auth, pagination
from api.docs import shape
from api.lifespan import Services
from core import events
from core.events import Event

Req = Request[Any, Any, Any]


@get(
    "/v1/events",
    operation_id="events.list",
    opt=shape(answer=pagination.Listed[Event], query=("type",)),
)
async def page(request: Req) -> Response[bytes]:
    """List what happened in the last 30 days, newest first."""
    caller = await auth.secret_caller(request)
    asked = pagination.asked(request, "evt", "type")
    wanted = pagination.one_of(asked, "type", *events.TYPES)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        rows = await events.page(
            conn, caller, type=wanted, after=asked.after, limit=asked.limit + 1
        )
    return answers.ok(pagination.listed(rows, asked))


@get("/v1/events/{id:str}", operation_id="events.get", opt=shape(answer=Event))
async def show(request: Req, id: str) -> Response[bytes]:
    """Return one event."""
    caller = await auth.secret_caller(request)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        return answers.ok(await events.get(conn, caller, id))


ROUTES: Final = [page, show]
