"""Sessions: where people are logged in, kept by the server and known by a token of their browser.

Of a token only an HMAC is kept. A session ends by being idle, by age, or by hand, and nothing of it
is cached: who has been logged out, or has lost a role, is so with the next request.
"""

import hmac
import secrets
from datetime import datetime, timedelta
from typing import Final, Literal
from uuid import UUID

import msgspec

from core import db, ids
from core.api_keys import Caller
from core.errors import Forbidden, InvalidCsrfToken, NotFound, Unauthenticated
from core.rules import money

Role = Literal["owner", "admin", "analyst"]

# 256 bits, as a key has.
TOKEN_BYTES: Final = 32
_TOKEN_LENGTH: Final = 43
# A lunch break, and a working day: what OWASP advises for what money hangs on.
IDLE: Final = timedelta(minutes=30)
LIFE: Final = timedelta(hours=12)
# What is shown of a browser in the list of sessions; real ones have about 120 characters.
AGENT_LENGTH_MAX: Final = 200


class Visitor(msgspec.Struct, frozen=True):
    """Whoever sends a request, before anybody knows who that is; `token` is their browser's."""

    address: str
    agent: str | None
    token: str | None


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """A project of a person, and what they are in it."""

    project_id: UUID
    name: str
    currency: str
    time_zone: str
    status: str
    role: Role


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A person who is logged in, with their projects."""

    id: UUID
    user_id: UUID
    email: str
    name: str | None
    has_second_factor: bool
    is_email_confirmed: bool
    created_at: datetime
    expires_at: datetime
    memberships: list[Membership]

    def membership(self, project_id: UUID | None) -> Membership:
        """Return what this person is in a project. Raises: NotFound, also where it is another's."""
        for membership in self.memberships:
            if membership.project_id == project_id:
                return membership
        raise NotFound("There is no such project.")

    def caller(self, project_id: UUID | None) -> Caller:
        """Return this person as who asks of a project. Raises: NotFound."""
        found = self.membership(project_id)
        return caller_of(self.user_id, found.project_id, found.currency)


class _Found(msgspec.Struct, frozen=True):
    session_id: UUID
    user_id: UUID
    email: str
    name: str | None
    has_second_factor: bool
    created_at: datetime
    expires_at: datetime
    is_email_confirmed: bool
    memberships: list[Membership]


class LoggedIn(msgspec.Struct, frozen=True, kw_only=True):
    """A place where a person is logged in."""

    id: UUID
    address: str
    agent: str | None
    created_at: datetime
    seen_at: datetime
    expires_at: datetime


def caller_of(user_id: UUID, project_id: UUID, currency: str) -> Caller:
    """Return a person as who asks of a project."""
    exponent = money.exponent_of(currency)
    assert exponent is not None, currency
    return Caller(project_id, None, "SECRET", currency, exponent, user_id)


def require_writer(membership: Membership, *, is_put_away: bool = False) -> None:
    """Let everybody pass but who may only read; nobody in a project that is put away.

    `is_put_away`: but for this. Raises: Forbidden.
    """
    if membership.role == "analyst":
        raise Forbidden("An analyst of this project may look at everything and change nothing.")
    if membership.status != "active" and not is_put_away:
        raise Forbidden("The project is archived, or being deleted: nothing in it changes.")


async def start(conn: db.Connection, user_id: UUID, visitor: Visitor, *, secret: str) -> str:
    """Open a session and return its token, always a new one; the browser's last one ends."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    await db.run(
        conn, "sessions.open",
        id=ids.new(), user_id=user_id, digest=_digest_of(token, secret),
        replaces=_digest_of(visitor.token, secret) if visitor.token else None,
        address=visitor.address, agent=visitor.agent and visitor.agent[:AGENT_LENGTH_MAX],
        life=LIFE,
    )  # fmt: skip
    return token


async def find(database: db.Database, token: str, *, secret: str) -> Session:
    """Return the session of a token. Cost: one round trip.

    Raises: Unauthenticated (invalid_session), Unavailable.
    """
    if len(token) != _TOKEN_LENGTH or not token.isascii():
        raise Unauthenticated(code="invalid_session")
    # That it was used is written too, but a second try would write the same.
    async with database.connection(reads_only=True) as conn:
        found = await db.one(
            conn, "sessions.use", _Found, digest=_digest_of(token, secret), idle=IDLE
        )
    if found is None:
        raise Unauthenticated(code="invalid_session")
    return Session(
        id=found.session_id, user_id=found.user_id, email=found.email, name=found.name,
        has_second_factor=found.has_second_factor, is_email_confirmed=found.is_email_confirmed,
        created_at=found.created_at, expires_at=found.expires_at,
        memberships=found.memberships,
    )  # fmt: skip


async def listed(database: db.Database, session: Session) -> list[LoggedIn]:
    """Return where this person is logged in, newest first."""
    async with database.connection(reads_only=True) as conn:
        return await db.many(conn, "sessions.list", LoggedIn, user_id=session.user_id, idle=IDLE)


async def end(database: db.Database, session: Session, public_id: str | None = None) -> None:
    """Log out, here or where an id says. Idempotent. Raises: NotFound for no session of theirs."""
    one = session.id if public_id is None else ids.parse_id("ses", public_id)
    async with database.transaction(None) as conn:
        is_ended = one is not None and await db.value(
            conn, "sessions.end", bool, user_id=session.user_id, one=one, but=None
        )
    if not is_ended and public_id is not None:
        raise NotFound("There is no such session of yours.")


async def end_others(conn: db.Connection, session: Session) -> None:
    """Log this person out everywhere else."""
    await db.value(conn, "sessions.end", bool, user_id=session.user_id, one=None, but=session.id)


def csrf_token(token: str, *, secret: str) -> str:
    """Return what the pages of a session send along with every write, and nobody else can."""
    return hmac.digest(secret.encode(), f"csrf {token}".encode(), "sha256").hex()


def check_csrf(token: str, given: str, *, secret: str) -> None:
    """Raises: InvalidCsrfToken, where `given` is not the session's own."""
    wanted = csrf_token(token, secret=secret)
    if not hmac.compare_digest(wanted.encode(), given.encode()):
        raise InvalidCsrfToken()


def _digest_of(token: str, secret: str) -> bytes:
    return hmac.digest(secret.encode(), f"session {token}".encode(), "sha256")
