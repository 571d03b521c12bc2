"""E-mail addresses of people, in the one way they are stored."""

import re
from typing import Annotated, Final

import msgspec

from core.errors import Invalid

# What RFC 5321 leaves of a path without its brackets.
LENGTH_MAX: Final = 254
# Printable ASCII around one @, with a dot behind it: who has it is told by a mail that arrives.
_PATTERN: Final = re.compile(r"[!-?A-~]+@[!-?A-~]+\.[!-?A-~]+", re.ASCII)

Email = Annotated[str, msgspec.Meta(min_length=3, max_length=LENGTH_MAX)]


def read(text: str) -> str:
    """Return an e-mail as it is stored. Raises: Invalid."""
    if not _PATTERN.fullmatch(text):
        raise Invalid("email must be an address such as anna@example.com", field="email")
    return text.lower()
