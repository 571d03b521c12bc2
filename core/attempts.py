"""What was refused, and what was only asked: counted in memory, written down once a second.

A redeem that succeeds is in the ledger and costs nothing here; a refusal costs a dictionary. What a
process that is killed has counted in its last second is gone.
"""

import asyncio
from collections import Counter
from datetime import date
from typing import Any, Final, Literal
from uuid import UUID

import msgspec
import structlog

from core import db
from core.api_keys import Caller
from core.errors import OutcomeUnknown, Unavailable

# As calls are (`core.usage`): a loss is bounded, and a statement a second is nothing.
FLUSH_S: Final = 1.0
VALID: Final = "valid"

Kind = Literal["redeem", "validate"]

_log = structlog.get_logger("vauchflow.attempts")


class Reason(msgspec.Struct, frozen=True):
    """How often one reason was given."""

    code: str
    count: int


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What was tried, and how much of it went well; `rate` is None where nothing was tried."""

    attempts: int
    succeeded: int
    refused: int
    rate: float | None
    refusals: list[Reason]


class Attempts(msgspec.Struct, frozen=True, kw_only=True):
    """Redemptions and validations of some days, with what was refused, the commonest first."""

    from_: str = msgspec.field(name="from")
    to: str
    time_zone: str
    redemptions: Asked
    validations: Asked
    previous: "Before"


class Before(msgspec.Struct, frozen=True, kw_only=True):
    """The same of as many days before."""

    redemptions: Asked
    validations: Asked


class _Row(msgspec.Struct, frozen=True):
    kind: Kind
    reason: str
    count: int


class Counters:
    """What one process has counted. Used from one event loop only."""

    def __init__(self, database: db.Database) -> None:
        """Start at nothing; `run` writes down what comes."""
        self._database = database
        self._counts: Counter[tuple[UUID, Kind, str]] = Counter()

    def count(self, project_id: UUID, kind: Kind, reason: str, count: int = 1) -> None:
        """Count a refusal by its code, or a validation that went well as VALID."""
        self._counts[project_id, kind, reason] += count

    async def flush(self) -> None:
        """Write down what was counted, at most once, as `usage.Meter.flush`.

        Raises: Unavailable, with the counts in hand; OutcomeUnknown, without.
        """
        counts, self._counts = self._counts, Counter()
        if not counts:
            return
        try:
            async with self._database.connection() as conn:
                await db.run(
                    conn, "attempts.count",
                    projects=[key[0] for key in counts], kinds=[key[1] for key in counts],
                    reasons=[key[2] for key in counts], counts=list(counts.values()),
                )  # fmt: skip
        except Unavailable:
            self._counts.update(counts)
            raise

    async def run(self) -> None:
        """Flush every second until cancelled; an outage is waited out, counts in hand."""
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                await self.flush()
            except Unavailable as error:
                _log.warning("attempts_not_written", reason=error.detail)
            except OutcomeUnknown:
                _log.warning("attempts_perhaps_lost")


async def between(
    conn: db.Connection, caller: Caller, days: tuple[date, date], time_zone: str
) -> dict[Kind, Counter[str]]:
    """Return what was counted on some days, both included, by kind and reason."""
    rows = await db.many(
        conn, "attempts.between", _Row,
        project_id=caller.project_id, from_day=days[0], to_day=days[1], time_zone=time_zone,
    )  # fmt: skip
    found: dict[Kind, Counter[str]] = {"redeem": Counter(), "validate": Counter()}
    for row in rows:
        found[row.kind][row.reason] += row.count
    return found


def asked(succeeded: int, refusals: Counter[str]) -> Asked:
    """Put together what was tried."""
    refused = refusals.total()
    tried = succeeded + refused
    return Asked(
        attempts=tried,
        succeeded=succeeded,
        refused=refused,
        rate=round(succeeded / tried, 4) if tried else None,
        refusals=[Reason(code, count) for code, count in _commonest(refusals)],
    )


def of(counted: dict[Kind, Counter[str]], redeemed: int) -> dict[str, Any]:
    """Return redemptions and validations as they are shown; wins are the ledger's."""
    validations = Counter(counted["validate"])
    return {
        "redemptions": asked(redeemed, counted["redeem"]),
        "validations": asked(validations.pop(VALID, 0), validations),
    }


def _commonest(refusals: Counter[str]) -> list[tuple[str, int]]:
    return sorted(refusals.items(), key=lambda one: (-one[1], one[0]))
