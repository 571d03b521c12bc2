"""The claim backend of the compiled batcher: futures belong to one loop, I/O to no loop."""

from __future__ import annotations

import asyncio
from os import PathLike

from vauchflow_hotpath import (
    Batcher,
    CommitBatch,
    CommitQueue,
    Door,
    Listener,
    Marks,
    PlainCall,
    PlainTerms,
    parse_redis_url,
)

from core.hot import BATCH_MAX, FLIGHT_TIMEOUT_MS, QUEUE_MAX, SlotStatus, Status

__all__ = [
    "CommitBatch",
    "CommitQueue",
    "Door",
    "Listener",
    "PlainCall",
    "PlainTerms",
    "RustBackend",
]


class RustBackend:
    """Make it on a running loop, one a worker process; see `ClaimBackend` for what it promises.

    `marks_path` is this worker's own file, and locked while it lives; a successor takes it over.
    `marks`: the file as another backend of this worker has it.
    Raises: OSError when another process holds the file, ValueError for an address it can't speak.
    """

    def __init__(
        self,
        url: str,
        *,
        batch_max: int = BATCH_MAX,
        queue_max: int = QUEUE_MAX,
        flight_timeout_ms: int = FLIGHT_TIMEOUT_MS,
        marks_path: str | PathLike[str] | None = None,
        marks: Marks | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        where = parse_redis_url(url)
        self._batcher = Batcher(
            self._loop,
            where.address,
            username=where.username,
            password=where.password,
            db=where.db,
            batch_max=batch_max,
            queue_max=queue_max,
            flight_timeout_ms=flight_timeout_ms,
            marks=marks or Marks(marks_path),
        )
        # Bound once: the hot path goes from a handler straight into the compiled method.
        self.claim = self._batcher.claim
        # Beyond the contract: a body of the common shape is read, priced and answered in there.
        self.set_terms = self._batcher.set_terms
        self.open_lease = self._batcher.open_lease
        self.open_crowd = self._batcher.open_crowd
        self.reopen = self._batcher.reopen
        self.seal = self._batcher.seal
        self.close_slot = self._batcher.close_slot
        self.forget_sold_out = self._batcher.forget_sold_out
        self.keep_marks = self._batcher.keep_marks
        self._fileno = self._batcher.fileno()
        self._is_closed = False
        self._loop.add_reader(self._fileno, self._batcher.drain)

    def leave_slot(self, slot: int) -> None:
        """Forget a lease that another batcher with the same marks goes on with."""
        self._batcher.close_slot(slot, keeps_mark=True)

    def learn(self, door: Door, path: str, token: bytes, slot: int) -> None:
        """Let a door take the plain claims of a slot that has its terms."""
        door.learn_claim(path, token, self._batcher, slot)

    def status(self) -> Status:
        told = self._batcher.status()
        return Status(
            connected=told["connected"],
            run_id=told["run_id"],
            dead=told["dead"],
            queued=told["queued"],
            in_flight=told["in_flight"],
            batches=told["batches"],
            items=told["items"],
            wakeups=told["wakeups"],
            last_error=told["last_error"],
            marks_lost=told["marks_lost"],
            slots={
                index: SlotStatus(target, reason is not None, reason, mark, told["run_id"])
                for index, (target, reason, mark) in told["slots"].items()
            },
        )

    async def aclose(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._batcher.close()
        await self._loop.run_in_executor(None, self._batcher.join)
        self._loop.remove_reader(self._fileno)
        self._batcher.drain()
