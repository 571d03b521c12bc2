"""API keys: how one is made, checked, cached and revoked.

Only `HMAC-SHA256(secret, key)` is stored. A key's own checksum refuses typing errors without a
database; a cache answers for every key seen before, and a poll makes revocation true everywhere
within a second.
"""

from typing import Literal
from uuid import UUID

import msgspec

Kind = Literal["SECRET", "PUBLISHABLE"]


class Caller(msgspec.Struct, frozen=True):
    """Who asks: one key of one project. `exponent` is how many decimals the currency has."""

    project_id: UUID
    key_id: UUID
    kind: Kind
    currency: str
    exponent: int

    @property
    def is_secret(self) -> bool:
        """Whether this is a server-side key, which may do everything in its project."""
        return self.kind == "SECRET"
