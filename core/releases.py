"""What a sale lost: numbers that were written off, and their release by name.

A burned number may still be somebody's: whoever kept the answer to its claim can present the
receipt. Releasing it says that nobody will, and sells the unit again; the receipt is void then.
"""

import contextlib
from datetime import datetime
from typing import Annotated, Final
from uuid import UUID

import msgspec

import core.db as db
from core import audit_log, ids
from core.api_keys import Caller
from core.errors import Refusal
from core.leases import Leases, redis_errors

# A page of the list names a hundred; a loss is at most a backlog, and is released in some calls.
NUMBERS_MAX: Final = 1_000

Number = Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)]


class Release(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Numbers of the sale (`seq` in its answers) to be released."""

    numbers: Annotated[list[Number], msgspec.Meta(min_length=1, max_length=NUMBERS_MAX)]


class Released(msgspec.Struct, frozen=True):
    """Each number that was asked for, once, in order: all are released."""

    released: list[int]


class WrittenOff(msgspec.Struct, frozen=True):
    """A number that was lost with Redis's data, and when its unit was given back, if it was."""

    number: int
    written_off_at: datetime
    reason: str | None
    released_at: datetime | None


class _Answered(msgspec.Struct):
    number: int
    outcome: str


class _Live(msgspec.Struct):
    voucher_id: UUID
    lease_id: UUID | None


async def release(
    database: db.Database, desk: Leases, caller: Caller, sale_id: UUID, asked: Release
) -> Released | Refusal:
    """Give the units of burned numbers back to the sale and its voucher: all, or none.

    What is live takes them up at once, or at the worker's next look where Redis is away.
    Idempotent: a number that was released before is released. Refuses: not_written_off, with the
    numbers that are a redemption, still at Redis, or not the sale's. Concurrency: a receipt for
    one of them is either written first, and then this refuses, or is void.
    """
    async with database.transaction(caller.project_id) as conn:
        answered = await db.many(
            conn,
            "releases.release",
            _Answered,
            project_id=caller.project_id,
            sale_id=sale_id,
            numbers=asked.numbers,
        )
        others = [one.number for one in answered if one.outcome == "not_burned"]
        if not others:
            await audit_log.write(
                conn, caller, "flash_sale.released", ids.format_id("fls", sale_id),
                {"numbers": [one.number for one in answered]},
            )  # fmt: skip
    if others:
        return Refusal(
            code="not_written_off",
            detail="Nothing was released: these numbers of the sale were not written off.",
            extra={"numbers": others},
        )
    async with database.transaction(caller.project_id, reads_only=True) as conn:
        live = await db.one(
            conn, "releases.live", _Live, project_id=caller.project_id, sale_id=sale_id
        )
    assert live is not None, "a number of it was released"
    await desk.void_crowd(caller.project_id, live.voucher_id)
    if live.lease_id is not None:
        with contextlib.suppress(redis_errors, OSError):
            await desk.grow(caller.project_id, live.lease_id)
    return Released([one.number for one in answered])


async def page(
    conn: db.Connection, caller: Caller, sale_id: UUID, after: int | None, limit: int
) -> list[WrittenOff]:
    """Return the sale's lost numbers above `after`, lowest first.

    Cost: reads the numbers of the leases that lost some, from `after` on.
    """
    return await db.many(
        conn,
        "releases.page",
        WrittenOff,
        project_id=caller.project_id,
        sale_id=sale_id,
        after=after,
        limit=limit,
    )
