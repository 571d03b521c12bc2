"""People: signing up, logging in and out. What they may do is in `sessions`.

Nothing in here tells a stranger who has an account, but signing up with an e-mail that has one.
"""

import hashlib
import re
from typing import Annotated, Final
from uuid import UUID

import msgspec

from core import db, ids, lookups, passwords, projects, sessions
from core.errors import AlreadyExists, Invalid, Unauthenticated
from core.projects import NewProject
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

_EMAIL: Final = re.compile(r"[!-?A-~]+@[!-?A-~]+\.[!-?A-~]+", re.ASCII)
EMAIL_LENGTH_MAX: Final = 254

Email = Annotated[str, msgspec.Meta(min_length=3, max_length=EMAIL_LENGTH_MAX)]
# Length is what counts; the largest keeps a hash short.
Password = Annotated[str, msgspec.Meta(min_length=10, max_length=128)]


class SignUp(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Who wants an account, and what their first project is to be."""

    email: Email
    password: Password
    name: Text | None = None
    project_name: projects.Name = "My shop"
    currency: str = "EUR"
    time_zone: str = "UTC"


class LogIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Who says they are somebody. A password of any length is one that may be wrong."""

    email: Email
    password: Annotated[str, msgspec.Meta(max_length=128)]


class _Person(msgspec.Struct, frozen=True):
    user_id: UUID
    password_hash: str


async def sign_up(
    database: db.Database, settings: Settings, new: SignUp, visitor: Visitor
) -> tuple[str, Session]:
    """Make a person, their account and their first project, and log them in.

    Raises: Invalid, AlreadyExists for the e-mail, TooManyAttempts.
    """
    email = read_email(new.email)
    project = NewProject(name=new.project_name, currency=new.currency, time_zone=new.time_zone)
    projects.check(project)
    scope = f"sign-up address:{visitor.address}"
    async with database.transaction(NO_PROJECT, reads_only=True) as conn:
        await lookups.check(conn, NO_PROJECT, {scope: ADDRESS_SIGN_UPS_MAX})
    await lookups.count(database, NO_PROJECT, [scope])
    password_hash = await passwords.hash_of(new.password)
    user_id, project_id = ids.new(), ids.new()
    try:
        async with database.transaction(project_id) as conn:
            await db.run(
                conn, "people.sign_up",
                user_id=user_id, account_id=ids.new(), email=email, person_name=new.name,
                password_hash=password_hash,
            )  # fmt: skip
            await projects.insert(conn, user_id, project_id, project)
            token = await sessions.start(conn, user_id, visitor, secret=settings.secret)
    except db.UniqueViolation:
        raise AlreadyExists(
            "This e-mail has an account already; log in with it.", field="email"
        ) from None
    return token, await sessions.find(database, token, secret=settings.secret)


async def log_in(
    database: db.Database, settings: Settings, given: LogIn, visitor: Visitor
) -> tuple[str, Session]:
    """Open a session for who knows the password; always under a new token.

    Raises: Unauthenticated (invalid_credentials), TooManyAttempts, Unavailable.
    Cost: one argon2id hash, also where nobody has the e-mail.
    """
    email = given.email.lower()
    limits = {
        f"log-in address:{visitor.address}": ADDRESS_FAILURES_MAX,
        f"log-in {hashlib.sha256(email.encode()).hexdigest()}": EMAIL_FAILURES_MAX,
    }
    async with database.transaction(NO_PROJECT, reads_only=True) as conn:
        await lookups.check(conn, NO_PROJECT, limits)
        person = await db.one(conn, "people.by_email", _Person, email=email)
    is_theirs = await passwords.fits(
        None if person is None else person.password_hash, given.password
    )
    if person is None or not is_theirs:
        await lookups.count(database, NO_PROJECT, list(limits))
        raise Unauthenticated(code="invalid_credentials")
    async with database.transaction(None) as conn:
        token = await sessions.start(conn, person.user_id, visitor, secret=settings.secret)
    return token, await sessions.find(database, token, secret=settings.secret)


def read_email(text: str) -> str:
    """Return an e-mail as it is stored. Raises: Invalid."""
    if not _EMAIL.fullmatch(text):
        raise Invalid("email must be an address such as anna@example.com", field="email")
    return text.lower()
