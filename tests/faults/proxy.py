"""A TCP proxy that does to connections what networks do: stall, delay, reset, half-close, lose.

All proxies live on one event loop in a thread of their own; every public method may be called from
any thread and takes effect before it returns.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

# Enough of a connection's beginning to see who it is: PostgreSQL's startup packet has 100 bytes.
OPENING_BYTES = 512
DELAY_S = 0.5
_LINGER_NONE = struct.pack("ii", 1, 0)


class Weather(StrEnum):
    """What happens to the connections of a proxy."""

    FAIR = "fair"
    BLACK_HOLE = "black hole"
    RESET = "connections reset"
    HALF_CLOSED = "half-closed"
    REPLIES_LOST = "replies lost"
    SLOW = "500 ms late"


Tap = Callable[["Link", bool, bytes], bool]


class Proxies:
    """The thread and its loop."""

    def __init__(self) -> None:
        """Start the thread."""
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, what: Any) -> Any:
        """Run a coroutine on the loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(what, self.loop).result(10)

    def stop(self) -> None:
        """End the thread; proxies are stopped first."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


class Proxy:
    """Listens on a loopback port of its own and forwards to a unix socket."""

    def __init__(self, proxies: Proxies, upstream: Path) -> None:
        """Listen at once. `upstream` may change between connections."""
        self.upstream = upstream
        self.weather = Weather.FAIR
        self.tap: Tap | None = None
        self.links: set[Link] = set()
        self._proxies = proxies
        self._server: asyncio.Server = proxies.run(self._listen())
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _listen(self) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        return await loop.create_server(lambda: Link(self).client, "127.0.0.1", 0)

    def turn(self, weather: Weather) -> None:
        """Change what happens from now on, to the connections there are and to new ones.

        Back to fair: who was stalled goes on, a connection that lost bytes is reset.
        """
        self._proxies.run(self._turn(weather))

    async def _turn(self, weather: Weather) -> None:
        self.weather = weather
        for link in list(self.links):
            link.feel(weather)

    def reset_all(self) -> None:
        """Reset every connection, for a server that changed behind the proxy."""
        self._proxies.run(self._reset_all())

    async def _reset_all(self) -> None:
        for link in list(self.links):
            link.abort()

    def stop(self) -> None:
        """Stop listening and reset what is connected."""
        self._proxies.run(self._stop())

    async def _stop(self) -> None:
        self._server.close()
        await self._reset_all()


class End(asyncio.Protocol):
    """One of a link's two connections."""

    def __init__(self, link: "Link") -> None:
        self._link = link
        self.transport: asyncio.Transport | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        for data in self._early:
            self.transport.write(data)
        self._early.clear()
        self._link.made(self)

    def data_received(self, data: bytes) -> None:
        self._link.received(self, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._link.close()

    def write(self, data: bytes) -> None:
        """Send, or keep until there is a connection."""
        if self.transport is None:
            self._early.append(data)
        elif not self.transport.is_closing():
            self.transport.write(data)


class Link:
    """A client's connection and the one that was made for it."""

    def __init__(self, proxy: Proxy) -> None:
        """Nothing is connected yet."""
        self.opening = b""
        self._proxy = proxy
        self._is_torn = False
        self._has_ended = False
        self._dial: asyncio.Task[None] | None = None
        self.client = End(self)
        self.server = End(self)

    def made(self, end: End) -> None:
        """Take note of a connection, and dial the other side for a client's."""
        if self._has_ended:
            self.abort()
        elif end is self.client:
            self._proxy.links.add(self)
            if self._proxy.weather is Weather.RESET:
                self.abort()
                return
            self._dial = asyncio.get_running_loop().create_task(self._connect())
        if self._proxy.weather is Weather.BLACK_HOLE:
            self.feel(Weather.BLACK_HOLE)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_unix_connection(lambda: self.server, str(self._proxy.upstream))
        except OSError:
            self.abort()

    def received(self, end: End, data: bytes) -> None:
        """Forward, or not."""
        from_client = end is self.client
        if from_client and len(self.opening) < OPENING_BYTES:
            self.opening += data[: OPENING_BYTES - len(self.opening)]
        tap = self._proxy.tap
        if tap is not None and not tap(self, from_client, data):
            self._is_torn = True
            return
        other = self.server if from_client else self.client
        weather = self._proxy.weather
        if weather is Weather.SLOW:
            asyncio.get_running_loop().call_later(DELAY_S, other.write, data)
        elif not from_client and weather in (Weather.REPLIES_LOST, Weather.HALF_CLOSED):
            self._is_torn = True
        else:
            other.write(data)

    def feel(self, weather: Weather) -> None:
        """Bring this link in line with new weather."""
        if weather is Weather.RESET or (weather is Weather.FAIR and self._is_torn):
            self.abort()
            return
        for end in (self.client, self.server):
            if end.transport is None or end.transport.is_closing():
                continue
            if weather is Weather.BLACK_HOLE:
                end.transport.pause_reading()
            elif weather is Weather.FAIR:
                end.transport.resume_reading()
        if weather is Weather.HALF_CLOSED and self.client.transport is not None:
            self.client.transport.write_eof()
            self._is_torn = True

    def abort(self) -> None:
        """Reset the client's connection and close the other."""
        self._has_ended = True
        transport = self.client.transport
        if transport is not None:
            found = transport.get_extra_info("socket")
            if found is not None and not transport.is_closing():
                found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        for end in (self.client, self.server):
            if end.transport is not None:
                end.transport.abort()
        self._proxy.links.discard(self)

    def close(self) -> None:
        """Close both sides, after what is still to be sent."""
        self._has_ended = True
        for end in (self.client, self.server):
            if end.transport is not None and not end.transport.is_closing():
                end.transport.close()
        self._proxy.links.discard(self)
