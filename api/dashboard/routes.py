"""The dashboard's addresses, and what becomes of an error there: a page."""

from typing import Any, Final

import structlog
from litestar import Request, Router
from litestar.exceptions import HTTPException
from litestar.response import Response

from api.dashboard import (
    account,
    approvals,
    assets,
    billing,
    bulk,
    campaigns,
    customers,
    developers,
    entry,
    events,
    first_steps,
    flash_sales,
    fraud,
    gift_cards,
    home,
    letters,
    pages,
    projects,
    redemptions,
    referrals,
    reports,
    requests,
    segments,
    settings,
    tables,
    team,
    visits,
    vouchers,
    webhooks,
)
from api.errors import status_of
from api.front import report_fault
from core.errors import CODES, Fault

_log = structlog.get_logger("vauchflow.requests")


def answer_error(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer an error as a page; who is not logged in goes to the log-in."""
    request_id: str = request.scope["state"]["request_id"]
    if isinstance(error, visits.LogInFirst):
        return entry.to_log_in(error.back)
    if isinstance(error, Fault):
        report_fault(error, request_id)
        return _page(request, status_of(error.code), error.code, error.detail)
    if isinstance(error, HTTPException) and error.status_code < 500:
        return _page(request, error.status_code, "not_found", "There is no page at this address.")
    _log.error("request_failed", request_id=request_id, exc_info=error)
    return _page(request, 500, "internal", CODES["internal"])


def _page(request: Request[Any, Any, Any], status: int, code: str, detail: str) -> Response[bytes]:
    text = pages.render(
        "alone.html",
        theme=visits.theme_of(request),
        title=_TITLES.get(status, "That did not work"),
        detail=detail,
        code=code,
        request_id=request.scope["state"]["request_id"],
    )
    return pages.answer(text, status)


_TITLES: Final = {
    403: "You may not do that",
    404: "Nothing here",
    409: "Not done",
    500: "Something broke on our side",
    503: "Not available right now",
}

ROUTER: Final = Router(
    path="/",
    route_handlers=[
        *assets.ROUTES,
        *entry.ROUTES,
        *letters.ROUTES,
        *account.ROUTES,
        *projects.ROUTES,
        *first_steps.ROUTES,
        *team.ROUTES,
        *settings.ROUTES,
        *billing.ROUTES,
        *home.ROUTES,
        *bulk.ROUTES,
        *vouchers.ROUTES,
        *redemptions.ROUTES,
        *campaigns.ROUTES,
        *flash_sales.ROUTES,
        *gift_cards.ROUTES,
        *referrals.ROUTES,
        *customers.ROUTES,
        *segments.ROUTES,
        *fraud.ROUTES,
        *approvals.ROUTES,
        *developers.ROUTES,
        *events.ROUTES,
        *tables.ROUTES,
        *reports.ROUTES,
        *requests.ROUTES,
        *webhooks.ROUTES,
    ],
    exception_handlers={Exception: answer_error},
)
