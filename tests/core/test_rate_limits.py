"""Rate limits at Redis: shared, exact, given back, and counted alone while it is away."""

import asyncio
import random
import time
import uuid

import msgspec
import pytest
import redis.asyncio

from core.api_keys import Caller
from core.hot import keys
from core.hot import rates as buckets
from core.hot.nodes import connect
from core.rate_limits import Limiter, RateLimited
from core.rules import rates
from core.rules.rates import Rate
from tests.api.conftest import free_port

pytestmark = pytest.mark.anyio

HUNDRED_AN_HOUR = Rate(limit=100, window_s=3_600, burst=100)
THOUSAND_AN_HOUR = Rate(limit=1_000, window_s=3_600, burst=1_000)


def caller_with(rate: Rate | None, plan: str = "enterprise") -> Caller:
    return Caller(
        uuid.uuid4(), uuid.uuid4(), "SECRET", "EUR", 2,
        plan=plan, account_id=uuid.uuid4(), rate=rate,
    )  # fmt: skip


async def passed(limiter: Limiter, caller: Caller, count: int) -> int:
    async def take() -> bool:
        try:
            await limiter.take(caller)
        except RateLimited:
            return False
        return True

    return sum(await asyncio.gather(*(take() for _ in range(count))))


async def test_the_script_counts_as_the_rule_book_does(valkey: redis.asyncio.Redis) -> None:
    for _ in range(20):
        rate = Rate(limit=random.randint(1, 50), window_s=random.randint(3_600, 86_400),
                    burst=random.randint(1, 50))  # fmt: skip
        name = keys.of_rate(str(uuid.uuid4()))
        full_at_us = 0
        for _ in range(10):
            wanted = random.randint(0, 20)
            drawn = await buckets.draw(valkey, [(name, rate)], wanted)
            seconds, micros = await valkey.time()
            now_us = seconds * 1_000_000 + micros
            granted, full_at_us = rates.draw(rate, full_at_us, now_us, wanted)
            said = drawn.left[0]
            assert (drawn.granted, said.rest) == (granted, rates.left(rate, full_at_us, now_us)[0])
            assert abs(said.more_in_us - rates.left(rate, full_at_us, now_us)[1]) < 1_000_000
        left_ms = await valkey.pttl(name)
        assert granted == 0 or 0 < left_ms <= rate.burst * rate.interval_us // 1_000 + 1


async def test_processes_share_a_limit_to_the_last_one(valkey: redis.asyncio.Redis) -> None:
    caller = caller_with(HUNDRED_AN_HOUR)
    limiters = [Limiter(valkey) for _ in range(4)]
    counts = await asyncio.gather(*(passed(one, caller, 250) for one in limiters))
    assert sum(counts) == 100
    with pytest.raises(RateLimited) as refused:
        await limiters[0].take(caller)
    assert 30 < refused.value.retry_after_s <= 36
    assert refused.value.because == {
        "policy": "key", "limit": 100, "window_s": 3_600, "burst": 100,
    }  # fmt: skip


async def test_keys_of_an_account_share_its_plans_limit_and_keep_their_own(
    valkey: redis.asyncio.Redis,
) -> None:
    free = caller_with(None, plan="free")
    limited = msgspec.structs.replace(
        free, key_id=uuid.uuid4(), rate=Rate(limit=3, window_s=60, burst=3)
    )
    stranger = caller_with(None, plan="free")
    limiter = Limiter(valkey)
    began_s = time.monotonic()

    def back() -> int:
        # Ten a second.
        return int((time.monotonic() - began_s) * 10) + 1

    assert await passed(limiter, limited, 10) == 3
    # Refusals took nothing from the others.
    assert 97 <= await passed(limiter, free, 200) <= min(100, 97 + back())
    assert 100 <= await passed(limiter, stranger, 200) <= 100 + back()
    assert await passed(limiter, caller_with(None), 500) == 500
    assert await valkey.dbsize() == 3


async def test_what_was_drawn_and_not_used_goes_back(valkey: redis.asyncio.Redis) -> None:
    caller = caller_with(THOUSAND_AN_HOUR)
    one, other = Limiter(valkey), Limiter(valkey)
    assert await passed(one, caller, 1) == 1
    assert one.hand_over(caller) == 9
    assert await passed(other, caller, 2_000) == 990
    one.take_back(caller, 7)
    await asyncio.sleep(1.1)
    await one.give_back()
    assert one.hand_over(caller) == 0
    assert await passed(other, caller, 20) == 7


async def test_a_process_counts_alone_while_redis_is_away(
    valkey: redis.asyncio.Redis, redis_url: str
) -> None:
    caller = caller_with(HUNDRED_AN_HOUR)
    away = connect(f"redis://127.0.0.1:{free_port()}/0", socket_connect_timeout=0.2)
    limiter = Limiter(valkey)
    assert await passed(limiter, caller, 40) == 40
    limiter._redis = away
    started_s = time.monotonic()
    assert await passed(limiter, caller, 500) == 60
    assert await passed(limiter, caller, 500) == 0
    assert await passed(Limiter(away), caller, 500) == 100
    assert time.monotonic() - started_s < 2
    # Back again, it goes on from what is known there.
    limiter._redis, limiter._away_until_s = valkey, 0.0
    limiter._pools.clear()
    assert await passed(limiter, caller, 500) == 60
    await away.aclose()
