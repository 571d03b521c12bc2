"""Projects that are being deleted: sales closed, what is under way waited for, then all purged.

Every step is conditional in PostgreSQL and may be repeated, so several workers may run.
"""

from datetime import timedelta
from typing import Final
from uuid import UUID

import msgspec
import redis.exceptions
import structlog

from core import db
from core.errors import Fault
from core.flash_sales import SaleDesk

# The keys of the project stop within a second; what had begun before has ended after a statement's
# longest time, 5 s, and a transaction's idle time, 10 s.
GRACE: Final = timedelta(seconds=30)
# Deleted in one commit: some hundred ms, while which nothing of other projects is locked.
ROWS_MAX: Final = 20_000
# Pieces at one look, so that the clock's other work goes on in between.
PIECES_MAX: Final = 20
# Tables without an index by project are scanned once a piece.
STATEMENT_TIMEOUT_MS: Final = 60_000

_log = structlog.get_logger("vauchflow.worker")


class Deletion(msgspec.Struct, frozen=True):
    """A project that is being deleted. `is_drained`: nothing of it is under way any more."""

    project_id: UUID
    open_sales: list[UUID]
    is_drained: bool


async def sweep(database: db.Database, desk: SaleDesk) -> None:
    """Take every deletion as far as it can go now. Never raises for a store that is away."""
    try:
        async with database.connection(reads_only=True) as conn:
            due = await db.many(conn, "deletions.due", Deletion, grace=GRACE)
    except Fault as fault:
        _log.warning("deletions_not_read", error=str(fault))
        return
    for deletion in due:
        try:
            await _further(database, desk, deletion)
        except (Fault, redis.exceptions.RedisError, OSError) as error:
            _log.warning("deletion_stuck", project=str(deletion.project_id), error=str(error))


async def _further(database: db.Database, desk: SaleDesk, deletion: Deletion) -> None:
    for sale_id in deletion.open_sales:
        await desk.close(deletion.project_id, sale_id)
    if deletion.open_sales or not deletion.is_drained:
        return
    for _ in range(PIECES_MAX):
        async with database.transaction(None, statement_timeout_ms=STATEMENT_TIMEOUT_MS) as conn:
            count = await db.value(
                conn, "deletions.purge", int, project_id=deletion.project_id, rows_max=ROWS_MAX
            )
        if count == 0:
            _log.info("project_deleted", project=str(deletion.project_id))
            return
