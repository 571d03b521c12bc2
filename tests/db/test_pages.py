"""A page of a list costs a page's rows, wherever it lies and whatever narrows it.

Each list statement runs as the API sends it, on a ledger that was just filled: analysed, and never
analysed. What its plan touches is counted, so a plan that walks the ledger to find a page is seen
at any size.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from bench import pages
from bench.pages import CAMPAIGNS, EXCEPTIONS, NONE, Rows
from core.db import queries
from core.settings import Settings
from tests.db.test_plans import nodes, plans_of, session

pytestmark = [pytest.mark.anyio, pytest.mark.long, pytest.mark.timeout(300)]

PROJECT, SALE = UUID(int=7), UUID(int=8)
ROWS = Rows(5_000, 60_000)
LIMIT = 21
# Rows that are read for a page of 21: itself, what is joined to it, and a little that is passed
# over. Walking 5,000 vouchers or 60,000 redemptions is far beyond.
ROWS_READ_MAX = 400
DAY = datetime(2025, 1, 2, tzinfo=UTC)


def of(number: int) -> UUID:
    return pages.uuid_of(pages.public_id("rdm", number))


VOUCHER_PAGES: dict[str, tuple[dict[str, Any], int]] = {
    "first": ({}, LIMIT),
    "middle": ({"after": of(2_500)}, LIMIT),
    "last": ({"after": of(11)}, 10),
    "of a campaign": ({"campaign_id": UUID(int=5)}, LIMIT),
    "of a campaign, last": ({"campaign_id": UUID(int=5), "after": of(300)}, 2),
    "active": ({"status": "active"}, LIMIT),
    "disabled": ({"status": "disabled"}, EXCEPTIONS),
}
REDEMPTION_PAGES: dict[str, tuple[dict[str, Any], int]] = {
    "first": ({}, LIMIT),
    "middle": ({"before": of(30_000)}, LIMIT),
    "last": ({"before": of(11)}, 10),
    "of a voucher": ({"voucher_id": of(40)}, 12),
    "of a campaign": ({"campaign_id": UUID(int=5)}, LIMIT),
    "of a sale": ({"sale_id": SALE}, 12),
    "of a customer": ({"customer_id": "fill-7"}, LIMIT),
    "of an order": ({"order_id": "order-7"}, 1),
    "rolled back": ({"status": "rolled_back"}, EXCEPTIONS),
    "of a customer, rolled back": ({"customer_id": "fill-7", "status": "rolled_back"}, 0),
    "of a day": ({"from_at": DAY, "to_at": DAY + timedelta(days=1)}, LIMIT),
    "of a minute": ({"from_at": DAY, "to_at": DAY + timedelta(minutes=1)}, 20),
    "until a day": ({"to_at": DAY}, LIMIT),
    "of before the first": ({"to_at": datetime(2024, 1, 1, tzinfo=UTC)}, 0),
}


@asynccontextmanager
async def ledger(settings: Settings, *, is_analysed: bool) -> AsyncIterator[Any]:
    async with session(settings) as raw:
        await raw.execute("SET plan_cache_mode = force_custom_plan")
        await raw.execute(
            "INSERT INTO vf.accounts (id, name, plan) VALUES ($1, 'a', 'scale')", PROJECT
        )
        await raw.execute(
            "INSERT INTO vf.projects (id, account_id, name) VALUES ($1, $1, 'p')", PROJECT
        )
        for table in ("redemptions", "vouchers", "campaigns"):
            await raw.execute(f"ALTER TABLE vf.{table} SET (autovacuum_enabled = false)")
        campaigns = [UUID(int=number) for number in range(1, CAMPAIGNS + 1)]
        for campaign in campaigns:
            await raw.execute(
                "INSERT INTO vf.campaigns (project_id, id, name) VALUES ($1, $2, 'c')",
                PROJECT,
                campaign,
            )
        await pages.fill(
            settings.database_dsn("owner"), PROJECT, campaigns, NONE, ROWS, is_analysed=is_analysed
        )
        # One old voucher was sold in a sale of its own.
        await raw.execute(
            "INSERT INTO vf.flash_sales (project_id, id, voucher_id, name, durability, stock) "
            "VALUES ($1, $2, $3, 's', 'strict', 100)",
            PROJECT,
            SALE,
            of(40),
        )
        await raw.execute(
            "UPDATE vf.redemptions SET sale_id = $1 WHERE voucher_id = $2", SALE, of(40)
        )
        yield raw


EXPIRED: dict[str, tuple[dict[str, Any], int]] = {
    "first": ({}, EXCEPTIONS),
    "middle": ({"after": of(1_000)}, EXCEPTIONS // 2),
}


async def read(
    raw: Any, name: str, params: dict[str, Any], *, is_in_order: bool
) -> tuple[list[Any], int, Any]:
    """Return the rows, how many rows the plan touched, and the plan."""
    query = queries.find(name)
    everything = dict.fromkeys(query.params) | params
    async with plans_of(raw) as plans, raw.transaction():
        await raw.execute("SET LOCAL ROLE vf_app")
        await raw.execute("SELECT set_config('app.project_id', $1, true)", str(PROJECT))
        if is_in_order:
            await raw.execute(queries.find(f"{name.partition('.')[0]}.in_order").sql)
        rows = await raw.fetch(query.sql, *(everything[param] for param in query.params))
    touched = sum(
        (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        + node.get("Rows Removed by Index Recheck", 0)
        for plan in plans
        for node in nodes(plan["Plan"])
        if node.get("Relation Name") in ("vouchers", "redemptions")
    )
    return rows, round(touched), plans


@pytest.mark.parametrize("is_analysed", [True, False], ids=["analysed", "never analysed"])
async def test_a_page_costs_a_pages_rows_wherever_it_lies(
    settings: Settings, is_analysed: bool
) -> None:
    base = {"project_id": PROJECT, "limit": LIMIT}
    costly = {}
    async with ledger(settings, is_analysed=is_analysed) as raw:
        for name, asked in (
            ("vouchers.page", VOUCHER_PAGES),
            ("redemptions.list", REDEMPTION_PAGES),
            ("vouchers.expired_ids", EXPIRED),
        ):
            for place, (params, count) in asked.items():
                is_in_order = name != "vouchers.expired_ids"
                if not is_analysed and (not is_in_order or place == "rolled back"):
                    # How many there are decides the way, and only statistics say how many.
                    continue
                rows, touched, plans = await read(raw, name, base | params, is_in_order=is_in_order)
                assert len(rows) == count, (name, place, len(rows))
                ids = [row["id"] for row in rows]
                assert ids == sorted(ids, reverse=True), (name, place)
                if touched > ROWS_READ_MAX:
                    costly[name, place] = (touched, plans)
    assert costly == {}
