"""Voucher codes: how two spellings are one code, and how a random one is made."""

import secrets
from typing import Final

from core.errors import Invalid

CODE_LENGTH_MAX: Final = 64
# Crockford's base 32 without 0 and 1, which are read as O and I on paper: 30^12 is 5 * 10^17, so
# with a million live codes a guess finds one in 5 * 10^11.
ALPHABET: Final = "23456789ABCDEFGHJKMNPQRSTVWXYZ"
GENERATED_LENGTH: Final = 12


def normalise(code: str) -> str | None:
    """Return the form two spellings of one code share, None for what can be no code.

    Letters count the same in both cases and spaces at the ends are slips of the paste buffer.
    Dashes count: merchants bring batches where `A-1-11` and `A-11-1` are two codes. Anything but
    printable ASCII is refused *before* case folding: some letters beyond it fold onto ASCII ones.
    A slash could not stand in an address.
    """
    if not code.isascii() or not code.isprintable() or "/" in code:
        return None
    norm = code.strip(" ").upper()
    return norm if 0 < len(norm) <= CODE_LENGTH_MAX else None


def checked(code: str, *, field: str = "code") -> str:
    """Return the normalised form of a code that is about to be stored.

    Raises: Invalid, with `field`, where `normalise` says None.
    """
    norm = normalise(code)
    if norm is None:
        raise Invalid(
            f"{field} must be 1 to {CODE_LENGTH_MAX} printable ASCII characters without a slash",
            field=field,
        )
    return norm


def generate() -> str:
    """Return a random code of 12 characters that cannot be misread."""
    return "".join(secrets.choice(ALPHABET) for _ in range(GENERATED_LENGTH))
