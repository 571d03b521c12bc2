"""Vouchers, campaigns, holds, redeems and rollbacks against a plain reference, step by step.

The reference is a few dictionaries that anybody can check by eye; after every step the product
must answer as it does, and at the end its counters must be the reference's.
"""

import random
from typing import Any
from uuid import UUID

import msgspec
import pytest

from core import checkouts, holds, ids, redemptions
from core.errors import Refusal
from core.idempotency import Refused
from core.redemptions import NewRedemption, Redemption
from tests.conftest import SEED
from tests.core.conftest import House

pytestmark = pytest.mark.anyio

CUSTOMERS = ("anna", "bob", "carl")
# Minor units; a tenth of each is whole, so that the reference needs no rounding.
VALUES = (1000, 2000, 5000)


class Reference:
    """What should be: uses by scope, by scope and customer, and money by scope."""

    def __init__(self) -> None:
        self.codes: dict[str, dict[str, Any]] = {}
        self.taken: dict[str, tuple[str, str, int, str]] = {}
        self.campaign: dict[str, Any] = {}

    def uses(self, scope: str, customer: str | None = None) -> list[int]:
        return [
            value
            for code, who, value, state in self.taken.values()
            if state in ("redeemed", "held")
            and (customer is None or who == customer)
            and (scope == code or (scope == "campaign" and self.codes[code]["in_campaign"]))
        ]

    def outcome(self, code: str, customer: str, value: int) -> str:
        terms = self.codes[code]
        scopes = [(code, terms)] + [("campaign", self.campaign)] * terms["in_campaign"]
        for scope, limits in scopes:
            most = limits["per_customer"]
            if most is not None and len(self.uses(scope, customer)) >= most:
                return "customer_limit_reached"
        for scope, limits in scopes:
            if limits["max"] is not None and len(self.uses(scope)) >= limits["max"]:
                return "limit_reached"
        for scope, limits in scopes:
            budget = limits["budget"]
            if budget is not None and sum(self.uses(scope)) + value // 10 > budget:
                return "budget_reached"
        return "won"


def limits_of(rng: random.Random) -> dict[str, Any]:
    return {
        "max": rng.choice((None, 3, 6)),
        "per_customer": rng.choice((None, 1, 3)),
        "budget": rng.choice((None, 500, 1500)),
    }


def columns(limits: dict[str, Any]) -> dict[str, Any]:
    found = {"max_redemptions": limits["max"], "per_customer_limit": limits["per_customer"]}
    if limits["budget"] is not None:
        stored = {"budgets": [{"of": "discount", "max": limits["budget"]}]}
        found["promotion"] = msgspec.json.encode(stored).decode()
    return found


class World:
    """The product and the reference side by side."""

    def __init__(self, house: House, rng: random.Random, name: str) -> None:
        self.house = house
        self.rng = rng
        self.name = name
        self.reference = Reference()
        self.asked = 0

    async def open(self) -> None:
        self.reference.campaign = limits_of(self.rng)
        campaign = await self.house.campaign(
            discount_type="PERCENT", discount_bp=1000, **columns(self.reference.campaign)
        )
        for number in range(3):
            terms = {**limits_of(self.rng), "in_campaign": number > 0}
            code = f"{self.name}-{number}"
            self.reference.codes[code] = terms
            await self.house.voucher(
                code, discount_bp=1000, campaign_id=campaign if number else None, **columns(terms)
            )

    async def step(self) -> None:
        doing = self.rng.choice(("redeem", "redeem", "hold", "use", "release", "expire", "back"))
        if doing in ("redeem", "hold"):
            await self.take(doing)
            return
        wanted = "redeemed" if doing == "back" else "held"
        matching = [key for key, entry in self.reference.taken.items() if entry[3] == wanted]
        if not matching:
            return
        key = self.rng.choice(matching)
        code, customer, value, _ = self.reference.taken[key]
        if doing == "use":
            await self.use(key, code, customer, value)
            return
        if doing == "back":
            done = await self.in_transaction(
                lambda conn: redemptions.roll_back(conn, self.house.caller, UUID(key), None)
            )
            assert not isinstance(done, Refusal)
        elif doing == "release":
            public_id = ids.format_id("hld", UUID(key))
            done = await self.in_transaction(
                lambda conn: holds.release(conn, self.house.caller, public_id)
            )
            assert not isinstance(done, Refusal)
        else:
            await self.house.owner.execute(
                "update vf.holds set expires_at = clock_timestamp() where id = $1", UUID(key)
            )
            assert await holds.sweep(self.house.worker_db) == 1
        # What Redis was told of a sold-out voucher would count for up to a second more.
        voucher = await self.house.value("select id from vf.vouchers where code = $1", code)
        await self.house.doors.desk.leases.void_crowd(self.house.project_id, voucher)
        self.reference.taken[key] = (code, customer, value, "gone")

    async def take(self, doing: str) -> None:
        code = self.rng.choice(list(self.reference.codes))
        customer = self.rng.choice(CUSTOMERS)
        value = self.rng.choice(VALUES)
        wanted = self.reference.outcome(code, customer, value)
        order_value = f"{value // 100}".encode()
        if doing == "redeem":
            # Without a key a process may say for a quarter of a second more that nothing is left.
            self.asked += 1
            told = await self.house.redeem(
                code, customer, order_value=order_value, key=f"{self.name}-{self.asked}"
            )
            key = _uuid(told.redemption_id) if isinstance(told, Redemption) else ""
        else:
            new = NewRedemption(customer_id=customer, order_value=msgspec.Raw(order_value))
            told = await self.in_transaction(
                lambda conn: checkouts.hold(conn, self.house.caller, new, code=code, hold_s=600)
            )
            key = str(told)
        seen = told.code if isinstance(told, Refusal) else "won"
        assert seen == wanted, (doing, code, customer, value, told)
        if wanted == "won":
            state = "redeemed" if doing == "redeem" else "held"
            self.reference.taken[key] = (code, customer, value // 10, state)

    async def use(self, key: str, code: str, customer: str, taken: int) -> None:
        told = await self.house.redeem(
            code, customer, order_value=f"{taken // 10}".encode(),
            hold_id=ids.format_id("hld", UUID(key)),
        )  # fmt: skip
        assert isinstance(told, Redemption), told
        assert _uuid(told.redemption_id) == key
        self.reference.taken[key] = (code, customer, taken, "redeemed")

    async def in_transaction(self, work: Any) -> Any:
        try:
            async with self.house.services.database.transaction(self.house.project_id) as conn:
                told = await work(conn)
                if isinstance(told, Refusal):
                    raise Refused(told)
                return told
        except Refused as refused:
            return refused.refusal

    async def check(self) -> None:
        for code, terms in self.reference.codes.items():
            row = await self.house.owner.fetchrow(
                "select id, direct_count, held_count from vf.vouchers where code = $1", code
            )
            states = [entry[3] for entry in self.reference.taken.values() if entry[0] == code]
            assert row["direct_count"] == states.count("redeemed") + states.count("held")
            assert row["held_count"] == states.count("held")
            if terms["budget"] is not None:
                used = await self.house.value(
                    "select coalesce(sum(used), 0)::bigint from vf.budgets where scope_id = $1",
                    row["id"],
                )
                assert used == sum(self.reference.uses(code))


def _uuid(public_id: str) -> str:
    found = ids.parse_id("rdm", public_id)
    assert found is not None
    return str(found)


async def walk(house: House, worlds: int, steps: int) -> None:
    for number in range(worlds):
        seed = f"{SEED}:{number}"
        world = World(house, random.Random(seed), f"W{number}")
        await world.open()
        try:
            for _ in range(steps):
                await world.step()
            await world.check()
        except AssertionError as error:
            raise AssertionError(f"world {number} of seed {SEED}") from error


async def test_the_product_does_as_the_reference_says(house: House) -> None:
    await walk(house, 12, 30)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_the_product_does_as_the_reference_says_for_long(house: House) -> None:
    await walk(house, 200, 30)
