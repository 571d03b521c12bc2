"""The claim backend in Python: the same rules as the compiled batcher, over a redis-py connection.

It serves where the compiled one can't (TLS) and is the honest yardstick for what that one gains.
One task owns the one connection; one flight is under way at a time, and batches form by arrival.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Protocol

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from vauchflow_hotpath import CLAIM_LUA, CROWD_LUA, Marks

from core.hot import (
    BATCH_MAX,
    CIRCUIT_OPEN_MS,
    FINGERPRINT_CHARS,
    FLIGHT_TIMEOUT_MS,
    QUEUE_MAX,
    RECONNECT_MS,
    Outcome,
    RawAnswer,
    SlotStatus,
    Status,
    keys,
)

FLIGHT_ITEMS_MAX = 1_024  # four full batches: a flight stays within a few ms of server time
TICK_S = 0.02  # how late an expired claim may be told so; a twentieth of a short deadline

# Errors a server gives before the script's first write: nothing was applied.
_REFUSED_WHOLE = (OutOfMemoryError, ReadOnlyError, BusyLoadingError, MasterDownError)
_REFUSED_CODES = ("MISCONF", "NOREPLICAS", "BUSY", "CLUSTERDOWN", "MOVED", "ASK", "TRYAGAIN")

Call = list[str | bytes | int]
_log = logging.getLogger(__name__)


class Link(Protocol):
    """One connection to one server; `load` and `flight` raise OSError or RedisError."""

    run_id: str

    async def load(self, script: str) -> str: ...
    async def flight(self, calls: Sequence[Call]) -> list[Any]:
        """Send all calls, then read one reply each; an error reply is a value here."""
        ...

    async def is_lost(self) -> bool: ...
    async def close(self) -> None: ...


class RedisLink:
    """A redis-py connection that never reconnects by itself: a new one is compared first."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        self.run_id = ""

    @classmethod
    async def connect(cls, url: str, timeout_s: float) -> RedisLink:
        pool = ConnectionPool.from_url(
            url,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
        )
        link = cls(pool.make_connection())  # type: ignore[no-untyped-call]
        try:
            await link._connection.connect()  # type: ignore[no-untyped-call]
            await link._connection.send_command("INFO", "server")
            info = await link._connection.read_response()
        except BaseException:
            await link.close()
            raise
        for line in bytes(info).splitlines():
            if line.startswith(b"run_id:"):
                link.run_id = line[7:].decode()
        return link

    async def load(self, script: str) -> str:
        await self._connection.send_command("SCRIPT", "LOAD", script)
        return bytes(await self._connection.read_response()).decode()

    async def flight(self, calls: Sequence[Call]) -> list[Any]:
        await self._connection.send_packed_command(self._connection.pack_commands(calls))
        replies: list[Any] = []
        for _ in calls:
            try:
                replies.append(await self._connection.read_response())
            except (ResponseError, BusyLoadingError) as refused:
                replies.append(refused)
        return replies

    async def is_lost(self) -> bool:
        if not self._connection.is_connected:
            return True
        try:
            return bool(await self._connection.can_read())
        except (OSError, RedisError):
            return True

    async def close(self) -> None:
        with contextlib.suppress(OSError, RedisError):
            await self._connection.disconnect(nowait=True)


@dataclass(slots=True)
class _Item:
    future: asyncio.Future[RawAnswer]
    deadline: float
    args: tuple[str | bytes, ...]


@dataclass(slots=True)
class _Slot:
    target: str
    subject: str  # what the script compares first: the lease id, or the crowd's lineage
    run_id: str | None  # None: a crowd, which any server may answer
    mark: int | None  # index in the marks file
    keys: tuple[str, str, str, str]
    sealed: str | None = None
    waiting: deque[_Item] = field(default_factory=deque)


class RedisPyBackend:
    """Make it on a running loop; see `ClaimBackend` for what its methods promise."""

    def __init__(
        self,
        url: str,
        *,
        batch_max: int = BATCH_MAX,
        queue_max: int = QUEUE_MAX,
        flight_timeout_ms: int = FLIGHT_TIMEOUT_MS,
        marks_path: str | PathLike[str] | None = None,
        connect: Callable[[], Awaitable[Link]] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._batch_max, self._queue_max = batch_max, queue_max
        self._flight_timeout_s = flight_timeout_ms / 1000
        self._connect = connect or (lambda: RedisLink.connect(url, self._flight_timeout_s))
        self._marks = Marks(marks_path)
        self._slots: dict[int, _Slot] = {}
        self._next_slot = 0
        self._active: deque[_Slot] = deque()  # slots with waiting items, next in turn first
        self._queued = self._in_flight = self._batches = self._items = 0
        self._link: Link | None = None
        self._shas: dict[str, str] = {}  # scripts loaded on this very connection
        self._away_since = time.monotonic()
        self._closing = self._dead = False
        self._wake = asyncio.Event()
        self._task = self._loop.create_task(self._run())
        self._ticker = self._loop.create_task(self._tick())

    # Slots ---------------------------------------------------------------------------------------

    def open_lease(self, lease_id: str, run_id: str) -> int:
        found = self._find(lease_id, lease_id)
        if found is not None:
            return found
        mark = self._marks.take(lease_id)
        slot = _Slot(lease_id, lease_id, run_id, mark, keys.of_lease(lease_id))
        return self._open(slot)

    def open_crowd(self, voucher_id: str, lineage: str) -> int:
        found = self._find(voucher_id, lineage)
        if found is not None:
            return found
        return self._open(_Slot(voucher_id, lineage, None, None, keys.of_crowd(voucher_id)))

    def _find(self, target: str, subject: str) -> int | None:
        for index, slot in self._slots.items():
            if (slot.target, slot.subject) == (target, subject):
                return index
        return None

    def _open(self, slot: _Slot) -> int:
        index = self._next_slot
        self._next_slot += 1
        self._slots[index] = slot
        self._compare([slot])
        return index

    def _given(self, slot: int) -> _Slot | None:
        """Find an open slot; None for a closed one. Raises: ValueError for one that never was."""
        if not 0 <= slot < self._next_slot:
            raise ValueError("no such slot")
        return self._slots.get(slot)

    def reopen(self, slot: int, run_id: str) -> None:
        opened = self._given(slot)
        if opened is not None:
            opened.sealed = None
            if opened.run_id is not None:
                opened.run_id = run_id
                self._compare([opened])

    def seal(self, slot: int) -> int:
        opened = self._given(slot)
        if opened is None:
            return 0
        self._seal(opened, "asked")
        return self._mark(opened)

    def close_slot(self, slot: int) -> None:
        closed = self._given(slot)
        if closed is None:
            return
        self._seal(closed, "asked")
        del self._slots[slot]
        if closed.mark is not None:
            self._marks.free(closed.mark)
            closed.mark = None

    def forget_sold_out(self, slot: int) -> None:
        """Nothing is remembered here: every claim asks the script."""

    def keep_marks(self, lease_ids: Sequence[str]) -> None:
        here = [slot.target for slot in self._slots.values() if slot.run_id is not None]
        self._marks.keep([*here, *lease_ids])

    def _mark(self, slot: _Slot) -> int:
        return self._marks.get(slot.mark) if slot.mark is not None else 0

    def _seal(self, slot: _Slot, reason: str) -> None:
        slot.sealed = slot.sealed or reason
        self._refuse_waiting(slot, Outcome.UNAVAILABLE)

    def _compare(self, slots: Iterable[_Slot]) -> None:
        """Seal what belongs to another server than the one connected to."""
        if self._link is None:
            return
        for slot in slots:
            if slot.run_id is not None and slot.run_id != self._link.run_id and not slot.sealed:
                self._seal(slot, "run_id")

    # Claims --------------------------------------------------------------------------------------

    def claim(
        self,
        slot: int,
        key: str | None,
        fingerprint: str,
        customer: str | None,
        payload: bytes,
        deadline_ms: int,
    ) -> asyncio.Future[RawAnswer]:
        if len(fingerprint) != FINGERPRINT_CHARS:
            raise ValueError("a fingerprint is 32 hex characters")
        future: asyncio.Future[RawAnswer] = self._loop.create_future()
        target = self._given(slot)
        if (
            target is None
            or target.sealed
            or self._closing
            or self._dead
            or self._circuit_is_open()
        ):
            _answer(future, Outcome.UNAVAILABLE)
        elif self._queued >= self._queue_max:
            _answer(future, Outcome.OVERLOADED)
        else:
            args: tuple[str | bytes, ...] = (key or "", fingerprint, customer or "")
            if target.run_id is not None:
                args += (payload,)
            if not target.waiting:
                self._active.append(target)
            target.waiting.append(_Item(future, time.monotonic() + deadline_ms / 1000, args))
            self._queued += 1
            self._wake.set()
        return future

    def _circuit_is_open(self) -> bool:
        away_s = time.monotonic() - self._away_since
        return self._link is None and away_s > CIRCUIT_OPEN_MS / 1000

    def _refuse_waiting(self, slot: _Slot, outcome: Outcome) -> None:
        for item in slot.waiting:
            _answer(item.future, outcome)
        self._queued -= len(slot.waiting)
        slot.waiting.clear()
        if slot in self._active:
            self._active.remove(slot)

    def _refuse_all(self, outcome: Outcome) -> None:
        for slot in list(self._active):
            self._refuse_waiting(slot, outcome)

    def _expire(self) -> None:
        now = time.monotonic()
        if self._queued and self._circuit_is_open():
            self._refuse_all(Outcome.UNAVAILABLE)
        for slot in list(self._active):
            late = [item for item in slot.waiting if item.deadline <= now]
            if not late:
                continue
            for item in late:
                _answer(item.future, Outcome.EXPIRED)
            slot.waiting = deque(item for item in slot.waiting if item.deadline > now)
            self._queued -= len(late)
            if not slot.waiting:
                self._active.remove(slot)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._expire()

    # The connection ------------------------------------------------------------------------------

    async def _run(self) -> None:
        flight: list[tuple[_Slot, list[_Item]]] = []
        try:
            while not self._closing:
                if self._link is None:
                    await self._reconnect()
                    continue
                if not self._queued:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._wake.wait(), 0.1)
                self._wake.clear()
                if await self._link.is_lost():
                    await self._drop()
                    continue
                self._take(flight)
                if flight:
                    await self._fly(flight)
        except Exception:
            self._dead = True
            for _, items in flight:
                for item in items:
                    _answer(item.future, Outcome.UNKNOWN)
            _log.exception("the claim backend has died")
        finally:
            self._refuse_all(Outcome.UNAVAILABLE)
            if self._link is not None:
                await self._drop()

    async def _reconnect(self) -> None:
        pause_ms = RECONNECT_MS[0]
        while not self._closing:
            try:
                link = await self._connect()
            except (OSError, RedisError):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closed_soon(), pause_ms / 1000)
                pause_ms = min(2 * pause_ms, RECONNECT_MS[1])
                continue
            self._link = link
            self._shas = {}
            self._compare(self._slots.values())
            return

    async def _closed_soon(self) -> None:
        while not self._closing:
            self._wake.clear()
            await self._wake.wait()

    async def _drop(self) -> None:
        link, self._link = self._link, None
        self._away_since = time.monotonic()
        if link is not None:
            await link.close()

    def _take(self, flight: list[tuple[_Slot, list[_Item]]]) -> None:
        """Move waiting items into the flight, slots in turn, at most one batch of each."""
        flight.clear()
        self._expire()
        room = FLIGHT_ITEMS_MAX
        for _ in range(len(self._active)):
            if not room:
                break
            slot = self._active.popleft()
            count = min(len(slot.waiting), self._batch_max, room)
            flight.append((slot, [slot.waiting.popleft() for _ in range(count)]))
            room -= count
            self._queued -= count
            if slot.waiting:
                self._active.append(slot)

    async def _fly(self, flight: list[tuple[_Slot, list[_Item]]]) -> None:
        link = self._link
        assert link is not None
        count = sum(len(items) for _, items in flight)
        self._in_flight = count
        sent = False
        try:
            async with asyncio.timeout(self._flight_timeout_s):
                for script in {_script_of(slot) for slot, _ in flight} - self._shas.keys():
                    self._shas[script] = await link.load(script)
                calls = [self._call(slot, items) for slot, items in flight]
                sent = True
                replies = await link.flight(calls)
        except (OSError, RedisError, TimeoutError):
            outcome = Outcome.UNKNOWN if sent else Outcome.UNAVAILABLE
            for _, items in flight:
                for item in items:
                    _answer(item.future, outcome)
            await self._drop()
        else:
            self._batches += len(flight)
            self._items += count
            is_usable = True
            for (slot, items), reply in zip(flight, replies, strict=True):
                is_usable &= self._land(slot, items, reply)
            if not is_usable:
                await self._drop()
        flight.clear()
        self._in_flight = 0

    def _call(self, slot: _Slot, items: list[_Item]) -> Call:
        call: Call = ["EVALSHA", self._shas[_script_of(slot)], 4, *slot.keys]
        call += (slot.subject, len(items))
        for item in items:
            call += item.args
        return call

    # Answers -------------------------------------------------------------------------------------

    def _land(self, slot: _Slot, items: list[_Item], reply: Any) -> bool:
        """Answer one batch. False when the connection is not to be used again."""
        if isinstance(reply, Exception):
            outcome = Outcome.UNAVAILABLE if _was_refused_whole(reply) else Outcome.UNKNOWN
            for item in items:
                _answer(item.future, outcome)
            return not isinstance(reply, NoScriptError | BusyLoadingError | ReadOnlyError)
        if not isinstance(reply, list) or len(reply) != len(items) + 2:
            for item in items:
                _answer(item.future, Outcome.UNKNOWN)
            return False
        at_ms, size = reply[0], reply[1]
        for item, told in zip(items, reply[2:], strict=True):
            answer = self._judge(slot, told, at_ms, size)
            if not item.future.done():
                item.future.set_result(answer)
        return True

    def _judge(self, slot: _Slot, told: int | bytes, at_ms: int, size: int) -> RawAnswer:
        unknown: RawAnswer = (int(Outcome.UNKNOWN), 0, 0, 0, None)
        if isinstance(told, int):
            if told <= 0:
                if told == -Outcome.FENCED:
                    self._seal(slot, "fenced")
                    return (int(Outcome.UNAVAILABLE), 0, at_ms, 0, None)
                return (-told, 0, at_ms, 0, None)
            if slot.sealed or slot.mark is None:
                return unknown
            if told <= self._marks.get(slot.mark):
                self._seal(slot, "seq_not_above_mark")
                return unknown
            self._marks.raise_to(slot.mark, told)
            return (int(Outcome.WON), told, at_ms, size - told, None)
        if told[:1] == b"C":
            return (int(Outcome.CUSTOMER_LIMIT), 0, at_ms, 0, told[1:])
        seq, first_ms, remaining, payload = told[1:].split(b"|", 3)
        # A replay repeats a win that may have been answered by nobody yet: it is answered now, so
        # it counts for the mark, and a sealed slot whose mark was already told may not add to it.
        if slot.run_id is not None and int(seq) > self._mark(slot):
            if slot.sealed or slot.mark is None:
                return unknown
            self._marks.raise_to(slot.mark, int(seq))
        return (int(Outcome.REPLAYED), int(seq), int(first_ms), int(remaining), payload)

    def status(self) -> Status:
        return Status(
            connected=self._link is not None,
            run_id=self._link.run_id if self._link is not None else None,
            dead=self._dead,
            queued=self._queued,
            in_flight=self._in_flight,
            batches=self._batches,
            items=self._items,
            wakeups=self._batches,
            marks_lost=self._marks.were_lost,
            slots={
                index: SlotStatus(
                    slot.target,
                    slot.sealed is not None,
                    slot.sealed,
                    self._mark(slot),
                    self._link.run_id if self._link is not None else None,
                )
                for index, slot in self._slots.items()
            },
        )

    async def aclose(self) -> None:
        self._closing = True
        self._refuse_all(Outcome.UNAVAILABLE)
        self._wake.set()
        self._ticker.cancel()
        await asyncio.wait([self._task, self._ticker], timeout=2 * self._flight_timeout_s)
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])


def _answer(future: asyncio.Future[RawAnswer], outcome: Outcome) -> None:
    if not future.done():
        future.set_result((int(outcome), 0, 0, 0, None))


def _script_of(slot: _Slot) -> str:
    return CROWD_LUA if slot.run_id is None else CLAIM_LUA


def _was_refused_whole(error: Exception) -> bool:
    code = str(error).partition(" ")[0]
    return isinstance(error, (*_REFUSED_WHOLE, NoScriptError)) or code in _REFUSED_CODES
