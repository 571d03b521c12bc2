"""The outermost callable: request ids, the two hot doors, and the headers every answer has.

A redeem or a claim is answered from here without entering Litestar, which costs more than the
whole rest of such a request. Everything else is Litestar's.
"""

import itertools
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog

from api import metrics
from api.errors import Answer, Headers
from api.lifespan import Services
from core import ids
from core.errors import Fault, Unavailable

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]

# A caller's own request id is taken where it is short and can stand in a log line.
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")

# 70 random bits name the process, a counter the request: a quarter of the cost of a UUIDv7.
_PROCESS_LENGTH: Final = 14

_VOUCHERS: Final = "/v1/vouchers/"
_REDEEM: Final = "/redeem"
_SALES: Final = "/v1/flash-sales/"
_CLAIM: Final = "/claim"

JSON: Final = (b"content-type", b"application/json")
# API answers are for the caller alone, are never a document, and load nothing.
STRICT_HEADERS: Final[Headers] = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
]
_CLOSED_POLICY: Final = (
    b"content-security-policy",
    b"default-src 'none'; frame-ancestors 'none'",
)

_log = structlog.get_logger("vauchflow.requests")


def header(scope: Scope, name: bytes) -> bytes | None:
    """Return a request header's first value, None where it is missing. `name` is lower-case."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


async def send_answer(send: Send, answer: Answer, request_id: str) -> int:
    """Send a whole answer with the headers every answer has, and return its status."""
    await send(
        {
            "type": "http.response.start",
            "status": answer.status,
            "headers": [
                *answer.headers,
                (b"content-length", b"%d" % len(answer.body)),
                (b"x-request-id", request_id.encode()),
                *STRICT_HEADERS,
            ],
        }
    )
    await send({"type": "http.response.body", "body": answer.body})
    return answer.status


class Front:
    """The ASGI application of one worker."""

    def __init__(self, app: ASGIApp, services: Services, allowed: dict[str, bytes]) -> None:
        """Stand before Litestar's `app`; `allowed` is the methods of each of its addresses."""
        self._app = app
        self._services = services
        self._allowed = allowed
        # Made in the worker, after the fork: no two processes share one.
        self._process = "".join(secrets.choice(ids.ALPHABET) for _ in range(_PROCESS_LENGTH))
        self._numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass the lifespan through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent_id = header(scope, b"x-request-id")
        if sent_id is not None and _REQUEST_ID.fullmatch(sent_id):
            request_id = sent_id.decode()
        else:
            request_id = f"{self._process}{next(self._numbers):012X}"
        path: str = scope["path"]
        doors = self._services.doors
        if doors is not None and scope["method"] == "POST":
            if path.startswith(_VOUCHERS) and path.endswith(_REDEEM):
                name = path[len(_VOUCHERS) : -len(_REDEEM)]
                if name and "/" not in name:
                    await self._hot("redeem", doors.redeem, scope, receive, send, name, request_id)
                    return
            elif path.startswith(_SALES) and path.endswith(_CLAIM):
                name = path[len(_SALES) : -len(_CLAIM)]
                if name and "/" not in name:
                    await self._hot("claim", doors.claim, scope, receive, send, name, request_id)
                    return
        await self._warm(scope, receive, send, request_id)

    async def _hot(
        self,
        route: str,
        door: Callable[..., Awaitable[int]],
        scope: Scope,
        receive: Receive,
        send: Send,
        name: str,
        request_id: str,
    ) -> None:
        started_s = time.perf_counter()
        has_begun = False

        async def watched(message: Any) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            status = await door(scope, receive, watched, name, request_id)
        except Fault as fault:
            report_fault(fault, request_id)
            status = await send_answer(
                send, self._services.problems.of_fault(fault, request_id), request_id
            )
        except Exception:
            _log.exception("request_failed", route=route, request_id=request_id)
            status = 500
            if has_begun:
                raise
            await send_answer(send, self._services.problems.internal(request_id), request_id)
        metrics.observe(route, status, time.perf_counter() - started_s)

    async def _warm(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        started_s = time.perf_counter()
        method = scope["method"]
        is_head = method == "HEAD"
        scope = {**scope, "state": {**scope.get("state", {}), "request_id": request_id}}
        if is_head:
            # Litestar has no HEAD of its own: it is GET without a body.
            scope["method"] = "GET"
        status = 500

        async def finished(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {key for key, _ in message["headers"]}
                headers = [*message["headers"], (b"x-request-id", request_id.encode())]
                headers += [pair for pair in STRICT_HEADERS if pair[0] not in given]
                if method == "OPTIONS" and (allow := self._allowed.get(scope["path_template"])):
                    # Litestar has one answer a handler; the address has several handlers.
                    headers = [pair for pair in headers if pair[0] != b"allow"]
                    headers.append((b"allow", allow))
                if _CLOSED_POLICY[0] not in given:
                    headers.append(_CLOSED_POLICY)
                message = {**message, "headers": headers}
            elif is_head:
                message = {**message, "body": b""}
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, finished)
            finally:
                route = scope.get("path_template") or "unknown"
                elapsed_s = time.perf_counter() - started_s
                metrics.observe(route, status, elapsed_s)
                _log.info(
                    "request", method=method, route=route, status=status,
                    elapsed_ms=round(elapsed_s * 1000, 2),
                )  # fmt: skip


def report_fault(fault: Fault, request_id: str) -> None:
    """Log what an operator should see: servers that are away. Callers' mistakes are theirs."""
    if isinstance(fault, Unavailable) or fault.code == "outcome_unknown":
        _log.warning("not_served", code=fault.code, reason=fault.detail, request_id=request_id)
    else:
        _log.debug("refused", code=fault.code, request_id=request_id)
