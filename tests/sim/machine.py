"""One process in which a whole cluster runs on a clock of its own: no threads, sockets or waiting.

Every store call takes a time drawn from the seed, so each seed is one order of events, and the
same one every time.
"""

import asyncio
import random
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
# A store call: mostly a fraction of a millisecond, now and then as slow as a bad disk.
QUICK_S, SLOW_S, SLOW_SHARE = 0.002, 0.4, 0.03


class Loop(asyncio.BaseEventLoop):
    """An event loop whose time jumps to the next timer whenever nothing is ready."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = self
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def select(self, timeout: float | None) -> list[Any]:
        assert timeout is not None, "everybody waits for somebody else"
        self.now += timeout
        return []

    def _process_events(self, events: list[Any]) -> None:
        """There are no descriptors."""

    def _write_to_self(self) -> None:
        """There are no other threads."""


class Clock:
    """Stands in for the `time` module of the modules under simulation."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def monotonic(self) -> float:
        return self._loop.time()


class Actor:
    """One process of the cluster: what it awaits is slow, and nothing at all while it is frozen."""

    def __init__(self, name: str, dice: random.Random) -> None:
        self.name = name
        self.frozen_until = 0.0
        self._dice = dice

    async def wait(self) -> None:
        """Take the time a call takes on its way, and stop wherever this process is frozen."""
        slow = self._dice.random() < SLOW_SHARE
        await asyncio.sleep(self._dice.random() * (SLOW_S if slow else QUICK_S))
        await self.thaw()

    async def thaw(self) -> None:
        """Go on when this process goes on."""
        while (left := self.frozen_until - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(left)


def wall_time() -> datetime:
    """Return the simulated wall clock."""
    return EPOCH + timedelta(seconds=asyncio.get_running_loop().time())


def run(main: Coroutine[Any, Any, Any], loop: Loop) -> Any:
    """Run to the end, and end whatever is left."""
    try:
        return loop.run_until_complete(main)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()
