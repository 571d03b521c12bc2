"""The project at a glance, and the counts of its vouchers, which the worker keeps.

A statement that makes or changes vouchers writes down by how many there are more or fewer; a redeem
writes nothing. What the worker has not counted yet is added as the overview is read, so that it is
exact at every moment, and costs the same however many vouchers there are.
"""

import asyncio
from typing import Final
from uuid import UUID

import msgspec
import structlog

from core import analytics, db
from core.api_keys import Caller
from core.errors import OutcomeUnknown, Unavailable
from core.rules import money
from core.shapes import Amount

LOOK_S: Final = 0.5
# A few ms; each is the work of one statement that made or changed vouchers.
CHANGES_MAX: Final = 20_000
# Time runs out without a change: so often somebody looks, and who reads meanwhile counts the rest.
PAUSE_S: Final = 10
# Every voucher is read once, some seconds a million.
BEGIN_TIMEOUT_MS: Final = 600_000
# A million vouchers whose time is over at one instant are counted in one go.
COUNT_TIMEOUT_MS: Final = 60_000

_log = structlog.get_logger("vauchflow.overviews")


class FlashSaleFigures(msgspec.Struct, frozen=True):
    """Flash sales now, and what they sold in all as far as the ledger knows."""

    open: int
    scheduled: int
    wins: int


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """The project at a glance. "Today" is the project's day, in its time zone.

    A voucher is active, disabled, or expired: active, and its own time is over.
    """

    active_campaigns: int
    active_vouchers: int
    disabled_vouchers: int
    expired_vouchers: int
    redemptions_today: int
    discounts_today: Amount
    redemptions_total: int
    top_code: str | None
    flash_sales: FlashSaleFigures
    currency: str
    time_zone: str


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """A project as its counters have it. `sale_wins` are live ones."""

    active_campaigns: int
    active_vouchers: int
    disabled_vouchers: int
    expired_vouchers: int
    sales_open: int
    sales_scheduled: int
    sale_wins: int
    time_zone: str


async def overview(conn: db.Connection, caller: Caller) -> Overview:
    """Return the overview. `top_code` is today's most redeemed code, else the most redeemed ever.

    Redemptions that were rolled back count nowhere.
    """
    counts = await counts_of(conn, caller.project_id)
    now = await analytics.now_of(conn, caller.project_id)
    return Overview(
        active_campaigns=counts.active_campaigns,
        active_vouchers=counts.active_vouchers,
        disabled_vouchers=counts.disabled_vouchers,
        expired_vouchers=counts.expired_vouchers,
        redemptions_today=now.redemptions_today,
        discounts_today=money.json_amount(now.discount_today_minor, caller.exponent),
        redemptions_total=now.redemptions_total,
        top_code=now.top_code,
        flash_sales=FlashSaleFigures(counts.sales_open, counts.sales_scheduled, counts.sale_wins),
        currency=caller.currency,
        time_zone=counts.time_zone,
    )


async def counts_of(conn: db.Connection, project_id: UUID) -> Counts:
    """Return a project's counters; the project must be there."""
    counts = await db.one(conn, "overviews.counts", Counts, project_id=project_id)
    assert counts is not None
    return counts


async def count_vouchers(database: db.Database, pause_s: int = PAUSE_S) -> int | None:
    """Count the next changes of vouchers; return how many, None before counting has begun."""
    async with database.transaction(None, statement_timeout_ms=COUNT_TIMEOUT_MS) as conn:
        return await db.value(
            conn, "overviews.count_vouchers", int | None,  # type: ignore[arg-type]
            rows_max=CHANGES_MAX, pause_s=pause_s,
        )  # fmt: skip


async def begin(database: db.Database) -> None:
    """Count every voucher there is, once."""
    async with database.transaction(
        None, isolation="repeatable read", statement_timeout_ms=BEGIN_TIMEOUT_MS
    ) as conn:
        await db.value(conn, "overviews.begin", bool)


async def run(database: db.Database) -> None:
    """Keep the counts until cancelled. Several workers may run it; one at a time does."""
    while True:
        counted: int | None = 0
        try:
            counted = await count_vouchers(database)
            if counted is None:
                await begin(database)
        except (Unavailable, OutcomeUnknown) as error:
            _log.warning("counts_wait", error=str(error))
        except Exception:
            _log.exception("counts_broken")
        if not counted:
            await asyncio.sleep(LOOK_S)
