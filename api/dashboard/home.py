"""The project at a glance."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from litestar import Request, get
from litestar.response import Response

from api.dashboard import visits
from api.dashboard.visits import Visit
from core import analytics, campaigns, liability, redemptions
from core.campaigns import Campaign

Req = Request[Any, Any, Any]

SOON: Final = timedelta(days=7)
RECENT_MAX: Final = 8
# The newest running campaigns that are looked through for those that end soon: a page of the API.
CAMPAIGNS_MAX: Final = 100


@get("/dashboard/{project:str}", operation_id="dashboard.home")
async def page(request: Req, project: str) -> Response[bytes]:
    """Show what runs, what ends, what was redeemed and what is owed."""
    visit = await visits.begun(request, project)
    async with visit.reading() as conn:
        overview = await analytics.overview(conn, visit.caller)
        running = await campaigns.page(
            conn, visit.caller, status="active", after=None, limit=CAMPAIGNS_MAX
        )
        owed = await liability.report(conn, visit.caller, from_day=None, to_day=None)
    return visit.page(
        "home.html", title="Home", overview=overview, liability=owed.data, ending=_ending(running),
        recent=await _recent(visit), base_url=visit.services.settings.base_url,
    )  # fmt: skip


async def _recent(visit: Visit) -> list[redemptions.Redemption]:
    found, _ = await redemptions.list_page(
        visit.services.database, visit.caller, redemptions.Filter(), before=None, limit=RECENT_MAX
    )
    return found


def _ending(running: list[Campaign]) -> list[Campaign]:
    soon = datetime.now(UTC) + SOON
    found = [one for one in running if one.rules.expires_at and one.rules.expires_at <= soon]
    return sorted(found, key=lambda one: one.rules.expires_at or soon)


ROUTES: Final = [page]
