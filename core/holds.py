"""Holds: one use of a code kept for a checkout, for some minutes.

A hold is priced and taken of every limit and budget as if it were redeemed, and gives all of it
back when it is released or runs out. Redeeming with it is one commit: nobody comes in between.
"""

from datetime import datetime
from typing import Annotated, Final, Literal
from uuid import UUID

import msgspec
import structlog

from core import checkouts, db, ids
from core.api_keys import Caller
from core.errors import NotFound, OutcomeUnknown, Refusal, Unavailable
from core.redemptions import NewRedemption
from core.rules import money
from core.rules.promotions import Detail
from core.shapes import Amount

# A quarter of an hour is what shops give a cart; a day is somebody who forgot.
TTL_S_DEFAULT: Final = 900
TTL_S_MAX: Final = 86_400
# Holds that are swept at one look: some milliseconds each, within the time between two looks.
DUE_MAX: Final = 500

Status = Literal["held", "redeemed", "released", "expired"]
Ttl = Annotated[int, msgspec.Meta(ge=1, le=TTL_S_MAX)]

_EXPIRED: Final = Refusal("hold_expired", "This hold has ended; its use was given back.")
_log = structlog.get_logger("vauchflow.holds")


class NewHold(NewRedemption, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is held: a code for an order, as it will be redeemed."""

    code: str
    ttl_s: Ttl = TTL_S_DEFAULT


class Extension(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For how long from now a hold goes on."""

    ttl_s: Ttl = TTL_S_DEFAULT


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """A hold as the API shows it. The redemption it becomes has `redemption_id`."""

    id: str
    status: Status
    code: str
    customer_id: str | None
    discount_applied: Amount
    redemption_id: str
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None


class Stored(msgspec.Struct, frozen=True):
    """A hold's row; one that has run out is expired, swept or not."""

    id: UUID
    status: Status
    code: str
    customer_id: str | None
    discount_minor: int
    detail: Detail
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None


class Due(msgspec.Struct, frozen=True):
    """A hold that has run out."""

    project_id: UUID
    id: UUID


async def create(conn: db.Connection, caller: Caller, new: NewHold) -> Hold | Refusal:
    """Hold one use of a code. Refuses and raises as redeeming it would."""
    taken = await checkouts.hold(conn, caller, new, code=new.code, hold_s=new.ttl_s)
    if isinstance(taken, Refusal):
        return taken
    return await get(conn, caller, ids.format_id("hld", taken))


async def find(conn: db.Connection, caller: Caller, public_id: str) -> Stored:
    """Return a hold's row. Raises: NotFound."""
    hold_id = ids.parse_id("hld", public_id)
    if hold_id is not None:
        stored = await db.one(conn, "holds.by_id", Stored, project_id=caller.project_id, id=hold_id)
        if stored is not None:
            return stored
    raise NotFound("There is no such hold in this project.")


async def get(conn: db.Connection, caller: Caller, public_id: str) -> Hold:
    """Return a hold as the API shows it. Raises: NotFound."""
    return show(await find(conn, caller, public_id), caller)


async def extend(conn: db.Connection, caller: Caller, public_id: str, ttl_s: int) -> Hold | Refusal:
    """Let a live hold go on, so many seconds from now.

    Refuses: hold_expired. Raises: NotFound.
    """
    stored = await find(conn, caller, public_id)
    changed = await db.run(
        conn, "holds.extend", project_id=caller.project_id, id=stored.id, ttl_s=ttl_s
    )
    return await get(conn, caller, public_id) if changed else _EXPIRED


async def release(conn: db.Connection, caller: Caller, public_id: str) -> Hold | Refusal:
    """Give a held use back. Idempotent. Refuses: hold_expired, also where it was redeemed."""
    stored = await find(conn, caller, public_id)
    if stored.status == "held":
        await db.value(
            conn, "holds.end", bool,
            project_id=caller.project_id, id=stored.id, status="released",
        )  # fmt: skip
    after = await get(conn, caller, public_id)
    return after if after.status == "released" else _EXPIRED


def show(stored: Stored, caller: Caller) -> Hold:
    """Write a row as the API shows it."""
    return Hold(
        id=ids.format_id("hld", stored.id),
        status=stored.status,
        code=stored.code,
        customer_id=stored.customer_id,
        discount_applied=money.json_amount(stored.discount_minor, caller.exponent),
        redemption_id=ids.format_id("rdm", stored.id),
        created_at=stored.created_at,
        expires_at=stored.expires_at,
        ended_at=stored.ended_at,
    )


async def sweep(database: db.Database) -> int:
    """Give back what has run out; return how many. Never raises for a store that is away.

    Each is a commit of its own, and conditional: several workers may sweep.
    """
    swept = 0
    try:
        async with database.connection(reads_only=True) as conn:
            due = await db.many(conn, "holds.due", Due, limit=DUE_MAX)
        for hold in due:
            async with database.connection() as conn:
                swept += await db.value(
                    conn, "holds.end", bool,
                    project_id=hold.project_id, id=hold.id, status="expired",
                )  # fmt: skip
    except (Unavailable, OutcomeUnknown) as error:
        _log.warning("sweep_failed", error=str(error))
    return swept
