"""Charts, each drawn from a table that is on the page as well, a row for each point."""

from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

import msgspec

from api.dashboard import pages
from core.analytics import Point, Series
from core.glances import Figure
from core.liability import Liability
from core.rules import money

# What may be looked back on, in days.
SPANS: Final = ((7, "7 days"), (30, "30 days"), (90, "90 days"), (365, "A year"))
SPAN: Final = 30
# A chart of more days than this has weeks.
DAYS_SHOWN_MAX: Final = 120

Grain = Literal["second", "hour", "day", "week"]


class Row(msgspec.Struct, frozen=True):
    """One point: when by the project's clock, as seconds and in words, and a text a column."""

    at: int
    label: str
    values: list[str]


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """A chart and its table. `unit` is a currency, or what is counted."""

    id: str
    title: str
    says: str
    unit: str
    is_money: bool = False
    grain: Grain = "day"
    kind: Literal["bars", "lines"] = "bars"
    columns: list[str]
    rows: list[Row]


def span_of(text: str) -> int:
    """Return how many days a page's query asks for."""
    return next((days for days, _ in SPANS if str(days) == text), SPAN)


def grain_of(days: int) -> Literal["day", "week"]:
    """Return by what so many days are shown."""
    return "week" if days > DAYS_SHOWN_MAX else "day"


def _clock(at: datetime) -> int:
    """Return what a clock shows as the seconds a chart counts, whatever its zone."""
    return pages.epoch(at.replace(tzinfo=None).isoformat())


def _every(series: Series) -> list[tuple[date, Point | None]]:
    """Return each day or week of a series, also those in which nothing happened."""
    zone = ZoneInfo(series.time_zone)
    known = {point.at.astimezone(zone).date(): point for point in series.points}
    step = timedelta(days=7 if series.unit == "week" else 1)
    day = date.fromisoformat(series.from_)
    if series.unit == "week":
        day -= timedelta(days=day.weekday())
    found = []
    while day <= date.fromisoformat(series.to):
        found.append((day, known.get(day)))
        day += step
    return found


def redemptions(series: Series) -> Chart:
    """Draw how many redemptions stand, by day or week."""
    rows = [
        Row(_clock(datetime.combine(day, time())), _day(day), [str(p.redemptions if p else 0)])
        for day, p in _every(series)
    ]
    grain: Grain = "week" if series.unit == "week" else "day"
    return Chart(
        id="chart-redemptions", title=f"Redemptions a {grain}", unit="redemptions", grain=grain,
        says=_compared(series.totals.redemptions, series.previous.redemptions),
        columns=["Redemptions"], rows=rows,
    )  # fmt: skip


def discounts(series: Series) -> Chart:
    """Draw how much was given, by day or week."""
    rows = [
        Row(_clock(datetime.combine(day, time())), _day(day), [_plain(p)])
        for day, p in _every(series)
    ]
    grain: Grain = "week" if series.unit == "week" else "day"
    return Chart(
        id="chart-discount", title=f"Discount given a {grain}", unit=series.currency,
        is_money=True, grain=grain, columns=["Discount"], rows=rows,
        says=f"{pages.amount(series.totals.discount, series.currency)}; "
        f"{pages.amount(series.previous.discount, series.currency)} in the time before.",
    )  # fmt: skip


def _plain(point: Point | None) -> str:
    return pages.plain(point.discount) if point else "0"


def _compared(now: int, before: int) -> str:
    if not before:
        return f"{now:,}; nothing in the time before."
    change = round(100 * (now - before) / before)
    word = "more" if change >= 0 else "less"
    return f"{now:,}: {abs(change)} % {word} than the {before:,} in the time before."


def _day(day: date) -> str:
    return f"{day.day} {day:%b %Y}"


class Today(msgspec.Struct, frozen=True):
    """Today beside yesterday, and what there was by this time then."""

    chart: Chart
    then: int
    discount_then: msgspec.Raw


def today(minutes: Sequence[Figure], zone_name: str, now: datetime, exponent: int) -> Today:
    """Compare today with yesterday from the minutes of both."""
    zone = ZoneInfo(zone_name)
    local = now.astimezone(zone)
    by_hour: dict[date, list[int]] = {}
    then, discount_then = 0, 0
    for point in minutes:
        at = point.at.astimezone(zone)
        by_hour.setdefault(at.date(), [0] * 24)[at.hour] += point.redemptions
        if at.date() < local.date() and at.time() <= local.time():
            then += point.redemptions
            discount_then += point.discount_minor
    mine = _summed(by_hour.get(local.date(), [0] * 24))
    other = _summed(by_hour.get(local.date() - timedelta(days=1), [0] * 24))
    midnight = datetime.combine(local.date(), time())
    rows = [
        Row(
            _clock(midnight + timedelta(hours=hour + 1)), f"by {hour + 1:02d}:00",
            [str(mine[hour]) if hour <= local.hour else "", str(other[hour])],
        )
        for hour in range(24)
    ]  # fmt: skip
    chart = Chart(
        id="chart-today", title="Today and yesterday", unit="redemptions", grain="hour",
        kind="lines", columns=["Today", "Yesterday"], rows=rows,
        says=f"{mine[-1]:,} so far; {then:,} by this time yesterday, {other[-1]:,} in all.",
    )  # fmt: skip
    return Today(chart, then, money.json_amount(discount_then, exponent))


def _summed(hours: Sequence[int]) -> list[int]:
    return [sum(hours[: place + 1]) for place in range(len(hours))]


def owed(report: Liability) -> list[Chart]:
    """Draw what is owed to holders of gift cards, by day, for each currency."""
    return [_owed(report, account) for account in report.data]


def _owed(report: Liability, account: Any) -> Chart:
    known = {day.date: pages.plain(day.closing) for day in account.days}
    day, last = date.fromisoformat(report.from_), date.fromisoformat(report.to)
    value, rows = pages.plain(account.opening), []
    while day <= last:
        value = known.get(day.isoformat(), value)
        rows.append(Row(_clock(datetime.combine(day, time())), _day(day), [value]))
        day += timedelta(days=1)
    return Chart(
        id=f"chart-owed-{account.currency}", title="Owed on gift cards", unit=account.currency,
        is_money=True, kind="lines", columns=["Owed"], rows=rows,
        says=f"{pages.amount(account.closing, account.currency)} at the end, "
        f"{pages.amount(account.opening, account.currency)} when these days began.",
    )  # fmt: skip


# Of a longer sale than this no second is seen any more; its minutes are in the API.
SECONDS_SHOWN_MAX: Final = 900


def by_second(series: Series) -> list[Chart]:
    """Draw what a sale sold in each second, from the first win on; nothing where seconds are gone.

    Seconds are kept for some weeks.
    """
    if not series.points:
        return []
    zone = ZoneInfo(series.time_zone)
    sold = {int(point.at.timestamp()): point.redeemed for point in series.points}
    first, last = min(sold), max(sold)
    shown = range(first, min(last, first + SECONDS_SHOWN_MAX) + 1)
    rows = [
        Row(
            _clock(datetime.fromtimestamp(second, zone)),
            f"{datetime.fromtimestamp(second, zone):%H:%M:%S}", [str(sold.get(second, 0))],
        )
        for second in shown
    ]  # fmt: skip
    return [
        Chart(
            id="chart-second", title="Sold, second by second", unit="units", grain="second",
            kind="bars", columns=["Sold"], rows=rows,
            says=f"{max(sold.values()):,} in the busiest second, from {rows[0].label} on.",
        )
    ]  # fmt: skip
