"""Litestar behind RSGI: one request in, one whole answer out.

Granian hands requests over cheapest as RSGI; Litestar speaks ASGI. Answers here are small and
never streamed, so the bridge is a dictionary, a body in chunks and two messages back.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

from granian._granian import RSGIProtocolClosed, RSGIProtocolError

from api.errors import Answer

ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]

# A header that is not ASCII cannot be had as text; this stands for it and is accepted nowhere.
UNREADABLE: Final = b"\xff"
# Who asks, as the listener saw it; a caller's own is overwritten there.
PEER: Final = "x-vauchflow-peer"


def header(headers: Any, name: str) -> bytes | None:
    """Return a request header's value, None where it is missing. `name` is lower-case."""
    value = headers.get(name)
    if value is None:
        return UNREADABLE if name in headers else None
    return bytes(value.encode())


# The largest ordinary request, and as long as one takes from a process on the same machine.
DISCARD_BYTES_MAX: Final = 65_536
DISCARD_S_MAX: Final = 1.0


class Body:
    """ASGI's `receive` over an RSGI body."""

    def __init__(self, protocol: Any) -> None:
        """Take a protocol whose body nobody has read yet."""
        self._chunks = protocol.__aiter__()

    async def __call__(self) -> dict[str, Any]:
        """Return the next piece; the last one is empty."""
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            return {"type": "http.request", "body": b"", "more_body": False}
        except (RSGIProtocolClosed, RSGIProtocolError):
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunk, "more_body": True}

    async def discard(self) -> None:
        """Read what is left of an ordinary body, so that its connection can carry the next one."""
        read = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_S_MAX):
                while read < DISCARD_BYTES_MAX:
                    message = await self()
                    if not message.get("more_body"):
                        return
                    read += len(message["body"])


async def answer_of(
    app: ASGIApp, scope: Any, protocol: Any, *, method: str, state: dict[str, Any]
) -> tuple[Answer | None, dict[str, Any]]:
    """Have an ASGI application answer a request; also return the scope as the router left it."""
    names = dict.fromkeys(scope.headers.keys())
    pairs = [(k.encode(), v.encode()) for k, v in scope.headers.items()]
    pairs += [(k.encode(), UNREADABLE) for k in names if scope.headers.get(k) is None]
    peer = scope.headers.get(PEER) or ""
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
        "client": _address(peer),
        "server": _address(scope.server),
        "state": state,
        "extensions": {},
    }
    status = 0
    headers: list[tuple[bytes, bytes]] = []
    pieces: list[bytes] = []

    async def send(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            headers.extend((bytes(k), bytes(v)) for k, v in message["headers"])
        elif message["type"] == "http.response.body":
            pieces.append(message.get("body", b""))

    body = Body(protocol)
    await app(asgi_scope, body, send)
    if method != "GET":
        # The server closes a connection whose request was not read, and the listener may have sent
        # the next one on it by then: nobody could say whether that was applied.
        await body.discard()
    return (Answer(status, b"".join(pieces), headers) if status else None), asgi_scope


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port) if port.isdigit() else 0
