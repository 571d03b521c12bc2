"""/v1/billing"""

import csv
import io
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec
from litestar import Request, get, post
from litestar.response import Response

from api import answers, auth, bodies, docs, idempotency
from api.docs import shape
from api.lifespan import Services
from core import billing, usage
from core.billing import PlanName
from core.rules import money, plans
from core.shapes import Amount
from core.usage import Account

Req = Request[Any, Any, Any]

# Cents are hundredths; the price of one call is in thousandths.
_CENTS: Final = 2
_TENTHS: Final = 3


class NewPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The plan to change to."""

    plan: PlanName


class Included(msgspec.Struct, frozen=True):
    """What a plan includes in a month; null is without limit."""

    api_calls: int | None
    redemptions: int | None
    projects: int | None


class Overage(msgspec.Struct, frozen=True):
    """What one more costs."""

    api_call: Amount
    redemption: Amount


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """An account's plan. `overage`: null where it stops at its quota, or has none."""

    plan: str
    price: Amount
    currency: str
    included: Included
    overage: Overage | None
    stops_at_quota: bool
    since: datetime


class Line(msgspec.Struct, frozen=True):
    """A line of an invoice."""

    description: str
    quantity: int
    unit_price: Amount
    amount: Amount


class Invoice(msgspec.Struct, frozen=True, kw_only=True):
    """A month's invoice: a draft until a day after the month."""

    month: str
    status: Literal["draft", "final"]
    currency: str
    lines: list[Line]
    total: Amount
    reference: str | None
    finalized_at: datetime | None


class Invoices(msgspec.Struct, frozen=True):
    """All invoices of the account, newest first."""

    data: list[Invoice]
    has_more: bool = False


def plan_of(account: Account) -> Plan:
    """Write an account's plan as the API shows it."""
    plan = plans.PLANS[account.plan]
    goes_on = plan.calls is not None and not plan.stops
    return Plan(
        plan=plan.name,
        price=money.json_amount(plan.price_minor, _CENTS),
        currency=plans.CURRENCY,
        included=Included(plan.calls, plan.redemptions, plan.projects),
        overage=Overage(
            money.json_amount(plans.CALL_PRICE_TENTHS, _TENTHS),
            money.json_amount(plans.REDEMPTION_PRICE_TENTHS, _TENTHS),
        )
        if goes_on
        else None,
        stops_at_quota=plan.stops,
        since=account.changes[-1].at if account.changes else account.created_at,
    )


def shown(invoice: billing.Invoice) -> Invoice:
    """Write an invoice as the API shows it."""
    return Invoice(
        month=f"{invoice.month:%Y-%m}",
        status=invoice.status,
        currency=plans.CURRENCY,
        lines=[
            Line(
                line.description, line.quantity,
                money.json_amount(line.unit_price_tenths, _TENTHS),
                money.json_amount(line.amount_minor, _CENTS),
            )
            for line in invoice.lines
        ],
        total=money.json_amount(invoice.total_minor, _CENTS),
        reference=invoice.reference,
        finalized_at=invoice.finalized_at,
    )  # fmt: skip


def table(invoice: Invoice) -> Response[bytes]:
    """Answer an invoice's lines as CSV."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["month", "status", "description", "quantity", "unit_price", "amount"])
    for line in invoice.lines:
        amounts = [bytes(line.unit_price).decode(), bytes(line.amount).decode()]
        writer.writerow(
            [invoice.month, invoice.status, line.description, line.quantity, *amounts]
        )  # fmt: skip
    total = bytes(invoice.total).decode()
    writer.writerow([invoice.month, invoice.status, f"Total {invoice.currency}", "", "", total])
    return Response(text.getvalue().encode(), media_type="text/csv")


@get("/v1/billing/plan", operation_id="billing.plan", opt=shape(answer=Plan))
async def show(request: Req) -> Response[bytes]:
    """Return the account's plan: what it includes, and what goes beyond costs."""
    caller = await auth.secret_caller(request)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        return answers.ok(plan_of(await usage.account_of(conn, caller)))


@post(
    "/v1/billing/plan",
    operation_id="billing.change_plan",
    status_code=200,
    opt=shape(body=NewPlan, answer=Plan),
)
async def change(request: Req) -> Response[bytes]:
    """Change the plan from this hour on; a month is shared out by the hours on each."""
    caller = await auth.secret_caller(request)
    raw, new = await bodies.received(request, NewPlan)
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            account = await billing.change(work.conn, caller, new.plan)
            work.answer(200, plan_of(account))
    return work.response()


@get("/v1/billing/invoices", operation_id="billing.invoices", opt=shape(answer=Invoices))
async def page(request: Req) -> Response[bytes]:
    """Return the account's invoices, the running month's draft first."""
    caller = await auth.secret_caller(request)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        found = await billing.invoices(conn, caller, datetime.now(UTC))
    return answers.ok(Invoices([shown(invoice) for invoice in found]))


@get(
    "/v1/billing/invoices/{month:str}",
    operation_id="billing.invoice",
    opt=shape(answer=Invoice, gives=(docs.JSON, docs.CSV)),
)
async def invoice(request: Req, month: str) -> Response[bytes]:
    """Return one month's invoice, named as 2030-01; as a table with Accept: text/csv."""
    caller = await auth.secret_caller(request)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        found = shown(await billing.invoice(conn, caller, month, datetime.now(UTC)))
    if "text/csv" in request.headers.get("accept", ""):
        return table(found)
    return answers.ok(found)


ROUTES: Final = [show, change, page, invoice]
