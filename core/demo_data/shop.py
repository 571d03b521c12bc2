"""The shop the year is of: a coffee roastery, its people's names, and what it gives away when."""

from datetime import date, timedelta
from typing import Final, Literal

import msgspec

NAME: Final = "Nordlicht Coffee"
CURRENCY: Final = "EUR"
TIME_ZONE: Final = "Europe/Berlin"
SHIPPING_MINOR: Final = 490

FIRST_NAMES: Final = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hannes", "Ida", "Jonas",
    "Katharina", "Leon", "Marie", "Noah", "Olivia", "Paul", "Rosa", "Samuel", "Tilda", "Theo",
    "Zoe", "Amélie", "Baptiste", "Chloé", "Élodie", "Luca", "Giulia", "Matteo", "Sofia", "Marco",
    "Nina", "Jan", "Zofia", "Piotr", "Agnieszka", "Lars", "Ingrid", "Søren", "Freja", "Åsa",
    "Erik", "Saoirse", "Liam", "Niamh", "Tomás", "Lucía", "Carmen", "Diego", "Beatriz", "João",
    "Inês", "Maja", "Elif", "Emre", "Aylin", "Mehmet", "Ayşe", "Yusuf", "Mina", "Kofi", "Adaeze",
    "Priya", "Arjun", "Mei", "Hiro", "Yuki", "Linh", "Minh", "Fatima", "Omar", "Layla", "Ivana",
    "Mihai", "Ioana", "Petra", "Tereza", "Jakub", "Eszter",
)  # fmt: skip
LAST_NAMES: Final = (
    "Müller", "Schmidt", "Schneider", "Fischer", "Weber", "Meyer", "Wagner", "Becker", "Schulz",
    "Hoffmann", "Koch", "Richter", "Klein", "Wolf", "Neumann", "Schwarz", "Zimmermann", "Braun",
    "Krüger", "Hartmann", "Lange", "Werner", "Krause", "Lehmann", "Köhler", "Dubois", "Moreau",
    "Laurent", "Rossi", "Ferrari", "Bianchi", "Ricci", "Kowalska", "Nowak", "Wiśniewski",
    "Hansen", "Nielsen", "Lindqvist", "Andersson", "Bergström", "Virtanen", "Korhonen", "Murphy",
    "O’Brien", "Kelly", "García", "Martínez", "López", "Fernández", "Silva", "Santos", "Pereira",
    "Yılmaz", "Demir", "Kaya", "Okafor", "Mensah", "Sharma", "Patel", "Chen", "Tanaka", "Nguyen",
    "Haddad", "Novák", "Svobodová", "Nagy", "Popescu", "Horvat", "Jansen", "de Vries",
    "van den Berg", "Bakker",
)  # fmt: skip
CITIES: Final = (
    "Berlin", "Hamburg", "Köln", "München", "Leipzig", "Bremen", "Wien", "Zürich", "Kopenhagen",
    "Amsterdam", "Rotterdam", "Lyon", "Kraków", "Malmö",
)  # fmt: skip
REASONS: Final = (
    "Order cancelled", "Parcel came back", "Wrong grind ordered", "Paid twice", "Out of stock",
)  # fmt: skip

Kind = Literal["PERCENT", "AMOUNT", "FREE_SHIPPING"]


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """One discount of the shop and the days it runs, `first` to before `end`.

    `value`: basis points, or minor units. `weight`: how often it is used, beside others. `code`:
    what everybody types; without one there are `code_count` codes for each thousand orders of the
    year, good once each.
    `campaign`: without one the code stands alone. `budget`: how much of it is gone, in percent.
    """

    campaign: str | None = None
    code: str | None = None
    kind: Kind = "PERCENT"
    value: int = 0
    weight: float = 1.0
    first: date
    end: date | None = None
    min_order_minor: int | None = None
    per_customer: int | None = None
    limit_filled: float | None = None
    budget: float | None = None
    code_count: int = 0
    weekends: bool = False
    status: Literal["active", "paused", "disabled"] = "active"


# The shop's calendar: name, code, first day, last day (month, day), basis points, weight.
_CALENDAR: Final = (
    ("New Year, new beans", "FRESHSTART", (1, 2), (1, 15), 1000, 2.0),
    ("Spring roast", "SPRING15", (3, 15), (4, 20), 1500, 2.5),
    ("Midsummer cold brew", "COLDBREW", (6, 10), (7, 31), 1500, 2.5),
    ("Back to the desk", "DESK10", (9, 1), (9, 20), 1000, 2.0),
    ("Black Week", "BLACK25", (11, 20), (11, 30), 2500, 7.0),
    ("Christmas gifts", "XMAS20", (12, 1), (12, 24), 2000, 4.5),
)
# A campaign that begins later than this is not planned yet.
AHEAD: Final = timedelta(days=30)


def offers(today: date, first: date) -> list[Offer]:
    """Return what the shop gives between `first` and `today`, and what is planned."""

    def ago(days: int) -> date:
        return today - timedelta(days=days)

    steady = [
        Offer(
            campaign="Welcome", code="WELCOME10", value=1000, weight=3.2, first=first,
            min_order_minor=2_000, per_customer=1,
        ),
        Offer(
            campaign="Free shipping from 60", code="FREESHIP", kind="FREE_SHIPPING", weight=2.6,
            first=first, min_order_minor=6_000,
        ),
        Offer(
            campaign="Newsletter", kind="AMOUNT", value=500, weight=1.2, first=ago(300),
            end=today + timedelta(days=5), min_order_minor=3_000, code_count=100,
        ),
        Offer(
            campaign="Tasting box", code="TASTE20", value=2000, weight=1.6, first=ago(60),
            end=today + timedelta(days=40), budget=92.0, min_order_minor=3_500,
        ),
        Offer(
            campaign="Weekend espresso", code="SLOWSUNDAY", value=1200, weight=1.3, first=ago(200),
            weekends=True,
        ),
        Offer(
            campaign="Come back to us", code="MISSYOU", kind="AMOUNT", value=800, weight=0.9,
            first=ago(150), min_order_minor=4_000, per_customer=1, status="paused",
        ),
        Offer(code="LENA10", value=1000, weight=1.1, first=ago(340)),
        Offer(code="MARCO15", value=1500, weight=0.8, first=ago(180), limit_filled=88.0),
        Offer(code="OFFICE5", value=500, weight=0.7, first=ago(320), min_order_minor=10_000),
        Offer(code="LEAKED30", value=3000, weight=0.5, first=ago(120), end=ago(112),
              status="disabled"),
    ]  # fmt: skip
    seasons = [
        Offer(
            campaign=f"{name} {begin.year}", code=f"{code}-{begin.year % 100}", value=bp,
            weight=weight, first=begin, end=end, limit_filled=76.0,
        )
        for name, code, start, last, bp, weight in _CALENDAR
        for year in (first.year, first.year + 1, today.year + 1)
        if (begin := date(year, *start)) < (end := date(year, *last) + timedelta(days=1))
        and begin >= first and begin <= today + AHEAD
    ]  # fmt: skip
    return steady + sorted(set(seasons), key=lambda one: one.first)
