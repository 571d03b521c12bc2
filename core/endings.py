"""Ending a background task for certain."""

import asyncio
from typing import Any, Final

# Longer than any single await here takes to notice; a task that missed one cancellation gets
# another.
NOTICE_S: Final = 0.5


async def end(task: "asyncio.Task[Any]") -> None:
    """Cancel a task and wait until it is over, whatever it raised.

    One `cancel` is not enough: where it meets the completion of what the task waits for, a
    `wait_for` below may take the result and drop the cancellation.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=NOTICE_S)
    if not task.cancelled():
        task.exception()
