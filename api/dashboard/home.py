"""The project at a glance."""

from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import msgspec
from litestar import Request, get
from litestar.response import Response

from api.dashboard import figures, visits
from api.dashboard.visits import Visit
from core import budgets, campaigns, db, glances, liability, redemptions
from core.analytics import Series
from core.campaigns import Campaign
from core.rules import money

Req = Request[Any, Any, Any]

SOON: Final = timedelta(days=7)
RECENT_MAX: Final = 8
# The newest running campaigns that are looked through for those that end soon or run low: a page
# of the API.
CAMPAIGNS_MAX: Final = 100


class _Now(msgspec.Struct, frozen=True):
    """What moves by itself on the page."""

    seen: glances.Today
    discount_today: msgspec.Raw
    today: figures.Today
    recent: list[redemptions.Redemption]


async def _now(visit: Visit, conn: db.Connection, seen: glances.Today) -> _Now:
    caller = visit.caller
    today = figures.today(seen.minutes, visit.zone, datetime.now(UTC), caller.exponent)
    discount = money.json_amount(seen.discount_minor, caller.exponent)
    # Last: it turns what this transaction may not need any more off.
    recent, _ = await redemptions.page(
        conn, caller, redemptions.Filter(), before=None, limit=RECENT_MAX
    )
    return _Now(seen, discount, today, recent)


@get("/dashboard/{project:str}", operation_id="dashboard.home")
async def page(request: Req, project: str) -> Response[bytes]:
    """Show what runs, what ends, what was redeemed and what is owed, over some days."""
    visit = await visits.begun(request, project)
    span = figures.span_of(request.query_params.get("days", ""))
    async with visit.reading() as conn:
        running = await campaigns.page(
            conn, visit.caller, status="active", after=None, limit=CAMPAIGNS_MAX
        )
        low = budgets.low(await budgets.gone(conn, visit.caller, running))
        seen = await glances.glance(conn, visit.caller, span, figures.grain_of(span), visit.zone)
        charts = await _charts(visit, conn, seen.series)
        now = await _now(visit, conn, seen.today)
    return visit.page(
        "home.html", title="Home", now=now, ending=_ending(running), span=span, charts=charts,
        low=[(one, low[one.id]) for one in running if one.id in low], spans_all=figures.SPANS,
        base_url=visit.services.settings.base_url, running=len(running),
    )  # fmt: skip


async def _charts(visit: Visit, conn: db.Connection, series: Series) -> list[figures.Chart]:
    owed = await liability.report(
        conn, visit.caller, from_day=date.fromisoformat(series.from_),
        to_day=date.fromisoformat(series.to), has_ages=False, zone=visit.zone,
    )  # fmt: skip
    return [figures.redemptions(series), figures.discounts(series), *figures.owed(owed)]


@get("/dashboard/{project:str}/live", operation_id="dashboard.home.live")
async def live(request: Req, project: str) -> Response[bytes]:
    """Return what moves by itself alone, for the page that is watched."""
    visit = await visits.begun(request, project)
    async with visit.reading() as conn:
        running = await campaigns.page(
            conn, visit.caller, status="active", after=None, limit=CAMPAIGNS_MAX
        )
        now = await _now(visit, conn, await glances.watch(conn, visit.caller, visit.zone))
    return visit.page("home_live.html", title="Home", now=now, running=len(running))


def _ending(running: list[Campaign]) -> list[Campaign]:
    soon = datetime.now(UTC) + SOON
    found = [one for one in running if one.rules.expires_at and one.rules.expires_at <= soon]
    return sorted(found, key=lambda one: one.rules.expires_at or soon)


ROUTES: Final = [page, live]
