"""Redeems of many vouchers share flights, and each is decided as if it had flown alone."""

import asyncio
from collections import Counter
from uuid import UUID

import pytest

from core import ids
from core.db import CheckViolation
from core.errors import Refusal
from core.redemptions import Redemption
from core.shared_commits import FLIGHTS_MAX, Ask, SharedCommits, starts_of
from tests.core.conftest import House

pytestmark = pytest.mark.anyio


def an_ask(
    house: House, voucher: UUID, key: str, *, value: int = 8_999, customer: str = "c"
) -> Ask:
    number = ids.new()
    return Ask(
        project_id=house.project_id, voucher_id=voucher, version=1, campaign_id=None,
        campaign_version=None, sale_id=None, id=number, key=key, fingerprint=key.encode(),
        customer_id=customer, order_value_minor=value, discount_minor=0, order_id=None,
        metadata=None,
    )  # fmt: skip


async def test_many_vouchers_at_once_are_a_few_commits_and_each_gets_its_own_answer(
    house: House,
) -> None:
    for number in range(60):
        await house.voucher(f"V{number}", max_redemptions=1, per_customer_limit=1)
    await house.owner.execute("update vf.vouchers set status = 'disabled' where code = 'V7'")
    asked = [(f"V{n}", f"cus_{n}_{turn}") for n in range(60) for turn in range(2)]
    before = house.doors._commits.commits
    told = await asyncio.gather(*(house.redeem(code, who, who) for code, who in asked))
    assert house.doors._commits.commits - before <= 2 * FLIGHTS_MAX
    found = Counter(one.code if isinstance(one, Refusal) else "redeemed" for one in told)
    assert found == {"redeemed": 59, "limit_reached": 59, "voucher_inactive": 2}
    won = {one.code for one in told if isinstance(one, Redemption)}
    assert won == {f"V{n}" for n in range(60)} - {"V7"}
    assert all(one.seq == 1 and one.remaining == 0 for one in told if isinstance(one, Redemption))
    assert await house.value("select count(*) from vf.redemptions") == 59
    assert await house.value("select sum(direct_count) from vf.vouchers") == 59
    # The first again, all at once: nobody gets a second unit, everybody the first answer.
    again = await asyncio.gather(*(house.redeem(code, who, who) for code, who in asked[::2]))
    assert [one for one in again if isinstance(one, Redemption)] == [
        one for one in told[::2] if isinstance(one, Redemption)
    ]


async def test_one_request_that_breaks_a_flight_harms_none_of_the_other_vouchers(
    house: House,
) -> None:
    vouchers = [await house.voucher(f"P{number}") for number in range(20)]
    commits: SharedCommits = house.doors._commits
    asks = [
        an_ask(house, voucher, f"k{number}", value=-1 if number == 11 else 8_999)
        for number, voucher in enumerate(vouchers)
    ]
    told = await asyncio.gather(*map(commits.submit, asks), return_exceptions=True)
    assert isinstance(told.pop(11), CheckViolation)
    assert {getattr(one, "outcome", one) for one in told} == {"redeemed"}
    assert await house.value("select count(*) from vf.redemptions") == 19


async def test_two_processes_that_share_vouchers_never_wait_for_each_other_in_a_circle(
    house: House,
) -> None:
    vouchers = [await house.voucher(f"D{number}") for number in range(40)]
    other = SharedCommits(house.doors._commit_database)
    rounds = []
    for turn in range(10):
        mine = [an_ask(house, voucher, f"a{turn}{n}") for n, voucher in enumerate(vouchers)]
        theirs = [an_ask(house, voucher, f"b{turn}{n}") for n, voucher in enumerate(vouchers)]
        flying = [*map(house.doors._commits.submit, mine)]
        flying += map(other.submit, reversed(theirs))
        rounds += await asyncio.gather(*flying)
    assert {decision.outcome for decision in rounds} == {"redeemed"}
    assert await house.value("select count(*) from vf.redemptions") == 800
    assert await house.value("select count(*) from vf.vouchers where next_number = 21") == 40


def test_lots_are_cut_where_one_ends_and_the_next_begins() -> None:
    assert starts_of([2, 3, 1]) == [1, 3, 6]
