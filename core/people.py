"""People: signing up, logging in and out. What they may do is in `sessions`.

Nothing in here tells a stranger who has an account, but signing up with an e-mail that has one.
"""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Final
from uuid import UUID

import msgspec

from core import db, ids, lookups, members, passwords, projects, second_factors, sessions
from core.errors import AlreadyExists, SecondFactorRequired, Unauthenticated
from core.projects import NewProject
from core.rules import emails
from core.rules.emails import Email
from core.sessions import Session, Visitor
from core.settings import Settings
from core.shapes import Text

# Failures and new people are counted by minute as of no project.
NO_PROJECT: Final = UUID(int=0)
# A person mistypes three times. Five a minute are 7,200 a day: of the ten thousand passwords that
# leak most, which those who choose them share, nobody gets far in a night.
EMAIL_FAILURES_MAX: Final = 5
# An office behind one address.
ADDRESS_FAILURES_MAX: Final = 20
# A class that tries it out, from one address.
ADDRESS_SIGN_UPS_MAX: Final = 30

# Length is what counts; the largest keeps a hash short.
Password = Annotated[str, msgspec.Meta(min_length=10, max_length=128)]
Guess = Annotated[str, msgspec.Meta(max_length=128)]
# What a mail or an app holds; longer ones are none.
Token = Annotated[str, msgspec.Meta(max_length=64)]


class SignUp(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Who wants an account, and what their first project is to be.

    `invitation`: what the mail of one holds; then its project is their first.
    """

    email: Email
    password: Password
    name: Text | None = None
    project_name: projects.Name = "My shop"
    currency: str = "EUR"
    time_zone: str = "UTC"
    invitation: Token | None = None


class LogIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Who says they are somebody. A password of any length is one that may be wrong.

    `code`: the app's, or a recovery code, of who has a second factor.
    """

    email: Email
    password: Guess
    code: Token | None = None


class Credentials(msgspec.Struct, frozen=True):
    """What a person is checked against. `totp_nonce`: they have a second factor."""

    user_id: UUID
    password_hash: str
    totp_nonce: bytes | None


async def sign_up(
    database: db.Database, settings: Settings, new: SignUp, visitor: Visitor
) -> tuple[str, Session]:
    """Make a person, their account and their first project, and log them in.

    Raises: Invalid, AlreadyExists for the e-mail, TooManyAttempts, NotFound for the invitation.
    """
    email = emails.read(new.email)
    project = NewProject(name=new.project_name, currency=new.currency, time_zone=new.time_zone)
    projects.check(project)
    scope = f"sign-up address:{lookups.network_of(visitor.address)}"
    async with database.transaction(NO_PROJECT, reads_only=True) as conn:
        await lookups.check(conn, NO_PROJECT, {scope: ADDRESS_SIGN_UPS_MAX})
    await lookups.count(database, NO_PROJECT, [scope])
    invited = None
    if new.invitation is not None:
        invited = await members.invited(database, settings, new.invitation)
    password_hash = await passwords.hash_of(new.password)
    user_id, project_id = ids.new(), invited.project_id if invited else ids.new()
    try:
        async with database.transaction(project_id) as conn:
            await db.run(
                conn, "people.sign_up",
                user_id=user_id, account_id=ids.new(), email=email, person_name=new.name,
                password_hash=password_hash,
            )  # fmt: skip
            if invited is None:
                await projects.insert(conn, user_id, project_id, project)
            else:
                await members.accept(conn, user_id, invited)
            token = await sessions.start(conn, user_id, visitor, secret=settings.secret)
    except db.UniqueViolation:
        raise AlreadyExists(
            "This e-mail has an account already; log in with it.", field="email"
        ) from None
    return token, await sessions.find(database, token, secret=settings.secret)


async def log_in(
    database: db.Database, settings: Settings, given: LogIn, visitor: Visitor
) -> tuple[str, Session]:
    """Open a session for who knows the password, and has the second factor; under a new token.

    Raises: Unauthenticated (invalid_credentials, second_factor_required), TooManyAttempts,
    Unavailable. Cost: one argon2id hash, also where nobody has the e-mail.
    """
    email = given.email.lower()
    async with tried(database, email, visitor):
        async with database.connection(reads_only=True) as conn:
            person = await db.one(conn, "people.by_email", Credentials, email=email)
        hashed = None if person is None else person.password_hash
        if not await passwords.fits(hashed, given.password) or person is None:
            raise Unauthenticated(code="invalid_credentials")
        async with database.transaction(None) as conn:
            if person.totp_nonce is not None:
                if given.code is None:
                    raise SecondFactorRequired()
                if not await second_factors.take(
                    conn, settings, person.user_id, person.totp_nonce, given.code
                ):
                    raise Unauthenticated(code="invalid_credentials")
            token = await sessions.start(conn, person.user_id, visitor, secret=settings.secret)
    return token, await sessions.find(database, token, secret=settings.secret)


@asynccontextmanager
async def tried(database: db.Database, email: str, visitor: Visitor) -> AsyncIterator[None]:
    """Count what raises Unauthenticated in the block, of this e-mail and of this address.

    Raises: TooManyAttempts, where that was too often in this minute.
    """
    limits = {
        f"log-in address:{lookups.network_of(visitor.address)}": ADDRESS_FAILURES_MAX,
        f"log-in {hashlib.sha256(email.encode()).hexdigest()}": EMAIL_FAILURES_MAX,
    }
    async with database.transaction(NO_PROJECT, reads_only=True) as conn:
        await lookups.check(conn, NO_PROJECT, limits)
    try:
        yield
    except Unauthenticated:
        await lookups.count(database, NO_PROJECT, list(limits))
        raise
