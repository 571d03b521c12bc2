"""GET /v1/live: server-sent events."""

from typing import Any, Final

from litestar import Request, get
from litestar.response import Stream

from api import auth, pagination
from api.docs import shape
from api.lifespan import Services
from api.reports import from_first
from core import ids, live
from core.errors import Invalid
from core.events import Event

Req = Request[Any, Any, Any]
# Proxies must hand on what they get at once.
_HEADERS: Final = {"x-accel-buffering": "no"}


@get(
    "/v1/live",
    operation_id="live.listen",
    opt=shape(answer=Event, query=("types",), gives=("text/event-stream",)),
)
async def listen(request: Req) -> Stream:
    """Tell what happens as it happens, as server-sent events; Last-Event-ID goes on from there."""
    caller = await auth.secret_caller(request)
    given = pagination.parameters(request, "types")
    types = frozenset(given["types"].split(",")) if "types" in given else None
    if types is not None and (unknown := types - live.TYPES):
        raise Invalid(f"{min(unknown)[:40]!a} is no type of event", field="types")
    after = None
    if (last := request.headers.get("last-event-id")) is not None:
        after = ids.parse_id("evt", last)
        if after is None:
            raise Invalid("Last-Event-ID must be the id (evt_…) of an event", field="last-event-id")
    services: Services = request.app.state.services
    told = services.live.listen(caller, types, after)
    return Stream(
        from_first(await anext(told), told), media_type="text/event-stream", headers=_HEADERS
    )


ROUTES: Final = [listen]
