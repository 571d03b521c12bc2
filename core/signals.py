"""What was refused, to whom: kept in the process and written down once a second, for the rules.

Off the way of a redemption: nobody waits for it, and a worker that is killed takes its last second
along, as it does with counted calls. Who and what is unknown is left out: a refusal without a
customer, address and device is nobody's.
"""

import asyncio
from collections import deque
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import msgspec
import structlog

from core import contexts, db
from core.contexts import Context, Contexts, Hidden
from core.errors import OutcomeUnknown, Unavailable
from core.rules import codes

FLUSH_S: Final = 1.0
# What one process keeps until it is written: an attack of 5,000 refusals a second is seen as well
# by any 5,000 of them.
KEPT_MAX: Final = 5_000
# Deletions of 10,000 rows at a look.
FORGET_PIECES_MAX: Final = 100
# As long as events are kept.
KEEP_DAYS: Final = 30
# What says nothing of who asks: it is the same for everybody, or it passes.
_NOBODYS: Final = frozenset({"sold_out", "paused", "not_started", "not_settled_yet"})

_log = structlog.get_logger("vauchflow.signals")


class Signal(msgspec.Struct, frozen=True):
    """One refusal. `code` is hashed: what was guessed may be another shop's gift card."""

    project_id: UUID
    at: datetime
    reason: str
    code: str
    customer_id: str | None
    context: Hidden | None


class Signals:
    """What one process refused. Used from one event loop only."""

    def __init__(self, database: db.Database, hashes: Contexts) -> None:
        """Start at nothing; `run` writes down what comes."""
        self._database = database
        self._hashes = hashes
        self._kept: deque[Signal] = deque(maxlen=KEPT_MAX)

    def note(
        self,
        project_id: UUID,
        reason: str,
        code: str,
        customer_id: str | None,
        context: Context | None,
    ) -> None:
        """Keep a refusal, where it says something of somebody. Cost: a hash and a deque."""
        if reason in _NOBODYS or (customer_id is None and context is None):
            return
        assert context is None or isinstance(context, contexts.Hidden), "hidden at the door"
        # As it is compared, where it could be a code at all.
        norm = codes.normalise(code) or code
        digest = self._hashes.digest(project_id, "code", norm)
        self._kept.append(
            Signal(project_id, datetime.now(UTC), reason, digest, customer_id, context)
        )

    async def flush(self) -> None:
        """Write down what was kept, at most once: what may have been written is not repeated.

        Raises: Unavailable, with the refusals in hand; OutcomeUnknown, without.
        """
        kept, self._kept = self._kept, deque(maxlen=KEPT_MAX)
        if not kept:
            return
        try:
            async with self._database.connection() as conn:
                await db.run(
                    conn, "signals.note",
                    projects=[one.project_id for one in kept], ats=[one.at for one in kept],
                    reasons=[one.reason for one in kept], codes=[one.code for one in kept],
                    customers=[one.customer_id for one in kept],
                    addresses=[one.context and one.context.address for one in kept],
                    devices=[one.context and one.context.device for one in kept],
                )  # fmt: skip
        except Unavailable:
            self._kept.extendleft(reversed(kept))
            raise

    async def run(self) -> None:
        """Flush every second until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                await self.flush()
            except Unavailable as error:
                _log.warning("refusals_not_written", reason=error.detail)
            except OutcomeUnknown:
                _log.warning("refusals_perhaps_lost")
            except Exception:
                _log.exception("refusals_broken")


async def forget(database: db.Database) -> None:
    """Delete what was refused longer ago than events are kept. Raises: Unavailable."""
    for _ in range(FORGET_PIECES_MAX):
        async with database.connection() as conn:
            if not await db.run(conn, "signals.forget", keep_days=KEEP_DAYS):
                return
