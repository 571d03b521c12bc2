"""Steering a sale: the clock's hand, pauses, growth, units that come back."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from core import events, redemptions, worker
from core.endings import end
from core.errors import Invalid, Refusal
from core.flash_sales import FlashSalePatch
from core.ids import parse_id
from core.redemptions import Redemption

pytestmark = pytest.mark.anyio
MODES = pytest.mark.parametrize("durability", ["fast", "strict"])


def outcome(answer: Any) -> str:
    return "won" if isinstance(answer, Redemption) else str(answer.code)


async def answered(house: Any, ask: Any) -> Any:
    """Ask until the answer is one about the sale; not applied is asked again."""
    for _ in range(100):
        answer = await ask()
        if outcome(answer) not in ("unavailable", "overloaded"):
            return answer
        await asyncio.sleep(0.05)
    raise AssertionError("no answer within five seconds")


@MODES
async def test_a_sale_opens_at_its_start_and_closes_at_its_end_by_itself(
    house: Any, durability: str
) -> None:
    start = datetime.now(UTC) + timedelta(seconds=1.5)
    end = start + timedelta(seconds=2)
    sale = await house.sale("CLOCK", 10, durability=durability, starts_at=start, ends_at=end)
    await worker.look(house.clock)
    await asyncio.sleep(0.4)
    early = await answered(house, lambda: house.claim(sale, "a"))
    assert outcome(early) == "not_started"
    assert (await house.shown(sale)).status == "scheduled"
    await asyncio.sleep((start - datetime.now(UTC)).total_seconds() + 0.05)
    await worker.look(house.clock)
    assert outcome(await answered(house, lambda: house.claim(sale, "b"))) == "won"
    assert (await house.shown(sale)).status == "open"
    await asyncio.sleep((end - datetime.now(UTC)).total_seconds() + 0.05)
    assert outcome(await answered(house, lambda: house.claim(sale, "c"))) == "ended"
    await worker.look(house.clock)
    await house.until("select status from vf.flash_sales", "settled")
    assert outcome(await answered(house, lambda: house.claim(sale, "d"))) == "ended"
    assert await house.value("select count(*) from vf.redemptions") == 1
    assert await house.value("select direct_count + leased_count from vf.vouchers") == 1


@MODES
async def test_a_paused_sale_sells_nothing_and_goes_on_when_opened(
    house: Any, durability: str
) -> None:
    sale = await house.sale("PAUSE", 5, durability=durability)
    await house.open_sale(sale)
    won = await house.claim(sale, "a", key="k")
    assert outcome(won) == "won"
    assert await house.doors.desk.pause(house.project_id, sale) is None
    assert outcome(await answered(house, lambda: house.claim(sale, "b"))) == "paused"
    assert await answered(house, lambda: house.claim(sale, "a", key="k")) == won
    assert (await house.shown(sale)).status == "paused"
    await house.open_sale(sale)
    assert outcome(await answered(house, lambda: house.claim(sale, "b"))) == "won"


@MODES
async def test_a_retry_gets_its_win_in_the_moment_of_the_sell_out(
    house: Any, durability: str
) -> None:
    sale = await house.sale("LAST", 1, durability=durability)
    await house.open_sale(sale)
    won = await house.claim(sale, "a", key="k")
    assert outcome(won) == "won"
    assert outcome(await house.claim(sale, "b")) == "sold_out"
    assert await house.claim(sale, "a", key="k") == won
    assert outcome(await house.claim(sale, "b")) == "sold_out"


async def test_a_key_that_was_answered_before_the_sale_is_answered_alike_in_it(
    house: Any,
) -> None:
    await house.voucher("BEFORE", max_redemptions=5)
    first = await house.redeem("BEFORE", "a", key="k")
    assert outcome(first) == "won"
    sale = await house.sale("BEFORE", 3, voucher="BEFORE")
    await house.open_sale(sale)
    again = await house.redeem("BEFORE", "a", key="k")
    assert (outcome(again), again.redemption_id) == ("won", first.redemption_id)
    assert outcome(await house.redeem("BEFORE", "b", key="other")) == "won"
    assert await house.value("select leased_count from vf.vouchers") == 3


@MODES
async def test_more_stock_reopens_a_sold_out_sale(house: Any, durability: str) -> None:
    sale = await house.sale("GROW", 2, durability=durability)
    await house.open_sale(sale)
    for n in range(2):
        assert outcome(await house.claim(sale, f"c{n}")) == "won"
    assert outcome(await house.claim(sale, "c2")) == "sold_out"
    await asyncio.sleep(0.5)
    desk = house.doors.desk
    with pytest.raises(Invalid):
        await desk.patch(house.project_id, sale, FlashSalePatch(stock=1))
    assert await desk.patch(house.project_id, sale, FlashSalePatch(stock=5)) is None
    await asyncio.sleep(0.3)
    answers = [await answered(house, lambda n=n: house.claim(sale, f"d{n}")) for n in range(5)]
    assert [outcome(a) for a in answers] == ["won"] * 3 + ["sold_out"] * 2
    await house.until("select count(*) from vf.redemptions", 5)


@MODES
async def test_a_unit_that_was_given_back_is_sold_again_once(house: Any, durability: str) -> None:
    sale = await house.sale("BACK", 3, durability=durability, per_customer_limit=1)
    await house.open_sale(sale)
    wins = [await house.claim(sale, f"c{n}", key=f"k{n}") for n in range(3)]
    assert outcome(await house.claim(sale, "late")) == "sold_out"
    await house.until("select count(*) from vf.redemptions", 3)
    back = parse_id("rdm", wins[1].redemption_id)
    async with house.services.database.transaction(house.project_id) as conn:
        done = await redemptions.roll_back(conn, house.caller, back, "a test")
    assert isinstance(done, redemptions.RolledBack)
    await house.doors.desk.leases.give_back(house.project_id, back, done)
    async with house.services.database.transaction(house.project_id) as conn:
        again = await redemptions.roll_back(conn, house.caller, back, None)
    assert isinstance(again, Refusal)
    assert again.code == "already_rolled_back"
    await asyncio.sleep(0.4)
    assert outcome(await answered(house, lambda: house.claim(sale, "c0"))) == (
        "customer_limit_reached"
    )
    first = await answered(house, lambda: house.claim(sale, "c1"))
    assert outcome(first) == "won"
    assert outcome(await answered(house, lambda: house.claim(sale, "c9"))) == "sold_out"
    await house.until("select count(*) from vf.redemptions", 4)
    live = "select count(*) from vf.redemptions where status = 'redeemed'"
    assert await house.value(live) == 3
    shown = await house.shown(sale)
    assert (shown.claimed, shown.settled, shown.remaining) == (3, 3, 0)


async def test_a_win_that_is_not_in_the_ledger_yet_says_so(house: Any) -> None:
    sale = await house.sale("SOON", 3)
    await house.open_sale(sale)
    await house.stop_reconciler()
    won = await house.claim(sale, "a")
    win = parse_id("rdm", won.redemption_id)
    answer = await redemptions.read(house.services.database, house.caller, win)
    assert isinstance(answer, Refusal)
    assert answer.code == "not_settled_yet"


async def test_two_reconcilers_settle_every_win_once(house: Any) -> None:
    from core.reconciler import Reconciler

    sale = await house.sale("TWO", 500)
    await house.open_sale(sale)
    other = Reconciler(house.worker_db, house.worker_redis, house.settings)
    task = asyncio.create_task(other.run())
    answers = await asyncio.gather(*(house.claim(sale, f"c{n}") for n in range(500)))
    assert {outcome(a) for a in answers} == {"won"}
    await house.until("select count(*) from vf.redemptions", 500)
    assert await house.value("select inserted_count from vf.lease_progress") == 500
    assert await house.value("select count(*) from vf.quarantine") == 0
    await end(task)
    await other.stop()


async def test_a_fast_sale_tells_what_becomes_of_it_and_every_win_once(house: Any) -> None:
    sale_id = await house.sale("TOLD", 40)
    await house.open_sale(sale_id)
    won = await asyncio.gather(*(house.claim(sale_id, f"c{n}") for n in range(40)))
    await house.until("select count(*) from vf.redemptions", 40)
    for _ in range(2):
        await events.tell_what_time_brings(house.worker_db)
    await house.doors.desk.close(house.project_id, sale_id)
    await house.until("select status from vf.flash_sales", "settled")
    assert await house.value("select count(*) from vf.outbox") < 20
    async with house.worker_db.transaction(None) as conn:
        await events.publish(conn)
    async with house.services.database.transaction(house.project_id, reads_only=True) as conn:
        found = await events.page(conn, house.caller, type=None, after=None, limit=100)
        lease_id = await house.value("select id from vf.leases")
        shown = msgspec.json.encode(found).decode()
    assert str(lease_id) not in shown and "lease" not in shown
    names = [one.type for one in reversed(found) if one.type != "voucher.redeemed"]
    assert names == [
        f"flash_sale.{name}" for name in ("opened", "sold_out", "closed", "settled")
    ]  # fmt: skip
    told = [one.data["redemption_id"] for one in found if one.type == "voucher.redeemed"]
    assert sorted(told) == sorted(one.redemption_id for one in won)
    assert await house.value("select count(*) from vf.events where type = 'voucher.redeemed'") < 40
