"""What granian calls: request ids, the two hot doors, and the headers every answer has.

Requests come from the compiled listener, which answers nearly every redeem and claim by itself and
hands the rest on. A redeem or claim that does come here is answered without entering Litestar.
Everything else is Litestar's, behind `bridge`.
"""

import asyncio
import contextlib
import gc
import itertools
import re
import secrets
import time
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from granian._granian import RSGIProtocolClosed

from api import bodies, metrics, rates
from api.bridge import ASGIApp, Body, Pairs, answer_of, header
from api.errors import PROBLEM, Answer
from api.lifespan import Entrance, HotCall, HotDoors, Services
from api.peers import Peers
from api.streams import Pipe
from core import audit_log, ids
from core.errors import Fault, Unavailable
from core.hot.rust import PlainCall
from core.request_log import Asked, code_of
from core.usage import Ticket

# A caller's own request id is taken where it is short and can stand in a log line.
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}", re.ASCII)
# 70 random bits name the process, a counter the request: a quarter of the cost of a UUIDv7.
PROCESS_LENGTH: Final = 14

_PROBES: Final = frozenset({"/healthz", "/readyz", "/metrics"})
_VOUCHERS: Final = "/v1/vouchers/"
_REDEEM: Final = "/redeem"
_SALES: Final = "/v1/flash-sales/"
_CLAIM: Final = "/claim"

# Objects that may wait for the collector. A request leaves none in a circle, so it runs once in a
# few hundred requests instead of one in twenty, where it took a twentieth of the process's time.
GARBAGE_MAX: Final = 20_000

# A page of any origin may ask: what lets it in is its key, which no browser sends by itself.
CORS_PAIR: Final = ("access-control-allow-origin", "*")
CORS_PAIRS: Final = (
    CORS_PAIR,
    (
        "access-control-expose-headers",
        "x-request-id, retry-after, ratelimit, ratelimit-policy, idempotent-replayed",
    ),
)
# What a browser asks before it sends a request with a key; it may keep the answer for two hours.
PREFLIGHT_PAIRS: Final = (
    CORS_PAIR,
    ("access-control-allow-methods", "GET, POST, PUT, PATCH, DELETE"),
    ("access-control-allow-headers", "authorization, content-type, idempotency-key, x-request-id"),
    ("access-control-max-age", "7200"),
)
_API: Final = "/v1/"
_HOT_ROUTES: Final = {
    "redeem": "/v1/vouchers/{code}/redeem", "claim": "/v1/flash-sales/{id}/claim",
}  # fmt: skip

JSON: Final = (b"content-type", b"application/json")
# API answers are for the caller alone, are never a document, and load nothing.
STRICT_HEADERS: Final = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
STRICT_PAIRS: Final = tuple(STRICT_HEADERS.items())
JSON_PAIR: Final = ("content-type", "application/json")
PROBLEM_PAIR: Final = ("content-type", PROBLEM.decode())

_log = structlog.get_logger("vauchflow.requests")


class Front:
    """The RSGI application of one worker."""

    def __init__(
        self, app: ASGIApp, services: Services, allowed: dict[str, bytes], entrance: Entrance
    ) -> None:
        """Stand before Litestar's `app`; `allowed` is the methods of each of its addresses."""
        self._app = app
        self._entrance = entrance
        self._wording: set[asyncio.Task[None]] = set()
        self._services = services
        self._allowed = allowed
        self._peers = Peers(services.settings)
        # Made in the worker, after the fork: no two processes share one.
        self._process = "".join(secrets.choice(ids.ALPHABET) for _ in range(PROCESS_LENGTH))
        self._numbers = itertools.count(1)

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Open the services before the first request."""
        loop.run_until_complete(self._services.start())
        loop.run_until_complete(self._doors.listen(self._entrance, self._word_soon))
        ending = self._entrance.ending.fileno()

        def ends() -> None:
            loop.remove_reader(ending)
            self._services.end_soon()

        loop.add_reader(ending, ends)
        # What is there now stays; it need not be walked through again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GARBAGE_MAX)

    @property
    def _doors(self) -> HotDoors:
        doors = self._services.doors
        assert doors is not None, "`api.app.create` gives the services their doors"
        return doors

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close the services after the last answer."""
        loop.run_until_complete(self._services.stop())

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        """Answer one request."""
        # Every access copies the whole map out of the server.
        headers = scope.headers
        request_id = headers.get("x-request-id")
        if request_id is None or not _REQUEST_ID.fullmatch(request_id):
            request_id = f"{self._process}{next(self._numbers):012X}"
        at = _hot_address(scope.path) if scope.method in ("POST", "OPTIONS") else None
        if scope.method == "OPTIONS" and (at or "access-control-request-method" in headers):
            self._before(scope.path, at is not None, protocol, request_id)
        elif at is None:
            await self._warm(scope, protocol, request_id)
        else:
            await self._hot(at, scope.path, headers, protocol, request_id)

    def _before(self, path: str, is_hot: bool, protocol: Any, request_id: str) -> None:
        """Answer what a browser asks before a request, and what a hot address takes."""
        sent = [("x-request-id", request_id), *STRICT_PAIRS]
        if path.startswith(_API):
            sent += PREFLIGHT_PAIRS
        if is_hot:
            sent.append(("allow", "OPTIONS, POST"))
        _send(protocol, 204, sent, b"")

    async def _hot(
        self, at: tuple[str, str], path: str, headers: Any, protocol: Any, request_id: str
    ) -> None:
        route, name = at

        async def decide() -> Answer:
            call = HotCall(
                path,
                name,
                header(headers, "authorization"),
                header(headers, "idempotency-key"),
                header(headers, "content-type"),
                await bodies.receive_body(Body(protocol)),
                request_id,
                origin,
                tickets,
            )
            return await self._decide(route, call)

        origin = header(headers, "origin")
        tickets: list[Ticket] = []
        status, sent, body = await self._answered(route, request_id, decide(), tickets)
        if origin is not None:
            sent += CORS_PAIRS
        _send(protocol, status, sent, body)

    def _word_soon(self, plain: PlainCall) -> None:
        task = asyncio.get_running_loop().create_task(self._word(plain))
        self._wording.add(task)
        task.add_done_callback(self._wording.discard)

    async def _word(self, plain: PlainCall) -> None:
        """Word the answer to a request that the compiled doors have decided."""
        at = _hot_address(plain.path)
        assert at is not None, "only hot addresses are taken"
        route, name = at
        tickets: list[Ticket] = []

        async def decide() -> Answer:
            call = HotCall(
                plain.path, name, plain.authorization, plain.idempotency_key,
                JSON[1], plain.body, plain.request_id, tickets=tickets,
            )  # fmt: skip
            return await self._doors.after_plain(call, plain.told) or await self._decide(
                route, call
            )

        plain.answer(*await self._answered(route, plain.request_id, decide(), tickets))

    async def _decide(self, route: str, call: HotCall) -> Answer:
        return await (self._doors.redeem(call) if route == "redeem" else self._doors.claim(call))

    async def _answered(
        self,
        route: str,
        request_id: str,
        deciding: Coroutine[Any, Any, Answer],
        tickets: list[Ticket],
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Return a hot request's status, headers and body; faults become problems."""
        started_s = time.perf_counter()
        try:
            answer = await deciding
        except Fault as fault:
            report_fault(fault, request_id)
            answer = self._services.problems.of_fault(fault, request_id)
        except Exception:
            _log.exception("request_failed", route=route, request_id=request_id)
            answer = self._services.problems.internal(request_id)
        sent = [("x-request-id", request_id), *STRICT_PAIRS]
        for ticket in tickets:
            self._services.meter.leave(ticket, answer.status)
            # What is as it should be is in the books, and refusals are counted.
            if answer.status >= 400 and answer.status != 409:
                self._note(ticket, "POST", _HOT_ROUTES[route], answer, request_id, started_s)
            if ticket.standing is not None:
                sent += rates.headers(ticket.standing)
        sent += [(key.decode(), value.decode()) for key, value in answer.headers]
        metrics.observe(route, answer.status, time.perf_counter() - started_s)
        return answer.status, sent, answer.body

    def _note(
        self, ticket: Ticket, method: str, route: str, answer: Answer, request_id: str,
        started_s: float,
    ) -> None:  # fmt: skip
        if ticket.caller.key_id is not None:
            code = code_of(answer.body) if answer.status >= 400 else None
            asked = Asked(
                datetime.now(UTC), method, route, answer.status, code,
                round((time.perf_counter() - started_s) * 1_000_000), request_id,
                ticket.caller.key_id,
            )  # fmt: skip
            self._services.request_log.note(ticket.caller, asked)

    async def _warm(self, scope: Any, protocol: Any, request_id: str) -> None:
        started_s = time.perf_counter()
        # Litestar has no HEAD of its own: it is GET, and the server leaves the body out.
        method = "GET" if scope.method == "HEAD" else scope.method
        state: dict[str, Any] = {"request_id": request_id}
        route = "unknown"
        address = self._peers.of(scope.headers)

        def begin(status: int, pairs: Pairs) -> Pipe | None:
            sent = _headed(scope, pairs, request_id, state.get("ticket"))
            if scope.method == "HEAD":
                protocol.response_empty(status, sent)
                return None
            return Pipe(protocol, status, sent)

        with (
            structlog.contextvars.bound_contextvars(request_id=request_id),
            audit_log.asked_from(request_id, address or None),
        ):
            try:
                answer, asgi_scope = await answer_of(
                    self._app,
                    scope,
                    protocol,
                    method=method,
                    address=address,
                    state=state,
                    begin=begin,
                )
                route = asgi_scope.get("path_template") or "unknown"
            except Exception:
                _log.exception("request_failed", request_id=request_id)
                answer = None
            if answer is None:
                answer = self._services.problems.internal(request_id)
            ticket: Ticket | None = state.get("ticket")
            if ticket is not None:
                self._services.meter.leave(ticket, answer.status)
                if route.startswith(_API):
                    self._note(ticket, scope.method, route, answer, request_id, started_s)
            if not state.get("is_streamed"):
                pairs = answer.headers
                if method == "OPTIONS" and (allow := self._allowed.get(route)):
                    # Litestar has one answer a handler; the address has several handlers.
                    pairs = [*pairs, (b"allow", allow)]
                sent = _headed(scope, pairs, request_id, ticket)
                _send(protocol, answer.status, sent, answer.body)
            elapsed_s = time.perf_counter() - started_s
            metrics.observe(route, answer.status, elapsed_s)
            # Who watches asks every second, and is of no interest where all is well.
            tell = _log.debug if route in _PROBES and answer.status < 400 else _log.info
            tell(
                "request", method=scope.method, route=route, status=answer.status,
                elapsed_ms=round(elapsed_s * 1000, 2),
            )  # fmt: skip


def _hot_address(path: str) -> tuple[str, str] | None:
    """Return a hot address's route and the name in it."""
    if path.endswith(_REDEEM) and path.startswith(_VOUCHERS):
        route, name = "redeem", path[len(_VOUCHERS) : -len(_REDEEM)]
    elif path.endswith(_CLAIM) and path.startswith(_SALES):
        route, name = "claim", path[len(_SALES) : -len(_CLAIM)]
    else:
        return None
    return (route, name) if name and "/" not in name else None


def _headed(
    scope: Any, pairs: Pairs, request_id: str, ticket: Ticket | None
) -> list[tuple[str, str]]:
    """Return an answer's headers with those that every answer has."""
    headers = {key.decode(): value.decode("latin-1") for key, value in pairs}
    if ticket is not None and ticket.standing:
        headers.update(rates.headers(ticket.standing))
    headers = {**STRICT_HEADERS, **headers, "x-request-id": request_id}
    if "origin" in scope.headers and scope.path.startswith(_API):
        headers.update(CORS_PAIRS)
    return list(headers.items())


def _send(protocol: Any, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
    # The client may be gone; what was decided stands.
    with contextlib.suppress(RSGIProtocolClosed):
        protocol.response_bytes(status, headers, body)


def report_fault(fault: Fault, request_id: str) -> None:
    """Log what an operator should see: servers that are away. Callers' mistakes are theirs."""
    if isinstance(fault, Unavailable) or fault.code == "outcome_unknown":
        _log.warning("not_served", code=fault.code, reason=fault.detail, request_id=request_id)
    else:
        _log.debug("refused", code=fault.code, request_id=request_id)
