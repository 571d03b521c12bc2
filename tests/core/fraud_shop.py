"""A shop's five days, drawn from a seed: 200,000 honest redemptions, and fraud planted among them.

It knows nothing of the rules that look for it. Honest are households and offices on one address,
carriers that put hundreds on one, families on one tablet, popular codes, newsletters, a Black
Friday, heavy tails, people who mistype, who hunt for codes, and who send things back.
"""

import math
import random
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

START_S = 1_780_000_000
DAY = 86_400
DAYS = 5
BLACK_FRIDAY = 3
PLANTED_EACH = 24


@dataclass
class Moment:
    """One thing that happened, as a shop's books and logs would have it."""

    at: float
    kind: str
    id: UUID
    customer: str | None = None
    voucher: int = -1
    address: str | None = None
    device: str | None = None
    value: int = 0
    discount: int = 0
    reason: str | None = None
    typed: str = ""
    referrer: str | None = None
    traits: tuple[str, ...] = ()


@dataclass
class Truth:
    """A planted fraud: what it is called, whom it may be found at, and when it went on."""

    pattern: str
    subjects: set[tuple[str, str]]
    begin: float
    end: float


@dataclass
class Campaign:
    mean: float
    spread: float
    percent: int
    codes: list[int] = field(default_factory=list)
    is_single_use: bool = False
    weight: float = 1.0


class Shop:
    """Everything that happened, in `moments`, and what of it was planted, in `truths`."""

    def __init__(self, seed: int, honest: int = 200_000, planted: int = PLANTED_EACH) -> None:
        self.chance = random.Random(seed)
        self.moments: list[Moment] = []
        self.truths: list[Truth] = []
        self.campaign_of: list[int] = []
        self.campaigns: list[Campaign] = []
        self.known: list[str] = []
        self.homes: dict[str, tuple[str, str]] = {}
        self._serial = 0
        self._make_campaigns()
        self._make_customers(honest // 6)
        self._honest_days(honest)
        self._newsletters(honest)
        self._referrals(honest // 400)
        self.honest = sum(one.kind == "redeemed" for one in self.moments)
        for plant in (
            self._one_customer, self._leaked_code, self._farm, self._one_device, self._accounts,
            self._guesser, self._prober, self._discounts, self._orders, self._refunder,
            self._ring, self._leaked_batch,
        ):  # fmt: skip
            for place in range(planted):
                plant(START_S + DAY * 1.2 + (place + self.chance.random()) * DAY * 3.6 / planted)
        self.moments.sort(key=lambda one: (one.at, one.id))

    # -- What there is -----------------------------------------------------------------------

    def uuid(self) -> UUID:
        return UUID(int=self.chance.getrandbits(128), version=4)

    def text(self, prefix: str) -> str:
        self._serial += 1
        return f"{prefix}{self._serial}"

    def hash(self) -> str:
        return f"{self.chance.getrandbits(128):032x}"

    def voucher(self, campaign: int) -> int:
        self.campaign_of.append(campaign)
        return len(self.campaign_of) - 1

    def _make_campaigns(self) -> None:
        for place in range(30):
            one = Campaign(
                mean=self.chance.uniform(7.5, 9.5), spread=self.chance.uniform(0.25, 0.7),
                percent=self.chance.choice([5, 10, 15, 20, 30]), is_single_use=place % 3 == 2,
                weight=1 / (1 + place % 10),
            )  # fmt: skip
            self.campaigns.append(one)
            if not one.is_single_use:
                one.codes = [self.voucher(place) for _ in range(self.chance.choice([1, 2, 4, 8]))]

    def _make_customers(self, count: int) -> None:
        while len(self.known) < count:
            # A household, an office, or some of a carrier's customers, on one address.
            size = self.chance.choices(
                [1, 2, 3, 4, self.chance.randint(15, 60), self.chance.randint(60, 200)],
                [40, 30, 18, 10, 0.6, 0.15],
            )[0]
            address, tablet = self.hash(), self.hash()
            for _ in range(size):
                name = self.text("known")
                shares = size <= 4 and self.chance.random() < 0.25
                self.homes[name] = (address, tablet if shares else self.hash())
                self.known.append(name)

    # -- What is honest ----------------------------------------------------------------------

    def _time(self, day: int) -> float:
        hours = [1, 1, 1, 1, 1, 2, 4, 7, 9, 10, 10, 11, 13, 12, 10, 9, 10, 12, 14, 16, 17, 14, 8, 3]
        hour = self.chance.choices(range(24), hours)[0]
        return START_S + day * DAY + hour * 3_600 + self.chance.random() * 3_600

    def _shopper(self, new_share: float) -> str:
        if self.chance.random() < new_share:
            name = self.text("new")
            # Some come into a household, an office, or with the carrier of others.
            if self.chance.random() < 0.4:
                self.homes[name] = (self.homes[self.chance.choice(self.known)][0], self.hash())
            else:
                self.homes[name] = (self.hash(), self.hash())
            return name
        # A few buy every day, most do so rarely.
        place = int(len(self.known) * self.chance.random() ** 1.25)
        return self.known[place]

    def _honest_days(self, count: int) -> None:
        weights = [1.0, 1.1, 1.0, 3.2, 1.4]
        campaigns = [one.weight for one in self.campaigns]
        for day in range(DAYS):
            for _ in range(int(count * 0.93 * weights[day] / sum(weights))):
                new_share = 0.35 if day == BLACK_FRIDAY else 0.18
                campaign = self.chance.choices(range(len(campaigns)), campaigns)[0]
                self._visit(self._time(day), self._shopper(new_share), campaign)

    def _visit(self, at: float, customer: str, campaign: int) -> None:
        draw = self.chance.random()
        if draw < 0.05:  # mistypes
            self._refused(at, customer, self.chance.randint(1, 3), "not_found", 40)
        elif draw < 0.06:  # hunts for codes
            reason = self.chance.choice(["voucher_expired", "not_eligible", "not_found"])
            self._refused(at, customer, self.chance.randint(2, 5), reason, 300)
        elif draw < 0.075:  # tries the same code again and again
            for _ in range(self.chance.randint(2, 6)):
                self._refusal(at - self.chance.uniform(1, 120), customer, "CLICK", "not_eligible")
        made = self.redeem(at, customer, campaign)
        if self.chance.random() < 0.03:
            self._undo(made, at + self.chance.expovariate(1 / 1_500))
            if self.chance.random() < 0.3:  # and again, with another address or item
                for turn in range(self.chance.randint(1, 2)):
                    again = self.redeem(at + (turn + 1) * 2_000, customer, campaign)
                    if self.chance.random() < 0.5:
                        self._undo(again, again.at + 600)
                self.redeem(at + 8_000, customer, campaign)
        elif self.chance.random() < 0.002:  # buys for the whole team
            for _ in range(self.chance.randint(2, 4)):
                self.redeem(at + self.chance.uniform(60, 2_400), customer, campaign)

    def _refused(self, at: float, customer: str, count: int, reason: str, within: float) -> None:
        for _ in range(count):
            typed = f"T{self.chance.getrandbits(40):x}"
            self._refusal(at - self.chance.uniform(1, within), customer, typed, reason)

    def _refusal(
        self, at: float, customer: str | None, typed: str, reason: str,
        address: str | None = None, device: str | None = None,
    ) -> None:  # fmt: skip
        if customer in self.homes:
            address, device = self.homes[customer]
        self.moments.append(
            Moment(at, "refused", self.uuid(), customer, address=address, device=device,
                   typed=typed, reason=reason)
        )  # fmt: skip

    def redeem(
        self, at: float, customer: str | None, campaign: int, voucher: int | None = None,
        address: str | None = None, device: str | None = None,
    ) -> Moment:  # fmt: skip
        terms = self.campaigns[campaign]
        if voucher is None:
            voucher = self.voucher(campaign) if terms.is_single_use else self.chance.choices(
                terms.codes, [1 / (1 + place) for place in range(len(terms.codes))]
            )[0]  # fmt: skip
        if customer in self.homes and address is None:
            address, own = self.homes[customer]
            device = device or own
        if self.chance.random() < 0.05:  # not every shop page tells it
            address = device = None
        # A firm's order now and then: three times what others pay.
        firm = 3 if self.chance.random() < 0.004 else 1
        value = int(math.exp(self.chance.gauss(terms.mean, terms.spread)) * firm) + 1
        discount = int(value * terms.percent / 100) + 1
        moment = Moment(at, "redeemed", self.uuid(), customer, voucher, address, device, value,
                        discount)  # fmt: skip
        self.moments.append(moment)
        return moment

    def _undo(self, made: Moment, at: float) -> None:
        self.moments.append(
            Moment(at, "rolled_back", made.id, made.customer, made.voucher, made.address,
                   made.device, made.value, made.discount)
        )  # fmt: skip

    def _newsletters(self, count: int) -> None:
        for day in range(DAYS):
            campaign = self.chance.randrange(len(self.campaigns))
            begin = START_S + day * DAY + self.chance.uniform(9, 20) * 3_600
            for _ in range(int(count * 0.07 / DAYS)):
                at = begin + self.chance.expovariate(1 / 2_400)
                self._visit(at, self._shopper(self.chance.uniform(0.05, 0.15)), campaign)

    def _referrals(self, count: int) -> None:
        for _ in range(count):
            referrer, at = self.chance.choice(self.known), self._time(self.chance.randrange(DAYS))
            home = self.homes[referrer][0]
            for place in range(self.chance.choices([1, 2, 3, 6, 12], [50, 25, 15, 8, 2])[0]):
                traits = [f"device {self.hash()}"]
                if place < 2 and self.chance.random() < 0.3:
                    traits.append(f"address {home}")
                self._referred(at + place * 700, referrer, tuple(traits))

    def _referred(
        self, at: float, referrer: str, traits: tuple[str, ...], reason: str | None = None
    ) -> None:
        self.moments.append(
            Moment(at, "referred", self.uuid(), self.text("friend"), referrer=referrer,
                   traits=traits, reason=reason)
        )  # fmt: skip

    # -- What is planted ---------------------------------------------------------------------

    def _plant(self, pattern: str, begin: float, end: float, *subjects: tuple[str, Any]) -> None:
        told = {(kind, str(subject)) for kind, subject in subjects}
        self.truths.append(Truth(pattern, told, begin, end))

    def _places_of(self, customer: str) -> list[tuple[str, str]]:
        address, device = self.homes[customer]
        return [("customer", customer), ("device", device), ("address", address)]

    def _some_campaign(self) -> int:
        return self.chance.choice([n for n, one in enumerate(self.campaigns) if one.weight < 0.4])

    def _spread(self, at: float, count: int, minutes: float) -> list[float]:
        return sorted(at + self.chance.random() * minutes * 60 for _ in range(count))

    def _one_customer(self, at: float) -> None:
        customer = self.chance.choice(self.known)
        count, minutes = self.chance.randint(12, 60), self.chance.uniform(8, 50)
        for moment in self._spread(at, count, minutes):
            self.redeem(moment, customer, self._some_campaign())
        self._plant("customer_velocity", at, at + minutes * 60, *self._places_of(customer))

    def _leaked_code(self, at: float) -> None:
        campaign = self.chance.choice(
            [n for n, one in enumerate(self.campaigns) if one.codes and one.weight < 0.4]
        )
        code = self.chance.choice(self.campaigns[campaign].codes)
        count, minutes = self.chance.randint(60, 300), self.chance.uniform(6, 25)
        for moment in self._spread(at, count, minutes):
            self.redeem(moment, self.text("deal"), campaign, code, self.hash(), self.hash())
        self._plant("code_velocity", at, at + minutes * 60, ("code", code),
                    ("campaign", campaign))  # fmt: skip

    def _farm(self, at: float) -> None:
        address, begin = self.hash(), at
        count, minutes = self.chance.randint(15, 80), self.chance.uniform(10, 50)
        names = []
        for moment in self._spread(at, count, minutes):
            names.append(self.text("bot"))
            self.redeem(moment, names[-1], self._some_campaign(), None, address, self.hash())
        self._plant("address_velocity", begin, at + minutes * 60, ("address", address))

    def _one_device(self, at: float) -> None:
        device, address = self.hash(), self.hash()
        names = [self.text("bot") for _ in range(self.chance.randint(2, 4))]
        count, minutes = self.chance.randint(10, 50), self.chance.uniform(10, 50)
        for moment in self._spread(at, count, minutes):
            customer = self.chance.choice(names)
            self.redeem(moment, customer, self._some_campaign(), None, address, device)
        self._plant("device_velocity", at, at + minutes * 60, ("device", device),
                    ("address", address), *(("customer", name) for name in names))  # fmt: skip

    def _accounts(self, at: float) -> None:
        device = self.hash()
        count, minutes = self.chance.randint(8, 40), self.chance.uniform(180, 1_000)
        for moment in self._spread(at, count, minutes):
            self.redeem(moment, self.text("fake"), self._some_campaign(), None, self.hash(), device)
        self._plant("device_accounts", at, at + minutes * 60, ("device", device))

    def _guesser(self, at: float) -> None:
        address = self.hash() if self.chance.random() < 0.7 else None
        device = self.hash() if address is None or self.chance.random() < 0.5 else None
        count, minutes = self.chance.randint(20, 300), self.chance.uniform(2, 9)
        for moment in self._spread(at, count, minutes):
            typed = f"G{self.chance.getrandbits(40):x}"
            reason = self.chance.choices(["not_found", "voucher_expired"], [9, 1])[0]
            self._refusal(moment, None, typed, reason, address, device)
        if self.chance.random() < 0.3:
            self.redeem(at + minutes * 60 + 5, self.text("bot"), self._some_campaign(), None,
                        address, device)  # fmt: skip
        self._plant("code_guessing", at, at + minutes * 60, ("address", address),
                    ("device", device))  # fmt: skip

    def _prober(self, at: float) -> None:
        customer = self.chance.choice(self.known)
        count, minutes = self.chance.randint(9, 25), self.chance.uniform(3, 12)
        for moment in self._spread(at, count, minutes):
            reason = self.chance.choice(["not_eligible", "customer_limit_reached", "not_found"])
            self._refusal(moment, customer, f"P{self.chance.getrandbits(40):x}", reason)
        self.redeem(at + minutes * 60 + self.chance.uniform(1, 60), customer, self._some_campaign())
        self._plant("failed_then_success", at, at + minutes * 60 + 60, *self._places_of(customer))

    def _odd(self, pattern: str, at: float) -> None:
        campaign = self._some_campaign()
        terms = self.campaigns[campaign]
        made = self.redeem(at, self.chance.choice(self.known), campaign)
        odd = math.exp(terms.mean + self.chance.uniform(math.log(90), math.log(900)))
        if pattern == "unusual_discount":
            made.discount = int(odd * terms.percent / 100)
        else:
            made.value = int(odd)
        self._plant(pattern, at, at, ("redemption", made.id))

    def _discounts(self, at: float) -> None:
        self._odd("unusual_discount", at)

    def _orders(self, at: float) -> None:
        self._odd("unusual_order_value", at)

    def _refunder(self, at: float) -> None:
        customer = self.chance.choice(self.known)
        count, minutes = self.chance.randint(8, 25), self.chance.uniform(120, 700)
        for moment in self._spread(at, count, minutes):
            made = self.redeem(moment, customer, self._some_campaign())
            self._undo(made, moment + self.chance.uniform(30, 900))
        self._plant("rollback_velocity", at, at + minutes * 60 + 900, *self._places_of(customer))

    def _ring(self, at: float) -> None:
        referrer = self.text("ringleader")
        if self.chance.random() < 0.25:
            self._referred(at, referrer, (), "ring")
            self._plant("referral_ring", at, at, ("customer", referrer))
            return
        shared = [f"device {self.hash()}" for _ in range(self.chance.randint(1, 3))]
        count, minutes = self.chance.randint(6, 20), self.chance.uniform(20, 600)
        for moment in self._spread(at, count, minutes):
            own = f"payment {self.hash()}"
            self._referred(moment, referrer, (self.chance.choice(shared), own))
        self._plant("referral_ring", at, at + minutes * 60, ("customer", referrer))

    def _leaked_batch(self, at: float) -> None:
        campaign = self.chance.choice(
            [n for n, one in enumerate(self.campaigns) if one.is_single_use and one.weight < 0.4]
        )
        count, minutes = self.chance.randint(150, 800), self.chance.uniform(6, 25)
        for moment in self._spread(at, count, minutes):
            self.redeem(moment, self.text("deal"), campaign, None, self.hash(), self.hash())
        self._plant("redemption_burst", at, at + minutes * 60, ("campaign", campaign))
