"""Redeeming, in PostgreSQL and through a lease: what is answered, and what the ledger has then."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from core.errors import IdempotencyMismatch, Invalid, NotFound, Refusal
from core.redemptions import Redemption

pytestmark = pytest.mark.anyio


def outcome(answer: Any) -> str:
    return "won" if isinstance(answer, Redemption) else str(answer.code)


async def test_a_percentage_is_taken_to_the_cent_and_counted_once(house: Any) -> None:
    voucher = await house.voucher("SAVE20", max_redemptions=500)
    answer = await house.redeem("save20", "cust_xyz")
    assert isinstance(answer, Redemption)
    assert bytes(answer.discount_applied) == b"18.00"
    assert (answer.status, answer.remaining, answer.seq) == ("redeemed", 499, 1)
    assert await house.value("select direct_count from vf.vouchers where id = $1", voucher) == 1
    assert await house.value("select count(*) from vf.redemptions") == 1


async def test_400_concurrent_redeems_of_50_win_exactly_50(house: Any) -> None:
    await house.voucher("FIFTY", max_redemptions=50)
    answers = await asyncio.gather(*(house.redeem("FIFTY", f"c{n}") for n in range(400)))
    assert Counter(map(outcome, answers)) == {"won": 50, "limit_reached": 350}
    assert await house.value("select count(*) from vf.redemptions") == 50
    assert await house.value("select count(distinct seq) from vf.redemptions") == 50
    assert sorted(a.seq for a in answers if isinstance(a, Redemption)) == list(range(1, 51))


async def test_a_customer_never_redeems_beyond_the_limit(house: Any) -> None:
    await house.voucher("TWICE", per_customer_limit=2)
    answers = await asyncio.gather(*(house.redeem("TWICE", f"c{n % 20}") for n in range(200)))
    assert Counter(map(outcome, answers)) == {"won": 40, "customer_limit_reached": 160}
    refused = next(a for a in answers if isinstance(a, Refusal))
    assert refused.extra["redemption_id"].startswith("rdm_")
    assert await house.value("select max(live_count) from vf.customer_counts") == 2
    assert isinstance(await house.redeem("TWICE"), Invalid)


async def test_a_campaign_limit_holds_over_many_single_use_codes(house: Any) -> None:
    campaign = await house.campaign(max_redemptions=30, per_customer_limit=3)
    for n in range(60):
        await house.voucher(f"ONE{n}", campaign_id=campaign, max_redemptions=1)
    answers = await asyncio.gather(*(house.redeem(f"ONE{n}", f"c{n % 12}") for n in range(60)))
    wins = [a for a in answers if isinstance(a, Redemption)]
    assert len(wins) == 30
    assert await house.value("select direct_count from vf.campaigns") == 30
    assert await house.value("select max(live_count) from vf.customer_counts") <= 3
    assert await house.value("select sum(direct_count) from vf.vouchers") == 30
    assert {outcome(a) for a in answers} <= {"won", "limit_reached", "customer_limit_reached"}


async def test_a_retry_gets_its_own_redemption_before_and_after_the_limit(house: Any) -> None:
    await house.voucher("LAST", max_redemptions=1)
    first = await house.redeem("LAST", "c1", key="k1")
    again = await house.redeem("LAST", "c1", key="k1")
    assert isinstance(first, Redemption)
    assert again == first
    assert outcome(await house.redeem("LAST", "c2", key="k2")) == "limit_reached"
    assert await house.redeem("LAST", "c1", key="k1") == first
    await asyncio.sleep(0.6)  # by now the crowd is answered from Redis
    assert await house.redeem("LAST", "c1", key="k1") == first
    assert isinstance(await house.redeem("LAST", "c9", key="k1"), IdempotencyMismatch)
    assert outcome(await house.redeem("LAST", "c3")) == "limit_reached"
    assert await house.value("select count(*) from vf.redemptions") == 1


async def test_an_unknown_code_is_not_found_and_changed_terms_are_repriced(house: Any) -> None:
    assert isinstance(await house.redeem("NOPE"), NotFound)
    voucher = await house.voucher("EDIT")
    first = await house.redeem("EDIT")
    await house.owner.execute(
        "update vf.vouchers set discount_bp = 5000, terms_version = 2 where id = $1",
        voucher,
    )
    second = await house.redeem("EDIT")
    assert [bytes(a.discount_applied) for a in (first, second)] == [b"18.00", b"45.00"]
    await house.owner.execute("update vf.vouchers set status = 'disabled' where id = $1", voucher)
    assert outcome(await house.redeem("EDIT")) == "voucher_inactive"


@pytest.mark.parametrize("durability", ["fast", "strict"])
@pytest.mark.parametrize("door", ["redeem", "claim"])
async def test_a_sale_sells_exactly_its_stock(house: Any, durability: str, door: str) -> None:
    sale = await house.sale("DROP1", 300, durability=durability, per_customer_limit=1)
    refused = await house.claim(sale, "early")
    assert outcome(refused) == "not_started"
    assert outcome(await house.redeem("DROP1", "early")) == "not_started"
    await house.open_sale(sale)

    async def ask(n: int) -> Any:
        if door == "claim":
            return await house.claim(sale, f"c{n}", key=f"k{n}")
        return await house.redeem("DROP1", f"c{n}", key=f"k{n}")

    answers = await asyncio.gather(*(ask(n) for n in range(900)))
    assert Counter(map(outcome, answers)) == {"won": 300, "sold_out": 600}
    wins = {n: a for n, a in enumerate(answers) if isinstance(a, Redemption)}
    assert {a.seq for a in wins.values()} == set(range(1, 301))
    await house.until("select count(*) from vf.redemptions", 300)
    assert await house.value("select count(distinct (lease_id, seq)) from vf.redemptions") == 300
    stored = dict(await house.owner.fetch("select idempotency_key, id from vf.redemptions"))
    from core import ids

    for n, win in wins.items():
        assert ids.format_id("rdm", stored[f"k{n}"]) == win.redemption_id
        again = await ask(n)
        assert again == win
    shown = await house.shown(sale)
    assert (shown.status, shown.claimed, shown.settled, shown.lag, shown.remaining) == (
        "sold_out", 300, 300, 0, 0,
    )  # fmt: skip
    await house.doors.desk.close(house.project_id, sale)
    await house.until("select status from vf.flash_sales", "settled")
    first = next(iter(wins))
    assert await ask(first) == wins[first]
    assert outcome(await house.claim(sale, "late")) == "ended"
    assert outcome(await house.redeem("DROP1", "late")) == "ended"
    assert await house.value("select count(*) from vf.redemptions") == 300


async def test_what_a_closed_sale_did_not_sell_returns_to_the_voucher(house: Any) -> None:
    await house.voucher("KEEP", max_redemptions=100)
    before = await house.redeem("KEEP", "first")
    assert isinstance(before, Redemption)
    assert before.seq == 1
    sale = await house.sale("KEEP", 50, voucher="KEEP")
    await house.open_sale(sale)
    for n in range(10):
        assert outcome(await house.redeem("KEEP", f"c{n}")) == "won"
    row = "select direct_count, leased_count, authority from vf.vouchers"
    assert tuple(await house.owner.fetchrow(row)) == (1, 50, "flash")
    await house.doors.desk.close(house.project_id, sale)
    await house.until("select status from vf.flash_sales", "settled")
    assert tuple(await house.owner.fetchrow(row)) == (1, 10, "pg")
    after = await house.redeem("KEEP", "after")
    assert isinstance(after, Redemption)
    assert after.remaining == 88
    assert await house.value("select count(*) from vf.redemptions") == 12


async def test_one_customer_in_400_tabs_redeems_once(house: Any) -> None:
    await house.voucher("TABS", max_redemptions=100, per_customer_limit=1)
    answers = await asyncio.gather(*(house.redeem("TABS", "same", key=f"k{n}") for n in range(400)))
    assert Counter(map(outcome, answers)) == {"won": 1, "customer_limit_reached": 399}
    won = next(a for a in answers if isinstance(a, Redemption))
    named = {a.extra["redemption_id"] for a in answers if isinstance(a, Refusal)}
    assert named == {won.redemption_id}


async def test_400_retries_of_one_key_are_one_redemption(house: Any) -> None:
    await house.voucher("RETRY", max_redemptions=100)
    answers = await asyncio.gather(*(house.redeem("RETRY", "c", key="k") for _ in range(400)))
    assert {a.redemption_id for a in answers} == {answers[0].redemption_id}
    other = await asyncio.gather(
        house.redeem("RETRY", "c", key="k2"), house.redeem("RETRY", "d", key="k2")
    )
    assert sorted(map(outcome, other)) == ["idempotency_mismatch", "won"]
    assert await house.value("select count(*) from vf.redemptions") == 2


async def test_a_sold_out_voucher_says_so_to_customers_that_hold_none_of_it(house: Any) -> None:
    await house.voucher("FEW", max_redemptions=1, per_customer_limit=1)
    answers = await asyncio.gather(
        house.redeem("FEW", "a"), house.redeem("FEW", "b"), house.redeem("FEW", "b")
    )
    assert [outcome(a) for a in answers] == ["won", "limit_reached", "limit_reached"]


async def test_an_unreadable_win_goes_to_quarantine_and_the_rest_goes_on(house: Any) -> None:
    sale = await house.sale("DROP", 100)
    await house.open_sale(sale)
    first = await house.claim(sale, "a")
    assert isinstance(first, Redemption)
    await house.until("select count(*) from vf.redemptions", 1)
    lease = str(await house.value("select id from vf.leases"))
    await house.doors.redis.hset(f"vf:{{{lease}}}:s", "issued", 3)
    await house.doors.redis.xadd(f"vf:{{{lease}}}:x", {"f": "2", "t": "x", "r": "1", "d": b"?"})
    second = await house.claim(sale, "b")
    assert isinstance(second, Redemption)
    assert second.seq == 4
    await house.until("select count(*) from vf.redemptions", 2)
    rows = await house.owner.fetch("select seq, reason from vf.quarantine order by seq")
    assert [tuple(row) for row in rows] == [(2, "unreadable"), (3, "unreadable")]
    progress = "select read_count, inserted_count, quarantined_count from vf.lease_progress"
    assert tuple(await house.owner.fetchrow(progress)) == (4, 2, 2)
