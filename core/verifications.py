"""The books, verified while everything runs: looked at by the worker, shown by `/metrics`.

Only what needs no client's history is looked at. A look costs what `verify` costs, so the pause
after one grows with it: looking takes at most one part in `SHARE` of the time.
"""

import asyncio
import time
from typing import Final

import msgspec
import structlog

from core import db, verify
from core.errors import OutcomeUnknown, Unavailable
from core.settings import Settings

# Long enough that a start, a test or a measurement of minutes meets none; short beside the days in
# which a wrong book is found otherwise.
PAUSE_S: Final = 300.0
# 10 to 20 s a million redemptions, then: once in half an hour, 1 % of one core of PostgreSQL.
SHARE: Final = 100.0
# A statement of a look that takes longer is broken off: a look holds vacuum back for so long.
STATEMENT_TIMEOUT_MS: Final = 60_000

_log = structlog.get_logger("vauchflow.verifications")


class Verification(msgspec.Struct, frozen=True):
    """What the last look found of one invariant, over all projects."""

    invariant: str
    violations: int
    checked_at_s: float


async def keep(settings: Settings, database: db.Database) -> None:
    """Look at the books again and again until cancelled. Several workers share the looks."""
    while True:
        try:
            async with database.connection(reads_only=True) as conn:
                wait_s = await db.value(
                    conn, "verifications.due_in_s", float, pause_s=PAUSE_S, share=SHARE
                )
            if wait_s > 0:
                await asyncio.sleep(wait_s)
                continue
            report = await look(settings, database)
            if not report.figures:
                await asyncio.sleep(PAUSE_S)
        except (Unavailable, OutcomeUnknown) as error:
            _log.warning("look_failed", error=str(error))
            await asyncio.sleep(PAUSE_S)


async def look(settings: Settings, database: db.Database) -> verify.Report:
    """Verify once and keep what was found; what could not be checked keeps its last finding.

    Raises: Unavailable, OutcomeUnknown when it cannot be written down.
    """
    began_s = time.monotonic()
    report = await verify.examine(settings, statement_timeout_ms=STATEMENT_TIMEOUT_MS)
    invariants = sorted(report.figures)
    async with database.connection() as conn:
        await db.run(
            conn,
            "verifications.write",
            invariants=invariants,
            violations=[report.counts[name] for name in invariants],
            elapsed_ms=int(1000 * (time.monotonic() - began_s)),
        )
    for name in invariants:
        for line in report.findings[name][: verify.ROWS_MAX]:
            _log.error("invariant_broken", invariant=name, finding=line)
    for line in report.unchecked:
        _log.warning("not_checked", what=line)
    return report


async def latest(conn: db.Connection) -> list[Verification]:
    """Return what the last look found, by invariant; empty before the first."""
    return await db.many(conn, "verifications.latest", Verification)
