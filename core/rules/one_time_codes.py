"""The codes of a second factor: RFC 6238 with SHA-1, six digits, thirty seconds, as apps do."""

import base64
import hmac
from typing import Final
from urllib.parse import quote, urlencode

STEP_S: Final = 30
DIGITS: Final = 6
# A clock that is half a minute off, either way; more is a guess more for whoever tries codes.
STEPS_OFF_MAX: Final = 1


def code_at(secret: bytes, step: int) -> str:
    """Return the code of a time step, which is Unix time in whole steps."""
    digest = hmac.digest(secret, step.to_bytes(8, "big"), "sha1")
    offset = digest[-1] & 0xF
    number = int.from_bytes(digest[offset : offset + 4], "big") & 0x7FFF_FFFF
    return f"{number % 10**DIGITS:0{DIGITS}d}"


def step_of(secret: bytes, code: str, now_s: int) -> int | None:
    """Return the time step a code belongs to, None where it is no code of about now."""
    found = None
    step = now_s // STEP_S
    for near in range(step - STEPS_OFF_MAX, step + STEPS_OFF_MAX + 1):
        # All are compared, so that the time taken says nothing.
        if hmac.compare_digest(code_at(secret, near).encode(), code.encode()):
            found = near
    return found


def text_of(secret: bytes) -> str:
    """Return a secret as an app reads it, and as a person can type it."""
    return base64.b32encode(secret).decode().rstrip("=")


def address_of(secret: bytes, *, issuer: str, account: str) -> str:
    """Return what is put into a QR code."""
    label = quote(f"{issuer}:{account}", safe="")
    return f"otpauth://totp/{label}?{urlencode({'secret': text_of(secret), 'issuer': issuer})}"
