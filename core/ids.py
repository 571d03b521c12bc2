"""Public ids: a type's prefix and a time-ordered 128-bit value, like `vch_01HX5A…`.

Inside the system an id is a `uuid.UUID`; the text exists only at the doors.
"""

import hashlib
import secrets
from functools import lru_cache
from typing import Final, Literal
from uuid import UUID

import uuid_utils.compat

Prefix = Literal[
    "vch", "cmp", "rdm", "gft", "gfe", "rfp", "rfc", "rfa",
    "fls", "cus", "seg", "key", "whk", "evt", "prj", "acc", "bat", "hld",
    "usr", "ses", "inv", "aud", "dlv", "fra", "blk",
]  # fmt: skip

# Crockford's base 32: no I, L, O, U.
ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# 128 bits in steps of 5; the first character holds the 3 that are left over.
TEXT_LENGTH: Final = 26
ID_LENGTH: Final = 4 + TEXT_LENGTH

# Three characters at a time: 15 bits, 32,768 strings, about 2 MB a process, four times as fast
# as one character at a time.
_TRIPLES: Final = [a + b + c for a in ALPHABET for b in ALPHABET for c in ALPHABET]
_PAIRS: Final = [a + b for a in ALPHABET for b in ALPHABET]
# int(text, 32) knows the digits 0-9 A-V; Crockford's letters are moved there.
_TO_BASE_32: Final = str.maketrans(ALPHABET, "0123456789ABCDEFGHIJKLMNOPQRSTUV")
_ALLOWED: Final = frozenset(ALPHABET)


def new() -> UUID:
    """Return a fresh UUIDv7: ids made later sort later, to the millisecond."""
    return uuid_utils.compat.uuid7()


def format_id(prefix: Prefix, value: UUID) -> str:
    """Write an id as its public text, upper-case. Cost: about 1 µs."""
    return format_number(prefix, value.int)


# The ids of live sales and campaigns, which are written on every answer of theirs.
remembered_id: Final = lru_cache(maxsize=4_096)(format_id)


def format_number(prefix: Prefix, number: int) -> str:
    """Write an id that is at hand as a number of 128 bits."""
    # Small integers are cheap to shift: 26 characters as 11 + 15, then in threes.
    head = number >> 75
    tail = number & 0x7FF_FFFF_FFFF_FFFF_FFFF
    middle = tail >> 45
    low = tail & 0x1FFF_FFFF_FFFF
    t = _TRIPLES
    return (
        f"{prefix}_{_PAIRS[head >> 45]}{t[head >> 30 & 32767]}"
        f"{t[head >> 15 & 32767]}{t[head & 32767]}"
        f"{t[middle >> 15]}{t[middle & 32767]}"
        f"{t[low >> 30]}{t[low >> 15 & 32767]}{t[low & 32767]}"
    )


def parse_id(prefix: Prefix, text: str) -> UUID | None:
    """Read a public id; case does not matter.

    Returns None for anything else (another prefix, length or letter, more than 128 bits), so that
    a caller answers as for an object that is not there.
    """
    if len(text) != ID_LENGTH or not text.isascii():
        return None
    text = text.upper()
    if text[:4] != f"{prefix.upper()}_" or text[4] > "7":
        return None
    digits = text[4:]
    if not _ALLOWED.issuperset(digits):
        return None
    return UUID(int=int(digits.translate(_TO_BASE_32), 32))


# A win's id is made of where it was won: 8 bytes of its lease's tag (the arming's time and two
# random bytes), 5 of its seq, and 3 that only who knows the lease's own id, which is never shown,
# can compute.
_SEQ_MAX: Final = (1 << 40) - 1


def new_tag(now_ms: int) -> int:
    """Return the tag of a lease armed now: 48 bits of time and 16 random ones, as a bigint."""
    return now_ms << 16 | secrets.randbits(16)


def win_number(tag: int, lease_bytes: bytes, seq: int) -> int:
    """Return the id of the win with this seq, as a number of 128 bits. Always the same one."""
    check = hashlib.sha256(lease_bytes + seq.to_bytes(8, "big")).digest()
    return tag << 64 | seq << 24 | check[0] << 16 | check[1] << 8 | check[2]


def win_id(tag: int, lease_id: UUID, seq: int) -> UUID:
    """Return the id of the win with this seq."""
    return UUID(int=win_number(tag, lease_id.bytes, seq))


def is_win(redemption_id: UUID) -> bool:
    """Say whether an id was made for a win: a UUIDv7's variant bits are a number above 2^38."""
    return redemption_id.int >> 62 & 3 == 0


def tag_of_win(redemption_id: UUID) -> int:
    """Return the tag an id would have been made with, if it were a win's."""
    return redemption_id.int >> 64


def seq_of_win(redemption_id: UUID, lease_id: UUID) -> int | None:
    """Return the number a win's id says, None when the id was not made from this lease."""
    seq = redemption_id.int >> 24 & _SEQ_MAX
    made = win_id(tag_of_win(redemption_id), lease_id, seq)
    return seq if made == redemption_id else None
