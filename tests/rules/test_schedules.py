"""Days and hours are those of the clock on the wall, also on the day it is changed."""

from datetime import UTC, datetime

import pytest

from core.errors import Invalid
from core.rules import schedules
from core.rules.schedules import Schedule, Window

BERLIN = "Europe/Berlin"
OFFICE = Schedule(("mon", "tue", "wed", "thu", "fri"), (Window("09:00", "17:00"),))
NIGHT = Schedule(("fri",), (Window("22:00", "02:00"),))


def is_on(schedule: Schedule, at: str, zone: str = BERLIN) -> bool:
    return schedules.refusal(schedule, datetime.fromisoformat(at), zone) is None


@pytest.mark.parametrize(
    ("schedule", "at", "on"),
    [
        (OFFICE, "2030-01-01T09:00:00+01:00", True),
        (OFFICE, "2030-01-01T08:59:59+01:00", False),
        (OFFICE, "2030-01-01T16:59:59+01:00", True),
        (OFFICE, "2030-01-01T17:00:00+01:00", False),
        (OFFICE, "2030-01-05T12:00:00+01:00", False),
        (OFFICE, "2030-01-01T08:30:00Z", True),
        (NIGHT, "2030-01-04T22:00:00+01:00", True),
        (NIGHT, "2030-01-05T01:59:00+01:00", True),
        (NIGHT, "2030-01-05T02:00:00+01:00", False),
        (NIGHT, "2030-01-04T01:00:00+01:00", False),
        (NIGHT, "2030-01-05T22:30:00+01:00", False),
        (Schedule(("sun",)), "2030-01-05T23:30:00Z", True),
    ],
)
def test_a_schedule_is_on_when_the_clock_says_so(schedule: Schedule, at: str, on: bool) -> None:
    assert is_on(schedule, at) == on


def test_nine_is_nine_before_and_after_the_clock_is_changed() -> None:
    sunday = Schedule((), (Window("02:30", "09:00"),))
    # 2030-03-31: 02:00 becomes 03:00, so 01:30 UTC is 03:30. 2030-10-27: 03:00 becomes 02:00.
    assert not is_on(sunday, "2030-03-31T00:59:00Z")
    assert is_on(sunday, "2030-03-31T01:30:00Z")
    assert is_on(sunday, "2030-03-31T06:59:00Z")
    assert not is_on(sunday, "2030-03-31T07:00:00Z")
    assert is_on(sunday, "2030-10-27T00:30:00Z") and is_on(sunday, "2030-10-27T01:30:00Z")
    assert not is_on(sunday, "2030-10-27T00:29:00Z") and not is_on(sunday, "2030-10-27T01:15:00Z")


def test_thirty_days_later_is_the_same_time_of_day() -> None:
    issued = datetime(2030, 3, 15, 11, 0, tzinfo=UTC)
    assert schedules.days_after(issued, 30, BERLIN) == datetime(2030, 4, 14, 10, 0, tzinfo=UTC)
    assert schedules.days_after(issued, 30, "UTC") == datetime(2030, 4, 14, 11, 0, tzinfo=UTC)


def test_a_period_is_the_place_s_own() -> None:
    late = datetime(2029, 12, 31, 23, 30, tzinfo=UTC)
    assert schedules.period_of("day", late, BERLIN) == "2030-01-01"
    assert schedules.period_of("day", late, "UTC") == "2029-12-31"
    assert schedules.period_of("week", late, "UTC") == "2030-W01"
    assert schedules.period_of("month", late, BERLIN) == "2030-01"
    assert schedules.period_of(None, late, BERLIN) == ""


@pytest.mark.parametrize(
    ("window", "field"),
    [
        (Window("9:00", "17:00"), "s.hours[0].from"),
        (Window("24:00", "03:00"), "s.hours[0].from"),
        (Window("09:00", "25:00"), "s.hours[0].to"),
        (Window("09:00", "17:00\n"), "s.hours[0].to"),
        (Window("09:00", "09:00"), "s.hours[0].to"),
    ],
)
def test_a_window_that_is_no_window_is_refused(window: Window, field: str) -> None:
    with pytest.raises(Invalid) as refused:
        schedules.check(Schedule((), (window,)), field="s")
    assert refused.value.field == field


@pytest.mark.parametrize(
    "name", ["Berlin", "", "../etc/passwd", "Europe/Berlin\n", "a/b/c/d", "/etc/localtime", "posix"]
)
def test_a_place_that_is_not_on_the_list_is_refused(name: str) -> None:
    with pytest.raises(Invalid):
        schedules.check_time_zone(name, field="time_zone")
    assert schedules.check_time_zone(BERLIN, field="time_zone") == BERLIN
