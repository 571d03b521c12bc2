"""/v1/usage"""

from datetime import UTC, datetime
from typing import Any, Final

from litestar import Request, get
from litestar.response import Response

from api import answers, auth
from api.docs import shape
from api.lifespan import Services
from core import usage
from core.usage import Usage

Req = Request[Any, Any, Any]


@get("/v1/usage", operation_id="usage.get", opt=shape(answer=Usage))
async def show(request: Req) -> Response[bytes]:
    """Return what the account has used this month of what its plan includes."""
    caller = await auth.secret_caller(request)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        return answers.ok(await usage.read(conn, caller, datetime.now(UTC)))


ROUTES: Final = [show]
