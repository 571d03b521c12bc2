"""Mails to owners when a quota of their plan, or a budget, is used to a part or wholly.

What was told is written down before it is mailed: at most once for each part, month and budget.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import msgspec
import structlog

from core import db
from core.errors import OutcomeUnknown, Unavailable
from core.mails import Mail, Mailer
from core.rules import plans, schedules
from core.rules.schedules import Period

# The ledger's month of every account with a quota is counted: seconds, where there are thousands.
TIMEOUT_MS: Final = 60_000
# Clocks on Earth are from 12 hours behind UTC to 14 before it; an hour for what just ended.
ZONES: Final = (timedelta(hours=-13), timedelta(0), timedelta(hours=14))

_THINGS: Final = {"api_calls": "API calls", "redemptions": "redemptions"}

_log = structlog.get_logger("vauchflow.notices")


class Told(msgspec.Struct, frozen=True):
    """A part of something that a project has used and is told of now."""

    project_id: UUID
    subject: str
    period: str
    percent: int
    name: str


class _Owner(msgspec.Struct, frozen=True):
    project_id: UUID
    email: str
    project_name: str


async def tell(database: db.Database, mailer: Mailer, now: datetime) -> int:
    """Mail what has come about since the last look; return how many mails. Never raises.

    Concurrency: several workers may; each part is one's to tell.
    """
    month = plans.month_of(now)
    limited = [plan for plan in plans.PLANS.values() if plan.calls is not None]
    try:
        async with database.transaction(None, statement_timeout_ms=TIMEOUT_MS) as conn:
            told = await db.many(
                conn, "notices.tell_quotas", Told,
                plans=[plan.name for plan in limited], calls=[plan.calls for plan in limited],
                redemptions=[plan.redemptions for plan in limited],
                from_at=month, to_at=plans.next_month(month), month=f"{month:%Y-%m}",
            )  # fmt: skip
            told += await db.many(conn, "notices.tell_budgets", Told, periods=_running(now))
            owners = await db.many(
                conn, "notices.owners", _Owner, projects=list({one.project_id for one in told})
            )
        mails = list(_mails(told, owners))
        for mail in mails:
            mailer.send(mail)
    except (Unavailable, OutcomeUnknown) as error:
        _log.warning("notices_not_told", reason=error.detail)
        return 0
    return len(mails)


def _running(now: datetime) -> list[str]:
    """Return the periods that budgets are in somewhere on Earth now, or were until just now."""
    kinds: tuple[Period | None, ...] = (None, "day", "week", "month")
    return sorted({
        schedules.period_of(kind, now + shift, "UTC") for kind in kinds for shift in ZONES
    })  # fmt: skip


def _mails(told: list[Told], owners: list[_Owner]) -> Iterable[Mail]:
    """Write one mail a person and thing, of the largest part."""
    largest: dict[tuple[str, str, str], tuple[Told, _Owner]] = {}
    for one in sorted(told, key=lambda one: one.percent):
        for owner in owners:
            if owner.project_id == one.project_id:
                # A plan's quota is all its projects': who owns several is told once.
                key = (owner.email, one.subject, one.period)
                largest[key] = one, owner
    for one, owner in largest.values():
        things = _THINGS.get(one.subject)
        if things is not None:
            month, _, plan = one.period.partition(" ")
            subject = f"{one.percent} % of the month's {things} are used"
            text = (
                f"The {plan} plan of your account includes a number of {things} a month. For "
                f"{month}, {one.percent} % of it is used. GET /v1/usage says more.\n"
            )
        else:
            label = one.subject.partition("/")[2]
            subject = f"{one.percent} % of a budget of {one.name} are used"
            text = (
                f"In {owner.project_name}, {one.percent} % of the budget “{label}” of {one.name} "
                f"is used{f' for {one.period}' if one.period else ''}. "
                "What no longer fits is refused.\n"
            )
        yield Mail(to=owner.email, subject=subject, text=text)
