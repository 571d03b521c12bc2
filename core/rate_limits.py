"""Rate limits: how often the keys of an account may ask together, and one key by itself.

The buckets are at Redis, so that all processes draw from the same ones; a process has a hundredth
of a burst at hand for some seconds, and where that is less than one, each request draws its own.
While Redis is away each process goes on counting by itself.
"""

import asyncio
import time
from typing import Final

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from core.api_keys import Caller
from core.errors import Fault
from core.hot import keys
from core.hot import rates as buckets
from core.rules import plans, rates
from core.rules.rates import Left, Rate

# What is at hand and was not used goes back after so long, or at the next look after it.
HOLD_S: Final = 1.0
# A call takes a fraction of a millisecond, and with a slow disk some; then requests go on without.
DRAW_TIMEOUT_S: Final = 0.5
# Redis is asked again so long after it did not answer.
AWAY_S: Final = 1.0
# Who was refused is refused here for at most so long, so that a change of plan is seen.
REFUSED_S_MAX: Final = 1.0
# Draws under way at once in a process: requests of one key share one.
DRAWS_MAX: Final = 8
# A bucket that nobody asked for so long is full again, or nearly.
IDLE_S: Final = 60.0

_log = structlog.get_logger("vauchflow.rate_limits")


class Policy(msgspec.Struct, frozen=True):
    """A limit that holds for somebody: `plan` or `key`, and its bucket."""

    name: str
    rate: Rate
    bucket: str


class Standing(msgspec.Struct, frozen=True):
    """How much each policy leaves, as of the last draw."""

    policies: list[Policy]
    left: list[Left]


class RateLimited(Fault):
    """More was asked than a policy lets pass; `standing` says which."""

    code = "rate_limited"

    def __init__(self, standing: Standing) -> None:
        """Name the policy that is in the way the longest."""
        waits = [left.more_in_us if left.rest == 0 else 0 for left in standing.left]
        at = waits.index(max(waits))
        policy, wait_us = standing.policies[at], waits[at]
        rate = policy.rate
        whose = "The plan lets" if policy.name == "plan" else "This key's own limit lets"
        super().__init__(
            f"{whose} {rate.limit:,} requests pass in {rate.window_s:,} s, {rate.burst:,} at once.",
            because={"policy": policy.name, **msgspec.structs.asdict(rate)},
        )
        self.standing = standing
        self.retry_after_s = max(1, -(-wait_us // 1_000_000))


class _Pool:
    """What a process has at hand for one key."""

    def __init__(self, caller: Caller, policies: list[Policy]) -> None:
        self.caller = caller
        self.policies = policies
        self.batch = min(rates.batch_of(policy.rate.burst) for policy in policies)
        self.at_hand = 0
        self.left = [Left(policy.rate.burst, 0) for policy in policies]
        self.told_s = self.used_s = time.monotonic()
        self.refused_until_s = 0.0
        self.waiting: list[asyncio.Future[bool]] = []
        self.flight: asyncio.Task[None] | None = None
        # Of each policy, once this process counts by itself: when its bucket is full.
        self.full_at_us: list[int] | None = None

    def standing(self) -> Standing:
        at_hand = self.at_hand
        return Standing(self.policies, [Left(n + at_hand, in_us) for n, in_us in self.left])

    def refuse(self, now_s: float) -> None:
        waits = [left.more_in_us for left in self.left if left.rest == 0]
        self.refused_until_s = now_s + min(REFUSED_S_MAX, max(waits, default=0) / 1e6)


class Limiter:
    """The limits of one process. Used from one event loop only."""

    def __init__(self, redis: Redis) -> None:
        """Draw nothing yet; `redis` stays the caller's to close."""
        self._redis = redis
        self._pools: dict[str, _Pool] = {}
        self._room = asyncio.Semaphore(DRAWS_MAX)
        self._away_until_s = 0.0

    async def take(self, caller: Caller) -> Standing | None:
        """Let one request pass; None for who has no limit, as people at the dashboard have none.

        Raises: RateLimited. Cost: nothing without a limit; else a round trip to Redis that requests
        under way share, for one of as many as a process has at hand.
        """
        pool = self._pool_of(caller)
        if pool is None:
            return None
        pool.used_s = time.monotonic()
        if pool.at_hand > 0:
            pool.at_hand -= 1
        elif pool.used_s < pool.refused_until_s or not await self._drawn(pool):
            raise RateLimited(pool.standing())
        return pool.standing()

    def has_limit(self, caller: Caller) -> bool:
        """Whether there is a limit for a caller at all."""
        return self._pool_of(caller) is not None

    def hand_over(self, caller: Caller) -> int:
        """Give away what is at hand, for the compiled doors to take from."""
        pool = self._pool_of(caller)
        assert pool is not None, "who was let in under a limit has one"
        at_hand, pool.at_hand = pool.at_hand, 0
        return at_hand

    def take_back(self, caller: Caller, count: int) -> None:
        """Have at hand again what was given away and not used."""
        pool = self._pool_of(caller)
        if pool is not None:
            pool.at_hand += count

    def _pool_of(self, caller: Caller) -> _Pool | None:
        plan = plans.PLANS[caller.plan].rate
        if caller.key_id is None or (plan is None and caller.rate is None):
            return None
        name = str(caller.key_id)
        pool = self._pools.get(name)
        if pool is None or pool.caller is not caller:
            policies = _policies_of(caller, plan)
            if pool is None or pool.policies != policies:
                # What was drawn under other limits is let go.
                pool = self._pools[name] = _Pool(caller, policies)
            pool.caller = caller
        return pool

    async def _drawn(self, pool: _Pool) -> bool:
        """Return whether one was granted."""
        waits: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        pool.waiting.append(waits)
        if pool.flight is None:
            pool.flight = asyncio.create_task(self._fly(pool))
        return await waits

    async def _fly(self, pool: _Pool) -> None:
        """Draw for all who wait, until nobody does."""
        waiting: list[asyncio.Future[bool]] = []
        try:
            while pool.waiting:
                waiting, pool.waiting = pool.waiting, []
                granted = await self._ask(pool, len(waiting) + pool.batch - 1)
                for waits in waiting:
                    if not waits.done():
                        waits.set_result(granted > 0)
                        granted -= granted > 0
                pool.at_hand += granted
                if not pool.at_hand:
                    pool.refuse(time.monotonic())
        finally:
            pool.flight = None
            for waits in waiting + pool.waiting:
                # Only where this broke: nobody waits for ever.
                waits.cancel()

    async def _ask(self, pool: _Pool, wanted: int) -> int:
        now_s = time.monotonic()
        if now_s >= self._away_until_s:
            try:
                async with self._room, asyncio.timeout(DRAW_TIMEOUT_S):
                    drawn = await buckets.draw(
                        self._redis, [(one.bucket, one.rate) for one in pool.policies], wanted
                    )
            except (RedisError, OSError, TimeoutError) as error:
                if not self._away_until_s:
                    _log.warning("limits_counted_alone", error=type(error).__name__)
                self._away_until_s = time.monotonic() + AWAY_S
            else:
                self._away_until_s = 0.0
                pool.left, pool.told_s, pool.full_at_us = drawn.left, time.monotonic(), None
                return drawn.granted
        return _ask_nobody(pool, wanted)

    async def run(self) -> None:
        """Give back what was not used, each second, until cancelled."""
        while True:
            await asyncio.sleep(HOLD_S)
            await self.give_back()

    async def give_back(self) -> None:
        """Give back what is at hand and was not used for a while; forget who is away."""
        now_s = time.monotonic()
        for name, pool in list(self._pools.items()):
            if pool.at_hand and now_s - pool.told_s >= HOLD_S and pool.full_at_us is None:
                unused, pool.at_hand = pool.at_hand, 0
                await self._ask(pool, -unused)
            if now_s - pool.used_s > IDLE_S and not pool.waiting and pool.flight is None:
                del self._pools[name]


def _policies_of(caller: Caller, plan: Rate | None) -> list[Policy]:
    account = str(caller.account_id)
    policies = []
    if plan is not None:
        policies.append(Policy("plan", plan, keys.of_rate(account)))
    if caller.rate is not None:
        policies.append(Policy("key", caller.rate, keys.of_rate(account, str(caller.key_id))))
    return policies


def _ask_nobody(pool: _Pool, wanted: int) -> int:
    """Draw from buckets of this process alone, which go on from what Redis said last."""
    now_us = time.monotonic_ns() // 1_000
    full_at_us = pool.full_at_us
    if full_at_us is None:
        told_us = int(pool.told_s * 1e6)
        full_at_us = [
            told_us + (one.rate.burst - left.rest) * one.rate.interval_us
            for one, left in zip(pool.policies, pool.left, strict=True)
        ]
    granted = max(0, wanted)
    for one, at_us in zip(pool.policies, full_at_us, strict=True):
        granted = rates.draw(one.rate, at_us, now_us, granted)[0]
    pool.full_at_us = [
        rates.draw(one.rate, at_us, now_us, granted)[1]
        for one, at_us in zip(pool.policies, full_at_us, strict=True)
    ]
    pool.left = [
        rates.left(one.rate, at_us, now_us)
        for one, at_us in zip(pool.policies, pool.full_at_us, strict=True)
    ]
    pool.told_s = now_us / 1e6
    return granted
