"""Every figure equals what the ledger says, at every moment and on four different clocks."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from core import analytics, deliveries, events, ids, overviews, verify
from core.analytics import Asked
from core.endings import end
from tests.conftest import SEED
from tests.core.year import Year

pytestmark = pytest.mark.anyio

REDEMPTIONS = 12_000
BURST = 200_000
SOON_S = 5.0


async def publish(house: Any) -> None:
    while await deliveries.publish(house.worker_db):
        pass


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_every_figure_is_the_ledgers_before_while_and_after_it_is_added_up(
    house: Any,
) -> None:
    year = Year(house.owner, house.project_id, house.worker_db, house.services.database, SEED)
    await year.open()
    await year.redeem(REDEMPTIONS // 3)
    await year.roll_back(0.1)
    compared = [await year.compare()]
    assert await analytics.begin(house.worker_db) is False, "something waits to be published"
    await publish(house)
    assert await analytics.roll_up(house.worker_db) is None
    assert await analytics.begin(house.worker_db) is True
    assert await analytics.roll_up(house.worker_db) == 0
    ever = "select sum(redeemed) from vf.figures where kind = 'p' and grain_s = 0"
    assert await house.value(ever) >= REDEMPTIONS // 3
    await year.redeem(REDEMPTIONS // 3)
    await publish(house)
    await year.roll_back(0.1)
    assert await analytics.roll_up(house.worker_db), "half of it is added, the rest is not"
    compared.append(await year.compare())
    await year.redeem(REDEMPTIONS // 3)
    await publish(house)
    while await analytics.roll_up(house.worker_db):
        pass
    compared.append(await year.compare())
    assert await analytics.begin(house.worker_db) is True, "once"
    assert await verify.run(house.settings) == verify.CLEAN
    print(f"seed {SEED}: {compared} points were compared")
    assert min(compared) > 1_000
    grains = await house.owner.fetch(
        "select kind, sum(redeemed) filter (where grain_s = 0), sum(redeemed) filter (where "
        "grain_s = 900), sum(undone) filter (where grain_s = 0), "
        "sum(undone) filter (where grain_s = 900) from vf.figures group by 1"
    )
    for row in grains:
        assert (row[1], row[3]) == (row[2], row[4]), row


async def test_a_figure_that_is_not_the_ledgers_is_found_by_verify(house: Any, capsys: Any) -> None:
    await house.voucher("OFF")
    await house.redeem("OFF", "anna")
    await publish(house)
    await analytics.begin(house.worker_db)
    assert await verify.run(house.settings) == verify.CLEAN
    capsys.readouterr()
    await house.owner.execute(
        "update vf.figures set discount_minor = discount_minor + 1 where kind = 'p' and grain_s = 0"
    )
    assert await verify.run(house.settings) == verify.BROKEN
    assert "discount in minor units of prj_" in capsys.readouterr().out


async def test_two_that_add_up_at_once_add_each_event_once(house: Any) -> None:
    await house.voucher("TWICE")
    await analytics.begin(house.worker_db)
    for wave in range(5):
        await asyncio.gather(*(house.redeem("TWICE", f"c{wave}-{n}") for n in range(40)))
        await asyncio.gather(*(deliveries.publish(house.worker_db) for _ in range(3)))
        await asyncio.gather(*(analytics.roll_up(house.worker_db) for _ in range(3)))
    await publish(house)
    while await analytics.roll_up(house.worker_db):
        pass
    for kind in "pv":
        ever = "select redeemed from vf.figures where kind = $1 and grain_s = 0"
        assert await house.value(ever, kind) == 200


async def test_a_fast_sale_is_counted_by_the_second_and_soon(house: Any) -> None:
    sale_id = await house.sale("SECONDS", 300)
    await house.open_sale(sale_id)
    await asyncio.gather(*(house.claim(sale_id, f"c{n}") for n in range(300)))
    await house.until("select count(*) from vf.redemptions", 300)
    today = datetime.now(UTC).date()
    asked = Asked(from_day=today - timedelta(days=0), to_day=today, unit="second")
    started_s = time.monotonic()
    async with house.services.database.transaction(house.project_id, reads_only=True) as conn:
        seen = await overviews.overview(conn, house.caller)
        shown = await analytics.of_sale(conn, house.caller, ids.format_id("fls", sale_id), asked)
    assert time.monotonic() - started_s < 5
    assert (seen.redemptions_today, seen.top_code, seen.flash_sales.wins) == (300, "SECONDS", 300)
    rows = await house.owner.fetch(
        "select date_trunc('second', redeemed_at) as at, count(*) from vf.redemptions "
        "group by 1 order by 1"
    )
    assert [(one.at, one.redemptions) for one in shown.points] == [tuple(row) for row in rows]


async def test_fine_figures_are_forgotten_and_coarse_ones_are_kept(house: Any) -> None:
    await house.voucher("OLD")
    await house.redeem("OLD", "anna")
    await house.owner.execute("update vf.redemptions set redeemed_at = now() - interval '40 days'")
    await publish(house)
    await analytics.begin(house.worker_db)
    await analytics.forget(house.worker_db)
    left = await house.owner.fetch("select kind, grain_s from vf.figures order by 1, 2")
    assert [tuple(row) for row in left] == [("p", 0), ("p", 900), ("v", 0)]
    assert events.KEEP_DAYS < analytics.KEEP_DAYS


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_a_burst_of_wins_is_in_the_overview_soon_after_it_is_in_the_books(house: Any) -> None:
    await analytics.begin(house.worker_db)
    tasks = [
        asyncio.create_task(deliveries.publish_forever(house.worker_db)),
        asyncio.create_task(analytics.run(house.worker_db)),
    ]
    sale_id = await house.sale("BURST", BURST)
    await house.open_sale(sale_id)
    started_s = time.monotonic()
    for first in range(0, BURST, 2_000):
        await asyncio.gather(*(house.claim(sale_id, f"c{first + n}") for n in range(2_000)))
    claimed_s = time.monotonic() - started_s
    while (await house.shown(sale_id)).lag:
        await asyncio.sleep(0.05)
    settled_s = time.monotonic()
    shown = None
    while shown is None or shown.redemptions_today < BURST:
        assert time.monotonic() - settled_s < SOON_S, shown
        async with house.services.database.transaction(house.project_id, reads_only=True) as conn:
            shown = await overviews.overview(conn, house.caller)
    soon_s = time.monotonic() - settled_s
    while await house.value("select count(*) from vf.outbox"):
        await asyncio.sleep(0.05)
    while await analytics.roll_up(house.worker_db):
        pass
    added_s = time.monotonic() - settled_s
    for task in tasks:
        await end(task)
    print(
        f"{BURST} wins claimed in {claimed_s:.1f} s, in the overview {soon_s:.2f} s after the lag "
        f"was 0, added up after {added_s:.2f} s"
    )
    assert (shown.redemptions_today, shown.flash_sales.wins) == (BURST, BURST)
    ever = "select redeemed from vf.figures where kind = 's' and grain_s = 0"
    assert await house.value(ever) == BURST
