"""What happens, as it happens: one tail a process, whoever listens, and the counters of live sales.

A listener is told of events in their order, and from where it left off. Who is too slow is sent
away with what it has, and comes back from there; who must miss nothing reads `events` or webhooks.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final
from uuid import UUID

import msgspec
import structlog

from core import db, events, ids
from core.api_keys import Caller
from core.errors import Fault, NotFound, Unavailable
from core.events import Event, Stored
from core.flash_sales import SaleDesk, show

# A look asks one question for all that listen, whatever their number; events are published every
# 0.3 s.
LOOK_S: Final = 0.25
# Below the idle time of common proxies, 30 to 60 s; it is also how a listener that left is noticed.
HEARTBEAT_S: Final = 15.0
# Then a listener comes back by itself, and its key is looked at again.
LISTEN_S_MAX: Final = 300.0
RETRY_MS: Final = 2_000
# A thread and some buffers each. A dashboard is one.
LISTENERS_MAX: Final = 100
LISTENERS_MAX_PER_PROJECT: Final = 20
# Events of one look, and rows they are in: some ten milliseconds. A burst of more than so many
# looks is skipped, and the listeners are told from where to where: who sells 10,000 units a second
# watches counters.
EVENTS_MAX: Final = 500
ROWS_MAX: Final = 100
LOOKS_BEHIND_MAX: Final = 8
# Looks that wait for a listener; each is up to 200 kB.
QUEUE_MAX: Final = 8
COUNTERS_S: Final = 1.0
SALES_MAX: Final = 20
COUNTERS: Final = "flash_sale.counters"
TYPES: Final = frozenset(events.TYPES) | {COUNTERS}

_PLACES: Final = 0xFF_FFFF
_log = structlog.get_logger("vauchflow.live")
_encode: Final = msgspec.json.Encoder().encode


class Counters(msgspec.Struct, frozen=True):
    """A live sale's counters, as `flash_sales.show` has them."""

    id: str
    code: str
    status: str
    stock: int
    claimed: int
    settled: int
    lag: int
    remaining: int


class Skipped(msgspec.Struct, frozen=True):
    """Events that were not told here: those after `after` up to `to`."""

    after: str
    to: str


class _Newest(msgspec.Struct, frozen=True):
    id: UUID
    count: int


class _Listener:
    def __init__(self, types: frozenset[str] | None) -> None:
        self.types = types
        self.told: asyncio.Queue[bytes] = asyncio.Queue(QUEUE_MAX)
        self.is_behind = False

    def takes(self, type: str) -> bool:
        return self.types is None or type in self.types

    def tell(self, text: bytes) -> None:
        """Give it a message, and none after one for which there was no room."""
        if self.is_behind:
            return
        try:
            self.told.put_nowait(text)
        except asyncio.QueueFull:
            self.is_behind = True


class _Channel:
    """A project that somebody listens to; `head` is the event up to which they were told."""

    def __init__(self, caller: Caller, head: UUID) -> None:
        self.caller = caller
        self.head = head
        self.has_more = False
        self.looks_behind = 0
        self.listeners: set[_Listener] = set()
        self.counters: dict[UUID, bytes] = {}

    def tell(self, told: Sequence[tuple[str, bytes]]) -> None:
        """Give each listener what it takes of some messages."""
        texts: dict[frozenset[str] | None, bytes] = {}
        for listener in self.listeners:
            if listener.types not in texts:
                texts[listener.types] = b"".join(
                    text for type, text in told if listener.takes(type)
                )
            if text := texts[listener.types]:
                listener.tell(text)


class Live:
    """The listeners of one process and the tail they share. Used from one event loop only."""

    def __init__(self, database: db.Database, desk: SaleDesk) -> None:
        """Both are the caller's to close; `run` reads them."""
        self._database = database
        self._desk = desk
        self._channels: dict[UUID, _Channel] = {}
        self._count = 0
        self._is_over = asyncio.Event()
        self._wanted = asyncio.Event()

    async def listen(
        self, caller: Caller, types: frozenset[str] | None, after: UUID | None
    ) -> AsyncGenerator[bytes]:
        """Yield server-sent events until the listener has to come back.

        Raises, before the first: Unavailable, where too many listen.
        """
        full = Unavailable("Too many listen here; come back later.", code="overloaded")
        if self._count >= LISTENERS_MAX:
            raise full
        self._count += 1
        try:
            channel = await self._channel(caller)
            if len(channel.listeners) >= LISTENERS_MAX_PER_PROJECT:
                raise full
            async with aclosing(self._listen(channel, _Listener(types), after)) as told:
                async for text in told:
                    yield text
        finally:
            self._count -= 1

    async def _listen(
        self, channel: _Channel, listener: _Listener, after: UUID | None
    ) -> AsyncGenerator[bytes]:
        # From here on the tail tells what comes; what came before is read by this one alone.
        since = channel.head
        channel.listeners.add(listener)
        self._wanted.set()
        try:
            yield b"retry: %d\n\n" % RETRY_MS
            if after is not None:
                async for text in self._missed(channel.caller, listener, after, since):
                    yield text
            if listener.takes(COUNTERS) and channel.counters:
                yield b"".join(channel.counters.values())
            async for text in self._told(listener):
                yield text
        finally:
            channel.listeners.discard(listener)
            if not channel.listeners:
                self._channels.pop(channel.caller.project_id, None)

    async def _channel(self, caller: Caller) -> _Channel:
        if caller.project_id not in self._channels:
            async with self._database.transaction(caller.project_id, reads_only=True) as conn:
                head = await _head(conn, caller)
            self._channels.setdefault(caller.project_id, _Channel(caller, head))
        return self._channels[caller.project_id]

    async def _missed(
        self, caller: Caller, listener: _Listener, after: UUID, since: UUID
    ) -> AsyncGenerator[bytes]:
        """Yield the events after one that the listener has, up to what the tail tells."""
        while after < since:
            async with self._database.transaction(caller.project_id, reads_only=True) as conn:
                found, after, has_more = await _next(conn, caller, after, since)
                shown = await events.show(conn, caller, found)
            text = b"".join(_message(one) for one in shown if listener.takes(one.type))
            if text:
                yield text
            if not has_more:
                return

    async def _told(self, listener: _Listener) -> AsyncGenerator[bytes]:
        until_s = time.monotonic() + LISTEN_S_MAX
        while not self._is_over.is_set() and time.monotonic() < until_s:
            if listener.is_behind and listener.told.empty():
                return
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    text = await listener.told.get()
            except TimeoutError:
                text = b":\n\n"
            yield text

    async def run(self) -> None:
        """Tail what is listened to until cancelled; a store that is away is waited for."""
        looked_s = 0.0
        while True:
            if not self._channels:
                self._wanted.clear()
                await self._wanted.wait()
            has_more = False
            try:
                await self._look()
                has_more = any(one.has_more for one in self._channels.values())
                if time.monotonic() - looked_s >= COUNTERS_S:
                    looked_s = time.monotonic()
                    await self._count_sales()
            except Fault as error:
                _log.warning("live_waits", error=str(error))
            except Exception:
                _log.exception("live_broken")
            await asyncio.sleep(0 if has_more else LOOK_S)

    async def _look(self) -> None:
        channels = dict(self._channels)
        async with self._database.connection(reads_only=True) as conn:
            moved = await db.many(
                conn, "live.moved", UUID,
                projects=list(channels), heads=[one.head for one in channels.values()],
            )  # fmt: skip
        for project_id, channel in channels.items():
            if channel.has_more or project_id in moved:
                await self._advance(channel)

    async def _advance(self, channel: _Channel) -> None:
        caller = channel.caller
        async with self._database.transaction(caller.project_id, reads_only=True) as conn:
            found, head, channel.has_more = await _next(conn, caller, channel.head, None)
            channel.looks_behind = channel.looks_behind + 1 if channel.has_more else 0
            is_skipped = channel.looks_behind > LOOKS_BEHIND_MAX
            if is_skipped:
                head = await _head(conn, caller)
            shown = [] if is_skipped else await events.show(conn, caller, found)
        after, channel.head = channel.head, head
        if is_skipped:
            channel.looks_behind, channel.has_more = 0, False
            skipped = Skipped(ids.format_id("evt", after), ids.format_id("evt", head))
            text = b"id: %s\nevent: skipped\ndata: %s\n\n" % (skipped.to.encode(), _encode(skipped))
            for listener in channel.listeners:
                listener.tell(text)
            return
        channel.tell([(one.type, _message(one)) for one in shown])

    async def _count_sales(self) -> None:
        for channel in list(self._channels.values()):
            if not any(one.takes(COUNTERS) for one in channel.listeners):
                continue
            caller = channel.caller
            async with self._database.transaction(caller.project_id, reads_only=True) as conn:
                sales = await db.many(
                    conn, "live.sales", UUID, project_id=caller.project_id, limit=SALES_MAX
                )
            told = []
            # One that is over now is told once more.
            for sale_id in {*sales, *channel.counters}:
                text = await self._counted(caller, sale_id)
                if text is not None and channel.counters.get(sale_id) != text:
                    told.append((COUNTERS, text))
                    channel.counters[sale_id] = text
                if sale_id not in sales:
                    channel.counters.pop(sale_id, None)
            channel.tell(told)

    async def _counted(self, caller: Caller, sale_id: UUID) -> bytes | None:
        """Write a sale's counters; None where it went with its project."""
        try:
            row = await self._desk.read(caller.project_id, sale_id)
        except NotFound:
            return None
        sale = await show(self._desk.redis, row, caller)
        counters = Counters(
            sale.id, sale.code, sale.status, sale.stock, sale.claimed, sale.settled, sale.lag,
            sale.remaining,
        )  # fmt: skip
        return b"event: %s\ndata: %s\n\n" % (COUNTERS.encode(), _encode(counters))

    def stop(self) -> None:
        """End every stream at its next word."""
        self._is_over.set()
        for channel in self._channels.values():
            for listener in channel.listeners:
                listener.tell(b":\n\n")


async def _head(conn: db.Connection, caller: Caller) -> UUID:
    """Return the newest event of a project; where there is none, what is before all."""
    row = await db.one(conn, "live.head", _Newest, project_id=caller.project_id)
    return UUID(int=row.id.int + row.count - 1 if row else 0)


async def _next(
    conn: db.Connection, caller: Caller, after: UUID, to: UUID | None
) -> tuple[list[tuple[Stored, int]], UUID, bool]:
    """Return up to EVENTS_MAX events after one, the last of them, and whether more may follow."""
    rows = await db.many(
        conn, "live.after", Stored,
        project_id=caller.project_id, from_row=_row_id(after), to_row=to, limit=ROWS_MAX,
    )  # fmt: skip
    found: list[tuple[Stored, int]] = []
    for row in rows:
        first = (after.int & _PLACES) + 1 if row.id == _row_id(after) else 0
        end = row.count if to is None else min(row.count, to.int - row.id.int + 1)
        found += [(row, place) for place in range(first, min(end, first + EVENTS_MAX + 1))]
    has_more = len(rows) == ROWS_MAX or len(found) > EVENTS_MAX
    found = found[:EVENTS_MAX]
    if not found:
        return [], after, False
    row, place = found[-1]
    return found, UUID(int=row.id.int + place), has_more


def _row_id(event_id: UUID) -> UUID:
    return UUID(int=event_id.int & ~_PLACES)


def _message(event: Event) -> bytes:
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (
        event.id.encode(), event.type.encode(), _encode(event),
    )  # fmt: skip
