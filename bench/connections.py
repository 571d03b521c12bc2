"""One keep-alive HTTP/1.1 connection for load generators: one request at a time, no extras.

Thousands of requests a second and process, because nothing is built but bytes. It tells apart what
a caller must know to be honest about an outcome: not sent, sent and unanswered, answered.
"""

import asyncio
from typing import NamedTuple, cast
from urllib.parse import urlsplit

# A server that answers at all answers a claim within this; beyond it the outcome is unknown.
ANSWER_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 2.0


class Answer(NamedTuple):
    """What came back. `head` is the status line and headers, lower-case."""

    status: int
    head: bytes
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        """Return a header's value; `name` in lower case."""
        at = self.head.find(b"\r\n" + name + b":")
        if at < 0:
            return None
        start = at + len(name) + 3
        return self.head[start : self.head.find(b"\r\n", start)].strip()


class NotSent(Exception):
    """No connection: the server has not seen the request."""


class Unanswered(Exception):
    """The request was sent and no answer came: it may have been applied."""


class Target(NamedTuple):
    """Where to connect, from a base URL such as http://127.0.0.1:8080."""

    host: str
    port: int

    @classmethod
    def of(cls, base_url: str) -> "Target":
        """Read a URL; its path is ignored."""
        parts = urlsplit(base_url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{base_url!r} is not an http:// address")
        return cls(parts.hostname, parts.port or 80)


def request(
    target: Target, method: str, path: str, token: str, body: bytes, key: str = ""
) -> bytes:
    """Build a request's bytes. `key` is the Idempotency-Key, empty for none."""
    idempotency = f"Idempotency-Key: {key}\r\n" if key else ""
    content = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
    return (
        f"{method} {path} HTTP/1.1\r\nHost: {target.host}:{target.port}\r\n"
        f"Authorization: Bearer {token}\r\n{idempotency}{content}\r\n"
    ).encode() + body


class Connection(asyncio.Protocol):
    """Connects when needed and again after a loss; never shared by two callers at once."""

    def __init__(self, target: Target) -> None:
        """Nothing is opened until the first request."""
        self._target = target
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Answer] | None = None
        self._received = bytearray()

    async def send(self, data: bytes, timeout_s: float = ANSWER_TIMEOUT_S) -> Answer:
        """Send one request and wait for its answer.

        Raises: NotSent when there is no connection to be had, Unanswered when the connection
        broke or the time was up after sending.
        """
        loop = asyncio.get_running_loop()
        if self._transport is None or self._transport.is_closing():
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await loop.create_connection(lambda: self, *self._target)
            except (OSError, TimeoutError) as error:
                raise NotSent(str(error)) from error
        assert self._transport is not None and self._waiter is None
        self._received.clear()
        self._waiter = loop.create_future()
        self._transport.write(data)
        try:
            # A plain timer is an order of magnitude cheaper than wait_for.
            timer = loop.call_later(timeout_s, self._give_up)
            try:
                return await self._waiter
            finally:
                timer.cancel()
        finally:
            self._waiter = None

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._transport is not None:
            self._transport.close()

    def _give_up(self) -> None:
        self._fail("no answer in time")
        if self._transport is not None:
            # A late answer must never be taken for the next request's.
            self._transport.abort()

    def _fail(self, reason: str) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(Unanswered(reason))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport (asyncio's callback)."""
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what waits (asyncio's callback)."""
        self._transport = None
        self._fail(f"connection lost: {exc}" if exc else "connection closed")

    def data_received(self, data: bytes) -> None:
        """Resolve the request once its whole answer is here (asyncio's callback)."""
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0 or self._waiter is None or self._waiter.done():
            return
        head = bytes(self._received[: end + 2]).lower()
        at = head.find(b"\r\ncontent-length:")
        if at < 0:
            self._fail("an answer without Content-Length")
            self.close()
            return
        length = int(head[at + 17 : head.find(b"\r\n", at + 17)])
        if len(self._received) < end + 4 + length:
            return
        body = bytes(self._received[end + 4 : end + 4 + length])
        self._waiter.set_result(Answer(int(head[9:12]), head, body))
        if b"\r\nconnection: close" in head:
            self.close()
