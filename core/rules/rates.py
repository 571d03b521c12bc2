"""Rates: how often somebody may ask, by the generic cell rate algorithm.

Integers only, in microseconds. A bucket is one number: the instant at which it is full again. What
is drawn moves that on by an interval each, and never further than a whole burst from now.
"""

from typing import Annotated, Final, NamedTuple

import msgspec

# A million a day to a million a second: beyond that a number is a mistake.
LIMIT_MAX: Final = 1_000_000
# A day. What is to last longer is a quota of the plan.
WINDOW_S_MAX: Final = 86_400
# A hundredth of a burst may be in the hands of each process, and never more than one batch of
# claims: of small limits one at a time is drawn, so that exactly as many pass as may.
BATCH_PART: Final = 100
BATCH_MAX: Final = 256

Limit = Annotated[int, msgspec.Meta(ge=1, le=LIMIT_MAX)]
Window = Annotated[int, msgspec.Meta(ge=1, le=WINDOW_S_MAX)]


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """So many in so many seconds, and `burst` of them at once."""

    limit: Limit
    window_s: Window
    burst: Limit

    @property
    def interval_us(self) -> int:
        """How long one takes to come back, rounded up: never more than the limit pass."""
        return -(-self.window_s * 1_000_000 // self.limit)


class Left(NamedTuple):
    """What is left of a bucket, and after how many microseconds there is one more."""

    rest: int
    more_in_us: int


def batch_of(burst: int) -> int:
    """Return how many are drawn at once of what has such a burst."""
    return max(1, min(BATCH_MAX, burst // BATCH_PART))


def draw(rate: Rate, full_at_us: int, now_us: int, wanted: int) -> tuple[int, int]:
    """Draw up to `wanted`; return how many, and when the bucket is full now."""
    full_at_us = max(full_at_us, now_us)
    granted = max(0, min(wanted, _room_us(rate, full_at_us, now_us) // rate.interval_us))
    return granted, full_at_us + granted * rate.interval_us


def left(rate: Rate, full_at_us: int, now_us: int) -> Left:
    """Return what is left of a bucket."""
    if full_at_us <= now_us:
        return Left(rate.burst, 0)
    room_us = _room_us(rate, full_at_us, now_us)
    count = max(0, room_us // rate.interval_us)
    return Left(count, (count + 1) * rate.interval_us - room_us)


def _room_us(rate: Rate, full_at_us: int, now_us: int) -> int:
    return now_us + rate.burst * rate.interval_us - full_at_us
