"""Flash sales: make one, steer it, arm its lease.

A strict sale is a window on its voucher and moves no units. A fast sale moves its units into a
lease that Redis gives out. PostgreSQL is told first, always; what a process that dies in between
leaves behind, the worker and the reconciler finish. The claim itself is `core.redeemer`.
"""

import asyncio
import time
from datetime import datetime
from typing import Final, Literal
from uuid import UUID

import msgspec
from redis.asyncio import Redis

import core.db as db
from core import audit_log, ids
from core.api_keys import Caller
from core.errors import AlreadyExists, Fault, Invalid, NotFound, Refusal, Unavailable
from core.hot import leases as hot_leases
from core.leases import Leases, ms_of, redis_errors
from core.rules import codes, limits, money
from core.rules.discounts import DiscountType
from core.settings import Settings
from core.shapes import Amount, Count, Instant

NAME_LENGTH_MAX: Final = 200
# A claim that is refused without Redis may be judged by what was true so long ago.
GLANCE_S: Final = 0.1
GLANCES_MAX: Final = 1_000
NO_SALE: Final = "There is no flash sale with this id."

Durability = Literal["fast", "strict"]


class NewFlashSale(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A sale to be made: with terms of its own, or with `voucher`, the code of an existing one."""

    name: str
    stock: Count
    code: str | None = None
    voucher: str | None = None
    discount_type: DiscountType | None = None
    discount_value: Amount = msgspec.field(default_factory=msgspec.Raw)
    min_order_value: Amount = msgspec.field(default_factory=msgspec.Raw)
    per_customer_limit: Count | None = None
    starts_at: Instant | None = None
    ends_at: Instant | None = None
    durability: Durability = "fast"
    publishable_claims: bool = False


class FlashSalePatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may change: the stock upwards, the window, the name. Terms are frozen."""

    name: str | None = None
    stock: Count | None = None
    starts_at: Instant | msgspec.UnsetType | None = msgspec.UNSET
    ends_at: Instant | msgspec.UnsetType | None = msgspec.UNSET


class FlashSale(msgspec.Struct, frozen=True):
    """A sale as it is shown.

    `claimed`: live wins. `settled`: those of them in the ledger. `lag`: the difference, 0 in
    strict. `remaining`: units that can still be claimed. `written_off`: units burned after a loss
    of Redis's data. `status`: scheduled, open, paused, sold_out, closed, settled, fenced.
    `publishable_claims`: whether browsers may claim, with a publishable key.
    """

    id: str
    name: str
    code: str
    status: str
    durability: str
    stock: int
    claimed: int
    settled: int
    lag: int
    remaining: int
    written_off: int
    discount_type: str | None
    discount_value: Amount | None
    min_order_value: Amount | None
    per_customer_limit: int | None
    publishable_claims: bool
    starts_at: datetime | None
    ends_at: datetime | None
    opened_at: datetime | None
    closed_at: datetime | None
    created_at: datetime


class SaleRow(msgspec.Struct, frozen=True):
    """A sale as the ledger has it, with the lease that is out."""

    project_id: UUID
    id: UUID
    voucher_id: UUID
    name: str
    code: str
    code_norm: str
    durability: Durability
    status: str
    stock: int
    sold_count: int
    leased_count: int
    burned_count: int
    starts_at: datetime | None
    ends_at: datetime | None
    opened_at: datetime | None
    closed_at: datetime | None
    created_at: datetime
    discount_type: DiscountType | None
    discount_bp: int | None
    discount_minor: int | None
    min_order_minor: int | None
    per_customer_limit: int | None
    sale_only: bool
    lease_id: UUID | None
    lease_state: str | None
    lease_size: int | None
    armed_at: datetime | None
    run_id: str | None
    seq_base: int | None
    publishable_claims: bool
    lease_accounted: int
    free_units: int
    now: datetime

    def phase(self) -> str:
        """Return the status the window and the hand give, before the counts are looked at."""
        if self.lease_state == "fenced":
            return "fenced"
        if self.status in ("open", "scheduled"):
            if self.ends_at is not None and self.now >= self.ends_at:
                return "closed"
            if self.starts_at is not None and self.now < self.starts_at:
                return "scheduled"
        return self.status


class _VoucherForSale(msgspec.Struct):
    id: UUID
    status: str
    max_redemptions: int | None
    taken: int
    campaign_customer_limit: int | None
    is_plain: bool


async def create(conn: db.Connection, caller: Caller, new: NewFlashSale) -> UUID | Refusal:
    """Make a sale, and the voucher it sells unless one is named. Returns its id.

    Refuses: not_eligible, for a rule that the hot path cannot check. Raises: Invalid;
    AlreadyExists, for a taken code or a voucher that is in another sale; NotFound.
    """
    _checked(new)
    sale_id = ids.new()
    if new.voucher is None:
        voucher_id = await _make_voucher(conn, caller, new)
    else:
        found = await _existing_voucher(conn, caller, new)
        if isinstance(found, Refusal):
            return found
        voucher_id = found
    try:
        await db.run(
            conn,
            "flash_sales.insert",
            project_id=caller.project_id,
            id=sale_id,
            voucher_id=voucher_id,
            sale_name=new.name,
            durability=new.durability,
            stock=new.stock,
            starts_at=new.starts_at,
            ends_at=new.ends_at,
            publishable_claims=new.publishable_claims,
        )
    except db.UniqueViolation as error:
        if error.constraint != "flash_sales_one_live":
            raise
        raise AlreadyExists(
            "This voucher is in a flash sale that is not over yet.", field="voucher"
        ) from error
    await audit_log.write(
        conn, caller, "flash_sale.created", ids.format_id("fls", sale_id),
        after={"name": new.name, "stock": new.stock, "durability": new.durability},
    )  # fmt: skip
    return sale_id


def _checked(new: NewFlashSale) -> None:
    if not 0 < len(new.name.strip()) <= NAME_LENGTH_MAX:
        raise Invalid(f"name must have 1 to {NAME_LENGTH_MAX} characters", field="name")
    limits.check_window(new.starts_at, new.ends_at, end_name="ends_at")
    if new.voucher is not None:
        for name in ("code", "discount_type", "per_customer_limit"):
            if getattr(new, name) is not None:
                raise Invalid(
                    f"{name} cannot be given with voucher: the voucher has its own", field=name
                )
        for name in ("discount_value", "min_order_value"):
            if money.is_given(getattr(new, name)):
                raise Invalid(
                    f"{name} cannot be given with voucher: the voucher has its own", field=name
                )


async def _make_voucher(conn: db.Connection, caller: Caller, new: NewFlashSale) -> UUID:
    kind: DiscountType = new.discount_type or "PERCENT"
    if not money.is_given(new.discount_value):
        raise Invalid("discount_value is required", field="discount_value")
    bp = amount = None
    if kind == "PERCENT":
        bp = money.parse_percent(new.discount_value, field="discount_value")
    else:
        amount = money.parse_amount(
            new.discount_value, caller.currency, field="discount_value", minor_min=1
        )
    least = None
    if money.is_given(new.min_order_value):
        least = money.parse_amount(new.min_order_value, caller.currency, field="min_order_value")
    code = new.code if new.code is not None else codes.generate()
    voucher_id = ids.new()
    try:
        await db.run(
            conn,
            "flash_sales.insert_voucher",
            project_id=caller.project_id,
            id=voucher_id,
            code=code.strip(),
            code_norm=codes.checked(code),
            discount_type=kind,
            discount_bp=bp,
            discount_minor=amount,
            min_order_minor=least,
            stock=new.stock,
            per_customer_limit=new.per_customer_limit,
        )
    except db.UniqueViolation as error:
        if error.constraint != "vouchers_code_key":
            raise
        raise AlreadyExists(
            "There is a voucher with this code; give it as voucher to hold the sale on it.",
            field="code",
        ) from error
    return voucher_id


async def _existing_voucher(
    conn: db.Connection, caller: Caller, new: NewFlashSale
) -> UUID | Refusal:
    assert new.voucher is not None
    found = await db.one(
        conn,
        "flash_sales.voucher_for_sale",
        _VoucherForSale,
        project_id=caller.project_id,
        code_norm=codes.normalise(new.voucher) or "",
    )
    if found is None:
        raise NotFound("There is no voucher with this code.", field="voucher")
    if not found.is_plain:
        return Refusal(
            code="not_eligible",
            detail="A flash sale takes a plain discount; this voucher or its campaign has more.",
            because={"rule": "voucher.promotion", "wanted": None},
        )
    if found.campaign_customer_limit is not None and new.durability == "fast":
        return Refusal(
            code="not_eligible",
            detail="A fast sale cannot check the campaign's limit per customer; make it strict.",
            because={"rule": "campaign.per_customer_limit", "wanted": None},
        )
    return found.id


async def read_row(conn: db.Connection, project_id: UUID, sale_id: UUID) -> SaleRow | None:
    """Return the sale as the ledger has it."""
    return await db.one(conn, "flash_sales.read", SaleRow, project_id=project_id, id=sale_id)


async def page(
    conn: db.Connection, caller: Caller, *, after: UUID | None, limit: int
) -> list[UUID]:
    """Return the ids of up to `limit` sales, newest first; each is then read by itself."""
    return await db.many(
        conn, "flash_sales.list", UUID, project_id=caller.project_id, before=after, limit=limit
    )


async def show(redis: Redis, row: SaleRow, caller: Caller) -> FlashSale:
    """Return the sale with what Redis has given out; what Redis does not tell is as settled."""
    claimed, lag, remaining = row.sold_count, 0, row.stock - row.sold_count
    if row.durability == "fast":
        issued = row.lease_accounted
        if row.lease_id is not None:
            try:
                state = await hot_leases.read_state(redis, str(row.lease_id))
            except (redis_errors, OSError):
                state = None
            issued = max(issued, state.issued if state else 0)
        in_redis = max(0, (row.lease_size or 0) - issued) if row.lease_id else 0
        claimed = row.leased_count - in_redis - row.burned_count
        lag = issued - row.lease_accounted
        remaining = row.stock - row.leased_count + in_redis
    status = row.phase()
    if status == "open" and remaining == 0:
        status = "sold_out"
    exponent = caller.exponent
    value = None
    if row.discount_bp is not None:
        value = money.json_percent(row.discount_bp)
    elif row.discount_minor is not None:
        value = money.json_amount(row.discount_minor, exponent)
    return FlashSale(
        id=ids.format_id("fls", row.id),
        name=row.name,
        code=row.code,
        status=status,
        durability=row.durability,
        stock=row.stock,
        claimed=claimed,
        settled=claimed - lag,
        lag=lag,
        remaining=remaining,
        written_off=row.burned_count,
        discount_type=row.discount_type,
        discount_value=value,
        min_order_value=(
            money.json_amount(row.min_order_minor, exponent)
            if row.min_order_minor is not None
            else None
        ),
        per_customer_limit=row.per_customer_limit,
        publishable_claims=row.publishable_claims,
        starts_at=row.starts_at,
        ends_at=row.ends_at,
        opened_at=row.opened_at,
        closed_at=row.closed_at,
        created_at=row.created_at,
    )


async def _audit(
    conn: db.Connection,
    caller: Caller | None,
    what: str,
    sale_id: UUID,
    *,
    is_done: bool,
    patch: FlashSalePatch | None = None,
) -> None:
    """Write down what somebody did with a sale; what was refused, or the clock's, is not told."""
    if caller is not None and is_done:
        await audit_log.write(
            conn, caller, f"flash_sale.{what}", ids.format_id("fls", sale_id),
            after=None if patch is None else msgspec.to_builtins(patch),
        )  # fmt: skip


class SaleDesk:
    """Steers sales on behalf of one process: it has both stores at hand."""

    def __init__(self, database: db.Database, redis_client: Redis, settings: Settings) -> None:
        """Everything given is the caller's to close."""
        self.database = database
        self.redis = redis_client
        self.leases = Leases(database, redis_client, settings)
        self._glances: dict[UUID, tuple[float, asyncio.Task[SaleRow]]] = {}

    async def glance(self, project_id: UUID, sale_id: UUID) -> SaleRow:
        """Return one sale as it stood within the last GLANCE_S: a crowd shares one read.

        Good for refusing a claim, never for deciding one. Raises: NotFound.
        """
        now = time.monotonic()
        seen = self._glances.get(sale_id)
        if seen is None or now - seen[0] > GLANCE_S:
            if len(self._glances) >= GLANCES_MAX:
                self._glances.clear()
            seen = (now, asyncio.ensure_future(self.read(project_id, sale_id)))
            self._glances[sale_id] = seen
        try:
            row = await asyncio.shield(seen[1])
        except Fault:
            self._glances.pop(sale_id, None)
            raise
        if row.project_id != project_id:
            raise NotFound(NO_SALE)
        return row

    async def read(self, project_id: UUID, sale_id: UUID) -> SaleRow:
        """Return one sale. Raises: NotFound."""
        async with self.database.transaction(project_id, reads_only=True) as conn:
            row = await read_row(conn, project_id, sale_id)
        if row is None:
            raise NotFound(NO_SALE)
        return row

    async def open(
        self,
        project_id: UUID,
        sale_id: UUID,
        *,
        by_hand: bool,
        waits: bool = True,
        caller: Caller | None = None,
    ) -> Refusal | None:
        """Open a sale: now when `by_hand`, else at its start. Idempotent; also ends a pause.

        `caller` is who the audit log says it was, here and below; the clock is nobody.

        Returns when the sale is armed and, with `waits`, every living worker serves it.
        Refuses: sale_over, sold_out, cannot_arm. Raises: NotFound; Unavailable.
        """
        row = await self.read(project_id, sale_id)
        if row.status in ("closed", "settled") or row.phase() == "closed":
            return Refusal(code="sale_over", detail="This sale is over; make another one.")
        if row.durability == "strict":
            async with self.database.transaction(project_id) as conn:
                await db.run(conn, "flash_sales.lock_voucher", project_id=project_id, id=sale_id)
                done = await db.one(
                    conn,
                    "flash_sales.open_strict",
                    UUID,
                    project_id=project_id,
                    id=sale_id,
                    by_hand=by_hand,
                )
                await _audit(conn, caller, "opened", sale_id, is_done=done is not None)
            if done is None:
                return Refusal(code="sale_over", detail="This sale is over; make another one.")
            await self.leases.void_crowd(project_id, done)
            return None
        try:
            return await self._open_fast(project_id, sale_id, by_hand, waits, caller)
        except (redis_errors, OSError) as error:
            raise Unavailable("Redis is away; a fast sale cannot be armed without it.") from error

    async def _open_fast(
        self, project_id: UUID, sale_id: UUID, by_hand: bool, waits: bool, caller: Caller | None
    ) -> Refusal | None:
        armed = await self.leases.arm(project_id, sale_id, by_hand)
        if isinstance(armed, Refusal):
            return armed
        lease_id, size = armed
        async with self.database.transaction(project_id) as conn:
            await db.run(conn, "flash_sales.lock_voucher", project_id=project_id, id=sale_id)
            opened = await db.run(
                conn, "flash_sales.set_open", project_id=project_id, id=sale_id, by_hand=by_hand
            )
            await _audit(conn, caller, "opened", sale_id, is_done=opened > 0)
        if opened:
            state = await hot_leases.set_state(self.redis, str(lease_id), "open")
            if by_hand and state is not None and state.start_ms:
                await hot_leases.set_start(self.redis, str(lease_id), 0)
        if waits:
            await self.leases.await_served(lease_id, size)
        return None

    async def pause(
        self, project_id: UUID, sale_id: UUID, *, caller: Caller | None = None
    ) -> Refusal | None:
        """Pause an open sale; `open` ends the pause. Refuses: sale_not_open."""
        async with self.database.transaction(project_id) as conn:
            await db.run(conn, "flash_sales.lock_voucher", project_id=project_id, id=sale_id)
            done = await db.one(conn, "flash_sales.pause", UUID, project_id=project_id, id=sale_id)
            await _audit(conn, caller, "paused", sale_id, is_done=done is not None)
        row = await self.read(project_id, sale_id)
        if done is None:
            return Refusal(code="sale_not_open", detail=f"This sale is {row.phase()}, not open.")
        await self.leases.void_crowd(project_id, row.voucher_id)
        await self._tell_redis(row, "paused")
        return None

    async def close(self, project_id: UUID, sale_id: UUID, *, caller: Caller | None = None) -> None:
        """End a sale for good. Idempotent. What was won is settled within moments."""
        async with self.database.transaction(project_id) as conn:
            await db.run(conn, "flash_sales.lock_voucher", project_id=project_id, id=sale_id)
            done = await db.one(conn, "flash_sales.close", UUID, project_id=project_id, id=sale_id)
            await _audit(conn, caller, "closed", sale_id, is_done=done is not None)
        row = await self.read(project_id, sale_id)
        await self.leases.void_crowd(project_id, row.voucher_id)
        await self._tell_redis(row, "closed")

    async def _tell_redis(self, row: SaleRow, state: hot_leases.State) -> None:
        if row.lease_id is None:
            return
        try:
            await hot_leases.set_state(self.redis, str(row.lease_id), state)
        except (redis_errors, OSError) as error:
            # The reconciler repeats it as soon as Redis is back, where no claim is answered either.
            raise Unavailable(
                f"The sale is {state} in the ledger; Redis is away and follows when it is back."
            ) from error

    async def patch(
        self,
        project_id: UUID,
        sale_id: UUID,
        patch: FlashSalePatch,
        *,
        caller: Caller | None = None,
    ) -> Refusal | None:
        """Change stock (upwards), window or name; a live lease grows at once.

        Refuses: sale_over. Raises: Invalid; NotFound.
        """
        _checked_patch(patch)
        before = await self.read(project_id, sale_id)
        sets_start = patch.starts_at is not msgspec.UNSET
        sets_end = patch.ends_at is not msgspec.UNSET
        starts_at = before.starts_at if patch.starts_at is msgspec.UNSET else patch.starts_at
        ends_at = before.ends_at if patch.ends_at is msgspec.UNSET else patch.ends_at
        limits.check_window(starts_at, ends_at, end_name="ends_at")
        if patch.stock is not None and patch.stock < before.stock:
            raise Invalid(f"stock can only go up; it is {before.stock}", field="stock")
        if sets_start and (before.status != "scheduled" or before.lease_id is not None):
            raise Invalid("starts_at is frozen once the sale is armed", field="starts_at")
        async with self.database.transaction(project_id) as conn:
            await db.run(conn, "flash_sales.lock_voucher", project_id=project_id, id=sale_id)
            done = await db.one(
                conn,
                "flash_sales.patch",
                UUID,
                project_id=project_id,
                id=sale_id,
                sale_name=patch.name,
                stock=patch.stock,
                sets_starts_at=sets_start,
                starts_at=starts_at,
                sets_ends_at=sets_end,
                ends_at=ends_at,
            )
            await _audit(conn, caller, "updated", sale_id, is_done=done is not None, patch=patch)
        if done is None:
            return Refusal(code="sale_over", detail="This sale is over; make another one.")
        await self.leases.void_crowd(project_id, done)
        if before.lease_id is not None:
            try:
                await self.leases.grow(project_id, before.lease_id)
                if sets_end:
                    await hot_leases.set_end(self.redis, str(before.lease_id), ms_of(ends_at))
            except (redis_errors, OSError) as error:
                raise Unavailable("Stored; Redis is away and follows when it is back.") from error
        return None


def _checked_patch(patch: FlashSalePatch) -> None:
    if patch.name is not None and not 0 < len(patch.name.strip()) <= NAME_LENGTH_MAX:
        raise Invalid(f"name must have 1 to {NAME_LENGTH_MAX} characters", field="name")
