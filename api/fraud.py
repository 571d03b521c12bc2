"""/v1/fraud/rules, /v1/fraud/alerts and /v1/analytics/fraud"""

from datetime import timedelta
from typing import Any, Final, get_args

from litestar import Request, get, post, put
from litestar.response import Response

from api import answers, auth, bodies, idempotency, pagination
from api.docs import shape
from api.liability import day_of
from api.lifespan import Services
from core import analytics, campaigns, detections, fraud
from core.detections import DryRun, Trial
from core.fraud import Alert, Decision, Report, Rules, RuleSet
from core.rules import schedules
from core.rules.fraud import Action, RuleName, SubjectKind

Req = Request[Any, Any, Any]
_FILTERS: Final = ("status", "rule", "action", "kind", "subject")
_DAYS: Final = 30


@get("/v1/fraud/rules", operation_id="fraud.rules.get", opt=shape(answer=Rules))
async def rules(request: Req) -> Response[bytes]:
    """Return the rules as they stand, each with what it counts."""
    caller = await auth.secret_caller(request)
    pagination.parameters(request)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        return answers.ok(await fraud.rules(conn, caller))


@put("/v1/fraud/rules", operation_id="fraud.rules.set", opt=shape(body=RuleSet, answer=Rules))
async def set_rules(request: Req) -> Response[bytes]:
    """Replace what the project changed of the rules; what is left out is as it comes."""
    caller = await auth.secret_caller(request)
    raw, new = await bodies.received(request, RuleSet)
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            work.answer(200, await fraud.set_rules(work.conn, caller, new))
    return work.response()


@post(
    "/v1/fraud/rules/dry-run",
    operation_id="fraud.rules.dry_run",
    status_code=200,
    opt=shape(body=DryRun, answer=Trial),
)
async def dry_run(request: Req) -> Response[bytes]:
    """Say what rules would have found in past days; changes nothing."""
    caller = await auth.secret_caller(request)
    _, asked = await bodies.received(request, DryRun)
    services: Services = request.app.state.services
    return answers.ok(await detections.try_out(services.database, caller, asked))


@get(
    "/v1/fraud/alerts",
    operation_id="fraud.alerts.list",
    opt=shape(answer=pagination.Listed[Alert], query=_FILTERS),
)
async def page(request: Req) -> Response[bytes]:
    """List alerts, newest first; `status=open&action=review` is the review list."""
    caller = await auth.secret_caller(request)
    asked = pagination.asked(request, "fra", *_FILTERS)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        rows = await fraud.page(
            conn, caller, narrow=_narrowed(asked), after=asked.after, limit=asked.limit + 1
        )
    return answers.ok(pagination.listed(rows, asked))


def _narrowed(asked: pagination.Page) -> dict[str, Any]:
    return {
        "status": pagination.one_of(asked, "status", *fraud.STATUSES),
        "rule": pagination.one_of(asked, "rule", *get_args(RuleName)),
        "action": pagination.one_of(asked, "action", *get_args(Action)),
        "kind": pagination.one_of(asked, "kind", *get_args(SubjectKind)),
        "subject": fraud.stored_subject(asked.filters.get("subject")),
    }


@get("/v1/fraud/alerts/{id:str}", operation_id="fraud.alerts.get", opt=shape(answer=Alert))
async def show(request: Req, id: str) -> Response[bytes]:
    """Return an alert with its reasons."""
    caller = await auth.secret_caller(request)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        return answers.ok(await fraud.get(conn, caller, id))


@post(
    "/v1/fraud/alerts/{id:str}/acknowledge",
    operation_id="fraud.alerts.acknowledge",
    status_code=200,
    opt=shape(body=Decision, answer=Alert),
)
async def acknowledge(request: Req, id: str) -> Response[bytes]:
    """Say that somebody is looking at it. The body may be empty, as of the other decisions."""
    return await _decided(request, id, "acknowledged")


@post(
    "/v1/fraud/alerts/{id:str}/dismiss",
    operation_id="fraud.alerts.dismiss",
    status_code=200,
    opt=shape(body=Decision, answer=Alert),
)
async def dismiss(request: Req, id: str) -> Response[bytes]:
    """Say that it is no fraud, and lift the block that the alert made."""
    return await _decided(request, id, "dismissed")


@post(
    "/v1/fraud/alerts/{id:str}/confirm",
    operation_id="fraud.alerts.confirm",
    status_code=200,
    opt=shape(body=Decision, answer=Alert),
)
async def confirm(request: Req, id: str) -> Response[bytes]:
    """Say that it is fraud; `block` blocks its subject, or not, whatever the rule's action says."""
    return await _decided(request, id, "confirmed")


async def _decided(request: Req, public_id: str, status: fraud.Status) -> Response[bytes]:
    caller = await auth.secret_caller(request)
    raw, decision = await bodies.received(request, Decision, is_optional=True)
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            work.answer(200, await fraud.decide(work.conn, caller, public_id, status, decision))
    return work.response()


@get(
    "/v1/analytics/fraud",
    operation_id="analytics.fraud",
    opt=shape(answer=Report, query=("from", "to", "time_zone")),
)
async def report(request: Req) -> Response[bytes]:
    """Return what the alerts of some days add up to; the last 30 where nothing is said."""
    caller = await auth.secret_caller(request)
    given = pagination.parameters(request, "from", "to", "time_zone")
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        zone = given.get("time_zone") or await campaigns.time_zone(conn, caller)
        schedules.check_time_zone(zone, field="time_zone")
        to_day = day_of(given, "to") or await analytics.today(conn, zone)
        from_day = day_of(given, "from") or to_day - timedelta(days=_DAYS - 1)
        return answers.ok(await fraud.report(conn, caller, from_day, to_day, zone))


ROUTES: Final = [
    rules, set_rules, dry_run, page, show, acknowledge, dismiss, confirm, report,
]  # fmt: skip
