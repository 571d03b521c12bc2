"""Numbers that a seed decides: ids that sort as their time does, moments of a day, people."""

import bisect
import itertools
import random
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from core.demo_data import shop

Row = dict[str, Any]

# When people of a shop buy: most in the evening, nobody much at four.
_HOURS: Final = (
    1.2, 0.6, 0.3, 0.2, 0.2, 0.4, 1.0, 2.0, 3.2, 4.2, 5.0, 5.4,
    6.0, 5.2, 4.6, 4.6, 4.8, 5.4, 6.4, 7.6, 8.2, 7.4, 5.0, 2.6,
)  # fmt: skip
_BY_HOUR: Final = tuple(itertools.accumulate(_HOURS))
ZONE: Final = ZoneInfo(shop.TIME_ZONE)


class Draws:
    """Everything that is drawn, in one order, so that a seed always draws the same."""

    def __init__(self, seed: int) -> None:
        """Begin."""
        self.random = random.Random(seed)

    def id_at(self, at: datetime) -> str:
        """Return an id made at an instant, in the form of `ids.new`."""
        ms = int(at.timestamp() * 1000)
        high = ms << 16 | 7 << 12 | self.random.getrandbits(12)
        return str(UUID(int=high << 64 | 2 << 62 | self.random.getrandbits(62)))

    def bytes_of(self, count: int) -> str:
        """Return random bytes as PostgreSQL writes them."""
        return f"\\x{self.random.randbytes(count).hex()}"

    def within(self, day: date, until: datetime) -> datetime:
        """Return a moment of a local day when people buy, none after `until`."""
        share = hours_before(day, until)
        at = self.random.random() * share
        hour = bisect.bisect(_BY_HOUR, at)
        begun = _BY_HOUR[hour] - _HOURS[hour]
        seconds = 3600 * (hour + (at - begun) / _HOURS[hour])
        return begin_of(day) + timedelta(seconds=int(seconds), milliseconds=int(seconds % 1 * 999))

    def chance(self, share: float) -> bool:
        """Say yes in this share of cases."""
        return self.random.random() < share


def begin_of(day: date) -> datetime:
    """Return when a local day begins."""
    return datetime.combine(day, time(), ZONE).astimezone(UTC)


def hours_before(day: date, until: datetime) -> float:
    """Return the weight of the hours of a local day that are over at an instant."""
    seconds = (until - begin_of(day)).total_seconds()
    if seconds >= 24 * 3600:
        return _BY_HOUR[-1]
    hour, part = divmod(max(seconds, 0), 3600)
    return _BY_HOUR[int(hour)] - _HOURS[int(hour)] * (1 - part / 3600)


def whole_day() -> float:
    """Return the weight of a whole day."""
    return _BY_HOUR[-1]


def text(at: datetime | None) -> str | None:
    """Write an instant for PostgreSQL."""
    return None if at is None else at.isoformat()
