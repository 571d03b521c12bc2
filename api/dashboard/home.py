"""The project at a glance."""

from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

import msgspec
from litestar import Request, get
from litestar.response import Response

from api.dashboard import figures, visits
from api.dashboard.visits import Visit
from core import analytics, budgets, campaigns, db, liability, redemptions
from core.analytics import Asked
from core.campaigns import Campaign

Req = Request[Any, Any, Any]

SOON: Final = timedelta(days=7)
RECENT_MAX: Final = 8
# The newest running campaigns that are looked through for those that end soon or run low: a page
# of the API.
CAMPAIGNS_MAX: Final = 100


class _Now(msgspec.Struct, frozen=True):
    """What moves by itself on the page."""

    overview: analytics.Overview
    today: figures.Today
    recent: list[redemptions.Redemption]


async def _now(visit: Visit, conn: db.Connection) -> _Now:
    caller, now = visit.caller, datetime.now(UTC)
    to_day = _today(visit)
    minutes = Asked(from_day=to_day - timedelta(days=1), to_day=to_day, unit="minute")
    overview = await analytics.overview(conn, caller)
    series = await analytics.of_project(conn, caller, minutes)
    return _Now(overview, figures.today(series, now, caller.exponent), await _recent(visit))


@get("/dashboard/{project:str}", operation_id="dashboard.home")
async def page(request: Req, project: str) -> Response[bytes]:
    """Show what runs, what ends, what was redeemed and what is owed, over some days."""
    visit = await visits.begun(request, project)
    span = figures.span_of(request.query_params.get("days", ""))
    async with visit.reading() as conn:
        now = await _now(visit, conn)
        running = await campaigns.page(
            conn, visit.caller, status="active", after=None, limit=CAMPAIGNS_MAX
        )
        low = budgets.low(await budgets.gone(conn, visit.caller, running))
        charts = await _charts(visit, conn, span)
    return visit.page(
        "home.html", title="Home", now=now, ending=_ending(running), span=span, charts=charts,
        low=[(one, low[one.id]) for one in running if one.id in low], spans_all=figures.SPANS,
        base_url=visit.services.settings.base_url,
    )  # fmt: skip


async def _charts(visit: Visit, conn: db.Connection, span: int) -> list[figures.Chart]:
    to_day = _today(visit)
    from_day = to_day - timedelta(days=span - 1)
    asked = Asked(from_day=from_day, to_day=to_day, unit=figures.grain_of(span))
    series = await analytics.of_project(conn, visit.caller, asked)
    owed = await liability.report(conn, visit.caller, from_day=from_day, to_day=to_day)
    return [figures.redemptions(series), figures.discounts(series), *figures.owed(owed)]


@get("/dashboard/{project:str}/live", operation_id="dashboard.home.live")
async def live(request: Req, project: str) -> Response[bytes]:
    """Return what moves by itself alone, for the page that is watched."""
    visit = await visits.begun(request, project)
    async with visit.reading() as conn:
        now = await _now(visit, conn)
    return visit.page("home_live.html", title="Home", now=now)


def _today(visit: Visit) -> date:
    return datetime.now(UTC).astimezone(ZoneInfo(visit.zone)).date()


async def _recent(visit: Visit) -> list[redemptions.Redemption]:
    found, _ = await redemptions.list_page(
        visit.services.database, visit.caller, redemptions.Filter(), before=None, limit=RECENT_MAX
    )
    return found


def _ending(running: list[Campaign]) -> list[Campaign]:
    soon = datetime.now(UTC) + SOON
    found = [one for one in running if one.rules.expires_at and one.rules.expires_at <= soon]
    return sorted(found, key=lambda one: one.rules.expires_at or soon)


ROUTES: Final = [page, live]
