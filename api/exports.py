"""GET /v1/exports/vouchers: a table, or a line of JSON each, by Accept."""

from typing import Any, Final

from litestar import Request, get
from litestar.response import Response

from api import auth, pagination
from api.docs import shape
from api.lifespan import Services
from core import exports, ids
from core.errors import Invalid
from core.vouchers import Voucher

Req = Request[Any, Any, Any]
_MEDIA_TYPES: Final[dict[exports.Format, str]] = {
    "csv": "text/csv", "ndjson": "application/x-ndjson",
}  # fmt: skip


@get(
    "/v1/exports/vouchers",
    operation_id="vouchers.export",
    opt=shape(
        answer=Voucher, query=("campaign_id", "starting_after"), gives=tuple(_MEDIA_TYPES.values())
    ),
)
async def vouchers(request: Req) -> Response[bytes]:
    """Return up to 10,000 vouchers as CSV or NDJSON; X-Next is where to go on, if there are more.

    Query: `campaign_id`, and `starting_after`, the X-Next of the part before.
    """
    caller = await auth.secret_caller(request)
    given = pagination.parameters(request, "campaign_id", "starting_after")
    after = given.get("starting_after")
    if after is not None and ids.parse_id("vch", after) is None:
        raise Invalid("starting_after must be the X-Next of a part", field="starting_after")
    is_lines = _MEDIA_TYPES["ndjson"] in request.headers.get("accept", "")
    form: exports.Format = "ndjson" if is_lines else "csv"
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        found = await exports.part(
            conn, caller, form, campaign_id=given.get("campaign_id"), after=after
        )
    headers = {} if found.last is None else {"X-Next": found.last}
    return Response(found.text, media_type=_MEDIA_TYPES[form], headers=headers)


ROUTES: Final = [vouchers]
