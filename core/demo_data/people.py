"""The shop's customers: who they are and since when, and who buys at a moment."""

import unicodedata
from datetime import date, datetime, timedelta
from typing import Final

import msgspec

from core.demo_data import shop
from core.demo_data.draws import Draws, Row, begin_of, text

# Orders of a customer in a year, on average.
ORDERS_EACH: Final = 14
# Customers that the shop had before the year began.
EARLIER: Final = 0.3
# A share of orders is by who came lately; the others by anybody, the earlier the likelier.
BY_NEW: Final = 0.3


class Person(msgspec.Struct, frozen=True):
    """A customer, registered at an instant."""

    customer_id: str
    name: str
    email: str
    since: datetime


def draw(draws: Draws, count: int, first: date, until: datetime) -> list[Person]:
    """Return customers in the order they came."""
    begun = begin_of(first)
    found = []
    for number in range(count):
        given = draws.random.choice(shop.FIRST_NAMES)
        family = draws.random.choice(shop.LAST_NAMES)
        share = max(0.0, (number / count - EARLIER) / (1 - EARLIER))
        since = begun + (until - begun) * share + timedelta(seconds=draws.random.randrange(3600))
        local = _ascii(f"{given}.{family}".lower().replace(" ", "").replace("’", ""))
        found.append(
            Person(
                f"cus-{10_001 + number}", f"{given} {family}", f"{local}{number}@example.com",
                min(since, until),
            )
        )  # fmt: skip
    return found


def _ascii(name: str) -> str:
    special = str.maketrans({"ø": "o", "ł": "l", "ı": "i", "ß": "ss"})
    plain = unicodedata.normalize("NFKD", name.translate(special))
    return plain.encode("ascii", "ignore").decode()


def rows(draws: Draws, people: list[Person]) -> list[Row]:
    """Return the rows of `vf.customers`."""
    return [
        {
            "id": draws.id_at(one.since), "customer_id": one.customer_id, "name": one.name,
            "email": one.email, "created_at": text(one.since),
            "attributes": {
                "city": draws.random.choice(shop.CITIES),
                "grind": draws.random.choice(("whole bean", "espresso", "filter", "press")),
            },
        }
        for one in people
    ]  # fmt: skip


class Crowd:
    """Who buys: regulars more often than others, and nobody before they came."""

    def __init__(self, draws: Draws, people: list[Person]) -> None:
        """Take customers in the order they came."""
        self._draws = draws
        self._people = people
        self._come = 0

    def at(self, moment: datetime) -> str:
        """Return a customer who buys at a moment; moments must not go back."""
        while self._come < len(self._people) and self._people[self._come].since <= moment:
            self._come += 1
        come = max(self._come, 1)
        if self._draws.chance(BY_NEW):
            return self._people[come - 1 - self._draws.random.randrange(1 + come // 6)].customer_id
        return self._people[int(come * self._draws.random.random() ** 1.6)].customer_id
