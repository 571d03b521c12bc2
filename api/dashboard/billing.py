"""Billing: the plan, what was used of it, another plan, and invoices."""

from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from litestar import Request, get, post
from litestar.response import Response

from api import billing as of_api
from api.dashboard import forms, visits
from api.dashboard.forms import Field
from api.dashboard.visits import Visit
from core import billing, db, usage
from core.billing import PlanName
from core.errors import Fault, PlanLimit
from core.rules import plans
from core.usage import Account

Req = Request[Any, Any, Any]

_PLAN: Final = (Field("plan", "Plan", required=True),)


@get("/dashboard/{project:str}/billing", operation_id="dashboard.billing")
async def page(request: Req, project: str) -> Response[bytes]:
    """Show the account's plan, this month's usage, every plan there is, and invoices."""
    visit = await visits.begun(request, project)
    now = datetime.now(UTC)
    async with visit.reading() as conn:
        account = await usage.account_of(conn, visit.caller)
        spent = await usage.read(conn, visit.caller, now)
        found = await billing.invoices(conn, visit.caller, now)
    offered = [_plan(account, name) for name in plans.PLANS]
    return visit.page(
        "billing.html", title="Billing", plan=of_api.plan_of(account), spent=spent, offered=offered,
        invoices=[of_api.shown(one) for one in found],
    )  # fmt: skip


def _plan(account: Account, name: str) -> of_api.Plan:
    return of_api.plan_of(msgspec.structs.replace(account, plan=name))


@get("/dashboard/{project:str}/billing/plan", operation_id="dashboard.billing.plan")
async def plan_page(request: Req, project: str) -> Response[bytes]:
    """Show what another plan would make of this month's invoice, before anything changes."""
    visit = await visits.begun(request, project)
    asked = {"plan": request.query_params.get("plan", "")}
    return await _plan_shown(visit, forms.read(of_api.NewPlan, _PLAN, asked, "UTC").plan)


async def _plan_shown(visit: Visit, name: PlanName) -> Response[bytes]:
    now = datetime.now(UTC)
    after, refused = None, None
    async with visit.reading() as conn:
        account = await usage.account_of(conn, visit.caller)
        before = (await billing.invoices(conn, visit.caller, now))[0]
        try:
            after = of_api.shown(await billing.preview(conn, visit.caller, name, now))
        except PlanLimit as fault:
            refused = fault.detail
    return visit.page(
        "billing_plan.html", title=f"Change to {name.capitalize()}", refused=refused, after=after,
        before=of_api.shown(before), plan=of_api.plan_of(account), wanted=_plan(account, name),
    )  # fmt: skip


@post("/dashboard/{project:str}/billing/plan", operation_id="dashboard.billing.change")
async def change(request: Req, project: str) -> Response[bytes]:
    """Change the plan from this hour on."""
    visit = await visits.changing(request, project)
    asked = forms.read(of_api.NewPlan, _PLAN, visit.given, "UTC")

    async def work(conn: db.Connection) -> Account:
        return await billing.change(conn, visit.caller, asked.plan)

    try:
        return await visit.act(work, "/billing", "plan-changed")
    except Fault as fault:
        if not isinstance(fault, PlanLimit):
            raise
        return await _plan_shown(visit, asked.plan)


async def _invoice(visit: Visit, month: str) -> of_api.Invoice:
    async with visit.reading() as conn:
        return of_api.shown(await billing.invoice(conn, visit.caller, month, datetime.now(UTC)))


@get(
    "/dashboard/{project:str}/billing/invoices/{month:str}",
    operation_id="dashboard.billing.invoice",
)
async def invoice(request: Req, project: str, month: str) -> Response[bytes]:
    """Show one month's invoice with its lines."""
    visit = await visits.begun(request, project)
    one = await _invoice(visit, month)
    return visit.page("invoice.html", title=f"Invoice {one.month}", one=one)


@get(
    "/dashboard/{project:str}/billing/invoices/{month:str}/lines.csv",
    operation_id="dashboard.billing.lines",
)
async def lines(request: Req, project: str, month: str) -> Response[bytes]:
    """Download one month's invoice as CSV."""
    visit = await visits.begun(request, project)
    answer = of_api.table(await _invoice(visit, month))
    answer.headers["Content-Disposition"] = 'attachment; filename="invoice.csv"'
    return answer


ROUTES: Final = [page, plan_page, change, invoice, lines]
