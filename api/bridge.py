"""Litestar behind RSGI: one request in, one answer out, whole or piece by piece.

Granian hands requests over cheapest as RSGI; Litestar speaks ASGI. Nearly every answer is small and
whole: a dictionary, a body in chunks and two messages back. Of one that says that more follows,
each piece is sent as it comes, and the next is made when the client has taken it.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog
from granian._granian import RSGIProtocolClosed, RSGIProtocolError

from api.bodies import DISCARD_BYTES_MAX
from api.errors import Answer
from api.streams import Gone, Pipe

ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]
Pairs = list[tuple[bytes, bytes]]

_log = structlog.get_logger("vauchflow.requests")

# A header that is not ASCII cannot be had as text; this stands for it and is accepted nowhere.
UNREADABLE: Final = b"\xff"


def header(headers: Any, name: str) -> bytes | None:
    """Return a request header's value, None where it is missing. `name` is lower-case."""
    value = headers.get(name)
    if value is None:
        return UNREADABLE if name in headers else None
    return bytes(value.encode())


# As long as the listener, on the same machine, takes to hand over what it has of a large body.
DISCARD_S_MAX: Final = 1.0


class Body:
    """ASGI's `receive` over an RSGI body."""

    def __init__(self, protocol: Any) -> None:
        """Take a protocol whose body nobody has read yet."""
        self._chunks = protocol.__aiter__()
        self._is_read = False
        self.answered = asyncio.Event()

    async def __call__(self) -> dict[str, Any]:
        """Return the next piece; the last one is empty, and after it the answer's end is told.

        Who left before is only known by what is sent to them.
        """
        if self._is_read:
            await self.answered.wait()
            return {"type": "http.disconnect"}
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            self._is_read = True
            return {"type": "http.request", "body": b"", "more_body": False}
        except (RSGIProtocolClosed, RSGIProtocolError):
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunk, "more_body": True}

    async def discard(self) -> None:
        """Read what is left: who still sends when the connection closes would hear no answer."""
        read = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_S_MAX):
                while read < DISCARD_BYTES_MAX and not self._is_read:
                    message = await self()
                    if not message.get("more_body"):
                        return
                    read += len(message["body"])


class Sending:
    """ASGI's `send`: an answer is gathered, or handed on from where it says that more follows."""

    def __init__(self, begin: Callable[[int, Pairs], Pipe | None], answered: asyncio.Event) -> None:
        """Take what begins a stream, None where nobody wants a body, and what is set at its end."""
        self._answered = answered
        self.status = 0
        self.headers: Pairs = []
        self.pieces: list[bytes] = []
        self.is_streamed = False
        self.is_over = False
        self._begin = begin
        self._pipe: Pipe | None = None

    async def __call__(self, message: Any) -> None:
        """Take one message. Raises: Gone, for a piece of a stream that nobody takes."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers.extend((bytes(k), bytes(v)) for k, v in message["headers"])
        elif message["type"] == "http.response.body":
            piece = bytes(message.get("body", b""))
            # A stream of nothing is a whole answer.
            if piece and message.get("more_body") and not self.is_streamed:
                self.is_streamed = True
                self._pipe = self._begin(self.status, self.headers)
            if not self.is_streamed:
                self.pieces.append(piece)
            elif piece:
                await self._hand_on(piece)
            if not message.get("more_body"):
                self._answered.set()

    async def _hand_on(self, piece: bytes) -> None:
        try:
            if self._pipe is None:
                raise Gone
            await self._pipe.write(piece)
        except Gone:
            self.is_over = True
            raise

    def close(self) -> None:
        """End a stream, if it is one."""
        if self._pipe is not None:
            self._pipe.close()


async def answer_of(
    app: ASGIApp, scope: Any, protocol: Any, *, method: str, address: str,
    state: dict[str, Any], begin: Callable[[int, Pairs], Pipe | None],
) -> tuple[Answer | None, dict[str, Any]]:  # fmt: skip
    """Have an ASGI application answer a request; also return the scope as the router left it.

    A stream is sent when this returns, and its answer has no body; `begin` is what begins one.
    `address`: whose request it is.
    """
    names = dict.fromkeys(scope.headers.keys())
    pairs = [(k.encode(), v.encode()) for k, v in scope.headers.items()]
    pairs += [(k.encode(), UNREADABLE) for k in names if scope.headers.get(k) is None]
    asgi_scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": scope.http_version,
        "method": method,
        "scheme": scope.scheme,
        "path": scope.path,
        "raw_path": scope.path.encode(),
        "query_string": scope.query_string.encode(),
        "root_path": "",
        "headers": pairs,
        "client": (address, 0),
        "server": _address(scope.server),
        "state": state,
        "extensions": {},
    }
    body = Body(protocol)
    send = Sending(begin, body.answered)
    try:
        await app(asgi_scope, body, send)
    except Exception:
        if not send.is_streamed:
            raise
        if not send.is_over:
            _log.exception("stream_failed", request_id=state["request_id"])
    finally:
        send.close()
    if method != "GET":
        # The server closes a connection whose request was not read, and the listener may have sent
        # the next one on it by then: nobody could say whether that was applied.
        await body.discard()
    if not send.status:
        return None, asgi_scope
    state["is_streamed"] = send.is_streamed
    return Answer(send.status, b"".join(send.pieces), send.headers), asgi_scope


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port) if port.isdigit() else 0
