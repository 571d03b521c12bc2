"""Figures of a project: kept by the worker from events, exact whenever they are read.

What the worker has not come to yet is added as a figure is read, so a figure is the ledger's at
every moment, and reading it costs what has happened within the last second.
"""

import asyncio
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import structlog

from core import attempts, campaigns, db, ids
from core.api_keys import Caller
from core.budgets import used_of
from core.errors import Invalid, NotFound, OutcomeUnknown, Unavailable
from core.rules import budgets, money, schedules
from core.shapes import Amount

Unit = Literal["second", "minute", "hour", "day", "week", "month"]

# Events of one commit: a few hundred ms of adding up.
ROWS_MAX: Final = 500
EVENTS_MAX: Final = 20_000
LOOK_S: Final = 0.5
# Seconds, minutes and the quarters of vouchers are kept as long as events are, and some days.
KEEP_DAYS: Final = 35
FORGET_PIECES_MAX: Final = 100
# What was redeemed before there were events is added in one statement, some seconds a million.
BEGIN_TIMEOUT_MS: Final = 600_000
# How many days may be asked for by each unit: some thousand points at most.
DAYS_MAX: Final[dict[Unit, int]] = {
    "second": 1, "minute": 2, "hour": 62, "day": 732, "week": 3_660, "month": 3_660,
}  # fmt: skip
_GRAIN_S: Final[dict[Unit, int]] = {"second": 1, "minute": 60}
_QUARTER_S: Final = 900
# Long enough for each day of the week, short enough to see that something has changed.
BURN_OVER: Final = timedelta(days=7)
FORECAST_DAYS_MAX: Final = 3_660
Ranked = Literal["codes", "campaigns", "flash_sales"]
_KINDS: Final[dict[Ranked, str]] = {"codes": "v", "campaigns": "c", "flash_sales": "s"}
_PREFIXES: Final[dict[Ranked, ids.Prefix]] = {
    "codes": "vch", "campaigns": "cmp", "flash_sales": "fls",
}  # fmt: skip
RANKED: Final = tuple(_KINDS)

_log = structlog.get_logger("vauchflow.analytics")


class Sums(msgspec.Struct, frozen=True, kw_only=True):
    """What redemptions add up to.

    `redemptions`, `discount` and `order_value` are of those that stand, less what was given back;
    `redeemed` counts all that were redeemed then, `rolled_back` what was undone then.
    """

    redemptions: int
    discount: Amount
    order_value: Amount
    redeemed: int
    rolled_back: int


class Point(Sums, frozen=True, kw_only=True):
    """The same of one second, minute, hour, day, week or month, from `at` on."""

    at: datetime


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over a span of days, those of as many days before, and its points.

    Points at which nothing happened are left out.
    """

    id: str
    from_: str = msgspec.field(name="from")
    to: str
    unit: Unit
    time_zone: str
    currency: str
    totals: Sums
    previous: Sums
    points: list[Point]


class Liability(msgspec.Struct, frozen=True):
    """What may still be redeemed of a campaign, and at its mean discount so far, what it costs."""

    open_redemptions: int | None
    expected_discount: Amount | None


class BurnDown(msgspec.Struct, frozen=True, kw_only=True):
    """A campaign's budget: what is gone of it, and until when it lasts.

    `period`: the running day, week or month, None for ever. `used_per_day`: the mean of the last
    seven days and what there was of today. `lasts_until`: None where nothing is taken.
    """

    budget: str
    period: str | None
    used: Amount | int
    max: Amount | int
    left: Amount | int
    used_per_day: Amount | float
    lasts_until: datetime | None


class CampaignSeries(Series, frozen=True, kw_only=True):
    """The same of a campaign, with what may still come; without a limit nobody knows."""

    name: str
    liability: Liability
    budgets: list[BurnDown]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """Which days, by which unit, on whose clock; the last 30 days where nothing is said."""

    from_day: date | None = None
    to_day: date | None = None
    unit: Unit = "day"
    time_zone: str | None = None


class Now(msgspec.Struct, frozen=True, kw_only=True):
    """What stands of a project's redemptions; `has_begun`: also those from before events."""

    redemptions_today: int
    discount_today_minor: int
    redemptions_total: int
    discount_total_minor: int
    has_begun: bool
    top_code: str | None


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A code, campaign or flash sale, and what it was redeemed for."""

    id: str
    name: str
    redemptions: int
    discount: Amount
    order_value: Amount


class Ranking(msgspec.Struct, frozen=True, kw_only=True):
    """What was redeemed most on some days, the first first."""

    from_: str = msgspec.field(name="from")
    to: str
    time_zone: str
    currency: str
    data: list[Place]


class _Top(msgspec.Struct, frozen=True):
    scope_id: UUID
    name: str
    live: int
    discount_minor: int
    order_value_minor: int


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    at: datetime
    redeemed: int
    discount_minor: int
    order_value_minor: int
    undone: int
    undone_discount_minor: int
    undone_value_minor: int
    returned_minor: int
    rolled_back: int


async def now_of(conn: db.Connection, project_id: UUID) -> Now:
    """Return what stands of a project's redemptions."""
    now = await db.one(conn, "analytics.now", Now, project_id=project_id)
    assert now is not None
    return now


async def of_project(conn: db.Connection, caller: Caller, asked: Asked) -> Series:
    """Return the figures of the whole project over some days. Raises: Invalid."""
    return Series(**await _series(conn, caller, "prj", caller.project_id, asked))


async def of_campaign(
    conn: db.Connection, caller: Caller, public_id: str, asked: Asked
) -> CampaignSeries:
    """Return the figures of a campaign over some days. Raises: NotFound, Invalid."""
    campaign = await campaigns.find(conn, caller, public_id)
    found = await _series(conn, caller, "cmp", campaign.id, asked)
    left = None
    expected = None
    if campaign.max_redemptions is not None:
        left = campaign.max_redemptions - campaign.direct_count - campaign.leased_count
        left += campaign.held_count + campaign.unsold_count
        ever = await _sum(conn, caller.project_id, campaign.id)
        mean_of = max(1, ever.redeemed - ever.undone)
        minor = ever.discount_minor - ever.undone_discount_minor - ever.returned_minor
        expected = money.json_amount((left * minor + mean_of // 2) // mean_of, caller.exponent)
    return CampaignSeries(
        **found, name=campaign.name, liability=Liability(left, expected),
        budgets=await _burn_downs(conn, caller, campaign),
    )  # fmt: skip


async def _burn_downs(
    conn: db.Connection, caller: Caller, campaign: campaigns.Stored
) -> list[BurnDown]:
    promotion = campaign.promotion
    shared = [one for one in promotion.budgets if one.per is None] if promotion else []
    if promotion is None or not shared:
        return []
    now = datetime.now(UTC)
    since = now - BURN_OVER
    rows = await db.many(
        conn, "analytics.points", _Row, project_id=caller.project_id, scope_id=campaign.id,
        grain_s=_QUARTER_S, from_at=since, to_at=now, unit="day", time_zone="UTC",
    )  # fmt: skip
    recent = _total(rows)
    taken: dict[budgets.Measure, int] = {
        "redemptions": recent.redeemed - recent.undone,
        "discount": recent.discount_minor - recent.undone_discount_minor - recent.returned_minor,
        "order_value": recent.order_value_minor - recent.undone_value_minor,
    }
    keys = [
        (campaign.id, one.label, schedules.period_of(one.period, now, promotion.time_zone))
        for one in shared
    ]
    used = await used_of(conn, caller, keys)
    return [
        _burn_down(one, key[-1], used.get(key, 0), taken[one.of], now, caller.exponent)
        for one, key in zip(shared, keys, strict=True)
    ]


def _burn_down(
    budget: budgets.Budget, period: str, used: int, recent: int, now: datetime, exponent: int
) -> BurnDown:
    left = max(0, budget.max - used)
    days = BURN_OVER / timedelta(days=1)
    lasts = None if recent <= 0 else min(left * days / recent, FORECAST_DAYS_MAX)

    def shown(minor: int) -> Any:
        return minor if budget.of == "redemptions" else money.json_amount(minor, exponent)

    return BurnDown(
        budget=budget.label,
        period=period or None,
        used=shown(used),
        max=shown(budget.max),
        left=shown(left),
        used_per_day=round(recent / days, 2)
        if budget.of == "redemptions"
        else shown(round(recent / days)),
        lasts_until=None if lasts is None else now + timedelta(days=lasts),
    )


async def of_attempts(conn: db.Connection, caller: Caller, asked: Asked) -> attempts.Attempts:
    """Return what was tried on some days, with how much of it went well. Raises: Invalid."""
    zone, days, before = await _days(conn, caller, asked)

    async def tried(span: tuple[date, date]) -> dict[str, Any]:
        counted = await attempts.between(conn, caller, span, zone)
        ledger = _total(
            await _rows(conn, caller.project_id, caller.project_id, span, "month", zone)
        )
        return attempts.of(counted, ledger.redeemed)

    return attempts.Attempts(
        from_=days[0].isoformat(), to=days[1].isoformat(), time_zone=zone, **await tried(days),
        previous=attempts.Before(**await tried(before)),
    )  # fmt: skip


async def top(conn: db.Connection, caller: Caller, of: Ranked, asked: Asked, limit: int) -> Ranking:
    """Return what was redeemed most on some days. Codes are ranked within KEEP_DAYS.

    Raises: Invalid. Cost: a row for each quarter of an hour in which one was redeemed.
    """
    zone, days, _ = await _days(conn, caller, asked)
    from_at, to_at = _span(days, zone)
    if of == "codes" and from_at < datetime.now(UTC) - timedelta(days=KEEP_DAYS - 1):
        raise Invalid(f"codes are ranked within the last {KEEP_DAYS - 1} days", field="from")
    rows = await db.many(
        conn, "analytics.top", _Top, project_id=caller.project_id, kind=_KINDS[of],
        from_at=from_at, to_at=to_at, limit=limit,
    )  # fmt: skip
    return Ranking(
        from_=days[0].isoformat(), to=days[1].isoformat(), time_zone=zone,
        currency=caller.currency,
        data=[
            Place(
                id=ids.format_id(_PREFIXES[of], row.scope_id),
                name=row.name,
                redemptions=row.live,
                discount=money.json_amount(row.discount_minor, caller.exponent),
                order_value=money.json_amount(row.order_value_minor, caller.exponent),
            )
            for row in rows
        ],
    )  # fmt: skip


async def of_sale(conn: db.Connection, caller: Caller, public_id: str, asked: Asked) -> Series:
    """Return the figures of a flash sale over some days, also by the second.

    Raises: NotFound, Invalid.
    """
    sale_id = ids.parse_id("fls", public_id)
    if sale_id is None or not await db.value(
        conn, "flash_sales.exists", bool, project_id=caller.project_id, id=sale_id
    ):
        raise NotFound("There is no such flash sale in this project.")
    return Series(**await _series(conn, caller, "fls", sale_id, asked))


async def _series(
    conn: db.Connection, caller: Caller, prefix: ids.Prefix, scope_id: UUID, asked: Asked
) -> dict[str, Any]:
    if asked.unit == "second" and prefix != "fls":
        raise Invalid("unit second is for flash sales", field="unit")
    zone, days, before = await _days(conn, caller, asked)
    rows = await _rows(conn, caller.project_id, scope_id, days, asked.unit, zone)
    previous = await _rows(conn, caller.project_id, scope_id, before, asked.unit, zone)
    return {
        "id": ids.format_id(prefix, scope_id), "from_": days[0].isoformat(),
        "to": days[1].isoformat(), "unit": asked.unit, "time_zone": zone,
        "currency": caller.currency, "totals": Sums(**_shown(_total(rows), caller.exponent)),
        "previous": Sums(**_shown(_total(previous), caller.exponent)),
        "points": [Point(at=row.at, **_shown(row, caller.exponent)) for row in rows],
    }  # fmt: skip


async def _days(
    conn: db.Connection, caller: Caller, asked: Asked
) -> tuple[str, tuple[date, date], tuple[date, date]]:
    """Return the time zone, the days that are asked for, and as many before. Raises: Invalid."""
    zone = asked.time_zone or await campaigns.time_zone(conn, caller)
    schedules.check_time_zone(zone, field="time_zone")
    to_day = asked.to_day or await today(conn, zone)
    days = min(30, DAYS_MAX[asked.unit])
    from_day = asked.from_day or to_day - timedelta(days=days - 1)
    days = (to_day - from_day).days + 1
    if not 1 <= days <= DAYS_MAX[asked.unit]:
        raise Invalid(
            f"from must be before to, by at most {DAYS_MAX[asked.unit]} days for this unit",
            field="from",
        )
    before = (from_day - timedelta(days=days), from_day - timedelta(days=1))
    return zone, (from_day, to_day), before


async def today(conn: db.Connection, zone: str) -> date:
    """Return the day it is in a time zone."""
    return date.fromisoformat(await db.value(conn, "analytics.today", str, time_zone=zone))


async def _rows(
    conn: db.Connection, project_id: UUID, scope_id: UUID, days: tuple[date, date], unit: Unit,
    zone: str,
) -> list[_Row]:  # fmt: skip
    from_at, to_at = _span(days, zone)
    return await db.many(
        conn, "analytics.points", _Row, project_id=project_id, scope_id=scope_id,
        grain_s=_GRAIN_S.get(unit, _QUARTER_S), from_at=from_at, to_at=to_at, unit=unit,
        time_zone=zone,
    )  # fmt: skip


def _span(days: tuple[date, date], zone: str) -> tuple[datetime, datetime]:
    """Return the instants at which some days, both included, begin and end in a time zone."""
    return _begin_of(days[0], zone), _begin_of(days[1] + timedelta(days=1), zone)


def _begin_of(day: date, zone: str) -> datetime:
    return datetime.combine(day, time(), ZoneInfo(zone)).astimezone(UTC)


async def _sum(conn: db.Connection, project_id: UUID, scope_id: UUID) -> _Row:
    """Return what a scope adds up to in all."""
    row = await db.one(conn, "analytics.ever", _Row, project_id=project_id, scope_id=scope_id)
    assert row is not None
    return row


_ADDED: Final = tuple(name for name in _Row.__struct_fields__ if name != "at")


def _total(rows: list[_Row]) -> _Row:
    sums = {name: sum(getattr(row, name) for row in rows) for name in _ADDED}
    return _Row(at=datetime.min.replace(tzinfo=UTC), **sums)


def _shown(row: _Row, exponent: int) -> dict[str, Any]:
    return {
        "redemptions": row.redeemed - row.undone,
        "discount": money.json_amount(
            row.discount_minor - row.undone_discount_minor - row.returned_minor, exponent
        ),
        "order_value": money.json_amount(row.order_value_minor - row.undone_value_minor, exponent),
        "redeemed": row.redeemed,
        "rolled_back": row.rolled_back,
    }


async def roll_up(database: db.Database) -> int | None:
    """Add the next events to the figures; return how many rows, None before they have begun."""
    async with database.transaction(None) as conn:
        return await db.value(
            conn, "analytics.roll_up", int | None,  # type: ignore[arg-type]
            rows_max=ROWS_MAX, events_max=EVENTS_MAX,
        )  # fmt: skip


async def begin(database: db.Database) -> bool:
    """Add what was redeemed before there were events, once; False: something is in between."""
    async with database.transaction(
        None, isolation="repeatable read", statement_timeout_ms=BEGIN_TIMEOUT_MS
    ) as conn:
        return await db.value(conn, "analytics.begin", bool)


async def run(database: db.Database) -> None:
    """Keep the figures until cancelled. Several workers may run it; one at a time does."""
    while True:
        added: int | None = 0
        try:
            added = await roll_up(database)
            if added is None:
                await begin(database)
        except (Unavailable, OutcomeUnknown) as error:
            _log.warning("figures_wait", error=str(error))
        except Exception:
            _log.exception("figures_broken")
        if not added:
            await asyncio.sleep(LOOK_S)


async def forget(database: db.Database) -> None:
    """Delete fine figures that are older than they are kept. Raises: Unavailable."""
    for _ in range(FORGET_PIECES_MAX):
        async with database.connection() as conn:
            if not await db.run(conn, "analytics.forget", keep_days=KEEP_DAYS):
                return
