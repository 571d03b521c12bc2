"""Figures of a project, from the ledger."""

from uuid import UUID

import msgspec

from core import db
from core.api_keys import Caller
from core.rules import money
from core.shapes import Amount


class FlashSaleFigures(msgspec.Struct, frozen=True):
    """Flash sales now, and what they sold in all as far as the ledger knows."""

    open: int
    scheduled: int
    wins: int


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """The project at a glance. "Today" is the project's day, in its time zone."""

    active_campaigns: int
    active_vouchers: int
    redemptions_today: int
    discounts_today: Amount
    redemptions_total: int
    top_code: str | None
    flash_sales: FlashSaleFigures
    currency: str
    time_zone: str


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """A project as its counters have it. `redemptions_total` and `sale_wins` are live ones."""

    active_campaigns: int
    active_vouchers: int
    redemptions_total: int
    sales_open: int
    sales_scheduled: int
    sale_wins: int
    time_zone: str


class _Today(msgspec.Struct, frozen=True, kw_only=True):
    redemptions: int
    discount_minor: int
    top_voucher_id: UUID | None


async def overview(conn: db.Connection, caller: Caller) -> Overview:
    """Return the overview. `top_code` is today's most redeemed code, else the most redeemed ever.

    Redemptions that were rolled back count nowhere.
    """
    counts = await counts_of(conn, caller.project_id)
    today = await db.one(conn, "analytics.today", _Today, project_id=caller.project_id)
    assert today is not None
    top_code = await db.one(
        conn, "analytics.top_code", str,
        project_id=caller.project_id, voucher_id=today.top_voucher_id,
    )  # fmt: skip
    return Overview(
        active_campaigns=counts.active_campaigns,
        active_vouchers=counts.active_vouchers,
        redemptions_today=today.redemptions,
        discounts_today=money.json_amount(today.discount_minor, caller.exponent),
        redemptions_total=counts.redemptions_total,
        top_code=top_code,
        flash_sales=FlashSaleFigures(counts.sales_open, counts.sales_scheduled, counts.sale_wins),
        currency=caller.currency,
        time_zone=counts.time_zone,
    )


async def counts_of(conn: db.Connection, project_id: UUID) -> Counts:
    """Return a project's counters; the project must be there."""
    counts = await db.one(conn, "analytics.counts", Counts, project_id=project_id)
    assert counts is not None
    return counts
