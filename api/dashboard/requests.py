"""The request log: what keys asked lately, how it was answered, and how long that took."""

from typing import Any, Final

from litestar import Request, get
from litestar.response import Response

from api import pagination
from api.dashboard import visits
from core import api_keys
from core.request_log import KEPT_MAX, Asked

Req = Request[Any, Any, Any]

# Keys whose names are looked up: more than a project uses at a time.
KEYS_MAX: Final = 100


@get("/dashboard/{project:str}/requests", operation_id="dashboard.requests")
async def page(request: Req, project: str) -> Response[bytes]:
    """List the newest requests, all or those that failed."""
    visit = await visits.begun(request, project)
    asked = pagination.Page(0, None, pagination.parameters(request, "status"))
    status = pagination.one_of(asked, "status", "", "failed", "ok")
    found = await visit.services.request_log.read(visit.caller)
    async with visit.reading() as conn:
        keys = await api_keys.page(conn, visit.caller, after=None, limit=KEYS_MAX)
    rows = [one for one in found or [] if _is_wanted(one, status)]
    return visit.page(
        "requests.html", title="Request log", rows=rows, is_away=found is None,
        status=status or "", hints={one.id: one.name or one.hint for one in keys},
        kept=KEPT_MAX,
    )  # fmt: skip


def _is_wanted(one: Asked, status: str | None) -> bool:
    return not status or (one.status >= 400) == (status == "failed")


ROUTES: Final = [page]
