"""What charts are drawn from: every day has a row, by the project's clock."""

import itertools
from datetime import UTC, datetime

import msgspec

from api.dashboard import figures, pages
from core.analytics import Point, Series, Sums
from core.glances import Figure

NOTHING = Sums(redemptions=0, discount=msgspec.Raw(b"0"), order_value=msgspec.Raw(b"0"),
               redeemed=0, rolled_back=0)  # fmt: skip


def series(unit: str, from_: str, to: str, points: dict[str, tuple[int, str]]) -> Series:
    return Series(
        id="prj_1", from_=from_, to=to, unit=unit,  # type: ignore[arg-type]
        time_zone="Europe/Berlin", currency="EUR", totals=NOTHING, previous=NOTHING,
        points=[
            Point(
                at=datetime.fromisoformat(at), redemptions=count, redeemed=count, rolled_back=0,
                discount=msgspec.Raw(amount.encode()), order_value=msgspec.Raw(b"0"),
            )
            for at, (count, amount) in points.items()
        ],
    )  # fmt: skip


def told(chart: figures.Chart) -> list[tuple[str, list[str]]]:
    return [(row.label, row.values) for row in chart.rows]


def test_a_day_without_a_redemption_is_drawn_too() -> None:
    # The clocks go back on the 25th: its midnight is at 22:00, the next one's at 23:00.
    given = series(
        "day", "2026-10-24", "2026-10-27",
        {"2026-10-24T22:00:00+00:00": (5, "18.00"), "2026-10-26T23:00:00+00:00": (2, "3.50")},
    )  # fmt: skip
    assert told(figures.redemptions(given)) == [
        ("24 Oct 2026", ["0"]), ("25 Oct 2026", ["5"]), ("26 Oct 2026", ["0"]),
        ("27 Oct 2026", ["2"]),
    ]  # fmt: skip
    assert [row.values for row in figures.discounts(given).rows] == [
        ["0"], ["18.00"], ["0"], ["3.50"],
    ]  # fmt: skip
    at = [row.at for row in figures.discounts(given).rows]
    assert [later - earlier for earlier, later in itertools.pairwise(at)] == [86_400] * 3


def test_weeks_begin_on_monday() -> None:
    given = series("week", "2026-11-12", "2026-11-23", {"2026-11-15T23:00:00+00:00": (3, "1.00")})
    assert told(figures.redemptions(given)) == [
        ("9 Nov 2026", ["0"]), ("16 Nov 2026", ["3"]), ("23 Nov 2026", ["0"]),
    ]  # fmt: skip


def test_today_is_held_against_yesterday_by_the_minute() -> None:
    given = [
        Figure(
            part="minute", at=datetime.fromisoformat(at), redemptions=count, discount_minor=minor,
            order_value_minor=0, redeemed=count, rolled_back=0,
        )
        for at, count, minor in (
            ("2026-11-22T08:00:00+00:00", 0, 2**53 + 1),
            ("2026-11-22T12:30:00+00:00", 4, 1_000),
            ("2026-11-22T12:31:00+00:00", 1, 10),
            ("2026-11-22T20:00:00+00:00", 9, 9_000),
            ("2026-11-23T06:15:00+00:00", 2, 500),
        )
    ]  # fmt: skip
    now = datetime(2026, 11, 23, 12, 30, 59, tzinfo=UTC)
    found = figures.today(given, "Europe/Berlin", now, 2)
    # More than a float could hold to the cent.
    assert (found.then, bytes(found.discount_then)) == (4, b"90071992547419.93")
    assert found.chart.says == "2 so far; 4 by this time yesterday, 14 in all."
    by_hour = dict(told(found.chart))
    assert by_hour["by 08:00"] == ["2", "0"]
    assert by_hour["by 14:00"] == ["2", "5"]
    # What is still to come today is not drawn.
    assert by_hour["by 15:00"] == ["", "5"] and by_hour["by 24:00"] == ["", "14"]


def test_a_browser_is_told_by_its_name_and_whatever_else_as_it_calls_itself() -> None:
    chrome = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/156.0.0.0 Safari/537.36"
    phone = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) Version/17.0 Safari/604.1"
    assert pages.browser(chrome) == "Chrome on Linux"
    assert pages.browser(f"{chrome} Edg/156.0") == "Edge on Linux"
    assert pages.browser(phone) == "Safari on iPhone"
    assert pages.browser("Mozilla/5.0 (Windows NT 10.0; rv:128.0) Gecko Firefox/128.0") == (
        "Firefox on Windows"
    )
    assert pages.browser("curl/8.5") == "curl"
    assert pages.browser("x" * 90) == "x" * 40 and pages.browser(None) == "–"
