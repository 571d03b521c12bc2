"""/v1/audit-log"""

from typing import Any, Final

from litestar import Request, get
from litestar.response import Response

from api import answers, auth, docs, pagination
from api.docs import shape
from api.lifespan import Services
from core import audit_log, exports, ids
from core.audit_log import Entry, Filters
from core.errors import Invalid

Req = Request[Any, Any, Any]
_FILTERS: Final = ("action", "actor", "target")


@get(
    "/v1/audit-log",
    operation_id="audit_log.list",
    opt=shape(answer=pagination.Listed[Entry], query=_FILTERS),
)
async def page(request: Req) -> Response[bytes]:
    """List who changed what in the project, newest first."""
    caller = await auth.secret_caller(request)
    asked = pagination.asked(request, "aud", *_FILTERS)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        rows = await audit_log.page(
            conn, caller, Filters(**asked.filters), after=asked.after, limit=asked.limit + 1
        )
    return answers.ok(pagination.listed(rows, asked))


@get(
    "/v1/exports/audit-log",
    operation_id="audit_log.export",
    opt=shape(answer=Entry, query=("starting_after",), gives=(docs.CSV,)),
)
async def export(request: Req) -> Response[bytes]:
    """Return up to 10,000 entries as CSV; X-Next is where to go on, if there are more."""
    caller = await auth.secret_caller(request)
    after = pagination.parameters(request, "starting_after").get("starting_after")
    if after is not None and ids.parse_id("aud", after) is None:
        raise Invalid("starting_after must be the X-Next of a part", field="starting_after")
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        found = await exports.audit_log_part(conn, caller, after=after)
    headers = {} if found.last is None else {"X-Next": found.last}
    return Response(found.text, media_type="text/csv", headers=headers)


ROUTES: Final = [page, export]
