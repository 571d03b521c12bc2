"""Every limit and budget is reached exactly under concurrency, and nothing is half taken."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from uuid import UUID

import msgspec
import pytest

from core import checkouts, holds, ids
from core.errors import Refusal, Unavailable
from core.idempotency import Refused
from core.redemptions import NewRedemption, Redemption
from tests.core.conftest import House

pytestmark = pytest.mark.anyio

CLIENTS = 64
# Three rounds with every change, twenty when there is time.
ROUNDS = pytest.mark.parametrize("rounds", [3, pytest.param(20, marks=pytest.mark.long)])


def promotion(*budgets: dict[str, Any]) -> str:
    return msgspec.json.encode({"budgets": budgets, "time_zone": "Europe/Berlin"}).decode()


def code_of(answer: object) -> str:
    return answer.code if isinstance(answer, Refusal) else type(answer).__name__


async def surely(ask: Callable[[], Awaitable[Any]]) -> Any:
    """Ask until there is an answer: who is told that nothing was applied asks again."""
    while True:
        try:
            answer = await ask()
        except Unavailable as fault:
            answer = fault
        if not isinstance(answer, Unavailable):
            return answer
        await asyncio.sleep(random.uniform(0.02, 0.2))


async def ask(house: House, codes: list[str], customers: list[str | None]) -> Counter[str]:
    answers = await asyncio.gather(
        *(
            surely(partial(house.redeem, codes[n % len(codes)], customers[n % len(customers)]))
            for n in range(CLIENTS)
        )
    )
    return Counter(code_of(answer) for answer in answers)


async def live(house: House, column: str, scope: UUID) -> int:
    return int(
        await house.value(
            f"select coalesce(sum({column}), 0)::bigint from vf.redemptions "
            "where status = 'redeemed' and (voucher_id = $1 or campaign_id = $1)",
            scope,
        )
    )


KINDS: list[tuple[dict[str, Any], str, str, int]] = [
    ({"of": "redemptions", "max": 20, "period": "day"}, "1", "limit_reached", 20),
    ({"of": "redemptions", "max": 20}, "1", "limit_reached", 20),
    ({"of": "discount", "max": 36_001}, "discount_minor", "budget_reached", 36_000),
    ({"of": "discount", "max": 36_000, "period": "week"}, "discount_minor", "budget_reached",
     36_000),
    ({"of": "order_value", "max": 89_990, "period": "month"}, "order_value_minor",
     "budget_reached", 89_990),
]  # fmt: skip


@pytest.mark.parametrize(("budget", "column", "refusal", "reached"), KINDS)
@ROUNDS
async def test_a_budget_of_a_voucher_is_reached_exactly_and_never_exceeded(
    rounds: int, house: House, budget: dict[str, Any], column: str, refusal: str, reached: int
) -> None:
    for round_ in range(rounds):
        code = f"ROUND{round_}"
        voucher = await house.voucher(code, promotion=promotion(budget))
        counted = await ask(house, [code], ["anna", "bob", "carl"])
        unit = {"1": 1, "discount_minor": 1800, "order_value_minor": 8999}[column]
        assert counted == {"Redemption": reached // unit, refusal: CLIENTS - reached // unit}
        assert await live(house, column, voucher) == reached
        assert await house.value("select used from vf.budgets where scope_id = $1", voucher) == (
            reached
        )


@ROUNDS
async def test_a_campaign_s_budget_is_shared_by_its_codes_to_the_last_unit(
    rounds: int, house: House
) -> None:
    for round_ in range(rounds):
        campaign = await house.campaign(
            promotion=promotion({"of": "discount", "max": 20_000}), max_redemptions=50
        )
        codes = [f"C{round_}-{n}" for n in range(8)]
        for code in codes:
            await house.voucher(code, campaign_id=campaign, max_redemptions=3)
        counted = await ask(house, codes, ["anna"])
        assert counted["Redemption"] == 11
        assert await live(house, "discount_minor", campaign) == 11 * 1800
        assert set(counted) <= {"Redemption", "budget_reached", "limit_reached"}


@ROUNDS
async def test_a_customer_s_share_of_a_period_is_the_customer_s_own(
    rounds: int, house: House
) -> None:
    for round_ in range(rounds):
        code = f"DAILY{round_}"
        budget = {"of": "redemptions", "per": "customer", "period": "day", "max": 3}
        voucher = await house.voucher(code, promotion=promotion(budget))
        counted = await ask(house, [code], ["anna", "bob", "carl", "dora"])
        assert counted == {"Redemption": 12, "customer_limit_reached": CLIENTS - 12}
        assert (
            await house.value("select max(used) from vf.budgets where scope_id = $1", voucher) == 3
        )


@ROUNDS
async def test_a_plain_limit_beside_a_rule_is_reached_exactly(rounds: int, house: House) -> None:
    rule = {"conditions": {"fact": "order.value", "is": "at_least", "value": 1}}
    rich = msgspec.json.encode(rule).decode()
    for round_ in range(rounds):
        code = f"PLAIN{round_}"
        voucher = await house.voucher(
            code, promotion=rich, max_redemptions=10, per_customer_limit=4
        )
        counted = await ask(house, [code], ["anna", "bob", "carl", "dora"])
        assert counted["Redemption"] == 10
        assert (
            await house.value("select direct_count from vf.vouchers where id = $1", voucher) == 10
        )
        most = "select max(live_count) from vf.customer_counts where scope_id = $1"
        assert await house.value(most, voucher) <= 4


async def test_one_key_redeems_once_however_often_it_is_sent_at_once(house: House) -> None:
    await house.voucher("ONCE", promotion=promotion({"of": "redemptions", "max": 5}))
    answers = await asyncio.gather(
        *(surely(partial(house.redeem, "ONCE", "anna", "key-1")) for _ in range(16))
    )
    assert all(isinstance(answer, Redemption) for answer in answers)
    assert len({msgspec.json.encode(answer) for answer in answers}) == 1
    assert await house.value("select used from vf.budgets") == 1


async def test_of_concurrent_rollbacks_one_gives_back(house: House) -> None:
    await house.voucher("BACK", promotion=promotion({"of": "discount", "max": 1800}))
    told = await house.redeem("BACK", "anna")
    assert isinstance(told, Redemption)
    assert code_of(await house.redeem("BACK", "anna")) == "budget_reached"
    row = await house.value("select id from vf.redemptions")
    sql = "select outcome from vf.roll_back($1, $2, null, interval '30 minutes')"

    async def roll_back() -> str:
        async with house.services.database.transaction(house.project_id) as conn:
            return str((await conn.fetch(sql, (house.project_id, row)))[0]["outcome"])

    outcomes = Counter(await asyncio.gather(*(roll_back() for _ in range(8))))
    assert outcomes == {"rolled_back": 1, "already_rolled_back": 7}
    assert await house.value("select used from vf.budgets") == 0
    assert isinstance(await house.redeem("BACK", "anna"), Redemption)


async def held(house: House, code: str, customer: str, hold_s: int = 60) -> UUID | Refusal:
    new = NewRedemption(customer_id=customer, order_value=msgspec.Raw(b"89.99"))
    async with house.services.database.transaction(house.project_id) as conn:
        return await checkouts.hold(conn, house.caller, new, code=code, hold_s=hold_s)


@ROUNDS
async def test_holds_and_redeems_together_take_exactly_what_there_is(
    rounds: int, house: House
) -> None:
    for round_ in range(rounds):
        code = f"HELD{round_}"
        voucher = await house.voucher(
            code, max_redemptions=20, promotion=promotion({"of": "discount", "max": 54_000})
        )
        answers = await asyncio.gather(
            *(surely(partial(held, house, code, f"c{n}")) for n in range(32)),
            *(surely(partial(house.redeem, code, f"r{n}")) for n in range(32)),
        )
        kept = [answer for answer in answers if isinstance(answer, UUID)]
        won = [answer for answer in answers if isinstance(answer, Redemption)]
        assert len(kept) + len(won) == 20
        assert {code_of(a) for a in answers} <= {"UUID", "Redemption", "limit_reached"}
        counts = "select (direct_count, held_count)::text from vf.vouchers where id = $1"
        assert await house.value(counts, voucher) == f"(20,{len(kept)})"
        # Each hold is redeemed once, and who asks twice is told the same.
        customers = {
            row["id"]: row["customer_id"]
            for row in await house.owner.fetch("select id, customer_id from vf.holds")
        }
        told = await asyncio.gather(
            *(
                surely(
                    partial(house.redeem, code, customers[one], hold_id=ids.format_id("hld", one))
                )
                for one in kept * 2
            )
        )
        ids_told = [one.redemption_id for one in told if isinstance(one, Redemption)]
        assert Counter(ids_told) == {ids.format_id("rdm", one): 2 for one in kept}
        assert await house.value(counts, voucher) == "(20,0)"
        assert await live(house, "1", voucher) == 20


async def test_what_runs_out_comes_back_once_however_many_sweep(house: House) -> None:
    voucher = await house.voucher("SWEPT", max_redemptions=5, per_customer_limit=1)
    assert all([isinstance(await held(house, "SWEPT", f"c{n}"), UUID) for n in range(5)])
    assert code_of(await house.redeem("SWEPT", "late")) == "limit_reached"
    await house.owner.execute(
        "update vf.holds set expires_at = clock_timestamp() - interval '1 second' "
        "where customer_id in ('c1', 'c3')"
    )
    swept = await asyncio.gather(*(holds.sweep(house.worker_db) for _ in range(4)))
    assert sum(swept) == 2
    assert await house.value("select direct_count from vf.vouchers where id = $1", voucher) == 3
    # What the crowd was told of a sold-out code lives for a second.
    for customer in ("late", "c1"):
        async with asyncio.timeout(5):
            while not isinstance(await house.redeem("SWEPT", customer), Redemption):
                await asyncio.sleep(0.1)
    assert code_of(await house.redeem("SWEPT", "c0")) != "Redemption"


async def test_orders_of_many_codes_never_deadlock_and_never_take_half(house: House) -> None:
    campaign = await house.campaign(promotion=promotion({"of": "redemptions", "max": 30}))
    codes = [f"M{n}" for n in range(6)]
    for code in codes:
        await house.voucher(code, campaign_id=campaign, max_redemptions=10)

    async def order() -> int:
        chosen = random.sample(codes, random.randint(1, 4))
        new = checkouts.NewCheckout(codes=chosen, order_value=msgspec.Raw(b"10"))
        told: checkouts.Checkout | Refusal | None = None
        with contextlib.suppress(Refused):
            async with house.services.database.transaction(house.project_id) as conn:
                told = await checkouts.redeem_together(conn, house.caller, new)
                if isinstance(told, Refusal):
                    raise Refused(told)
        if isinstance(told, Refusal):
            assert told.code == "limit_reached"
            return 0
        assert told is not None
        assert len(told.redemptions) == len(chosen)
        return len(chosen)

    taken = sum(await asyncio.gather(*(surely(order) for _ in range(40))))
    assert await live(house, "1", campaign) == taken <= 30
    assert await house.value("select used from vf.budgets") == taken
    assert await house.value("select max(direct_count) from vf.vouchers") <= 10
