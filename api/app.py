"""The HTTP application: which addresses there are, and what becomes of an error.

A new noun adds its ROUTES to the list below and nothing else.
"""

import re
from typing import Any, Final

import msgspec
import structlog
from litestar import Litestar, Request
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.response import Response

from api import (
    analytics,
    api_keys,
    audit_log,
    auth,
    batches,
    billing,
    blocks,
    campaigns,
    credentials,
    customers,
    docs,
    events,
    exports,
    flash_sales,
    fraud,
    gift_cards,
    health,
    holds,
    imports,
    liability,
    live,
    members,
    metrics,
    people,
    projects,
    qualifications,
    redemptions,
    referral_programs,
    referrals,
    reports,
    segments,
    usage,
    vouchers,
    webhooks,
)
from api.dashboard import routes
from api.doors import Doors
from api.errors import Answer
from api.front import Front, report_fault
from api.lifespan import Entrance, Services
from core.errors import Fault
from core.settings import Settings

ROUTES: Final[list[HTTPRouteHandler]] = [
    *vouchers.ROUTES,
    *batches.ROUTES,
    *imports.ROUTES,
    *exports.ROUTES,
    *reports.ROUTES,
    *campaigns.ROUTES,
    *customers.ROUTES,
    *segments.ROUTES,
    *qualifications.ROUTES,
    *redemptions.ROUTES,
    *holds.ROUTES,
    *flash_sales.ROUTES,
    *gift_cards.ROUTES,
    *liability.ROUTES,
    *referral_programs.ROUTES,
    *referrals.ROUTES,
    *api_keys.ROUTES,
    *people.ROUTES,
    *credentials.ROUTES,
    *projects.ROUTES,
    *members.ROUTES,
    *events.ROUTES,
    *live.ROUTES,
    *audit_log.ROUTES,
    *webhooks.ROUTES,
    *analytics.ROUTES,
    *fraud.ROUTES,
    *blocks.ROUTES,
    *usage.ROUTES,
    *billing.ROUTES,
    *health.ROUTES,
    *metrics.ROUTES,
    *docs.ROUTES,
]

# Above what `api.bodies` takes and discards itself: Litestar's own limit must never be met first.
_LITESTAR_BODY_BYTES_MAX: Final = 64 * 1_048_576

_log = structlog.get_logger("vauchflow.requests")


def create(settings: Settings, entrance: Entrance) -> Front:
    """Make one worker's application. Nothing is opened before `Front.__rsgi_init__`."""
    services = Services(settings)
    services.doors = Doors(services)

    described = msgspec.json.encode(docs.describe(ROUTES, settings.base_url))
    app = Litestar(
        route_handlers=[*ROUTES, routes.ROUTER],
        state=State({"services": services, "openapi": described, "scopes": _scopes()}),
        openapi_config=None,
        logging_config=None,
        request_max_body_size=_LITESTAR_BODY_BYTES_MAX,
        exception_handlers={Exception: _answer_error},
    )
    return Front(app, services, _allowed_methods(), entrance)


def _scopes() -> frozenset[str]:
    """Return every scope a key can have: those that operations need, and all of one kind."""
    needed = {auth.REDEEM_SCOPE, "*:read", "*:write"}
    for route in ROUTES:
        if "shape" in route.opt:
            for method in route.http_methods - {"OPTIONS"}:
                needed.add(auth.scope_of(str(route.operation_id), method))
    return frozenset(needed)


def _allowed_methods() -> dict[str, bytes]:
    methods: dict[str, set[str]] = {}
    for route in ROUTES:
        for path in route.paths:
            template = re.sub(r":\w+\}", "}", path)
            methods.setdefault(template, {"OPTIONS"}).update(route.http_methods)
    return {path: ", ".join(sorted(names)).encode() for path, names in methods.items()}


def _answer_error(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    if request.scope["path"].startswith("/dashboard"):
        # Addresses that no page has; those that are pages answer for themselves.
        return routes.answer_error(request, error)
    services: Services = request.app.state.services
    request_id: str = request.scope["state"]["request_id"]
    if isinstance(error, Fault):
        report_fault(error, request_id)
        return _response(services.problems.of_fault(error, request_id))
    if isinstance(error, HTTPException) and error.status_code < 500:
        return _response(_framework_problem(services, error, request_id))
    _log.error("request_failed", request_id=request_id, exc_info=error)
    return _response(services.problems.internal(request_id))


def _framework_problem(services: Services, error: HTTPException, request_id: str) -> Answer:
    if error.status_code == 404:
        return services.problems.of("not_found", "There is nothing at this address.", request_id)
    if error.status_code == 405:
        answer = services.problems.of(
            "method_not_allowed", "This address does not take that method.", request_id
        )
        allow = (error.headers or {}).get("allow") or (error.headers or {}).get("Allow")
        headers = [*answer.headers, (b"allow", allow.encode())] if allow else answer.headers
        return Answer(answer.status, answer.body, headers)
    return services.problems.of("invalid", str(error.detail), request_id)


def _response(answer: Answer) -> Response[bytes]:
    headers = {name.decode(): text.decode() for name, text in answer.headers}
    media_type = headers.pop("content-type")
    return Response(answer.body, status_code=answer.status, media_type=media_type, headers=headers)
