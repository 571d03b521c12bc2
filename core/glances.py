"""A project's figures as its start page shows them: all from one look, so that they agree."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from core import db, ids
from core.analytics import Point, Series, Sums
from core.api_keys import Caller
from core.rules import money


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """What redemptions of a day, of a minute or of all times add up to, in minor units.

    `redemptions`, `discount_minor` and `order_value_minor` are of those that stand, as in `Sums`.
    """

    part: Literal["ever", "day", "minute"]
    at: datetime
    redemptions: int
    discount_minor: int
    order_value_minor: int
    redeemed: int
    rolled_back: int


class Today(msgspec.Struct, frozen=True, kw_only=True):
    """What moves of a project while it is watched: today, its minutes and yesterday's, and all.

    `top_code` is today's most redeemed code, else the most redeemed ever.
    """

    redemptions: int
    discount_minor: int
    redemptions_total: int
    top_code: str | None
    minutes: list[Figure]


class Glance(msgspec.Struct, frozen=True):
    """What moves, and some days by day or week."""

    today: Today
    series: Series


class _Look(msgspec.Struct, frozen=True):
    figures: list[Figure]
    top_code: str | None


async def watch(conn: db.Connection, caller: Caller, zone: str) -> Today:
    """Return what stands now. `zone` is the project's. Cost: one statement."""
    to_day = datetime.now(ZoneInfo(zone)).date()
    seen = await _look(conn, caller.project_id, to_day, to_day, zone)
    return _today(seen, to_day, zone)


async def glance(
    conn: db.Connection, caller: Caller, days: int, unit: Literal["day", "week"], zone: str
) -> Glance:
    """Return the same, and the last days beside as many before. Cost: one statement.

    `zone` is the project's, which the caller knows.
    """
    to_day = datetime.now(ZoneInfo(zone)).date()
    from_day = to_day - timedelta(days=days - 1)
    seen = await _look(conn, caller.project_id, from_day - timedelta(days=days), to_day, zone)
    by_day = [row for row in seen.figures if row.part == "day"]
    begins_at = _begin_of(from_day, zone)
    shown = [row for row in by_day if row.at >= begins_at]
    points = _by_week(shown, zone) if unit == "week" else [(row.at, [row]) for row in shown]
    series = Series(
        id=ids.format_id("prj", caller.project_id), from_=from_day.isoformat(),
        to=to_day.isoformat(), unit=unit, time_zone=zone, currency=caller.currency,
        totals=Sums(**_sums(shown, caller.exponent)),
        previous=Sums(**_sums(by_day[: len(by_day) - len(shown)], caller.exponent)),
        points=[Point(at=at, **_sums(rows, caller.exponent)) for at, rows in points],
    )  # fmt: skip
    return Glance(_today(seen, to_day, zone), series)


async def _look(
    conn: db.Connection, project_id: UUID, from_day: date, to_day: date, zone: str
) -> _Look:
    look = await db.one(
        conn, "glances.look", _Look, project_id=project_id, time_zone=zone,
        today_at=_begin_of(to_day, zone), days_from=_begin_of(from_day, zone),
        minutes_from=_begin_of(to_day - timedelta(days=1), zone),
    )  # fmt: skip
    assert look is not None
    return look


def _today(seen: _Look, to_day: date, zone: str) -> Today:
    begins_at = _begin_of(to_day, zone)
    today = [row for row in seen.figures if row.part == "day" and row.at == begins_at]
    return Today(
        redemptions=sum(row.redemptions for row in today),
        discount_minor=sum(row.discount_minor for row in today),
        redemptions_total=sum(row.redemptions for row in seen.figures if row.part == "ever"),
        top_code=seen.top_code,
        minutes=[row for row in seen.figures if row.part == "minute"],
    )


def _begin_of(day: date, zone: str) -> datetime:
    return datetime.combine(day, time(), ZoneInfo(zone)).astimezone(UTC)


def _by_week(rows: Sequence[Figure], zone: str) -> list[tuple[datetime, list[Figure]]]:
    """Put days together to weeks, which begin on Monday."""
    weeks: dict[date, list[Figure]] = {}
    for row in rows:
        day = row.at.astimezone(ZoneInfo(zone)).date()
        weeks.setdefault(day - timedelta(days=day.weekday()), []).append(row)
    return [(_begin_of(monday, zone), days) for monday, days in weeks.items()]


def _sums(rows: Sequence[Figure], exponent: int) -> dict[str, Any]:
    return {
        "redemptions": sum(row.redemptions for row in rows),
        "discount": money.json_amount(sum(row.discount_minor for row in rows), exponent),
        "order_value": money.json_amount(sum(row.order_value_minor for row in rows), exponent),
        "redeemed": sum(row.redeemed for row in rows),
        "rolled_back": sum(row.rolled_back for row in rows),
    }
