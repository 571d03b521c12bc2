"""Weekdays, hours, days after issue and periods, on the clock of one place.

An instant is always one reading of that clock, so a day on which the clock is changed is no
special case: what is judged is what the clock on the wall says.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal
from zoneinfo import ZoneInfo

import msgspec

from core.errors import Invalid, Refusal

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
Period = Literal["day", "week", "month"]

WEEKDAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
# One window an hour would already be a strange shop.
WINDOWS_MAX: Final = 24
# Ten years; longer relative dates are typing errors.
DAYS_MAX: Final = 3_650
_CLOCK: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])", re.ASCII)
_END_OF_DAY: Final = "24:00"


class Window(msgspec.Struct, frozen=True, rename={"from_": "from"}, forbid_unknown_fields=True):
    """A span of the day, `09:00` to `17:30`; its last minute is excluded.

    Where it ends before it begins it goes over midnight, and belongs to the day it began on.
    """

    from_: str
    to: str


class Schedule(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """When a promotion is on. Empty weekdays are all days, empty hours the whole day."""

    weekdays: Annotated[tuple[Weekday, ...], msgspec.Meta(max_length=7)] = ()
    hours: Annotated[tuple[Window, ...], msgspec.Meta(max_length=WINDOWS_MAX)] = ()


def check_time_zone(name: str, *, field: str) -> str:
    """Hold the name of a time zone against the world's list. Raises: Invalid, with `field`."""
    # Only names of places: the list also reads files whose names a caller should not choose.
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}", name) and len(name) <= 64:
        try:
            ZoneInfo(name)
        except (OSError, ValueError, KeyError):
            pass
        else:
            return name
    raise Invalid(f"{field} must be a time zone such as Europe/Berlin", field=field)


def zone_of(name: str) -> ZoneInfo:
    """Return the clock of a time zone that was checked when it was stored."""
    return ZoneInfo(name)


def check(schedule: Schedule, *, field: str) -> None:
    """Hold a schedule that is about to be stored against the clock. Raises: Invalid."""
    for place, window in enumerate(schedule.hours):
        for name, text in (("from", window.from_), ("to", window.to)):
            if not _CLOCK.fullmatch(text) and not (name == "to" and text == _END_OF_DAY):
                at = f"{field}.hours[{place}].{name}"
                raise Invalid(f"{at} must be a time of day such as 09:00", field=at)
        if window.from_ == window.to:
            at = f"{field}.hours[{place}].to"
            raise Invalid(f"{at} must differ from its beginning", field=at)


def refusal(schedule: Schedule, now: datetime, time_zone: str) -> Refusal | None:
    """Return why a moment is outside the schedule."""
    local = now.astimezone(zone_of(time_zone))
    clock = local.strftime("%H:%M")
    today = WEEKDAYS[local.weekday()]
    yesterday = WEEKDAYS[local.weekday() - 1]
    for window in schedule.hours or (Window("00:00", _END_OF_DAY),):
        days: tuple[str, ...]
        if window.from_ < window.to:
            days = (today,) if window.from_ <= clock < window.to else ()
        else:
            days = (today,) * (clock >= window.from_) + (yesterday,) * (clock < window.to)
        if any(not schedule.weekdays or day in schedule.weekdays for day in days):
            return None
    return Refusal(
        "not_eligible",
        f"This code is not valid on a {local:%A} at {clock} ({time_zone}).",
        {
            "rule": "schedule",
            "seen": {"weekday": today, "clock": clock, "time_zone": time_zone},
            "wanted": schedule,
        },
    )


def days_after(issued_at: datetime, days: int, time_zone: str) -> datetime:
    """Return the instant some days later at the same time of day on that place's clock.

    A time of day that the clock jumps over is the instant it jumps to.
    """
    zone = zone_of(time_zone)
    return (issued_at.astimezone(zone) + timedelta(days=days)).astimezone(UTC)


def period_of(period: Period | None, now: datetime, time_zone: str) -> str:
    """Return the name of the day, ISO week or month an instant is in; empty for all time."""
    if period is None:
        return ""
    local = now.astimezone(zone_of(time_zone))
    if period == "week":
        year, week, _ = local.isocalendar()
        return f"{year}-W{week:02d}"
    return local.strftime("%Y-%m-%d" if period == "day" else "%Y-%m")
