"""A month's bill by the book: event by event and hour by hour, with fractions, and nothing shared.

Says what `docs/plans.md` says. `core.rules.plans` must come to the same cent.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from fractions import Fraction
from math import floor

HOUR = timedelta(hours=1)
# Fee in cents, API calls, redemptions.
PRICES: dict[str, tuple[int, int | None, int | None]] = {
    "free": (0, 1_000, 500),
    "starter": (2_900, 10_000, 2_000),
    "growth": (7_900, 50_000, 10_000),
    "scale": (19_900, 200_000, 50_000),
    "enterprise": (50_000, None, None),
}
BEYOND = (Fraction("0.3"), Fraction("0.5"))


def total_minor(
    month: datetime,
    first: str,
    changes: Iterable[tuple[datetime, str]],
    events: Iterable[tuple[datetime, int, int]],
) -> int:
    """Return what a month costs an account that was there before it.

    `changes`: when it went to which plan, oldest first; `events`: instants with calls and
    redemptions. An hour belongs to the plan it ended on.
    """
    hours = []
    at = month
    while at.month == month.month:
        hours.append(at)
        at += HOUR
    plan_of, now, left = {}, first, list(changes)
    for hour in hours:
        while left and left[0][0] < hour + HOUR:
            now = left.pop(0)[1]
        plan_of[hour] = now
    total = 0
    start = 0
    for n in range(1, len(hours) + 1):
        if n == len(hours) or plan_of[hours[n]] != plan_of[hours[start]]:
            total += half_up(Fraction(PRICES[plan_of[hours[start]]][0] * (n - start), len(hours)))
            start = n
    for kind, price in enumerate(BEYOND):
        quotas = [quota for hour in hours if (quota := PRICES[plan_of[hour]][kind + 1]) is not None]
        used = 0
        for instant, *counts in events:
            hour = instant.replace(minute=0, second=0, microsecond=0)
            if PRICES[plan_of[hour]][kind + 1] is not None:
                used += counts[kind]
        if quotas:
            total += half_up(max(0, used - floor(Fraction(sum(quotas), len(hours)))) * price)
    return total


def half_up(cents: Fraction) -> int:
    return floor(cents + Fraction(1, 2))
