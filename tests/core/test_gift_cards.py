"""The ledger of gift cards against a plain reference, its books cooked, its days recounted."""

import asyncio
import random
import time
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from core import customers, liability, verify
from core.errors import Fault, IdempotencyMismatch, Invalid, Refusal
from core.gift_cards import cards, ledger
from core.gift_cards.cards import GiftCard, NewBulk, NewGiftCard
from core.gift_cards.ledger import Movement, Refund, Spend, TopUp, Transaction, Transfer
from core.gift_cards.vault import normalised
from core.idempotency import Refused
from tests.conftest import SEED
from tests.core.conftest import House

pytestmark = pytest.mark.anyio


def raw(minor: int) -> msgspec.Raw:
    sign = "-" if minor < 0 else ""
    return msgspec.Raw(f"{sign}{abs(minor) // 100}.{abs(minor) % 100:02}".encode())


def minor(amount: msgspec.Raw) -> int:
    return int(str(amount, "ascii").replace(".", ""))


async def within(house: House, work: Any) -> Any:
    """Run a write as the API does: a refusal rolls back and is returned, and so is a fault."""
    try:
        async with house.services.database.transaction(house.project_id) as conn:
            told = await work(conn)
            if isinstance(told, Refusal):
                raise Refused(told)
            return told
    except Refused as refused:
        return refused.refusal
    except Fault as fault:
        return fault


async def issue(house: House, amount_minor: int, **more: Any) -> str:
    new = NewGiftCard(amount=raw(amount_minor), **more)
    made = await within(
        house, lambda conn: cards.create(conn, house.caller, new, house.services.vault)
    )
    assert isinstance(made, GiftCard), made
    return made.id


async def spend(house: House, card: str, amount_minor: int, **more: Any) -> Any:
    async def work(conn: Any) -> Any:
        stored = await cards.find(conn, house.caller, card)
        return await ledger.spend(
            conn, house.caller, stored, Spend(amount=raw(amount_minor), **more)
        )

    return await within(house, work)


async def books(house: House) -> tuple[int, list[str]]:
    report = await verify.examine(house.settings)
    assert "I11" in report.figures
    return report.count, [line for found in report.findings.values() for line in found]


class World:
    """Four cards of the product and the same four of a dictionary."""

    def __init__(self, house: House, rng: random.Random, name: str) -> None:
        self.house = house
        self.rng = rng
        self.name = name
        self.cards: dict[str, dict[str, Any]] = {}
        self.done: list[tuple[Any, Transaction]] = []
        self.steps = 0

    async def open(self) -> None:
        for _ in range(4):
            worth = self.rng.randrange(1, 5000)
            card = await issue(self.house, worth)
            self.cards[card] = {"balance": worth, "spent": 0, "status": "active", "over": False}

    def usable(self, *names: str) -> str | None:
        for name in names:
            if self.cards[name]["status"] != "active":
                return "gift_card_inactive"
        return "gift_card_expired" if any(self.cards[name]["over"] for name in names) else None

    async def step(self) -> None:
        self.steps += 1
        doing = self.rng.choice(
            ("spend", "spend", "partial", "top_up", "refund", "refund_of", "transfer", "adjust",
             "switch", "expire", "again")
        )  # fmt: skip
        name = self.rng.choice(list(self.cards))
        if doing == "again":
            await self.again()
        elif doing == "switch":
            status = self.rng.choice(("active", "disabled"))
            await within(
                self.house,
                lambda conn: cards.switch(conn, self.house.caller, name, status=status),
            )
            self.cards[name]["status"] = status
        elif doing == "expire":
            await self.expire(name)
        else:
            await self.move(doing, name, self.rng.randrange(1, 3000))

    async def expire(self, name: str) -> None:
        is_over = self.rng.random() < 0.5
        at = datetime.now(UTC) - timedelta(seconds=1) if is_over else None
        await within(
            self.house,
            lambda conn: cards.edit(
                conn, self.house.caller, name, cards.GiftCardPatch(expires_at=at)
            ),
        )
        self.cards[name]["over"] = is_over
        held = [card for card in self.cards.values() if card["over"] and card["balance"]]
        assert await ledger.sweep(self.house.worker_db) == len(held)
        for card in held:
            card["balance"] = 0

    async def move(self, doing: str, name: str, amount: int) -> None:
        card, house = self.cards[name], self.house
        reference = f"{self.name}-{self.steps}"
        other = self.rng.choice([one for one in self.cards if one != name])
        wanted: str | None = None
        if doing in ("spend", "partial"):
            taken = min(amount, card["balance"]) if doing == "partial" else amount
            wanted = self.usable(name) or (
                "insufficient_balance" if taken > card["balance"] or not taken else None
            )
            spent = Spend(amount=raw(amount), allow_partial=doing == "partial",
                          reference=reference)  # fmt: skip
            change, work = -taken, self.spending(name, spent)
        elif doing == "top_up":
            wanted, change = self.usable(name), amount
            new: Any = TopUp(amount=raw(amount), reference=reference)
            work = lambda conn: ledger.top_up(conn, house.caller, name, new)  # noqa: E731
        elif doing in ("refund", "refund_of"):
            of = self.spend_of(name) if doing == "refund_of" else None
            rest = min(card["spent"], of[1] if of else card["spent"])
            wanted, change = "refund_too_large" if amount > rest else None, amount
            new = Refund(amount=raw(amount), reference=reference,
                         transaction_id=of[0] if of else None)  # fmt: skip
            work = lambda conn: ledger.refund(conn, house.caller, name, new)  # noqa: E731
        elif doing == "transfer":
            wanted = self.usable(name, other) or (
                "insufficient_balance" if amount > card["balance"] else None
            )
            change = -amount
            new = Transfer(to=other, amount=raw(amount), reference=reference)
            work = lambda conn: ledger.transfer(conn, house.caller, name, new)  # noqa: E731
        else:
            change = amount if self.rng.random() < 0.5 else -amount
            wanted = "insufficient_balance" if card["balance"] + change < 0 else None
            new = Movement(amount=raw(change), reference=reference)
            work = lambda conn: ledger.adjust(conn, house.caller, name, new)  # noqa: E731
        told = await within(house, work)
        assert getattr(told, "code", None) == wanted, (doing, name, amount, told)
        if wanted is None:
            self.book(doing, name, other, change, told, work)

    def spending(self, name: str, new: Spend) -> Any:
        async def work(conn: Any) -> Any:
            stored = await cards.find(conn, self.house.caller, name)
            return await ledger.spend(conn, self.house.caller, stored, new)

        return work

    def spend_of(self, name: str) -> tuple[str, int] | None:
        """Return a spend of a card and what is left of it to refund."""
        spends = [told for _, told in self.done
                  if told.type == "spend" and told.gift_card_id == name]  # fmt: skip
        if not spends:
            return None
        chosen = self.rng.choice(spends)
        back = [minor(told.amount) for _, told in self.done
                if told.refund_of == chosen.transaction_id]  # fmt: skip
        return chosen.transaction_id, minor(chosen.amount) - sum(back)

    def book(
        self, doing: str, name: str, other: str, change: int, told: Transaction, work: Any
    ) -> None:
        card = self.cards[name]
        card["balance"] += change
        if doing == "transfer":
            self.cards[other]["balance"] -= change
        if doing in ("spend", "partial", "refund", "refund_of"):
            card["spent"] -= change
        assert (minor(told.change), minor(told.balance)) == (change, card["balance"])
        self.done.append((work, told))

    async def again(self) -> None:
        if self.done:
            work, first = self.rng.choice(self.done)
            assert await within(self.house, work) == first

    async def check(self) -> None:
        await ledger.sweep(self.house.worker_db)
        for card in self.cards.values():
            card["balance"] *= not card["over"]
        for name, card in self.cards.items():
            async with self.house.services.database.transaction(self.house.project_id) as conn:
                seen = await cards.get(conn, self.house.caller, name)
            assert minor(seen.balance) == card["balance"]


async def walk(house: House, worlds: int, steps: int) -> None:
    for number in range(worlds):
        world = World(house, random.Random(f"{SEED}:{number}"), f"W{number}")
        await world.open()
        try:
            for _ in range(steps):
                await world.step()
            await world.check()
        except AssertionError as error:
            raise AssertionError(f"world {number} of seed {SEED}") from error
    assert await books(house) == (0, [])


async def test_the_ledger_does_as_a_dictionary_would(house: House) -> None:
    await walk(house, 12, 30)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_the_ledger_does_as_a_dictionary_would_for_long(house: House) -> None:
    await walk(house, 200, 30)


async def test_opposite_transfers_at_once_never_deadlock_and_keep_the_sum(house: House) -> None:
    one, two = await issue(house, 5000), await issue(house, 5000)

    async def back_and_forth(n: int) -> Any:
        source, target = (one, two) if n % 2 else (two, one)
        new = Transfer(to=target, amount=raw(1 + n))
        return await within(house, lambda conn: ledger.transfer(conn, house.caller, source, new))

    told = await asyncio.gather(*(back_and_forth(n) for n in range(60)))
    assert [one for one in told if not isinstance(one, Transaction)] == []
    total = "select sum(balance_minor)::int from vf.gift_cards"
    assert await house.value(total) == 10_000
    assert await books(house) == (0, [])


async def test_one_reference_for_two_cards_at_once_moves_one_of_them(house: House) -> None:
    both = [await issue(house, 5000) for _ in range(2)]
    told = await asyncio.gather(
        *(spend(house, card, 100, reference="cart") for card in both for _ in range(8))
    )
    done = [one for one in told if isinstance(one, Transaction)]
    assert len({one.transaction_id for one in done}) == 1 and len(done) == 8
    assert all(isinstance(one, IdempotencyMismatch) for one in told if one not in done)
    assert await house.value("select sum(balance_minor)::int from vf.gift_cards") == 9_900


async def test_a_card_made_under_a_reference_that_a_spend_takes_first_is_refused(
    house: House,
) -> None:
    card = await issue(house, 5000)
    async with house.services.database.transaction(house.project_id) as conn:
        stored = await cards.find(conn, house.caller, card)
        spent = Spend(amount=raw(100), reference="cart")
        assert isinstance(await ledger.spend(conn, house.caller, stored, spent), Transaction)
        new = NewGiftCard(amount=raw(700), reference="cart")
        making = asyncio.create_task(
            within(house, lambda c: cards.create(c, house.caller, new, house.services.vault))
        )
        await asyncio.sleep(0.3)
    assert isinstance(await making, IdempotencyMismatch)
    assert await house.value("select sum(balance_minor)::int from vf.gift_cards") == 4_900


async def test_a_card_that_is_used_while_its_batch_gets_new_codes_keeps_its_own(
    house: House,
) -> None:
    vault = house.services.vault
    made = await within(
        house,
        lambda c: cards.create_bulk(c, house.caller, NewBulk(amount=raw(700), count=2), vault),
    )
    used, unused = made.cards
    async with house.services.database.transaction(house.project_id) as conn:
        stored = await cards.find(conn, house.caller, used.id)
        await ledger.spend(conn, house.caller, stored, Spend(amount=raw(100)))
        renewing = asyncio.create_task(
            within(house, lambda c: cards.recode_bulk(c, house.caller, made.batch_id, vault))
        )
        await asyncio.sleep(0.3)
    assert [card.id for card in (await renewing).cards] == [unused.id]
    digests = await house.owner.fetch("select code_digest from vf.gift_cards where spent_minor > 0")
    assert [row["code_digest"] for row in digests] == [
        vault.digest(house.project_id, normalised(used.code))
    ]


async def test_card_debits_do_not_feel_a_locked_voucher(house: House) -> None:
    await house.voucher("LOCKED")
    card = await issue(house, 100_000)

    async def debit() -> float:
        began = time.perf_counter()
        assert isinstance(await spend(house, card, 1), Transaction)
        return time.perf_counter() - began

    quiet = sorted([await debit() for _ in range(100)])
    transaction = house.owner.transaction()
    await transaction.start()
    await house.owner.execute("select 1 from vf.vouchers where code = 'LOCKED' for update")
    waiting = [asyncio.create_task(house.redeem("LOCKED", f"c{n}")) for n in range(50)]
    try:
        await asyncio.sleep(0.1)
        busy = sorted([await debit() for _ in range(100)])
    finally:
        await transaction.rollback()
        await asyncio.gather(*waiting)
    # A debit that waited for the voucher would take the lock's whole second.
    assert busy[98] < max(0.25, 5 * quiet[98]), (quiet[98], busy[98])


async def test_what_expires_goes_to_breakage_once_however_many_sweep(house: House) -> None:
    past = datetime.now(UTC) - timedelta(days=1)
    names = [await issue(house, 700, expires_at=past) for _ in range(5)]
    await issue(house, 900)
    swept = await asyncio.gather(*(ledger.sweep(house.worker_db) for _ in range(3)))
    assert sum(swept) == 5
    broken = (
        "select count(*)::int from vf.gift_card_entries "
        "where account = 'breakage' and side = 'credit' and amount_minor = 700"
    )
    assert await house.value(broken) == 5
    assert await ledger.sweep(house.worker_db) == 0
    assert await house.value("select sum(balance_minor)::int from vf.gift_cards") == 900
    assert isinstance(await spend(house, names[0], 1), Refusal)
    assert await books(house) == (0, [])


async def test_neither_role_may_change_or_delete_what_was_written(house: House) -> None:
    await issue(house, 700)
    for table in ("gift_card_transactions", "gift_card_entries", "gift_card_payments"):
        for role in ("vf_app", "vf_worker"):
            for verb in ("UPDATE", "DELETE", "TRUNCATE"):
                granted = await house.value(
                    "select has_table_privilege($1, $2, $3)", role, f"vf.{table}", verb
                )
                assert not granted, (role, verb, table)


FRAUDS = {
    "a balance that was helped": (
        "update vf.gift_cards set balance_minor = balance_minor + 1",
        "a gift card's balance is the sum of its entries: gft_",
    ),
    "a spend that vanished": (
        "delete from vf.gift_card_entries where number = 2;"
        "update vf.gift_cards set balance_minor = 5000",
        "a transaction has a debit and a credit: gfe_",
    ),
    "a hole in the numbers": (
        "update vf.gift_card_entries set number = 7 where number = 3",
        "entries are numbered without a hole: gft_",
    ),
    "a balance after that does not follow": (
        "update vf.gift_card_entries set balance_minor = balance_minor + 1 where number = 2",
        "an entry's balance follows from the one before: gft_",
    ),
    "a spend that went to the wrong account": (
        "update vf.gift_card_entries set account = 'breakage' where account = 'redemption'",
        "a transaction's accounts are those of its kind: gfe_",
    ),
    "one reference twice": (
        "alter table vf.gift_card_transactions"
        " drop constraint gift_card_transactions_reference_key;"
        "update vf.gift_card_transactions set reference = 'same'",
        "a reference has one transaction: prj_",
    ),
    "a side of its own size": (
        "alter table vf.gift_card_entries drop constraint gift_card_entries_amount;"
        "update vf.gift_card_entries set amount_minor = amount_minor + 1 where account = 'sales'",
        "a transaction's entries sum to zero: gfe_",
    ),
    "a refund limit that was lifted": (
        "update vf.gift_cards set spent_minor = spent_minor + 100",
        "a gift card's spent is its spends less its refunds: gft_",
    ),
}


@pytest.mark.parametrize("fraud", FRAUDS)
async def test_a_fraud_in_the_ledger_is_named(house: House, fraud: str) -> None:
    card = await issue(house, 5000)
    await spend(house, card, 1000)
    await spend(house, card, 500)
    assert await books(house) == (0, [])
    statements, sentence = FRAUDS[fraud]
    await house.owner.execute(statements)
    count, lines = await books(house)
    assert count > 0 and any(line.startswith(sentence) for line in lines), lines


async def test_liability_of_every_day_of_a_year_is_what_the_entries_say(house: House) -> None:
    zone = ZoneInfo("Europe/Vienna")
    await house.owner.execute(
        "update vf.projects set time_zone = $1 where id = $2", zone.key, house.project_id
    )
    rng = random.Random(f"{SEED}:year")
    await generate(house, rng)
    first, last = date(2025, 1, 1), date(2025, 12, 31)
    rows = await house.owner.fetch(
        "select t.currency, t.kind, t.created_at, t.card_id, e.card_id as of_card, "
        "case e.side when 'credit' then e.amount_minor else -e.amount_minor end as signed "
        "from vf.gift_card_transactions t join vf.gift_card_entries e on e.transaction_id = t.id "
        "where e.account = 'liability' order by t.created_at"
    )
    async with house.services.database.transaction(house.project_id, reads_only=True) as conn:
        year = await liability.report(conn, house.caller, from_day=first, to_day=last)
        assert [account.currency for account in year.data] == ["EUR", "JPY"]
        for account in year.data:
            own = [row for row in rows if row["currency"] == account.currency]
            by_day = {day.date: day for day in account.days}
            for n in range(365):
                day = first + timedelta(days=n)
                so_far = [row["signed"] for row in own
                          if row["created_at"].astimezone(zone).date() <= day]  # fmt: skip
                shown = by_day.get(day.isoformat())
                moved = [row for row in own if row["created_at"].astimezone(zone).date() == day
                         and row["kind"] != "transfer"]  # fmt: skip
                assert (shown is not None) == bool(moved), day
                if shown is not None:
                    assert minor(shown.closing) == sum(so_far), (account.currency, day)
                    assert minor(shown.issued) == sum(
                        row["signed"] for row in moved if row["kind"] == "issue"
                    )
            pairs = list(zip(account.days, account.days[1:], strict=False))
            assert len(pairs) > 20
            assert [a.date for a, b in pairs if a.closing != b.opening] == []
            assert account.closing == account.days[-1].closing
            assert sum(minor(age.outstanding) for age in account.ageing) == minor(account.closing)
        half = await liability.report(conn, house.caller, from_day=date(2025, 7, 1), to_day=last)
    before = {a.currency: [d for d in a.days if d.date < "2025-07-01"][-1] for a in year.data}
    for account in half.data:
        assert account.opening == before[account.currency].closing
        assert account.closing == next(
            a.closing for a in year.data if a.currency == account.currency
        )


async def generate(house: House, rng: random.Random) -> None:
    """Fill a year: moves in order, each dated anew, with some on both sides of midnight."""
    names = [await issue(house, rng.randrange(1, 90) * 100, currency=("EUR", "JPY")[n % 2])
             for n in range(20)]  # fmt: skip
    for _ in range(250):
        card, other = rng.sample(names, 2)
        amount = rng.randrange(1, 20) * 100
        doing: Any = rng.choice(
            (lambda c, card=card, amount=amount: ledger.top_up(
                c, house.caller, card, TopUp(amount=raw(amount))),
             lambda c, card=card, amount=amount: ledger.refund(
                 c, house.caller, card, Refund(amount=raw(amount))),
             lambda c, card=card, amount=amount: ledger.adjust(
                 c, house.caller, card, Movement(amount=raw(-amount))),
             lambda c, card=card, other=other: ledger.transfer(
                 c, house.caller, card, Transfer(to=other)), None)
        )  # fmt: skip
        told = await (within(house, doing) if doing else spend(house, card, amount))
        assert isinstance(told, Transaction | Refusal | Invalid), told
    rows = await house.owner.fetch("select id from vf.gift_card_transactions order by created_at")
    times = sorted(
        datetime(2024, 12, 25, tzinfo=UTC) + timedelta(minutes=rng.randrange(370 * 1440))
        for _ in rows
    )
    await house.owner.executemany(
        "update vf.gift_card_transactions set created_at = $2 where id = $1",
        [(row["id"], at) for row, at in zip(rows, times, strict=True)],
    )


async def test_a_recipient_is_forgotten_with_the_customer(house: House) -> None:
    ada = cards.Recipient(name="Ada", email="ada@example.com")
    await issue(house, 700, customer_id="ada", recipient=ada, metadata={"wish": "rose"})
    new = customers.NewCustomer(customer_id="ada")
    await within(house, lambda conn: customers.register(conn, house.caller, new))
    erased = await within(house, lambda conn: customers.erase(conn, house.caller, "ada"))
    row = await house.owner.fetchrow(
        "select customer_id, recipient, metadata::text, balance_minor from vf.gift_cards"
    )
    assert tuple(row) == (erased.pseudonym, None, "{}", 700)
