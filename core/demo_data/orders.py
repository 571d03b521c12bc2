"""A year of orders with codes: which code, by whom, what it took off, and what was given back."""

import math
from collections import Counter
from datetime import date, datetime, timedelta
from hashlib import sha256
from typing import Final

import msgspec

from core.demo_data import shop
from core.demo_data.draws import Draws, Row, hours_before, text, whole_day
from core.demo_data.people import Crowd
from core.demo_data.shop import Offer
from core.rules.discounts import discount_minor

# Of all orders so many are rolled back, minutes later.
ROLLED_BACK: Final = 0.024
# The shop sold half as much when the year began as when it ends.
GROWTH: Final = 2.0
_WEEKDAYS: Final = (0.95, 0.9, 0.95, 1.0, 1.1, 1.15, 1.25)
# An order whose customer may use none of what runs tries so often; then it is by another one.
TRIES_MAX: Final = 8
# Of a whole number of units, so that a limit looks as if somebody had chosen it.
ROUND_UNITS: Final = 250
ROUND_MINOR: Final = 50_000


class Code(msgspec.Struct):
    """An offer as the year uses it up: its vouchers, one for all or one for each order."""

    offer: Offer
    vouchers: list[Row]
    campaign: Row | None
    used: int = 0

    @property
    def is_gone(self) -> bool:
        """Whether each of its codes has had its one order."""
        return self.offer.code is None and self.used == len(self.vouchers)

    @property
    def voucher(self) -> Row:
        """The code that the next order has."""
        return self.vouchers[self.used if self.offer.code is None else 0]


class Book:
    """What is redeemed, with every count beside it that the ledger keeps."""

    def __init__(self, draws: Draws) -> None:
        """Begin empty."""
        self.draws = draws
        self.rows: list[Row] = []
        self.by_customer: Counter[tuple[str, str]] = Counter()
        self._number = 100_000

    def write(self, code: Code, customer: str, value: int, at: datetime, until: datetime) -> Row:
        """Redeem a code once, and roll it back where that is its lot."""
        voucher = code.voucher
        self._number += 1
        order_id = f"NC-{self._number}"
        row: Row = {
            "id": self.draws.id_at(at), "lease_id": voucher["id"], "seq": voucher["next_number"],
            "voucher_id": voucher["id"], "campaign_id": code.campaign and code.campaign["id"],
            "idempotency_key": order_id, "fingerprint": fingerprint(order_id),
            "customer_id": customer, "order_id": order_id, "order_value_minor": value,
            "discount_minor": _off(code.offer, value), "status": "redeemed",
            "redeemed_at": text(at),
        }  # fmt: skip
        voucher["next_number"] += 1
        back = at + timedelta(seconds=self.draws.random.randint(90, 1_500))
        if self.draws.chance(ROLLED_BACK) and back <= until:
            row |= {
                "status": "rolled_back", "rolled_back_at": text(back),
                "rollback_reason": self.draws.random.choice(shop.REASONS),
            }  # fmt: skip
        else:
            for counted in filter(None, (voucher, code.campaign)):
                counted["direct_count"] += 1
            self.by_customer[voucher["id"], customer] += 1
        self.rows.append(row)
        return row


def fingerprint(text_: str) -> str:
    """Return what is kept of a request, to know it again."""
    return f"\\x{sha256(text_.encode()).hexdigest()}"


def _off(offer: Offer, value: int) -> int:
    if offer.kind == "FREE_SHIPPING":
        return shop.SHIPPING_MINOR
    return discount_minor(
        offer.kind, bp=offer.value, amount_minor=offer.value, order_value_minor=value
    )


def by_day(draws: Draws, count: int, first: date, until: datetime, codes: list[Code]) -> list[int]:
    """Return how many orders each day has, `count` in all."""
    days = 1 + (until.date() - first).days
    weights = []
    for place in range(days):
        day = first + timedelta(days=place)
        running = sum(code.offer.weight for code in codes if _runs(code.offer, day))
        growth = 1 + (GROWTH - 1) * place / days
        share = hours_before(day, until) / whole_day()
        noise = math.exp(draws.random.gauss(0, 0.12))
        weights.append(growth * _WEEKDAYS[day.weekday()] * (4 + running) * share * noise)
    total, seen, given, found = sum(weights), 0.0, 0, []
    for weight in weights:
        seen += weight
        upto = round(count * seen / total)
        found.append(upto - given)
        given = upto
    return found


def _runs(offer: Offer, day: date) -> bool:
    is_on = offer.first <= day and (offer.end is None or day < offer.end)
    return is_on and (not offer.weekends or day.weekday() >= 5)


def draw(
    book: Book, crowd: Crowd, codes: list[Code], count: int, first: date, until: datetime
) -> None:
    """Redeem `count` times between `first` and `until`."""
    draws = book.draws
    for place, orders in enumerate(by_day(draws, count, first, until, codes)):
        day = first + timedelta(days=place)
        open_ = [code for code in codes if _runs(code.offer, day)]
        for at in sorted(draws.within(day, until) for _ in range(orders)):
            _order(book, crowd, open_, at, until)


def _order(book: Book, crowd: Crowd, open_: list[Code], at: datetime, until: datetime) -> None:
    draws = book.draws
    for _ in range(TRIES_MAX):
        customer = crowd.at(at)
        usable = [code for code in open_ if not code.is_gone]
        code = draws.random.choices(usable, [one.offer.weight for one in usable])[0]
        limit = code.offer.per_customer
        if limit is None or book.by_customer[code.voucher["id"], customer] < limit:
            break
    else:
        code = next(one for one in usable if one.offer.per_customer is None)
    value = max(int(draws.random.lognormvariate(math.log(4_600), 0.5)), 900)
    least = code.offer.min_order_minor or 0
    if value < least:
        # Who has a code to gain puts something more into the cart.
        value = least + draws.random.randrange(least // 2)
    value = value // 10 * 10
    book.write(code, customer, value, at, until)
    code.used += 1


def set_limits(book: Book, codes: list[Code]) -> None:
    """Set limits and budgets so that as much of them is gone as each offer says."""
    for code in codes:
        owner = code.campaign or code.vouchers[0]
        if code.offer.limit_filled is not None:
            wanted = owner["direct_count"] * 100 / code.offer.limit_filled
            owner["max_redemptions"] = _above(wanted, ROUND_UNITS)
        if code.offer.budget is not None and code.campaign is not None:
            _set_budget(book, code.campaign, code.offer.budget)
    _set_remaining(book, codes)


def _above(wanted: float, step: int) -> int:
    return max(step, math.ceil(wanted / step) * step)


def _set_budget(book: Book, campaign: Row, percent: float) -> None:
    taken = [row for row in book.rows if row["campaign_id"] == campaign["id"]]
    used = sum(row["discount_minor"] for row in taken if row["status"] == "redeemed")
    most = _above(used * 100 / percent, ROUND_MINOR)
    campaign["promotion"]["budgets"] = [{"of": "discount", "max": most}]
    campaign["budget"] = {
        "scope_id": campaign["id"], "label": "discount", "subject": "", "period": "",
        "used": used, "used_max": most,
    }  # fmt: skip
    for row in taken:
        row["detail"] = {"takings": [{**campaign["budget"], "used": row["discount_minor"]}]}


def _set_remaining(book: Book, codes: list[Code]) -> None:
    """Write beside each redemption what its answer said was left."""
    owners = {
        voucher["id"]: (voucher, code.campaign) for code in codes for voucher in code.vouchers
    }
    live: Counter[str] = Counter()
    for row in book.rows:
        over = [one for one in owners[row["voucher_id"]] if one is not None]
        limits = [
            one["max_redemptions"] - live[one["id"]] - 1
            for one in over
            if one["max_redemptions"] is not None
        ]
        row["remaining"] = min(limits) if limits else None
        if row["status"] == "redeemed":
            live.update(one["id"] for one in over)
