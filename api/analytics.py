"""/v1/analytics"""

from typing import Any, Final

from litestar import Request, get
from litestar.response import Response

from api import answers, auth, pagination
from api.docs import shape
from api.lifespan import Services
from core import analytics
from core.analytics import Overview


@get("/v1/analytics/overview", operation_id="analytics.overview", opt=shape(answer=Overview))
async def overview(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Return the project at a glance."""
    caller = await auth.secret_caller(request)
    pagination.parameters(request)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        return answers.ok(await analytics.overview(conn, caller))


ROUTES: Final = [overview]
