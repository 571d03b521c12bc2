"""Second factors: an app's codes, and recovery codes for when the app is gone.

A secret is made of the server's own and of what is stored, so that a copy of the database is no
second factor. A code is taken once.
"""

import hmac
import secrets
import time
from typing import Final
from uuid import UUID

import msgspec

from core import db
from core.errors import AlreadyExists, Unauthenticated
from core.rules import one_time_codes
from core.settings import Settings

ISSUER: Final = "VauchFlow"
# What RFC 4226 asks for: 160 bits.
SECRET_BYTES: Final = 20
NONCE_BYTES: Final = 16
RECOVERY_CODES: Final = 10
# 50 bits each: ten of them, at five tries a minute, last longer than anybody tries.
_RECOVERY_CHARACTERS: Final = "ABCDEFGHJKMNPQRSTVWXYZ0123456789"
_RECOVERY_LENGTH: Final = 10


class SecondFactor(msgspec.Struct, frozen=True, kw_only=True):
    """What an app is told, by hand or by the QR code of `uri`. Shown once."""

    secret: str
    uri: str


class RecoveryCodes(msgspec.Struct, frozen=True, kw_only=True):
    """Codes that stand in for the app's, each once. Shown once."""

    recovery_codes: list[str]


async def begin(conn: db.Connection, settings: Settings, user_id: UUID, email: str) -> SecondFactor:
    """Give a person a second factor that counts from when its first code is shown."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    await db.run(conn, "second_factors.set", user_id=user_id, nonce=nonce)
    secret = _secret_of(settings, user_id, nonce)
    return SecondFactor(
        secret=one_time_codes.text_of(secret),
        uri=one_time_codes.address_of(secret, issuer=ISSUER, account=email),
    )


async def confirm(
    conn: db.Connection, settings: Settings, user_id: UUID, nonce: bytes | None, code: str
) -> RecoveryCodes:
    """Make a second factor count. Raises: Unauthenticated (invalid_credentials), AlreadyExists."""
    if nonce is None:
        raise AlreadyExists("There is no second factor to confirm; begin with one.")
    codes = [
        "".join(secrets.choice(_RECOVERY_CHARACTERS) for _ in range(_RECOVERY_LENGTH))
        for _ in range(RECOVERY_CODES)
    ]
    digests = [_digest_of(settings, user_id, code) for code in codes]
    if not await _take_step(conn, settings, user_id, nonce, code):
        raise Unauthenticated("This is no code of the app.", code="invalid_credentials")
    if not await db.value(
        conn, "second_factors.confirm", bool, user_id=user_id, nonce=nonce, codes=digests
    ):
        raise AlreadyExists("The second factor is confirmed already.")
    return RecoveryCodes(recovery_codes=codes)


async def remove(conn: db.Connection, user_id: UUID) -> None:
    """Take a person's second factor away. Idempotent."""
    await db.run(conn, "second_factors.set", user_id=user_id, nonce=None)


async def take(
    conn: db.Connection, settings: Settings, user_id: UUID, nonce: bytes, code: str
) -> bool:
    """Say whether a code is the app's, or a recovery code; it is good for nothing afterwards."""
    if await _take_step(conn, settings, user_id, nonce, code):
        return True
    digest = _digest_of(settings, user_id, code.replace("-", "").upper())
    return await db.value(
        conn, "second_factors.use", bool, user_id=user_id, step=None, recovery=digest
    )


async def _take_step(
    conn: db.Connection, settings: Settings, user_id: UUID, nonce: bytes, code: str
) -> bool:
    secret = _secret_of(settings, user_id, nonce)
    step = one_time_codes.step_of(secret, code, int(time.time()))
    return step is not None and await db.value(
        conn, "second_factors.use", bool, user_id=user_id, step=step, recovery=None
    )


def _secret_of(settings: Settings, user_id: UUID, nonce: bytes) -> bytes:
    text = b"second factor " + user_id.bytes + nonce
    return hmac.digest(settings.secret.encode(), text, "sha256")[:SECRET_BYTES]


def _digest_of(settings: Settings, user_id: UUID, code: str) -> bytes:
    text = b"recovery code " + user_id.bytes + code.encode()
    return hmac.digest(settings.secret.encode(), text, "sha256")
