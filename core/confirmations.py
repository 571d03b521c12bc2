"""Whether an e-mail is the person's: a mail with a signed link, of which nothing is stored.

Nothing waits for it; whoever has not confirmed is told so where they look.
"""

import base64
import hmac
from datetime import datetime, timedelta
from typing import Annotated, Final
from uuid import UUID

import msgspec

from core import db, ids, lookups
from core.errors import NotFound
from core.mails import Mail
from core.people import NO_PROJECT
from core.sessions import Session
from core.settings import Settings

# A mail that is read after a holiday still works.
LIFE: Final = timedelta(days=14)
# Mails to one person in a minute: nobody's mailbox is filled from here.
MAILS_MAX: Final = 2


class Confirmation(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the mail holds."""

    token: Annotated[str, msgspec.Meta(max_length=128)]


def mail(settings: Settings, user_id: UUID, email: str, now: datetime) -> Mail:
    """Return the mail that asks whether an e-mail is a person's."""
    token = _token_of(settings, user_id, int((now + LIFE).timestamp()))
    return Mail(
        to=email,
        subject="Confirm your e-mail for VauchFlow",
        text="Somebody signed up with this address. If that was you, confirm that it is yours:"
        f"\n\n{settings.base_url}/dashboard/confirm-email?token={token}\n\nIf not, do nothing.\n",
    )


async def again(
    database: db.Database, settings: Settings, session: Session, now: datetime
) -> Mail | None:
    """Return the mail once more; None for who has confirmed. Raises: TooManyAttempts."""
    if session.is_email_confirmed:
        return None
    limits = {f"confirm {session.user_id}": MAILS_MAX}
    async with database.transaction(NO_PROJECT, reads_only=True) as conn:
        await lookups.check(conn, NO_PROJECT, limits)
    await lookups.count(database, NO_PROJECT, list(limits))
    return mail(settings, session.user_id, session.email, now)


async def confirm(
    database: db.Database, settings: Settings, given: Confirmation, now: datetime
) -> None:
    """Write down that an e-mail is the person's. Idempotent. Raises: NotFound."""
    public_id, _, rest = given.token.partition(".")
    user_id, ends = ids.parse_id("usr", public_id), rest.partition(".")[0]
    is_right = (
        user_id is not None
        and ends.isascii()
        and ends.isdecimal()
        and hmac.compare_digest(
            _token_of(settings, user_id, int(ends)).encode(), given.token.encode()
        )
        and int(ends) > now.timestamp()
    )
    if is_right:
        async with database.transaction(None) as conn:
            is_right = await db.value(conn, "people.confirm_email", bool, user_id=user_id)
    if not is_right:
        raise NotFound("This link is over; ask for another where you are logged in.")


def _token_of(settings: Settings, user_id: UUID, ends_s: int) -> str:
    signed = f"{ids.format_id('usr', user_id)}.{ends_s}"
    digest = hmac.digest(settings.secret.encode(), f"confirm {signed}".encode(), "sha256")
    return f"{signed}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"
