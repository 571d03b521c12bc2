"""Block lists: customers, codes, addresses and devices that may not redeem.

An ordinary redeem that begins after the block was answered is refused, by its own statement; an
open fast sale hears of it within seconds, from the worker.
"""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal
from uuid import UUID

import msgspec
import redis.exceptions
import structlog
from redis.asyncio import Redis

from core import audit_log, db, ids
from core.api_keys import Caller
from core.contexts import Contexts
from core.errors import AlreadyExists, Invalid, NotFound, OutcomeUnknown, Unavailable
from core.hot import leases
from core.rules import codes
from core.rules.fraud import BLOCK_S_MAX
from core.rules.orders import REFERENCE_LENGTH_MAX

BlockKind = Literal["customer", "code", "address", "device"]
KINDS: Final[tuple[BlockKind, ...]] = ("customer", "code", "address", "device")
# An open fast sale is told the whole list at once, some ten milliseconds.
BLOCKS_MAX: Final = 10_000

_log = structlog.get_logger("vauchflow.blocks")


class _Live(msgspec.Struct, frozen=True):
    project_id: UUID
    lease_id: UUID
    version: str


class NewBlock(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Who or what is blocked, and for how long; without `expires_in_s` until it is taken off."""

    kind: BlockKind
    value: Annotated[str, msgspec.Meta(min_length=1, max_length=REFERENCE_LENGTH_MAX)]
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=500)] | None = None
    expires_in_s: Annotated[int, msgspec.Meta(ge=1, le=BLOCK_S_MAX)] | None = None


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """A block as the API shows it. Of addresses and devices `value` is a keyed hash."""

    id: str
    kind: BlockKind
    value: str
    reason: str | None
    alert_id: str | None
    created_by: str
    created_at: datetime
    expires_at: datetime | None


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A row of vf.blocks."""

    id: UUID
    kind: BlockKind
    value: str
    reason: str | None
    alert_id: UUID | None
    created_by: str
    created_at: datetime
    expires_at: datetime | None


def show(row: Stored) -> Block:
    """Write a row as the API shows it."""
    return Block(
        id=ids.format_id("blk", row.id),
        kind=row.kind,
        value=row.value,
        reason=row.reason,
        alert_id=ids.format_id("fra", row.alert_id) if row.alert_id else None,
        created_by=row.created_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )


async def create(conn: db.Connection, caller: Caller, contexts: Contexts, new: NewBlock) -> Block:
    """Block somebody or something. Raises: AlreadyExists; Invalid, also where the list is full."""
    now = datetime.now(UTC)
    block_id = ids.new()
    expires_at = now + timedelta(seconds=new.expires_in_s) if new.expires_in_s else None
    added = await db.run(
        conn, "blocks.add",
        project_id=caller.project_id, id=block_id, kind=new.kind,
        value=_value_of(caller, contexts, new.kind, new.value), reason=new.reason, alert_id=None,
        created_by=caller.actor, expires_at=expires_at, blocks_max=BLOCKS_MAX,
    )  # fmt: skip
    if not added:
        count = await db.value(conn, "blocks.count", int, project_id=caller.project_id)
        if count >= BLOCKS_MAX:
            raise Invalid(f"A project blocks at most {BLOCKS_MAX:,}; take some off the list.")
        raise AlreadyExists("This is blocked already.", field="value")
    # Who it is stays out of the log: it would outlive the customer's erasure there.
    public_id = ids.format_id("blk", block_id)
    await audit_log.write(conn, caller, "block.created", public_id,
                          after={"kind": new.kind, "expires_at": expires_at})  # fmt: skip
    return await get(conn, caller, public_id)


def _value_of(caller: Caller, contexts: Contexts, kind: BlockKind, value: str) -> str:
    match kind:
        case "code":
            norm = codes.normalise(value)
            if norm is None:
                raise Invalid("value is no code", field="value")
            return norm
        case "address":
            return contexts.address(caller.project_id, value)
        case "device":
            return contexts.digest(caller.project_id, "device", value)
        case _:
            return value


async def get(conn: db.Connection, caller: Caller, public_id: str) -> Block:
    """Return a block. Raises: NotFound."""
    block_id = ids.parse_id("blk", public_id)
    params = {"project_id": caller.project_id, "id": block_id}
    row = await db.one(conn, "blocks.by_id", Stored, **params) if block_id else None
    if row is None:
        raise NotFound("There is no such block in this project.")
    return show(row)


async def page(
    conn: db.Connection, caller: Caller, *, kind: str | None, after: UUID | None, limit: int
) -> list[Block]:
    """Return up to `limit` blocks, newest first; what is over is none."""
    rows = await db.many(
        conn, "blocks.page", Stored,
        project_id=caller.project_id, kind=kind, after=after, limit=limit,
    )  # fmt: skip
    return [show(row) for row in rows]


async def remove(conn: db.Connection, caller: Caller, public_id: str) -> None:
    """Take a block off the list. Raises: NotFound."""
    block_id = ids.parse_id("blk", public_id)
    params = {"project_id": caller.project_id, "id": block_id}
    if block_id is None or not await db.run(conn, "blocks.remove", **params):
        raise NotFound("There is no such block in this project.")
    await audit_log.write(conn, caller, "block.removed", public_id)


async def forget(database: db.Database) -> None:
    """Delete blocks whose time is over; they block nothing any more. Never raises for a store."""
    try:
        async with database.connection() as conn:
            await db.run(conn, "blocks.forget")
    except (Unavailable, OutcomeUnknown) as error:
        _log.warning("blocks_not_forgotten", error=str(error))


async def of_lease(database: db.Database, project_id: UUID, lease_id: UUID) -> list[leases.Blocked]:
    """Return what a lease's claims are held against. Raises: Unavailable."""
    async with database.transaction(project_id, reads_only=True) as conn:
        return await db.many(
            conn, "blocks.of_lease", leases.Blocked, project_id=project_id, lease_id=lease_id
        )


class Teller:
    """Tells leases that are out of blocks that are new or gone; the worker's."""

    def __init__(self, database: db.Database, client: Redis) -> None:
        """Both are the caller's to close."""
        self._database = database
        self._redis = client
        self._told: dict[UUID, str] = {}

    async def look(self) -> None:
        """Tell each lease whose list is another than it was told. Idempotent.

        Never raises for a store that is away: the next look tells it.
        """
        try:
            async with self._database.connection(reads_only=True) as conn:
                live = await db.many(conn, "blocks.live_leases", _Live)
            told = {one.lease_id: self._told.get(one.lease_id) for one in live}
            self._told = {lease: version for lease, version in told.items() if version is not None}
            for one in live:
                if told[one.lease_id] == one.version:
                    continue
                listed = await of_lease(self._database, one.project_id, one.lease_id)
                if await leases.set_blocks(self._redis, str(one.lease_id), listed):
                    self._told[one.lease_id] = one.version
        except (Unavailable, OutcomeUnknown, redis.exceptions.RedisError, OSError) as error:
            _log.warning("blocks_not_told", error=str(error))
