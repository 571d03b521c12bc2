"""Reports: all of a time, streamed as it is read, for a spreadsheet or a program."""

from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final, get_args
from zoneinfo import ZoneInfo

from litestar import Request, get
from litestar.response import Response, Stream

from api import pagination
from api import reports as of_api
from api.dashboard import visits
from api.liability import day_of
from core import exports
from core.errors import NotFound
from core.reports import Asked, Noun

Req = Request[Any, Any, Any]

_NOUNS: Final[dict[str, Noun]] = {noun: noun for noun in get_args(Noun)}
_LABELS: Final = (
    ("redemptions", "Redemptions", "Each with its order, discount and whether it was rolled back."),
    ("vouchers", "Vouchers", "Those made in the time, with what is left of them."),
    ("gift-card-entries", "Gift card entries", "What was issued, spent, refunded and expired."),
    ("referrals", "Referrals", "Those made in the time, with their rewards."),
    ("usage", "Usage", "API calls and redemptions by the hour; this month where nothing is said."),
)
_FORMS: Final[dict[str, exports.Format]] = {"csv": "csv", "ndjson": "ndjson"}


@get("/dashboard/{project:str}/reports", operation_id="dashboard.reports")
async def page(request: Req, project: str) -> Response[bytes]:
    """Show the reports there are."""
    visit = await visits.begun(request, project)
    today = datetime.now(ZoneInfo(visit.zone)).date()
    return visit.page(
        "reports.html", title="Reports", labels=_LABELS, to_day=today.isoformat(),
        from_day=(today - timedelta(days=29)).isoformat(),
    )  # fmt: skip


@get("/dashboard/{project:str}/reports/{name:str}", operation_id="dashboard.reports.show")
async def show(request: Req, project: str, name: str) -> Stream:
    """Download a report of some days of the project's clock, as it is read."""
    visit = await visits.begun(request, project)
    noun = _NOUNS.get(name)
    if noun is None:
        raise NotFound("There is no such report.")
    given = pagination.parameters(request, "from", "to", "format")
    given = {key: text for key, text in given.items() if text}
    zone = ZoneInfo(visit.zone)
    asked = Asked(
        from_at=_begin(day_of(given, "from"), zone),
        to_at=_begin(day_of(given, "to"), zone, days=1),
    )
    form = _FORMS.get(given.get("format", "csv"), "csv")
    return await of_api.streamed(request, visit.caller, noun, form, asked)


def _begin(day: date | None, zone: ZoneInfo, *, days: int = 0) -> datetime | None:
    """Return when a day begins on a clock, or one so many days later."""
    if day is None:
        return None
    return datetime.combine(day + timedelta(days=days), time(), zone).astimezone(UTC)


ROUTES: Final = [page, show]
