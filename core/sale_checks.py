"""What is looked at before a flash sale is opened, and what the books say when it is over."""

from datetime import datetime
from typing import Final

import msgspec
from redis.asyncio import Redis

from core import db
from core.api_keys import Caller
from core.flash_sales import SaleRow
from core.hot import leases
from core.hot.nodes import nodes_of
from core.leases import redis_errors
from core.live_leases import ALIVE_WITHIN
from core.rules import money
from core.shapes import Amount

# A crash of the server must not take an answered redemption along.
_SAFE_COMMITS: Final = ("on", "local", "remote_write", "remote_apply")


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at, and what to do where it does not hold."""

    is_good: bool
    says: str
    mend: str = ""


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """A sale as its redemptions have it, row by row, and whether all its counters agree."""

    wins: int
    rolled_back: int
    customers: int
    discount: Amount
    order_value: Amount
    first_at: datetime | None
    last_at: datetime | None
    checks: list[Check]

    @property
    def seconds(self) -> float:
        """How long it took from the first win to the last."""
        if self.first_at is None or self.last_at is None:
            return 0.0
        return (self.last_at - self.first_at).total_seconds()


class _Gate(msgspec.Struct, frozen=True):
    is_accepted: bool
    fsync: str
    synchronous_commit: str
    worker_count: int
    now: datetime


class _Ledger(msgspec.Struct, frozen=True):
    row_count: int
    live_count: int
    number_count: int
    customer_count: int
    most_of_one: int
    discount_minor: int
    order_value_minor: int
    first_at: datetime | None
    last_at: datetime | None


async def before(conn: db.Connection, redis: Redis, row: SaleRow) -> list[Check]:
    """Return what opening the sale depends on, as `doctor` asks it. Takes nothing.

    Cost: one statement, and for a fast sale a few questions to Redis.
    """
    gate = await db.one(conn, "sale_checks.gate", _Gate, alive_within=ALIVE_WITHIN)
    assert gate is not None
    found = [
        Check(
            gate.is_accepted, "PostgreSQL holds what Redis was told it holds",
            "run ./vauchflow recover: nothing is redeemed until then",
        ),
        Check(
            gate.fsync == "on" and gate.synchronous_commit in _SAFE_COMMITS,
            f"PostgreSQL: fsync {gate.fsync}, synchronous_commit {gate.synchronous_commit}",
            "a power cut would lose answered redemptions",
        ),
        Check(gate.worker_count > 0, _workers(gate.worker_count), "start ./vauchflow serve"),
        Check(
            row.ends_at is None or row.ends_at > gate.now,
            "Its time is not over" if row.ends_at else "It ends when it is closed",
            "its end has passed: make another sale",
        ),
    ]  # fmt: skip
    if row.durability == "fast":
        found += await _redis(redis, gate.now)
    return found


def _workers(count: int) -> str:
    return "1 API worker will serve it" if count == 1 else f"{count} API workers will serve it"


async def _redis(redis: Redis, now: datetime) -> list[Check]:
    try:
        facts = [
            await leases.server_facts(node, int(now.timestamp() * 1000))
            for node in await nodes_of(redis)
        ]
    except (redis_errors, OSError) as error:
        return [Check(False, "Redis answers", f"{error}; a strict sale does without")]
    found = []
    for one in facts:
        faults = leases.arming_faults(one)
        found += [
            Check(
                not faults, f"Redis {one.version}: every win is fsynced before it is answered",
                " ".join(faults),
            ),
            Check(
                abs(one.skew_ms or 0) <= leases.CLOCK_SKEW_MS_MAX,
                f"The clocks of Redis and PostgreSQL agree within {abs(one.skew_ms or 0)} ms",
                "use NTP",
            ),
        ]  # fmt: skip
    return found


async def after(conn: db.Connection, caller: Caller, row: SaleRow) -> Settlement:
    """Return what a sale came to, from its redemptions alone, held against its counters.

    Cost: reads every redemption of the sale, under a second a million.
    """
    ledger = await db.one(
        conn, "sale_checks.ledger", _Ledger,
        project_id=caller.project_id, sale_id=row.id, voucher_id=row.voucher_id,
    )  # fmt: skip
    assert ledger is not None
    return Settlement(
        wins=ledger.live_count, rolled_back=ledger.row_count - ledger.live_count,
        customers=ledger.customer_count, first_at=ledger.first_at, last_at=ledger.last_at,
        discount=money.json_amount(ledger.discount_minor, caller.exponent),
        order_value=money.json_amount(ledger.order_value_minor, caller.exponent),
        checks=_agreed(row, ledger),
    )  # fmt: skip


def _agreed(row: SaleRow, ledger: _Ledger) -> list[Check]:
    sold = row.sold_count + row.leased_count - row.burned_count
    found = [
        Check(
            ledger.live_count == sold, f"{ledger.live_count:,} redemptions, {sold:,} counted",
            "run ./vauchflow verify",
        ),
        Check(
            ledger.number_count == ledger.row_count,
            f"{ledger.number_count:,} numbers, each given out once", "run ./vauchflow verify",
        ),
        Check(
            ledger.live_count + row.burned_count <= row.stock,
            f"{row.stock:,} units were there to be sold", "run ./vauchflow verify",
        ),
    ]  # fmt: skip
    if row.per_customer_limit is not None:
        found.append(
            Check(
                ledger.most_of_one <= row.per_customer_limit,
                f"At most {ledger.most_of_one:,} for a customer, "
                f"{row.per_customer_limit:,} allowed",
                "run ./vauchflow verify",
            )
        )  # fmt: skip
    return found
