"""Plans: what each includes, what goes beyond costs, and what a month comes to.

Integers only: prices in cents, prices of one call or redemption in tenths of a cent. A month's plan
fee is shared out by whole hours; the usage of an hour belongs to the plan it ended on.
"""

from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from core.rules.rates import Rate

# €0.003 an API call and €0.005 a redemption beyond what a plan includes.
CALL_PRICE_TENTHS: Final = 3
REDEMPTION_PRICE_TENTHS: Final = 5
CURRENCY: Final = "EUR"

HOUR: Final = timedelta(hours=1)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A plan. None of a quota: without limit. `stops`: whether it ends at its quota.

    `rate`: how often all keys of an account may ask together; a flash sale of a thousand a second
    fits into the largest that has one.
    """

    name: str
    price_minor: int
    calls: int | None
    redemptions: int | None
    projects: int | None
    stops: bool = False
    rate: Rate | None = None


PLANS: Final = {
    plan.name: plan
    for plan in (
        Plan(
            name="free",
            price_minor=0,
            calls=1_000,
            redemptions=500,
            projects=1,
            stops=True,
            rate=Rate(limit=600, window_s=60, burst=100),
        ),
        Plan(
            name="starter",
            price_minor=2_900,
            calls=10_000,
            redemptions=2_000,
            projects=2,
            rate=Rate(limit=6_000, window_s=60, burst=1_000),
        ),
        Plan(
            name="growth",
            price_minor=7_900,
            calls=50_000,
            redemptions=10_000,
            projects=5,
            rate=Rate(limit=30_000, window_s=60, burst=5_000),
        ),
        Plan(
            name="scale",
            price_minor=19_900,
            calls=200_000,
            redemptions=50_000,
            projects=None,
            rate=Rate(limit=120_000, window_s=60, burst=20_000),
        ),
        Plan(name="enterprise", price_minor=50_000, calls=None, redemptions=None, projects=None),
    )
}


class Change(msgspec.Struct, frozen=True):
    """An account went from one plan to another."""

    at: datetime
    before: str
    after: str


class Hour(msgspec.Struct, frozen=True):
    """What was used in the hour that began at `hour`."""

    hour: datetime
    call_count: int
    redemption_count: int


class Stretch(msgspec.Struct, frozen=True):
    """Hours of a month on one plan, from `start` up to `end`."""

    plan: Plan
    start: datetime
    end: datetime

    @property
    def hours(self) -> int:
        """Return how many there are."""
        return (self.end - self.start) // HOUR


class Line(msgspec.Struct, frozen=True):
    """A line of an invoice; `unit_price_tenths` is in tenths of a cent."""

    description: str
    quantity: int
    unit_price_tenths: int
    amount_minor: int


class Bill(msgspec.Struct, frozen=True):
    """What a month comes to, and what it was computed from."""

    calls: int
    redemptions: int
    included_calls: int | None
    included_redemptions: int | None
    lines: list[Line]

    @property
    def total_minor(self) -> int:
        """Return the sum of the lines."""
        return sum(line.amount_minor for line in self.lines)


def hour_of(at: datetime) -> datetime:
    """Return the beginning of an instant's hour."""
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def month_of(at: datetime) -> datetime:
    """Return the beginning of an instant's month, in UTC."""
    return hour_of(at).replace(day=1, hour=0)


def next_month(month: datetime) -> datetime:
    """Return the beginning of the month after one."""
    return (month + timedelta(days=32)).replace(day=1)


def stretches(
    month: datetime, plan: str, created_at: datetime, changes: list[Change]
) -> list[Stretch]:
    """Part a month by the plans an account was on: `plan` now, `changes` from the first on."""
    end = next_month(month)
    at = max(month, hour_of(created_at))
    begun: list[tuple[datetime, str]] = [(at, changes[0].before if changes else plan)]
    for change in changes:
        hour = max(hour_of(change.at), at)
        if hour < end:
            # Of several changes in an hour the last one counts.
            begun = [one for one in begun if one[0] < hour]
            # Who went there and back within an hour was on one plan all the time.
            if not begun or begun[-1][1] != change.after:
                begun.append((hour, change.after))
    ends = [start for start, _ in begun[1:]] + [end]
    return [
        Stretch(PLANS[name], start, until)
        for (start, name), until in zip(begun, ends, strict=True)
        if start < until
    ]


def bill(month: datetime, parts: list[Stretch], used: list[Hour]) -> Bill:
    """Compute a month. What is used on a plan without limit counts towards no quota."""
    hours = (next_month(month) - month) // HOUR
    lines = [_fee(part, hours) for part in parts]
    calls = redemptions = metered_calls = metered_redemptions = 0
    for hour in used:
        calls += hour.call_count
        redemptions += hour.redemption_count
        plan = _plan_at(parts, hour.hour)
        metered_calls += hour.call_count if plan.calls is not None else 0
        metered_redemptions += hour.redemption_count if plan.redemptions is not None else 0
    included_calls = _included([(p.plan.calls, p.hours) for p in parts], hours)
    included_redemptions = _included([(p.plan.redemptions, p.hours) for p in parts], hours)
    for what, count, included, price in (
        ("API calls", metered_calls, included_calls, CALL_PRICE_TENTHS),
        ("Redemptions", metered_redemptions, included_redemptions, REDEMPTION_PRICE_TENTHS),
    ):
        over = count - included if included is not None else 0
        if over > 0:
            # Rounded half up, once.
            amount = (over * price + 5) // 10
            lines.append(Line(f"{what} beyond {included}", over, price, amount))
    return Bill(calls, redemptions, included_calls, included_redemptions, lines)


def _fee(part: Stretch, hours: int) -> Line:
    amount = (2 * part.plan.price_minor * part.hours + hours) // (2 * hours)
    shown = part.plan.name.capitalize()
    described = f"{shown} plan" if part.hours == hours else f"{shown} plan, {part.hours} hours"
    if part.hours != hours:
        described += f" of {hours}"
    return Line(described, 1, amount * 10, amount)


def _included(parts: list[tuple[int | None, int]], hours: int) -> int | None:
    """Return a month's quota, by the hours on each plan; None where no plan had one."""
    finite = [(quota, count) for quota, count in parts if quota is not None]
    return sum(quota * count for quota, count in finite) // hours if finite else None


def _plan_at(parts: list[Stretch], at: datetime) -> Plan:
    for part in reversed(parts):
        if part.start <= at:
            return part.plan
    return parts[0].plan
