"""Batches: many vouchers of one kind, made at once or, where they are very many, piece by piece.

A batch is a row that holds what its vouchers have in common and how many there are of them. Up
to ATOMIC_MAX are made in the transaction of the request, all or none. More are the worker's: each
piece is one transaction that also counts it, so that a batch goes on where it stood.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Final, Literal
from uuid import UUID

import msgspec
import structlog

from core import audit_log, db, ids, vouchers
from core.api_keys import Caller
from core.errors import Invalid, NotFound, OutcomeUnknown, Unavailable
from core.rules import codes
from core.rules.codes import CodeConfig, Pattern
from core.vouchers import NewVoucher

# What the published product promises in one request; about a second of PostgreSQL's time.
ATOMIC_MAX: Final = 50_000
# Ten million codes are 3 GB of vouchers: somebody should have been asked.
COUNT_MAX: Final = 10_000_000
# One statement: 50 to 100 ms, of which the event loop is busy for some 15.
PIECE: Final = 5_000
# Drawing again what was taken: with SPARE_FACTOR a tenth is taken at the most by the batch itself,
# so others have the rest when so many draws a code, and so many at least, were not enough. One free
# code of a hundred is found in 98 of 100 tries, and a full house costs a piece 4 s.
DRAWS_A_CODE: Final = 40
DRAWS_MIN: Final = 400
# How often the worker looks for batches that are to be made.
LOOK_S: Final = 0.5

Status = Literal["running", "done", "cancelled"]

_log = structlog.get_logger("vauchflow.batches")


class NewBatch(NewVoucher, kw_only=True, forbid_unknown_fields=True):
    """What many vouchers have in common, how many there are to be, and how their codes look."""

    count: Annotated[int, msgspec.Meta(ge=1, le=COUNT_MAX)]
    code_config: CodeConfig = CodeConfig()


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as the API shows it. `made`: how many of its vouchers there are so far."""

    id: str
    status: Status
    count: int
    made: int
    campaign_id: str | None
    created_at: datetime
    finished_at: datetime | None


class Stored(msgspec.Struct, frozen=True):
    """A batch's row without what its vouchers have in common."""

    project_id: UUID
    id: UUID
    campaign_id: UUID | None
    status: Status
    count_wanted: int
    made_count: int
    pattern: Pattern
    created_at: datetime
    finished_at: datetime | None


async def create(conn: db.Connection, caller: Caller, new: NewBatch) -> Batch:
    """Make a batch: whole, where it has up to ATOMIC_MAX vouchers, else as a running job.

    Raises: Invalid, also where the codes of this look are used up; NotFound for the campaign.
    Cost: PIECE vouchers a statement, about as long as twice copying the bare rows in.
    """
    if new.code is not None:
        raise Invalid("code cannot be given: codes are drawn; see code_config", field="code")
    pattern = codes.pattern_of(new.code_config, new.count)
    columns = await vouchers.columns(conn, caller, new)
    batch_id = ids.new()
    await db.run(
        conn, "batches.create",
        project_id=caller.project_id, id=batch_id, campaign_id=columns["campaign_id"],
        count_wanted=new.count, pattern=pattern, terms=columns,
    )  # fmt: skip
    if new.count <= ATOMIC_MAX:
        left = new.count
        while left:
            left -= await _fill(conn, caller.project_id, batch_id, pattern, min(left, PIECE))
    return await get(conn, caller, ids.format_id("bat", batch_id))


async def _fill(
    conn: db.Connection, project_id: UUID, batch_id: UUID, pattern: Pattern, count: int
) -> int:
    """Add exactly `count` vouchers to a batch and count them in it.

    What is taken already is drawn again, without a look-up for a code. Raises: Invalid.
    """
    missing = count
    left = max(DRAWS_A_CODE * count, DRAWS_MIN)
    while left > 0:
        left -= missing
        # Two spellings of one code are one; drawn characters never differ in case alone.
        drawn = list(dict.fromkeys(pattern.draw(missing)))
        missing -= await db.run(
            conn, "batches.fill", project_id=project_id, batch_id=batch_id,
            ids=[ids.new() for _ in drawn], codes=drawn, norms=[code.upper() for code in drawn],
        )  # fmt: skip
        if not missing:
            break
    else:
        raise Invalid(
            "code_config has too few combinations left: most of its codes are taken",
            field="code_config",
        )
    await db.run(conn, "batches.count", project_id=project_id, id=batch_id, more=count)
    return count


async def find(conn: db.Connection, caller: Caller, public_id: str) -> Stored:
    """Return a batch's row. Raises: NotFound."""
    batch_id = ids.parse_id("bat", public_id)
    if batch_id is not None:
        stored = await db.one(
            conn, "batches.by_id", Stored, project_id=caller.project_id, id=batch_id
        )
        if stored is not None:
            return stored
    raise NotFound("There is no such batch in this project.")


async def get(conn: db.Connection, caller: Caller, public_id: str) -> Batch:
    """Return a batch as the API shows it. Raises: NotFound."""
    return show(await find(conn, caller, public_id))


async def page(
    conn: db.Connection, caller: Caller, *, after: UUID | None, limit: int
) -> list[Batch]:
    """Return up to `limit` batches, newest first."""
    rows = await db.many(
        conn, "batches.page", Stored, project_id=caller.project_id, after=after, limit=limit
    )
    return [show(row) for row in rows]


async def switch(
    conn: db.Connection, caller: Caller, public_id: str, *, status: Literal["running", "cancelled"]
) -> Batch:
    """Cancel a running batch, or let a cancelled one go on. Idempotent; a finished one stays.

    What was made stays. Raises: NotFound.
    """
    stored = await find(conn, caller, public_id)
    await db.run(conn, "batches.switch", project_id=caller.project_id, id=stored.id, status=status)
    batch = await get(conn, caller, public_id)
    if batch.status != stored.status:
        await audit_log.write(
            conn, caller, "batch.cancelled" if status == "cancelled" else "batch.resumed", batch.id,
            before={"status": stored.status}, after={"status": batch.status},
        )  # fmt: skip
    return batch


async def codes_of(
    conn: db.Connection, caller: Caller, public_id: str, *, after: str | None = None
) -> list[str]:
    """Return up to ATOMIC_MAX codes of a batch in the order they were made, after a code.

    Raises: NotFound.
    """
    stored = await find(conn, caller, public_id)
    found: list[str] = []
    while len(found) < ATOMIC_MAX:
        piece = await db.many(
            conn, "batches.codes", str, project_id=caller.project_id, batch_id=stored.id,
            after=codes.normalise(after) if after is not None else None, limit=PIECE,
        )  # fmt: skip
        found += piece
        if len(piece) < PIECE:
            break
        after = piece[-1]
    return found


def show(stored: Stored) -> Batch:
    """Write a row as the API shows it."""
    return Batch(
        id=ids.format_id("bat", stored.id),
        status=stored.status,
        count=stored.count_wanted,
        made=stored.made_count,
        campaign_id=ids.format_id("cmp", stored.campaign_id) if stored.campaign_id else None,
        created_at=stored.created_at,
        finished_at=stored.finished_at,
    )


async def run(database: db.Database) -> None:
    """Make what batches still lack, until cancelled. Several workers may run it."""
    while True:
        try:
            async for _ in pieces(database):
                pass
        except (Unavailable, OutcomeUnknown) as error:
            _log.warning("batches_wait", error=str(error))
        except Exception:
            _log.exception("batch_broken")
        await asyncio.sleep(LOOK_S)


async def pieces(database: db.Database) -> AsyncIterator[Stored]:
    """Add a piece to each running batch in turn and yield the batch, until none lacks any.

    Each piece is one transaction; a batch that another worker is at is left to it. One whose
    codes are used up is cancelled.
    """
    while True:
        async with database.connection(reads_only=True) as conn:
            due = await db.many(conn, "batches.due", Stored)
        if not due:
            return
        for batch in due:
            try:
                async with database.transaction(batch.project_id) as conn:
                    left = await db.one(
                        conn, "batches.take", int, project_id=batch.project_id, id=batch.id
                    )
                    if left:
                        piece = min(left, PIECE)
                        await _fill(conn, batch.project_id, batch.id, batch.pattern, piece)
            except Invalid as error:
                _log.warning("batch_cancelled", batch=str(batch.id), error=error.detail)
                async with database.transaction(batch.project_id) as conn:
                    await db.run(
                        conn, "batches.switch",
                        project_id=batch.project_id, id=batch.id, status="cancelled",
                    )  # fmt: skip
            yield batch
