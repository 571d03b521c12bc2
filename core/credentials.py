"""What people log in with: a new password, a forgotten one, a second factor.

Whatever is changed here is asked for again first, and ends the person's other sessions.
"""

import hashlib
import hmac
import secrets
from datetime import timedelta
from typing import Final

import msgspec

from core import db, lookups, passwords, second_factors, sessions
from core.errors import NotFound, Unauthenticated
from core.mails import Mail
from core.people import NO_PROJECT, Credentials, Guess, Password, Token, tried
from core.rules import emails
from core.rules.emails import Email
from core.second_factors import RecoveryCodes, SecondFactor
from core.sessions import Session, Visitor
from core.settings import Settings

RESET_LIFE: Final = timedelta(hours=1)
TOKEN_BYTES: Final = 32
# Mails to one person, and from one address, in a minute: nobody's mailbox is filled from here.
EMAIL_RESETS_MAX: Final = 2
ADDRESS_RESETS_MAX: Final = 20


class ForgottenPassword(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Who cannot log in."""

    email: Email


class NewPassword(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the mail holds, and the new password."""

    token: Token
    password: Password


class PasswordChange(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The password there is, and the new one."""

    current_password: Guess
    password: Password


class Proof(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """That who is logged in is who they say: the password."""

    password: Guess


class FirstCode(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the app shows."""

    code: Token


async def forget(
    database: db.Database, settings: Settings, given: ForgottenPassword, visitor: Visitor
) -> Mail | None:
    """Return the mail that lets who has an e-mail set a new password; None where nobody has it.

    The caller answers both alike. Raises: Invalid, TooManyAttempts.
    """
    email = emails.read(given.email)
    limits = {
        f"reset address:{lookups.network_of(visitor.address)}": ADDRESS_RESETS_MAX,
        f"reset {hashlib.sha256(email.encode()).hexdigest()}": EMAIL_RESETS_MAX,
    }
    async with database.transaction(NO_PROJECT, reads_only=True) as conn:
        await lookups.check(conn, NO_PROJECT, limits)
    await lookups.count(database, NO_PROJECT, list(limits))
    token = secrets.token_urlsafe(TOKEN_BYTES)
    async with database.transaction(None) as conn:
        is_known = await db.value(
            conn, "credentials.allow_reset", bool,
            email=email, digest=_digest_of(token, settings), life=RESET_LIFE,
        )  # fmt: skip
    if not is_known:
        return None
    return Mail(
        to=email,
        subject="A new password for VauchFlow",
        text="Somebody asked for a new password for this address. If that was you, set it within "
        f"the hour:\n\n{settings.base_url}/dashboard/password-reset?token={token}\n\n"
        "If not, do nothing.\n",
    )


async def reset(database: db.Database, settings: Settings, given: NewPassword) -> None:
    """Set a forgotten password, once for each mail, and end all sessions. Raises: NotFound."""
    password_hash = await passwords.hash_of(given.password)
    async with database.transaction(None) as conn:
        if not await db.value(
            conn, "credentials.use_reset", bool,
            digest=_digest_of(given.token, settings), password_hash=password_hash,
        ):  # fmt: skip
            raise NotFound("This link was used, or is over; ask for another.")


async def change_password(
    database: db.Database, session: Session, given: PasswordChange, visitor: Visitor
) -> None:
    """Set another password, and end the other sessions. Raises: Unauthenticated."""
    await _proven(database, session, given.current_password, visitor)
    password_hash = await passwords.hash_of(given.password)
    async with database.transaction(None) as conn:
        await db.run(
            conn, "credentials.set_password",
            user_id=session.user_id, password_hash=password_hash,
        )  # fmt: skip
        await sessions.end_others(conn, session)


async def begin_second_factor(
    database: db.Database, settings: Settings, session: Session, given: Proof, visitor: Visitor
) -> SecondFactor:
    """Give who is logged in a second factor; it counts once `confirm_second_factor` was called.

    What they had does not count any more. Raises: Unauthenticated, TooManyAttempts.
    """
    await _proven(database, session, given.password, visitor)
    async with database.transaction(None) as conn:
        return await second_factors.begin(conn, settings, session.user_id, session.email)


async def confirm_second_factor(
    database: db.Database, settings: Settings, session: Session, given: FirstCode, visitor: Visitor
) -> RecoveryCodes:
    """Make the second factor count, and end the other sessions.

    Raises: Unauthenticated (invalid_credentials), AlreadyExists, TooManyAttempts.
    """
    async with tried(database, session.email, visitor), database.transaction(None) as conn:
        person = await _credentials(conn, session)
        codes = await second_factors.confirm(
            conn, settings, session.user_id, person.totp_nonce, given.code
        )
        await sessions.end_others(conn, session)
        return codes


async def remove_second_factor(
    database: db.Database, session: Session, given: Proof, visitor: Visitor
) -> None:
    """Take the second factor away. Idempotent. Raises: Unauthenticated, TooManyAttempts."""
    await _proven(database, session, given.password, visitor)
    async with database.transaction(None) as conn:
        await second_factors.remove(conn, session.user_id)
        await sessions.end_others(conn, session)


async def _proven(database: db.Database, session: Session, password: str, visitor: Visitor) -> None:
    async with tried(database, session.email, visitor):
        async with database.connection(reads_only=True) as conn:
            person = await _credentials(conn, session)
        if not await passwords.fits(person.password_hash, password):
            raise Unauthenticated(code="invalid_credentials")


async def _credentials(conn: db.Connection, session: Session) -> Credentials:
    found = await db.one(conn, "credentials.get", Credentials, user_id=session.user_id)
    assert found is not None, "a session is a person's"
    return found


def _digest_of(token: str, settings: Settings) -> bytes:
    return hmac.digest(settings.secret.encode(), f"password reset {token}".encode(), "sha256")
