"""Idempotency keys of ordinary writes: the key is stored in the transaction of its effect.

A crash rolls both back together, so there is never a half-done key to clean up. Redemptions and
claims are their own record and do not come here.
"""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

import msgspec

from core import db
from core.errors import IdempotencyMismatch, Refusal, RequestInFlight

# What the draft standard and the field's large APIs take.
KEY_LENGTH_MAX: Final = 255

_encode = msgspec.json.Encoder(order="deterministic").encode


def fingerprint(code_norm: str, parts: tuple[Any, ...]) -> bytes:
    """Return 128 bits over a code and the canonical form of what was asked of it."""
    return hashlib.sha256(code_norm.encode() + b"\n" + _encode(parts)).digest()[:16]


class Attempt(msgspec.Struct, frozen=True):
    """One request that may come again: its project, its key (None: it will not) and what it is."""

    project_id: UUID
    key: str | None
    fingerprint: bytes


class Stored(msgspec.Struct, frozen=True):
    """The answer an earlier request with the same key got."""

    fingerprint: bytes
    status: int
    body: bytes


class Once:
    """One attempt inside its transaction.

    Where `stored` is None the work is still to be done, with `conn`, and its answer handed to
    `keep`; else it was done before and `stored` is the answer.
    """

    def __init__(self, conn: db.Connection, stored: Stored | None) -> None:
        """Made by `once` only."""
        self.conn = conn
        self.stored = stored
        self.kept: tuple[int, bytes] | None = None

    def keep(self, status: int, body: bytes) -> None:
        """Hand over the encoded answer; it is stored when the block ends, if there is a key."""
        self.kept = (status, body)


async def is_kept(database: db.Database, project_id: UUID, key: str) -> bool:
    """Whether an answer is kept under a key."""
    async with database.transaction(project_id, reads_only=True) as conn:
        stored = await db.one(conn, "idempotency.get", Stored, project_id=project_id, key=key)
    return stored is not None


class Refused(Exception):
    """Rolls the transaction back for a refusal, which is never stored against a key."""

    def __init__(self, refusal: Refusal) -> None:
        """Carry the refusal to the door."""
        super().__init__(refusal.code)
        self.refusal = refusal


@asynccontextmanager
async def once(
    database: db.Database, attempt: Attempt, *, statement_timeout_ms: int | None = None
) -> AsyncIterator[Once]:
    """Open the one transaction of a write that takes effect once for each idempotency key.

    An exception in the block rolls everything back and stores nothing. `statement_timeout_ms`: as
    `Database.transaction` has it.

    Raises: RequestInFlight when the key is being worked on, IdempotencyMismatch when it was used
    with another request, Unavailable, OutcomeUnknown.
    Concurrency: an advisory lock on the key, never waited for.
    Cost: with a key three statements more than without.
    """
    async with database.transaction(
        attempt.project_id, statement_timeout_ms=statement_timeout_ms
    ) as conn:
        if attempt.key is None:
            yield Once(conn, None)
            return
        params = {"project_id": attempt.project_id, "key": attempt.key}
        if not await db.value(conn, "idempotency.try_lock", bool, **params):
            raise RequestInFlight()
        stored = await db.one(conn, "idempotency.get", Stored, **params)
        if stored is not None and stored.fingerprint != attempt.fingerprint:
            raise IdempotencyMismatch()
        work = Once(conn, stored)
        yield work
        if stored is None and work.kept is not None:
            status, body = work.kept
            await db.run(
                conn, "idempotency.put",
                fingerprint=attempt.fingerprint, status=status, body=body, **params,
            )  # fmt: skip
