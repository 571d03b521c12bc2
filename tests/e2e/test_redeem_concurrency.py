"""Hundreds of people redeem one voucher at the same instant, over real sockets."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from bench.connections import Answer, Connection, Target, request
from bench.product import Product
from tests.e2e import sales

PEOPLE = 400

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def product() -> Iterator[Product]:
    with sales.running() as started:
        yield started


def redeem_at_once(
    product: Product, code: str, customers: list[str], keys: list[str]
) -> list[Answer]:
    """Send every redeem at the same moment, each over a connection of its own."""

    async def redeem() -> list[Answer]:
        target = Target.of(product.url)
        people = [Connection(target) for _ in customers]
        path = f"/v1/vouchers/{code}/redeem"
        sent = [
            request(
                target,
                "POST",
                path,
                product.token,
                msgspec.json.encode({"customer_id": customer, "order_value": 89.99}),
                key,
            )
            for customer, key in zip(customers, keys, strict=True)
        ]
        try:
            return await asyncio.gather(
                *[person.send(data, 20.0) for person, data in zip(people, sent, strict=True)]
            )
        finally:
            for person in people:
                person.close()

    return asyncio.run(redeem())


def outcomes(answers: list[Answer]) -> Counter[str]:
    found: Counter[str] = Counter()
    for answer in answers:
        fields = msgspec.json.decode(answer.body)
        found[f"{answer.status} {fields['status' if answer.status == 200 else 'code']}"] += 1
    return found


def a_voucher(product: Product, **terms: Any) -> str:
    code = f"CROWD{random.randrange(10**9)}"
    product.must(
        "POST",
        "/v1/vouchers",
        {"code": code, "discount_type": "PERCENT", "discount_value": 20, **terms},
    )
    return code


def stored(product: Product, code: str) -> int:
    return asyncio.run(sales._counted(product, code))["rows"]


def test_a_voucher_with_50_redemptions_gives_exactly_50_to_400_people(product: Product) -> None:
    code = a_voucher(product, max_redemptions=50)
    answers = redeem_at_once(
        product,
        code,
        [f"cus_{i}" for i in range(PEOPLE)],
        [f"{code}-{i}" for i in range(PEOPLE)],
    )
    found = outcomes(answers)
    print(code, found)
    assert found == {"200 redeemed": 50, "409 limit_reached": 350}
    wins = [msgspec.json.decode(answer.body) for answer in answers if answer.status == 200]
    assert sorted(win["remaining"] for win in wins) == list(range(50))
    assert len({win["redemption_id"] for win in wins}) == 50
    assert all(b'"discount_applied":18.00' in a.body for a in answers if a.status == 200)
    assert stored(product, code) == 50
    assert product.must("GET", f"/v1/vouchers/{code}")["remaining"] == 0


def test_without_idempotency_keys_the_limit_holds_just_the_same(product: Product) -> None:
    code = a_voucher(product, max_redemptions=50)
    answers = redeem_at_once(product, code, [f"cus_{i}" for i in range(PEOPLE)], [""] * PEOPLE)
    assert outcomes(answers) == {"200 redeemed": 50, "409 limit_reached": 350}
    assert stored(product, code) == 50


def test_one_customer_in_400_tabs_redeems_once(product: Product) -> None:
    code = a_voucher(product, max_redemptions=50, per_customer_limit=1)
    keys = [f"{code}-{i}" for i in range(PEOPLE)]
    answers = redeem_at_once(product, code, ["cus_greedy"] * PEOPLE, keys)
    assert outcomes(answers) == {"200 redeemed": 1, "409 customer_limit_reached": PEOPLE - 1}
    fields = [msgspec.json.decode(answer.body) for answer in answers]
    assert len({each["redemption_id"] for each in fields}) == 1, "the refusal names the redemption"
    assert stored(product, code) == 1


def test_400_retries_of_one_key_are_one_redemption(product: Product) -> None:
    code = a_voucher(product, max_redemptions=50)
    answers = redeem_at_once(product, code, ["cus_1"] * PEOPLE, [f"{code}-once"] * PEOPLE)
    assert outcomes(answers) == {"200 redeemed": PEOPLE}
    bodies = {answer.body for answer in answers}
    assert len(bodies) == 1, "a replay is the first answer, byte for byte"
    assert stored(product, code) == 1


def test_a_campaigns_limit_holds_over_all_its_vouchers(product: Product) -> None:
    campaign = product.must(
        "POST",
        "/v1/campaigns",
        {
            "name": "Crowd",
            "type": "DISCOUNT",
            "rules": {"discount_type": "PERCENT", "discount_value": 20, "max_redemptions": 50},
        },
    )
    codes = [a_voucher(product, campaign_id=campaign["id"]) for _ in range(4)]

    answers: list[Answer] = []
    for code in codes:
        customers = [f"cus_{i}" for i in range(PEOPLE // 4)]
        keys = [f"{code}-{i}" for i in range(PEOPLE // 4)]
        answers += redeem_at_once(product, code, customers, keys)
    assert outcomes(answers) == {"200 redeemed": 50, "409 limit_reached": 350}
    assert sum(stored(product, code) for code in codes) == 50


def test_the_books_balance_after_all_of_it(product: Product) -> None:
    status, audit = product.verify()
    assert status == 0, audit
    assert "violations: 0" in audit
