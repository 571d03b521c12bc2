"""Throttling of guesses: look-ups by a secret code that found nothing, by key, address and card.

Counted in PostgreSQL, so that all nodes share the count; only a failure writes. Those that
are under way at once are counted when they have failed, so as many more than the limit may.
"""

import hashlib
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from uuid import UUID

import msgspec

from core import db
from core.api_keys import Caller
from core.errors import NotFound, TooManyAttempts

# A shopper who mistypes needs three tries. At twenty a minute somebody who guesses codes of 16
# characters beside a million cards finds one in 10^10 years; one of eight characters, brought from
# elsewhere, in three weeks of one address.
ADDRESS_FAILURES_MAX: Final = 20
# All shoppers of a shop share its key: thirty who mistype every minute, and as much again.
KEY_FAILURES_MAX: Final = 600
# A PIN has a million values: at five a minute half of them take two months.
CARD_FAILURES_MAX: Final = 5


class Asker(msgspec.Struct, frozen=True):
    """Who looks something up, from which address, and for which of the shop's customers."""

    caller: Caller
    address: str
    customer: str | None = None

    @property
    def limits(self) -> dict[str, int]:
        """How often each scope may fail in a minute. A shop's server is one address for all."""
        of_address = KEY_FAILURES_MAX if self.caller.is_secret else ADDRESS_FAILURES_MAX
        limits = {
            self.caller.actor: KEY_FAILURES_MAX,
            f"address:{network_of(self.address)}": of_address,
        }
        if self.customer is not None and self.caller.is_secret:
            # Whom a browser names is no fact. Not in plain text: an erase need not look here.
            digest = hashlib.sha256(f"{self.caller.project_id} {self.customer}".encode())
            limits[f"customer:{digest.hexdigest()}"] = ADDRESS_FAILURES_MAX
        return limits


def network_of(address: str) -> str:
    """Return whom failures of an address are counted for: of IPv6, where one has 2^64, the /64."""
    if ":" not in address:
        return address
    return str(ipaddress.ip_network(f"{address}/64", strict=False))


class UnknownCode(NotFound):
    """A code, or its PIN, that is nobody's; `scope` is one more to count it in."""

    def __init__(self, detail: str, *, field: str | None = None, scope: str | None = None) -> None:
        """Say to everybody the same."""
        super().__init__(detail, field=field)
        self.scope = scope


class _Failures(msgspec.Struct, frozen=True):
    scope: str
    failure_count: int


async def check(conn: db.Connection, project_id: UUID, limits: dict[str, int]) -> None:
    """Let a look-up pass that has not failed too often in this minute. Raises: TooManyAttempts."""
    found = await db.many(
        conn, "lookups.failures", _Failures, project_id=project_id, scopes=list(limits)
    )
    if any(row.failure_count >= limits[row.scope] for row in found):
        raise TooManyAttempts()


@asynccontextmanager
async def counted(database: db.Database, asker: Asker) -> AsyncIterator[None]:
    """Count a look-up that raises UnknownCode, in a commit of its own, and let it through."""
    try:
        yield
    except UnknownCode as fault:
        scopes = [*asker.limits, *filter(None, [fault.scope])]
        await count(database, asker.caller.project_id, scopes)
        raise


async def count(database: db.Database, project_id: UUID, scopes: list[str]) -> None:
    """Count a failure in each of its scopes, in a commit of its own."""
    async with database.transaction(project_id) as conn:
        await db.run(conn, "lookups.count", project_id=project_id, scopes=scopes)
