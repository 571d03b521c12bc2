"""Billing: the plan of an account, changing it, and invoices. No card data comes near here.

A month's invoice is a draft, computed anew whenever it is asked for, until a day after its end;
then the worker writes it down for good and hands it to the payment provider.
"""

from datetime import UTC, datetime, timedelta
from typing import Final, Literal, Protocol
from uuid import UUID

import msgspec
import structlog

from core import audit_log, db, ids, usage
from core.api_keys import Caller
from core.errors import NotFound, OutcomeUnknown, PlanLimit, Unavailable
from core.rules import plans
from core.rules.plans import Change, Line
from core.usage import Account

PlanName = Literal["free", "starter", "growth", "scale", "enterprise"]

# What was redeemed in the last minute of a month may reach the ledger later.
FINAL_AFTER: Final = timedelta(days=1)
# Accounts of one look; the rest has its turn at the next.
FINALIZED_MAX: Final = 500

_log = structlog.get_logger("vauchflow.billing")


class Invoice(msgspec.Struct, frozen=True, kw_only=True):
    """A month: a draft while it can change. `reference` is the payment provider's."""

    month: datetime
    status: Literal["draft", "final"]
    lines: list[Line]
    total_minor: int
    reference: str | None = None
    finalized_at: datetime | None = None


class PaymentProvider(Protocol):
    """Who collects what a final invoice asks for."""

    name: str

    async def collect(self, account_id: UUID, invoice: Invoice) -> str | None:
        """Have an invoice paid and return the provider's reference.

        Idempotent on account and month: it may be asked twice.
        """
        ...


class ByHand:
    """Invoices are sent and paid outside of this product."""

    name = "manual"

    async def collect(self, account_id: UUID, invoice: Invoice) -> str | None:
        """Return what to write on the transfer."""
        return f"{ids.format_id('acc', account_id)}-{invoice.month:%Y-%m}"


async def change(conn: db.Connection, caller: Caller, plan: PlanName) -> Account:
    """Move the caller's account to another plan from this hour on; return it as it is then.

    Idempotent. Raises: PlanLimit where the plan has no room for the projects there are.
    """
    before = await usage.account_of(conn, caller)
    outcome = await db.value(
        conn, "billing.change_plan", str, project_id=caller.project_id, plan=plan
    )
    if outcome == "too_many_projects":
        raise _no_room(plan, before.project_count)
    if outcome == "changed":
        await audit_log.write(
            conn, caller, "plan.changed", ids.format_id("acc", before.account_id),
            before={"plan": before.plan}, after={"plan": plan},
        )  # fmt: skip
    return await usage.account_of(conn, caller)


async def preview(conn: db.Connection, caller: Caller, plan: PlanName, now: datetime) -> Invoice:
    """Return the running month's draft as it would be, were the plan changed now. Writes nothing.

    Raises: PlanLimit, as `change`.
    """
    account = await usage.account_of(conn, caller)
    room = plans.PLANS[plan].projects
    if room is not None and account.project_count > room:
        raise _no_room(plan, account.project_count)
    changes = [*account.changes, Change(at=now, before=account.plan, after=plan)]
    changed = msgspec.structs.replace(account, plan=plan, changes=changes)
    return await _draft(conn, changed, plans.month_of(now))


def _no_room(plan: PlanName, project_count: int) -> PlanLimit:
    return PlanLimit(
        f"The {plan} plan has room for {plans.PLANS[plan].projects} projects, and this account "
        f"has {project_count}; archive or delete some first.",
        because={"limit": "projects", "quota": plans.PLANS[plan].projects},
    )


async def invoices(conn: db.Connection, caller: Caller, now: datetime) -> list[Invoice]:
    """Return the months of the caller's account, newest first: drafts, then what is final."""
    account = await usage.account_of(conn, caller)
    final = await db.many(conn, "billing.invoices", _Final, project_id=caller.project_id)
    known = {invoice.month for invoice in final}
    month = plans.month_of(now)
    drafts = []
    # The month before may wait for its day.
    for open_month in (month, plans.month_of(month - timedelta(days=1))):
        if open_month not in known and plans.next_month(open_month) > account.created_at:
            drafts.append(await _draft(conn, account, open_month))
    return drafts + [_shown(invoice) for invoice in final]


async def invoice(conn: db.Connection, caller: Caller, month: str, now: datetime) -> Invoice:
    """Return one month's invoice, named as 2026-11. Raises: NotFound."""
    for found in await invoices(conn, caller, now):
        if f"{found.month:%Y-%m}" == month:
            return found
    raise NotFound("There is no invoice for this month.")


class _Final(msgspec.Struct, frozen=True):
    month: datetime
    lines: list[Line]
    total_minor: int
    reference: str | None
    finalized_at: datetime


class _Due(msgspec.Struct, frozen=True):
    account_id: UUID
    plan: str
    created_at: datetime
    changes: list[Change]


def _shown(row: _Final) -> Invoice:
    return Invoice(
        month=row.month.astimezone(UTC), status="final", lines=row.lines,
        total_minor=row.total_minor, reference=row.reference, finalized_at=row.finalized_at,
    )  # fmt: skip


async def _draft(conn: db.Connection, account: Account | _Due, month: datetime) -> Invoice:
    parts = plans.stretches(month, account.plan, account.created_at, account.changes)
    bill = plans.bill(month, parts, await usage.by_hour(conn, account.account_id, month))
    return Invoice(month=month, status="draft", lines=bill.lines, total_minor=bill.total_minor)


async def finalize(database: db.Database, provider: PaymentProvider, now: datetime) -> int:
    """Write down last month's invoices and have them paid; return how many. Never raises.

    Concurrency: several workers may; the first to write an invoice wins.
    """
    month = plans.month_of(plans.month_of(now) - timedelta(days=1))
    if now < plans.next_month(month) + FINAL_AFTER:
        return 0
    done = 0
    try:
        async with database.connection() as conn:
            due = await db.many(
                conn, "billing.due", _Due,
                month=month, before=plans.next_month(month), limit=FINALIZED_MAX,
            )  # fmt: skip
            for account in due:
                draft = await _draft(conn, account, month)
                reference = await provider.collect(account.account_id, draft)
                done += await db.run(
                    conn, "billing.finalize",
                    account_id=account.account_id, month=month, lines=draft.lines,
                    total_minor=draft.total_minor, provider=provider.name, reference=reference,
                )  # fmt: skip
    except (Unavailable, OutcomeUnknown) as error:
        _log.warning("invoices_not_written", reason=error.detail)
    return done
