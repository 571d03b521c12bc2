"""/v1/analytics"""

from typing import Any, Final

from litestar import Request, get
from litestar.response import Response

from api import answers, auth, pagination
from api.docs import shape
from api.liability import day_of
from api.lifespan import Services
from core import analytics
from core.analytics import Asked, CampaignSeries, Overview, Series
from core.errors import Invalid

Req = Request[Any, Any, Any]
_QUERY: Final = ("from", "to", "unit", "time_zone")


def _asked(request: Req) -> Asked:
    given = pagination.parameters(request, *_QUERY)
    unit: Any = given.get("unit", "day")
    if unit not in analytics.DAYS_MAX:
        raise Invalid(f"unit must be one of {', '.join(analytics.DAYS_MAX)}", field="unit")
    return Asked(
        from_day=day_of(given, "from"),
        to_day=day_of(given, "to"),
        unit=unit,
        time_zone=given.get("time_zone"),
    )


@get("/v1/analytics/overview", operation_id="analytics.overview", opt=shape(answer=Overview))
async def overview(request: Req) -> Response[bytes]:
    """Return the project at a glance."""
    caller = await auth.secret_caller(request)
    pagination.parameters(request)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        return answers.ok(await analytics.overview(conn, caller))


@get(
    "/v1/analytics/redemptions",
    operation_id="analytics.redemptions",
    opt=shape(answer=Series, query=_QUERY),
)
async def redemptions(request: Req) -> Response[bytes]:
    """Return what all redemptions of some days add up to, by minute, hour, day, week or month."""
    caller = await auth.secret_caller(request)
    asked = _asked(request)
    services: Services = request.app.state.services
    async with services.database.transaction(
        # Totals and points of one moment.
        caller.project_id, reads_only=True, isolation="repeatable read",
    ) as conn:  # fmt: skip
        return answers.ok(await analytics.of_project(conn, caller, asked))


@get(
    "/v1/analytics/campaigns/{id:str}",
    operation_id="analytics.campaign",
    opt=shape(answer=CampaignSeries, query=_QUERY),
)
async def campaign(request: Req, id: str) -> Response[bytes]:
    """Return what a campaign's redemptions of some days add up to, and what may still come."""
    caller = await auth.secret_caller(request)
    asked = _asked(request)
    services: Services = request.app.state.services
    async with services.database.transaction(
        caller.project_id, reads_only=True, isolation="repeatable read"
    ) as conn:
        return answers.ok(await analytics.of_campaign(conn, caller, id, asked))


@get(
    "/v1/analytics/flash-sales/{id:str}",
    operation_id="analytics.flash_sale",
    opt=shape(answer=Series, query=_QUERY),
)
async def flash_sale(request: Req, id: str) -> Response[bytes]:
    """Return what a flash sale's wins add up to; `unit=second` for one day."""
    caller = await auth.secret_caller(request)
    asked = _asked(request)
    services: Services = request.app.state.services
    async with services.database.transaction(
        caller.project_id, reads_only=True, isolation="repeatable read"
    ) as conn:
        return answers.ok(await analytics.of_sale(conn, caller, id, asked))


ROUTES: Final = [overview, redemptions, campaign, flash_sale]
