"""Referrals under concurrency and time, against a plain reference, and with their books cooked."""

import asyncio
import random
from typing import Any

import msgspec
import pytest

from core import (
    attributions,
    conversions,
    customers,
    db,
    ids,
    referral_programs,
    referrals,
    verify,
)
from core.attributions import Attribution, Identifiers, Invitation, NewReferralCode
from core.conversions import Conversion
from core.errors import Fault, NotFound, Refusal, Unavailable
from core.gift_cards import cards
from core.gift_cards.cards import GiftCard, NewGiftCard
from core.idempotency import Refused
from core.referral_programs import NewProgram, NewReward, NewTier
from core.referrals import Referral
from core.rules.rewards import Cap
from tests.conftest import SEED
from tests.core.conftest import House

pytestmark = pytest.mark.anyio

CARD = NewReward(type="gift_card", amount=msgspec.Raw(b"10.00"))


async def within(house: House, work: Any, *, commits: bool = False) -> Any:
    """Run a write as the API does; who waited in vain for a lock asks again."""
    for _ in range(200):
        try:
            async with house.services.database.transaction(house.project_id) as conn:
                told = await work(conn)
                if isinstance(told, Refusal) and not commits:
                    raise Refused(told)
                return told
        except Refused as refused:
            return refused.refusal
        except Unavailable:
            await asyncio.sleep(0.05)
        except Fault as fault:
            return fault
    raise AssertionError("it was never applied")


async def program(house: House, **members: Any) -> str:
    terms = {"conversion": "sign_up", "referrer_reward": CARD, "referee_reward": CARD, **members}
    new = NewProgram(name="Friends", **terms)
    made = await within(house, lambda conn: referral_programs.create(conn, house.caller, new))
    return str(made.id)


async def code_of(house: House, program_id: str, customer: str) -> str:
    new = NewReferralCode(customer_id=customer)
    made = await within(
        house,
        lambda conn: attributions.code_of(
            conn, house.caller, house.services.people, program_id, new
        ),
    )
    return str(made.code)


async def attribute(house: House, code: str, customer: str, **known: str) -> Any:
    new = Attribution(code=code, customer_id=customer, identifiers=Identifiers(**known))
    return await within(
        house,
        lambda conn: attributions.attribute(conn, house.caller, house.services.people, new),
        commits=True,
    )


async def convert(house: House, customer: str, program_id: str | None = None) -> Any:
    new = Conversion(customer_id=customer, program_id=program_id)
    return await within(
        house, lambda conn: conversions.convert(conn, house.caller, house.services.vault, new)
    )


async def reverse(house: House, referral_id: str) -> Any:
    return await within(
        house, lambda conn: conversions.reverse(conn, house.caller, referral_id, None)
    )


async def read(house: House, referral_id: str) -> Referral:
    async with house.services.database.transaction(house.project_id, reads_only=True) as conn:
        return await referrals.get(conn, house.caller, referral_id)


async def findings(house: House) -> list[str]:
    report = await verify.examine(house.settings)
    assert "I11" in report.figures
    return [line for found in report.findings.values() for line in found]


async def test_1000_concurrent_conversions_of_100_referees_are_100(house: House) -> None:
    friends = await program(house, cap=Cap(count=15))
    codes = [await code_of(house, friends, f"referrer-{n}") for n in range(4)]
    for n in range(100):
        told = await attribute(house, codes[n % 4], f"referee-{n}")
        assert isinstance(told, Referral), told
    waiting = asyncio.Semaphore(40)

    async def one(n: int) -> Any:
        async with waiting:
            return await convert(house, f"referee-{n % 100}")

    order = random.sample(range(1000), 1000)
    told = await asyncio.gather(*(one(n) for n in order))
    assert all(isinstance(answer, Referral) for answer in told)
    assert len({answer.id for answer in told}) == 100
    sides = await house.owner.fetch(
        "select side, status, count(*)::int from vf.referral_rewards group by 1, 2 order by 1, 2"
    )
    # 25 referees a referrer, of whom 15 earn a reward.
    assert [tuple(row) for row in sides] == [
        ("referee", "issued", 100), ("referrer", "capped", 40), ("referrer", "issued", 60),
    ]  # fmt: skip
    assert await house.value("select count(*)::int from vf.gift_cards") == 160
    assert await house.value("select sum(balance_minor)::int from vf.gift_cards") == 160_000
    assert await house.value("select max(live_count)::int from vf.referral_counts") == 15
    assert await findings(house) == []


async def test_a_delayed_reward_is_issued_once_when_its_time_has_come(house: House) -> None:
    friends = await program(house, reward_delay_s=3600)
    code = await code_of(house, friends, "anna")
    for n in range(3):
        await attribute(house, code, f"new-{n}")
        told = await convert(house, f"new-{n}")
        assert told.status == "converted"
        assert {reward.status for reward in told.rewards} == {"pending"}
    made = "select count(*)::int from vf.gift_cards"
    assert await conversions.sweep(house.worker_db, house.services.vault) == 0
    assert await house.value(made) == 0
    returned = await reverse(house, told.id)
    assert {reward.status for reward in returned.rewards} == {"cancelled"}
    await house.owner.execute("update vf.referral_rewards set due_at = clock_timestamp()")
    await asyncio.gather(
        *(conversions.sweep(house.worker_db, house.services.vault) for _ in range(4))
    )
    assert await house.value(made) == 4
    assert await conversions.sweep(house.worker_db, house.services.vault) == 0
    statuses = "select string_agg(status, ' ' order by status) from vf.referrals"
    assert await house.value(statuses) == "reversed rewarded rewarded"
    assert await findings(house) == []


async def test_a_reward_that_cannot_be_issued_is_in_nobodys_way(house: House) -> None:
    campaign = await house.campaign()
    gives = NewReward(type="voucher", campaign_id=ids.format_id("cmp", campaign))
    broken = await program(house, referrer_reward=None, referee_reward=gives, reward_delay_s=60)
    sound = await program(house, referrer_reward=None, reward_delay_s=60)
    for program_id, customer in ((broken, "bob"), (sound, "carl")):
        await attribute(house, await code_of(house, program_id, "anna"), customer)
        assert (await convert(house, customer)).status == "converted"
    await house.owner.execute(
        "alter table vf.campaigns drop constraint campaigns_plain;"
        "update vf.campaigns set discount_type = null, discount_bp = null;"
        "update vf.referral_rewards set due_at = clock_timestamp()"
    )
    assert await conversions.sweep(house.worker_db, house.services.vault) == 1
    assert await conversions.sweep(house.worker_db, house.services.vault) == 0
    await house.owner.execute(
        "update vf.campaigns set discount_type = 'PERCENT', discount_bp = 1000;"
        "update vf.referral_rewards set due_at = clock_timestamp()"
    )
    assert await conversions.sweep(house.worker_db, house.services.vault) == 1
    states = "select string_agg(status, ' ') from vf.referral_rewards"
    assert await house.value(states) == "issued issued"


async def test_a_reward_whose_reference_somebody_took_is_in_nobodys_way(house: House) -> None:
    friends = await program(house, reward_delay_s=60)
    code = await code_of(house, friends, "anna")
    for customer in ("bob", "carl"):
        await attribute(house, code, customer)
    told = await convert(house, "bob")
    await convert(house, "carl")
    taken = NewGiftCard(
        amount=msgspec.Raw(b"1.00"), reference=f"referral-reward:{told.id}:referrer"
    )
    made = await within(
        house, lambda conn: cards.create(conn, house.caller, taken, house.services.vault)
    )
    assert isinstance(made, GiftCard)
    await house.owner.execute("update vf.referral_rewards set due_at = clock_timestamp()")
    assert await conversions.sweep(house.worker_db, house.services.vault) == 1
    assert await conversions.sweep(house.worker_db, house.services.vault) == 0
    states = "select string_agg(status, ' ' order by status) from vf.referrals"
    assert await house.value(states) == "converted rewarded"


async def test_a_review_that_nobody_decides_lapses_as_the_program_says(house: House) -> None:
    for on_lapse, status in (("reject", "rejected"), ("approve", "attributed")):
        friends = await program(house, on_lapse=on_lapse)
        code = await code_of(house, friends, "anna")
        await attribute(house, code, f"knows-{on_lapse}", device="d-1")
        refused = await attribute(house, code, f"other-{on_lapse}", device="d-2")
        assert isinstance(refused, Referral), "two devices are two people"
        # Anna is referred by nobody, and shares a phone with somebody who comes with her code.
        await within(
            house,
            lambda conn: house.services.people.know(
                conn, house.caller, "anna", Identifiers(phone="123")
            ),
        )
        refused = await attribute(house, code, f"double-{on_lapse}", phone="+1-23")
        assert isinstance(refused, Refusal) and refused.code == "self_referral"
        referral = refused.extra["referral_id"]
        assert await attributions.sweep(house.worker_db) == 0
        await house.owner.execute(
            "update vf.referrals set review_until = clock_timestamp() where review = 'open'"
        )
        assert await attributions.sweep(house.worker_db) == 1
        seen = await read(house, referral)
        assert (seen.status, seen.review) == (
            status, "lapsed" if on_lapse == "reject" else "approved",
        )  # fmt: skip


async def test_an_attribution_beyond_its_window_converts_nothing(house: House) -> None:
    friends = await program(house, attribution_window_days=1)
    code = await code_of(house, friends, "anna")
    await attribute(house, code, "late")
    await house.owner.execute("update vf.referrals set expires_at = clock_timestamp()")
    told = await convert(house, "late")
    assert isinstance(told, Refusal) and told.code == "attribution_expired"
    assert await house.value("select count(*)::int from vf.referral_rewards") == 0


async def test_a_lapse_locks_no_referral_before_it_is_the_projects_turn(house: House) -> None:
    friends = await program(house)
    refused = await attribute(house, await code_of(house, friends, "anna"), "anna")
    await house.owner.execute("update vf.referrals set review_until = clock_timestamp()")
    async with house.services.database.transaction(house.project_id) as conn:
        await db.value(conn, "referrals.lock", bool, project_id=house.project_id)
        lapsing = asyncio.create_task(attributions.sweep(house.worker_db))
        await asyncio.sleep(0.3)
        # Where it did, this would wait for it while it waits for this.
        taken = await referrals.take(conn, house.caller, refused.extra["referral_id"])
        assert taken.review == "open"
    assert await lapsing == 1


async def test_an_attribution_that_ends_while_its_conversion_waits_converts_nothing(
    house: House,
) -> None:
    await attribute(house, await code_of(house, await program(house), "anna"), "late")
    await house.owner.execute(
        "update vf.referrals set expires_at = clock_timestamp() + interval '300 milliseconds'"
    )
    transaction = house.owner.transaction()
    await transaction.start()
    await house.owner.execute("select 1 from vf.referral_codes for update")
    converting = asyncio.create_task(convert(house, "late"))
    await asyncio.sleep(0.5)
    await transaction.rollback()
    told = await converting
    assert isinstance(told, Refusal) and told.code == "attribution_expired"
    assert await house.value("select count(*)::int from vf.referral_rewards") == 0
    assert await house.value("select conversion_count::int from vf.referral_codes") == 0


async def test_what_converts_while_another_code_would_win_it_stays_converted(house: House) -> None:
    friends = await program(house, touch="last")
    first, second = [await code_of(house, friends, name) for name in ("anna", "carl")]
    await attribute(house, first, "bob")
    async with house.services.database.transaction(house.project_id) as conn:
        new = Conversion(customer_id="bob")
        done = await conversions.convert(conn, house.caller, house.services.vault, new)
        assert isinstance(done, Referral)
        taking = asyncio.create_task(attribute(house, second, "bob"))
        await asyncio.sleep(0.3)
    told = await taking
    assert isinstance(told, Refusal) and told.code == "already_attributed"
    assert (await read(house, done.id)).status == "rewarded"
    rejected = "select count(*)::int from vf.referral_history where event = 'rejected'"
    assert await house.value(rejected) == 0


async def test_an_erased_customer_is_in_no_referral(house: House) -> None:
    friends = await program(house)
    code = await code_of(house, friends, "anna")
    invitation = Invitation(
        program_id=friends, customer_id="anna", identifiers=Identifiers(email="bob@example.com")
    )
    await within(
        house,
        lambda conn: attributions.invite(conn, house.caller, house.services.people, invitation),
    )
    await attribute(house, code, "bob", email="bob@example.com")
    await convert(house, "bob")
    assert isinstance(
        await attribute(house, await code_of(house, friends, "bob"), "carl"), Referral
    )
    for other in ("anna", "carl"):
        # One refers herself, and Bob stands between the ends of a ring.
        refused = await attribute(house, await code_of(house, friends, other), "anna")
        assert isinstance(refused, Refusal)
    for name in ("anna", "bob"):
        new = customers.NewCustomer(customer_id=name)
        await within(house, lambda conn, new=new: customers.register(conn, house.caller, new))
        erased = await within(
            house, lambda conn, name=name: customers.erase(conn, house.caller, name)
        )
        assert erased.pseudonym
    for table in ("referrals", "referral_codes", "referral_rewards", "referral_counts",
                  "referral_identifiers", "gift_cards"):  # fmt: skip
        for row in await house.owner.fetch(f"select t::text as text from vf.{table} t"):
            assert "anna" not in row["text"] and "bob" not in row["text"], table
    assert await house.value("select count(*)::int from vf.referral_identifiers") == 0
    assert await findings(house) == []


FRAUDS = {
    "a reward given twice": (
        "alter table vf.referral_rewards drop constraint referral_rewards_pkey;"
        "insert into vf.referral_rewards select * from vf.referral_rewards where side = 'referee'",
        "a referral rewards each side once: rfa_",
    ),
    "one card for two": (
        "update vf.referral_rewards set gift_card_id = (select gift_card_id from"
        " vf.referral_rewards where side = 'referrer')",
        "a reward is of one referral: reward ",
    ),
    "a card of another worth": (
        "update vf.referral_rewards set amount_minor = 2000 where side = 'referee'",
        "a reward's card was issued with its amount: rfa_",
    ),
    "a cap that forgot": (
        "update vf.referral_counts set live_count = 0",
        "a cap counts the rewards that stand: rfp_",
    ),
    "a conversion uncounted": (
        "update vf.referral_codes set conversion_count = 0",
        "a code counts its conversions: rfc_",
    ),
    "a reversal that took nothing": (
        "update vf.referrals set status = 'reversed'",
        "what was reversed keeps no reward: rfa_",
    ),
    "a referee of two": (
        "drop index vf.referrals_one_attribution;"
        "insert into vf.referrals (project_id, id, program_id, code_id, referrer_id, referee_id,"
        " status) select project_id, gen_random_uuid(), program_id, code_id, referrer_id,"
        " referee_id, 'attributed' from vf.referrals",
        "a referee has one attribution: rfp_",
    ),
}


@pytest.mark.parametrize("fraud", FRAUDS)
async def test_a_fraud_is_named(house: House, fraud: str) -> None:
    friends = await program(house, cap=Cap(count=5))
    await attribute(house, await code_of(house, friends, "anna"), "bob")
    await convert(house, "bob")
    assert await findings(house) == []
    statements, sentence = FRAUDS[fraud]
    await house.owner.execute(statements)
    lines = await findings(house)
    assert any(line.startswith(sentence) for line in lines), lines


class World:
    """Six people of a program, and what a few dictionaries say of them."""

    def __init__(self, house: House, rng: random.Random, name: str) -> None:
        self.house = house
        self.rng = rng
        self.people = [f"{name}-{n}" for n in range(6)]
        self.touch = rng.choice(("first", "last"))
        self.cap = rng.choice((None, 2))
        self.every = rng.choice((None, 2))
        self.codes: dict[str, str] = {}
        # Of each referee: who referred them, how far it is, and the referral's id.
        self.came: dict[str, tuple[str, str, str]] = {}
        self.places: dict[str, int] = {}
        self.earned: dict[str, list[str]] = {}

    async def open(self) -> None:
        tiers = [NewTier(type="gift_card", amount=msgspec.Raw(b"20"), every=self.every)]
        self.program = await program(
            self.house, touch=self.touch, cap=Cap(count=self.cap) if self.cap else None,
            tiers=tiers if self.every else [],
        )  # fmt: skip
        for person in self.people:
            self.codes[person] = await code_of(self.house, self.program, person)

    def above(self, person: str) -> set[str]:
        found: set[str] = set()
        while person in self.came and self.came[person][1] != "reversed":
            person = self.came[person][0]
            found.add(person)
        return found

    def expected(self, referrer: str, referee: str) -> str | None:
        known = self.came.get(referee)
        if known is not None and known[0] == referrer:
            return None
        if known is not None and (self.touch == "first" or known[1] != "attributed"):
            return "already_attributed"
        if referrer == referee or referee in self.above(referrer):
            return "self_referral"
        return None

    async def step(self) -> None:
        doing = self.rng.choice(("attribute", "attribute", "convert", "reverse"))
        referee = self.rng.choice(self.people)
        if doing == "attribute":
            await self.attribute(self.rng.choice(self.people), referee)
        elif doing == "convert":
            await self.convert(referee)
        elif referee in self.came:
            await self.reverse(referee)

    async def attribute(self, referrer: str, referee: str) -> None:
        wanted = self.expected(referrer, referee)
        told = await attribute(self.house, self.codes[referrer], referee)
        assert getattr(told, "code", None) == (wanted or self.codes[referrer]), (
            referrer, referee, told,
        )  # fmt: skip
        if wanted is None and self.came.get(referee, ("",))[0] != referrer:
            assert told.status == "attributed"
            self.came[referee] = (referrer, "attributed", told.id)

    async def convert(self, referee: str) -> None:
        told = await convert(self.house, referee, self.program)
        if referee not in self.came:
            assert isinstance(told, NotFound)
            return
        referrer, state, referral = self.came[referee]
        if state == "reversed":
            assert told.code == "not_eligible"
            return
        assert told.status == "rewarded"
        if state == "attributed":
            place = self.places[referrer] = self.places.get(referrer, 0) + 1
            kept = self.earned.setdefault(referrer, [])
            is_capped = self.cap is not None and len(kept) >= self.cap
            amount = b"20.00" if self.every and place % self.every == 0 else b"10.00"
            mine = next(reward for reward in told.rewards if reward.side == "referrer")
            assert (mine.status, bytes(mine.amount)) == (
                "capped" if is_capped else "issued", amount,
            )  # fmt: skip
            if not is_capped:
                kept.append(referral)
            self.came[referee] = (referrer, "rewarded", referral)

    async def reverse(self, referee: str) -> None:
        referrer, state, referral = self.came[referee]
        told = await reverse(self.house, referral)
        if state == "attributed":
            assert told.code == "not_eligible"
            return
        assert told.status == "reversed"
        assert all(reward.status in ("reversed", "capped") for reward in told.rewards)
        if referral in self.earned[referrer]:
            self.earned[referrer].remove(referral)
        self.came[referee] = (referrer, "reversed", referral)


async def walk(house: House, worlds: int, steps: int) -> None:
    for number in range(worlds):
        world = World(house, random.Random(f"{SEED}:{number}"), f"W{number}")
        await world.open()
        try:
            for _ in range(steps):
                await world.step()
        except AssertionError as error:
            raise AssertionError(f"world {number} of seed {SEED}") from error
    assert await findings(house) == []


async def test_referrals_do_as_a_few_dictionaries_would(house: House) -> None:
    await walk(house, 12, 30)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_referrals_do_as_a_few_dictionaries_would_for_long(house: House) -> None:
    await walk(house, 200, 30)
