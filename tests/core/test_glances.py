"""What a start page shows is what the figures say, and the ledger, whatever is added up already."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from core import analytics, deliveries, glances
from core.analytics import Asked
from tests.conftest import SEED
from tests.core.year import Year

pytestmark = pytest.mark.anyio

ZONE = "Asia/Kolkata"
DAYS = 30


async def compared(house: Any) -> glances.Glance:
    """Hold a glance against what the API answers, figure by figure."""
    async with house.services.database.transaction(house.project_id, reads_only=True) as conn:
        seen = await glances.glance(conn, house.caller, DAYS, "day", ZONE)
        weeks = await glances.glance(conn, house.caller, 90, "week", ZONE)
        watched = await glances.watch(conn, house.caller, ZONE)
        now = await analytics.now_of(conn, house.project_id)
        asked = Asked(time_zone=ZONE)
        days = await analytics.of_project(conn, house.caller, asked)
        asked = msgspec.structs.replace(asked, unit="minute", from_day=yesterday())
        minutes = await analytics.of_project(conn, house.caller, asked)
    assert seen.series == days
    today = seen.today
    assert watched == today == weeks.today
    assert (today.redemptions_total, today.top_code) == (now.redemptions_total, now.top_code)
    sums = [(one.at, one.redemptions, one.redeemed, one.rolled_back) for one in today.minutes]
    assert sums == [(one.at, one.redemptions, one.redeemed, one.rolled_back) for one in
                    minutes.points]  # fmt: skip
    this_day = [one for one in days.points if one.at == days_begin()]
    assert today.redemptions == sum(one.redemptions for one in this_day)
    assert all(one.at.astimezone(UTC).weekday() == 6 for one in weeks.series.points)
    return seen


def days_begin() -> datetime:
    # Half past six in the evening of the day before, in UTC.
    shift = timedelta(hours=5, minutes=30)
    return (datetime.now(UTC) + shift).replace(hour=0, minute=0, second=0, microsecond=0) - shift


def yesterday() -> Any:
    return (days_begin() + timedelta(hours=5, minutes=30)).date() - timedelta(days=1)


async def test_a_glance_is_of_the_ledger_before_while_and_after_it_is_added_up(house: Any) -> None:
    await house.owner.execute("UPDATE vf.projects SET time_zone = $1", ZONE)
    year = Year(house.owner, house.project_id, house.worker_db, house.services.database, SEED)
    await year.open()
    await year.redeem(400)
    await year.roll_back(0.1)
    await house.voucher("TODAY", max_redemptions=9)
    for n in range(5):
        await house.redeem("TODAY", f"c{n}")
    first = await compared(house)
    assert first.today.top_code == "TODAY" and first.today.redemptions >= 5
    while await deliveries.publish(house.worker_db):
        pass
    assert await analytics.begin(house.worker_db) is True
    await house.redeem("TODAY", "last")
    second = await compared(house)
    assert second.today.redemptions_total == first.today.redemptions_total + 1
    while await deliveries.publish(house.worker_db):
        pass
    while await analytics.roll_up(house.worker_db):
        pass
    assert await compared(house) == second
