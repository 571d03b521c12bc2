"""What a shop owes to the holders of its gift cards: a roll-forward by day, from the ledger alone.

A day is one of the project's time zone. Each closing is the next opening by construction, and the
ageing of the last closing adds up to it.
"""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any, Final
from uuid import UUID

import msgspec

from core import db
from core.api_keys import Caller
from core.errors import Invalid
from core.rules import money
from core.shapes import Amount

# A leap year with both its ends: what a yearly account asks for.
DAYS_MAX: Final = 367
# Days since a card was issued, as accountants group what is outstanding; the last is open.
AGES: Final = (30, 90, 180, 365)

_MOVED: Final = ("issued", "topped_up", "redeemed", "refunded", "expired", "adjusted")


class Rolled(msgspec.Struct, frozen=True, kw_only=True):
    """What a liability was, what moved it, and what it is then. Redeemed and expired lower it."""

    opening: Amount
    issued: Amount
    topped_up: Amount
    redeemed: Amount
    refunded: Amount
    expired: Amount
    adjusted: Amount
    closing: Amount


class Day(Rolled, frozen=True, kw_only=True):
    """One day of a roll-forward."""

    date: str


class Age(msgspec.Struct, frozen=True):
    """What is outstanding on cards of an age in days; `to_days` is None for the oldest."""

    from_days: int
    to_days: int | None
    cards: int
    outstanding: Amount


class Account(Rolled, frozen=True, kw_only=True):
    """One currency over the whole time, its days with a movement, and the ages of its closing."""

    currency: str
    days: list[Day]
    ageing: list[Age]


class Liability(msgspec.Struct, frozen=True, kw_only=True):
    """The roll-forward of a time, both days included."""

    from_: str = msgspec.field(name="from")
    to: str
    time_zone: str
    data: list[Account]


class _Sum(msgspec.Struct, frozen=True):
    currency: str
    day: str | None
    moved: str
    amount_minor: int


class _Aged(msgspec.Struct, frozen=True):
    currency: str
    place: int
    card_count: int
    outstanding_minor: int


async def report(
    conn: db.Connection, caller: Caller, *, from_day: date | None, to_day: date | None,
    has_ages: bool = True, zone: str | None = None,
) -> Liability:  # fmt: skip
    """Return the roll-forward of some days, this month up to today where they are not given.

    Without `has_ages` what is outstanding has no ages, which takes half the time; a caller who
    knows the project's `zone` and both days spares a statement.
    Raises: Invalid. Cost: a read of the ledger up to `to_day`, half a second a million entries.
    """
    project_id = caller.project_id
    if zone is None or to_day is None:
        zone, today = await _clock(conn, project_id)
        to_day = to_day or date.fromisoformat(today)
    from_day = from_day or to_day.replace(day=1)
    if not timedelta(0) <= to_day - from_day < timedelta(days=DAYS_MAX):
        raise Invalid(f"from must be before to, and at most {DAYS_MAX} days", field="from")
    span: dict[str, Any] = {"from_day": from_day, "to_day": to_day, "project_id": project_id}
    sums = await db.many(conn, "liability.sums", _Sum, time_zone=zone, **span)
    ages: list[_Aged] = []
    if has_ages:
        ages = await db.many(
            conn, "liability.ages", _Aged,
            time_zone=zone, ages=list(AGES), project_id=project_id, to_day=to_day,
        )  # fmt: skip
    currencies = sorted({row.currency for row in sums})
    return Liability(
        from_=from_day.isoformat(),
        to=to_day.isoformat(),
        time_zone=zone,
        data=[_account(currency, sums, ages) for currency in currencies],
    )


class _Clock(msgspec.Struct, frozen=True):
    time_zone: str
    today: str


async def _clock(conn: db.Connection, project_id: UUID) -> tuple[str, str]:
    clock = await db.one(conn, "liability.clock", _Clock, project_id=project_id)
    assert clock is not None, "a caller's project is there"
    return clock.time_zone, clock.today


def _account(currency: str, sums: Sequence[_Sum], ages: Sequence[_Aged]) -> Account:
    exponent = money.exponent_of(currency)
    assert exponent is not None, currency
    own = [row for row in sums if row.currency == currency]
    before = sum(row.amount_minor for row in own if row.day is None)
    by_day: dict[str, dict[str, int]] = {}
    total = dict.fromkeys(_MOVED, 0)
    for row in own:
        if row.day is not None:
            by_day.setdefault(row.day, dict.fromkeys(_MOVED, 0))[row.moved] += row.amount_minor
            total[row.moved] += row.amount_minor
    days = []
    opening = before
    for day in sorted(by_day):
        days.append(Day(date=day, **_rolled(opening, by_day[day], exponent)))
        opening += sum(by_day[day].values())
    aged = {row.place: row for row in ages if row.currency == currency}
    return Account(
        currency=currency,
        days=days,
        ageing=[_age(place, aged.get(place), exponent) for place in range(len(AGES) + 1)],
        **_rolled(before, total, exponent),
    )


def _rolled(opening: int, moved: dict[str, int], exponent: int) -> dict[str, msgspec.Raw]:
    figures = {"opening": opening, **moved, "closing": opening + sum(moved.values())}
    return {name: money.json_amount(minor, exponent) for name, minor in figures.items()}


def _age(place: int, row: _Aged | None, exponent: int) -> Age:
    return Age(
        from_days=AGES[place - 1] + 1 if place else 0,
        to_days=AGES[place] if place < len(AGES) else None,
        cards=row.card_count if row else 0,
        outstanding=money.json_amount(row.outstanding_minor if row else 0, exponent),
    )
