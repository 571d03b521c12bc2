"""/v1/analytics"""

from typing import Any, Final

from litestar import Request, get
from litestar.response import Response

from api import answers, auth, pagination
from api.docs import shape
from api.liability import day_of
from api.lifespan import Services
from core import analytics, overviews
from core.analytics import Asked, CampaignSeries, Ranking, Series
from core.attempts import Attempts
from core.errors import Invalid
from core.overviews import Overview

Req = Request[Any, Any, Any]
_DAYS: Final = ("from", "to", "time_zone")
_QUERY: Final = (*_DAYS, "unit")


def _asked(given: dict[str, str], unit: Any = "day") -> Asked:
    unit = given.get("unit", unit)
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
        return answers.ok(await overviews.overview(conn, caller))


@get(
    "/v1/analytics/redemptions",
    operation_id="analytics.redemptions",
    opt=shape(answer=Series, query=_QUERY),
)
async def redemptions(request: Req) -> Response[bytes]:
    """Return what all redemptions of some days add up to, by minute, hour, day, week or month."""
    caller = await auth.secret_caller(request)
    asked = _asked(pagination.parameters(request, *_QUERY))
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
    asked = _asked(pagination.parameters(request, *_QUERY))
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
    asked = _asked(pagination.parameters(request, *_QUERY))
    services: Services = request.app.state.services
    async with services.database.transaction(
        caller.project_id, reads_only=True, isolation="repeatable read"
    ) as conn:
        return answers.ok(await analytics.of_sale(conn, caller, id, asked))


@get(
    "/v1/analytics/attempts",
    operation_id="analytics.attempts",
    opt=shape(answer=Attempts, query=_DAYS),
)
async def attempts(request: Req) -> Response[bytes]:
    """Return what was redeemed and validated on some days, and what was refused, by reason."""
    caller = await auth.secret_caller(request)
    given = pagination.parameters(request, *_DAYS)
    asked = _asked(given, "month")
    services: Services = request.app.state.services
    async with services.database.transaction(
        caller.project_id, reads_only=True, isolation="repeatable read"
    ) as conn:
        return answers.ok(await analytics.of_attempts(conn, caller, asked))


@get(
    "/v1/analytics/top",
    operation_id="analytics.top",
    opt=shape(answer=Ranking, query=("of", "limit", *_DAYS)),
)
async def top(request: Req) -> Response[bytes]:
    """Return the codes, campaigns or flash sales that were redeemed most on some days."""
    caller = await auth.secret_caller(request)
    given = pagination.parameters(request, "of", "limit", *_DAYS)
    of: Any = given.get("of", "codes")
    if of not in analytics.RANKED:
        raise Invalid(f"of must be one of {', '.join(analytics.RANKED)}", field="of")
    asked, limit = _asked(given, "day"), pagination.limit_of(given)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        return answers.ok(await analytics.top(conn, caller, of, asked, limit))


ROUTES: Final = [overview, redemptions, campaign, flash_sale, attempts, top]
