"""What the tests of lost and replaced stores share: a house on servers of its own."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from core.local import Servers
from core.redemptions import Redemption
from core.settings import Settings
from tests.core.conftest import House


@contextlib.asynccontextmanager
async def house_on(settings: Settings, **changes: Any) -> AsyncIterator[House]:
    opened = House(msgspec.structs.replace(settings, **changes))
    await opened.open()
    try:
        yield opened
    finally:
        await opened.close()


def outcome(answer: Any) -> str:
    return "won" if isinstance(answer, Redemption) else str(answer.code)


async def kill(servers: Servers, name: str) -> None:
    process = servers.processes[name]
    os.kill(process.pid, signal.SIGKILL)
    while process.exit_status() is None:
        await asyncio.sleep(0.01)


async def claim_until_answered(
    home: House, sale: Any, n: int, within_s: float = 20.0, key: str | None = None
) -> Any:
    """Claim like an honest client: not applied or unknown is asked again with the same key."""
    for _ in range(int(within_s / 0.05)):
        answer = await home.claim(sale, f"c{n}", key=key or f"k{n}")
        if outcome(answer) not in ("unavailable", "overloaded", "outcome_unknown"):
            return answer
        await asyncio.sleep(0.05)
    raise AssertionError(f"no answer within {within_s} seconds: {answer.detail}")
