"""Leases in PostgreSQL's and Redis's hands together: arm one, grow it, let units come back.

PostgreSQL is told first, always; Redis follows. What a process that dies in between leaves
behind, the worker and the reconciler finish. Whether a sale may open at all is
`core.flash_sales`; what Redis does with a lease is `core.hot.leases`.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Final
from uuid import UUID, uuid4

import msgspec
import redis.exceptions
from redis.asyncio import Redis

import core.db as db
from core import blocks, ids, usage
from core.errors import Refusal, Unavailable
from core.hot import crowds, leases
from core.hot.nodes import node_of
from core.live_leases import ALIVE_WITHIN
from core.redemptions import RolledBack
from core.settings import Settings

# `open` waits so long for every living worker to serve the lease: each looks five times a second
# and a dead one drops out after three seconds.
SERVED_WITHIN_S: Final = 6.0
SERVED_POLL_S: Final = 0.03
# Rows of a page while a voucher's history is loaded into Redis: a few milliseconds each.
LOAD_PAGE: Final = 5_000

redis_errors: Final = redis.exceptions.RedisError


class Leases:
    """What one process does to leases: it has both stores at hand."""

    def __init__(self, database: db.Database, redis_client: Redis, settings: Settings) -> None:
        """Everything given is the caller's to close."""
        self.database = database
        self.redis = redis_client
        self._settings = settings

    async def arm(
        self, project_id: UUID, sale_id: UUID, by_hand: bool
    ) -> tuple[UUID, int] | Refusal:
        """Move a sale's units into a lease and load it into Redis; one that is out is returned.

        Returns the lease and its size. Idempotent: an arming that broke off is taken up again.
        Refuses: cannot_arm, sold_out, sale_over. Raises: PlanLimit; Unavailable; redis_errors;
        OSError.
        """
        asked_at_s = time.monotonic()
        async with self.database.connection(reads_only=True) as conn:
            now = await db.value(conn, "flash_sales.clock", datetime)
        lease_id = uuid4()
        node = await node_of(self.redis, str(lease_id))
        facts = await leases.server_facts(node, int(now.timestamp() * 1000), asked_at_s)
        faults = leases.arming_faults(facts)
        if faults:
            return Refusal(
                code="cannot_arm",
                detail=" ".join(faults) + " A sale with durability strict needs nothing of this.",
                because={"faults": faults},
            )
        async with self.database.connection() as conn:
            armed = await db.one(
                conn,
                "flash_sales.arm_lease",
                _Armed,
                project_id=project_id,
                id=sale_id,
                lease_id=lease_id,
                tag=ids.new_tag(int(now.timestamp() * 1000)),
                run_id=facts.run_id,
                backlog_max=self._settings.backlog_max,
            )
        assert armed is not None
        match armed.outcome:
            case "sold_out":
                return Refusal(code="sold_out", detail="The voucher has no unit left to sell.")
            case "plan_limit":
                raise usage.no_redemptions()
            case "not_found":
                return Refusal(code="sale_over", detail="This sale is over; make another one.")
        assert armed.lease_id is not None and armed.size is not None
        await self._load(project_id, armed.lease_id, by_hand)
        return armed.lease_id, armed.size

    async def _load(self, project_id: UUID, lease_id: UUID, by_hand: bool) -> None:
        """Bring an arming lease into Redis; a lease that is open already is left alone."""
        async with self.database.transaction(project_id, reads_only=True) as conn:
            found = await db.one(
                conn,
                "flash_sales.lease_facts",
                _LeaseFacts,
                project_id=project_id,
                lease_id=lease_id,
            )
        assert found is not None
        if found.state != "arming":
            return
        system, _, timeline = found.pg_lineage.partition("/")
        facts = leases.LeaseFacts(
            lease_id=str(lease_id),
            size=found.size,
            backlog_max=found.backlog_max,
            start_ms=0 if by_hand else ms_of(found.starts_at),
            end_ms=ms_of(found.ends_at),
            customer_limit=found.per_customer_limit or 0,
            state="paused" if found.status == "paused" and not by_hand else "open",
            pg_system=system,
            pg_timeline=timeline,
            project=str(project_id),
            sale=str(found.sale_id),
            tag=found.tag,
            seq_base=found.seq_base,
        )
        customers = (
            self.customers(project_id, found.voucher_id)
            if found.per_customer_limit is not None
            else ()
        )
        blocked = await blocks.of_lease(self.database, project_id, lease_id)
        records = self.records(project_id, found.voucher_id)
        await leases.arm(self.redis, facts, records, customers, blocked)
        async with self.database.transaction(project_id) as conn:
            await db.run(conn, "flash_sales.lease_open", project_id=project_id, lease_id=lease_id)

    async def await_served(self, lease_id: UUID, size: int) -> None:
        """Wait until every living API worker serves a lease at a size. Raises: Unavailable."""
        until = time.monotonic() + SERVED_WITHIN_S
        while True:
            async with self.database.connection(reads_only=True) as conn:
                missing = await db.value(
                    conn,
                    "flash_sales.unserved",
                    int,
                    lease_id=lease_id,
                    size=size,
                    alive_within=ALIVE_WITHIN,
                )
            if missing == 0:
                return
            if time.monotonic() > until:
                raise Unavailable(
                    f"The sale is armed, but {missing} worker(s) do not serve it yet; ask again."
                )
            await asyncio.sleep(SERVED_POLL_S)

    async def grow(self, project_id: UUID, lease_id: UUID) -> None:
        """Raise a live lease by what there is to sell beyond it; Redis is told second."""
        async with self.database.transaction(project_id, reads_only=True) as conn:
            seen = await db.one(
                conn,
                "flash_sales.lease_facts",
                _LeaseFacts,
                project_id=project_id,
                lease_id=lease_id,
            )
        if seen is None or seen.state != "open":
            return
        async with self.database.connection() as conn:
            size = await db.value(
                conn,
                "flash_sales.grow_lease",
                int,
                project_id=project_id,
                lease_id=lease_id,
                size_seen=seen.size,
            )
        await leases.grow(self.redis, str(lease_id), size)

    async def give_back(self, project_id: UUID, redemption_id: UUID, done: RolledBack) -> None:
        """Let Redis know of a unit that came back: the crowd, the customer, the live lease.

        Call it after the commit. What Redis does not hear now it hears at the next look of the
        worker (the unit) or when the lease is settled (the customer).
        """
        assert done.voucher_id is not None
        await self.void_crowd(project_id, done.voucher_id)
        if done.lease_id is None or done.lease_state == "settled":
            return
        with contextlib.suppress(redis_errors, OSError):
            if done.customer_id is not None:
                await leases.release(
                    self.redis,
                    str(done.lease_id),
                    done.customer_id,
                    ids.format_id("rdm", redemption_id),
                )
            await self.grow(project_id, done.lease_id)

    async def void_crowd(self, project_id: UUID, voucher_id: UUID) -> None:
        """Void what Redis was told of a sold-out voucher: a unit, or the sale, may be back.

        Call it after the commit that raised the voucher's crowd version. Without Redis there is
        nothing to void: facts outlive their last probe by a second at most.
        """
        async with self.database.transaction(project_id, reads_only=True) as conn:
            version = await db.one(
                conn,
                "redemptions.crowd_version",
                int,
                project_id=project_id,
                voucher_id=voucher_id,
            )
        assert version is not None
        with contextlib.suppress(redis_errors, OSError):
            await crowds.clear(self.redis, str(voucher_id), version)

    async def records(self, project_id: UUID, voucher_id: UUID) -> AsyncIterator[leases.Record]:
        """Yield a voucher's redemptions as idempotency records, page by page."""
        after: UUID | None = None
        while True:
            async with self.database.transaction(project_id, reads_only=True) as conn:
                page = await db.many(
                    conn,
                    "redemptions.records",
                    RecordRow,
                    project_id=project_id,
                    voucher_id=voucher_id,
                    after=after,
                    limit=LOAD_PAGE,
                )
            for row in page:
                yield record_of(row)
            if len(page) < LOAD_PAGE:
                return
            after = page[-1].id

    async def customers(self, project_id: UUID, voucher_id: UUID) -> AsyncIterator[leases.Customer]:
        """Yield what a voucher's customers hold, page by page."""
        after: str | None = None
        while True:
            async with self.database.transaction(project_id, reads_only=True) as conn:
                page = await db.many(
                    conn,
                    "redemptions.customers",
                    CustomerRow,
                    project_id=project_id,
                    voucher_id=voucher_id,
                    after=after,
                    limit=LOAD_PAGE,
                )
            for row in page:
                yield customer_of(row)
            if len(page) < LOAD_PAGE:
                return
            after = page[-1].customer_id


class _Armed(msgspec.Struct):
    outcome: str
    lease_id: UUID | None
    size: int | None
    seq_base: int | None


class _LeaseFacts(msgspec.Struct):
    lease_id: UUID
    size: int
    backlog_max: int
    pg_lineage: str
    state: str
    starts_at: datetime | None
    ends_at: datetime | None
    status: str
    per_customer_limit: int | None
    voucher_id: UUID
    sale_id: UUID
    tag: int
    seq_base: int
    now: datetime


class RecordRow(msgspec.Struct):
    """A redemption as an idempotency record."""

    id: UUID
    key: str
    fingerprint: bytes
    redeemed_at: datetime
    remaining: int | None
    seq: int
    order_value_minor: int
    discount_minor: int
    sale_id: UUID | None


class CustomerRow(msgspec.Struct):
    """What a customer holds of a voucher."""

    customer_id: str
    live_count: int
    last_redemption_id: UUID


def record_of(row: RecordRow) -> leases.Record:
    """Return a redemption as Redis keeps it; `core.redeemer` reads the payload back."""
    payload = msgspec.json.encode(
        (
            row.order_value_minor,
            row.discount_minor,
            row.id,
            row.seq,
            row.remaining,
            row.sale_id,
        )
    )
    at_ms = int(row.redeemed_at.timestamp() * 1000)
    return row.key, row.fingerprint.hex(), at_ms, row.remaining or 0, payload


def customer_of(row: CustomerRow) -> leases.Customer:
    """Return a customer's count with the redemption that a refusal names."""
    return row.customer_id, row.live_count, ids.format_id("rdm", row.last_redemption_id)


def ms_of(at: Any) -> int:
    """Return an instant in milliseconds since 1970, 0 for none: Redis's way of saying it."""
    return int(at.timestamp() * 1000) if at is not None else 0
