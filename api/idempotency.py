"""The `Idempotency-Key` header of ordinary writes, and the answer that is kept under it."""

import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from litestar import Request
from litestar.response import Response

from api import bodies
from api.errors import Answer
from api.lifespan import Services
from core import db, idempotency
from core.api_keys import Caller
from core.errors import Invalid, Refusal

FIELD = "Idempotency-Key"


def key_of(value: bytes | None) -> str | None:
    """Return the key of a header's value, quoted or not. Raises: Invalid."""
    if value is None:
        return None
    text = value.decode("latin-1").strip()
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = text[1:-1]
    if not 0 < len(text) <= idempotency.KEY_LENGTH_MAX or not (
        text.isascii() and text.isprintable()
    ):
        raise Invalid(
            f"{FIELD} must be 1 to {idempotency.KEY_LENGTH_MAX} printable ASCII characters",
            field=FIELD,
        )
    return text


def given_key(request: "Request[Any, Any, Any]") -> str | None:
    """Return the key of a request, None where it has none. Raises: Invalid."""
    headers = request.scope["headers"]
    return key_of(next((v for k, v in headers if k == b"idempotency-key"), None))


async def is_replay(request: "Request[Any, Any, Any]", caller: Caller) -> bool:
    """Whether a write was done before under its key; it is told again where a plan has ended."""
    key = None if request.method == "GET" else given_key(request)
    services: Services = request.app.state.services
    if key is None:
        return False
    return await idempotency.is_kept(services.database, caller.project_id, key)


class Write:
    """One write in its transaction: do the work on `conn` unless `is_done`, then `answer`."""

    def __init__(self, request: "Request[Any, Any, Any]") -> None:
        """Made by `write` only."""
        services: Services = request.app.state.services
        self._problems = services.problems
        self._request_id: str = request.scope["state"]["request_id"]
        self._once: idempotency.Once | None = None
        self._answer = Answer(204, b"")

    @property
    def conn(self) -> db.Connection:
        """The transaction's connection."""
        assert self._once is not None
        return self._once.conn

    @property
    def is_done(self) -> bool:
        """Whether an earlier request with this key did the work; its answer is repeated."""
        return self._once is not None and self._once.stored is not None

    def answer(self, status: int, value: Any, *, kept: Any = None, commits: bool = False) -> None:
        """Hand over what to answer, and what to keep where that must not hold a secret.

        A refusal is not kept, and rolls the transaction back unless it `commits` what was written
        about it.
        """
        if isinstance(value, Refusal) and commits:
            self._answer = self._problems.of_refusal(value, self._request_id)
            return
        if isinstance(value, Refusal):
            raise idempotency.Refused(value)
        assert self._once is not None
        self._answer = Answer(status, msgspec.json.encode(value))
        body = self._answer.body if kept is None else msgspec.json.encode(kept)
        self._once.keep(status, body)

    def response(self) -> Response[bytes]:
        """Return the answer, once the transaction has ended."""
        response = Response(
            self._answer.body, status_code=self._answer.status, media_type="application/json"
        )
        if self.is_done:
            response.headers["Idempotent-Replayed"] = "true"
        for name, text in self._answer.headers:
            response.headers[name.decode()] = text.decode()
        return response


@asynccontextmanager
async def write(
    request: "Request[Any, Any, Any]",
    caller: Caller,
    raw: bytes = b"",
    *,
    statement_timeout_ms: int | None = None,
) -> AsyncIterator[Write]:
    """Open the one transaction of a write; `raw` is the request's body, already decoded once.

    The same key, method, address and meaning of the body get the first answer again.
    Raises: Invalid, RequestInFlight, IdempotencyMismatch, Unavailable, OutcomeUnknown.
    """
    services: Services = request.app.state.services
    key = given_key(request)
    fingerprint = b""
    if key is not None:
        about = f"idempotency {request.method} {request.scope['path']} ".encode()
        text = about + (bodies.canonical(raw) if raw else b"")
        # Keyed: a body may hold a gift card's code, which a plain hash of it would give away.
        fingerprint = hmac.digest(services.settings.secret.encode(), text, "sha256")
    attempt = idempotency.Attempt(caller.project_id, key, fingerprint)
    work = Write(request)
    try:
        async with idempotency.once(
            services.database, attempt, statement_timeout_ms=statement_timeout_ms
        ) as once:
            work._once = once
            if once.stored is not None:
                work._answer = Answer(once.stored.status, once.stored.body)
            yield work
    except idempotency.Refused as refused:
        work._once = None
        work._answer = work._problems.of_refusal(refused.refusal, work._request_id)
