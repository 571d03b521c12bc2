"""Buckets of rate limits at Redis: every process of every node draws from the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import NoScriptError
from vauchflow_hotpath import RATE_LUA

from core.rules.rates import Left, Rate

_SHA: Final = hashlib.sha1(RATE_LUA.encode(), usedforsecurity=False).hexdigest()


class Drawn(NamedTuple):
    """How many were granted, and what is left in each bucket."""

    granted: int
    left: list[Left]


async def draw(redis: Redis, buckets: Sequence[tuple[str, Rate]], wanted: int) -> Drawn:
    """Draw up to `wanted` from all buckets at once, or give so many back where it is negative.

    The keys of `keys.of_rate`, of one account. Not idempotent: what was lost on its way was drawn.
    Raises: RedisError, OSError. Cost: one round trip.
    """
    numbers: list[int] = [wanted]
    for _, rate in buckets:
        numbers += [rate.interval_us, rate.burst]
    names = [name for name, _ in buckets]
    try:
        said = await redis.evalsha(_SHA, len(names), *names, *numbers)
    except NoScriptError:
        said = await redis.eval(RATE_LUA, len(names), *names, *numbers)
    granted, *pairs = map(int, said)
    return Drawn(granted, [Left(*pair) for pair in zip(pairs[::2], pairs[1::2], strict=True)])
