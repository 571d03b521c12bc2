"""Gift cards of the year, each with a ledger that follows from entry to entry."""

from datetime import datetime, timedelta
from typing import Final

from core.demo_data import shop
from core.demo_data.draws import Draws, Row, text
from core.demo_data.orders import fingerprint
from core.demo_data.people import Person
from core.rules import codes

# Of a card that was sold, and of one that was given away and ends soon.
_AMOUNTS: Final = (2_500, 2_500, 3_000, 5_000, 5_000, 5_000, 7_500, 10_000)
GIVEN: Final = 0.18
GIVEN_LASTS: Final = timedelta(days=90)
SOLD_LASTS: Final = timedelta(days=3 * 365)
# Cards are for Christmas; other months have a share each.
DECEMBER: Final = 0.4
_LEGS: Final = {
    "issue": ("credit", "sales"), "spend": ("debit", "redemption"), "top_up": ("credit", "sales"),
    "refund": ("credit", "redemption"), "expire": ("debit", "breakage"),
}  # fmt: skip


class Ledger:
    """Cards, their transactions, and both entries of each."""

    def __init__(self, draws: Draws) -> None:
        """Begin empty."""
        self._draws = draws
        self.cards: list[Row] = []
        self.transactions: list[Row] = []
        self.entries: list[Row] = []

    def issue(
        self, at: datetime, amount: int, reference: str, *, customer: str | None = None,
        source: str = "sales", expires_at: datetime | None = None,
    ) -> Row:  # fmt: skip
        """Make a card with something on it."""
        drawn = self._draws.random.choices(codes.ALPHABET, k=4)
        card: Row = {
            "id": self._draws.id_at(at), "code_digest": self._draws.bytes_of(32),
            "last_four": "".join(drawn), "currency": shop.CURRENCY, "balance_minor": 0,
            "spent_minor": 0, "entry_count": 0, "expires_at": text(expires_at),
            "customer_id": customer, "created_at": text(at),
        }  # fmt: skip
        self.cards.append(card)
        self.move(card, "issue", at, amount, reference, account=source)
        return card

    def move(
        self, card: Row, kind: str, at: datetime, amount: int, reference: str, *,
        account: str | None = None, refund_of: str | None = None, order_id: str | None = None,
    ) -> Row:  # fmt: skip
        """Write a movement of money down twice, and what is on the card after it."""
        side, other = _LEGS[kind]
        card["balance_minor"] += amount if side == "credit" else -amount
        card["spent_minor"] += {"spend": amount, "refund": -amount}.get(kind, 0)
        card["entry_count"] += 1
        moved: Row = {
            "id": self._draws.id_at(at), "card_id": card["id"], "kind": kind,
            "amount_minor": amount, "asked_minor": amount, "currency": shop.CURRENCY,
            "reference": reference, "fingerprint": fingerprint(reference), "refund_of": refund_of,
            "order_id": order_id, "created_at": text(at),
        }  # fmt: skip
        self.transactions.append(moved)
        both = {"transaction_id": moved["id"], "amount_minor": amount}
        self.entries += [
            {
                **both, "side": side, "account": "liability", "card_id": card["id"],
                "number": card["entry_count"], "balance_minor": card["balance_minor"],
            },
            {
                **both, "side": "debit" if side == "credit" else "credit",
                "account": account or other,
            },
        ]  # fmt: skip
        return moved


def draw(
    draws: Draws, ledger: Ledger, people: list[Person], count: int, first: datetime, until: datetime
) -> None:
    """Sell and give away cards, and let some of what is on them be spent."""
    days = (until - first).days
    decembers = [d for d in range(days) if (first + timedelta(days=d)).month == 12]
    for number in range(count):
        is_gift = bool(decembers) and draws.chance(DECEMBER)
        day = draws.random.choice(decembers) if is_gift else draws.random.randrange(days)
        at = draws.within((first + timedelta(days=day)).date(), until)
        is_given = draws.chance(GIVEN)
        lasts = GIVEN_LASTS if is_given else SOLD_LASTS
        come = [one for one in people if one.since <= at]
        card = ledger.issue(
            at, draws.random.choice(_AMOUNTS), f"issue-{number + 1}",
            customer=draws.random.choice(come).customer_id if come and is_given else None,
            source="promotion" if is_given else "sales", expires_at=at + lasts,
        )  # fmt: skip
        _use(draws, ledger, card, at, min(until, at + lasts))
        if at + lasts <= until and card["balance_minor"] > 0:
            over = at + lasts + timedelta(seconds=draws.random.randint(5, 300))
            if over <= until:
                ledger.move(card, "expire", over, card["balance_minor"], f"expire-{card['id']}")


def _use(draws: Draws, ledger: Ledger, card: Row, at: datetime, last: datetime) -> None:
    for spent in range(draws.random.choice((0, 0, 1, 1, 2, 2, 3, 4))):
        at += timedelta(days=draws.random.expovariate(1 / 24), minutes=7)
        if at >= last or card["balance_minor"] == 0:
            return
        wanted = draws.random.randrange(900, 4_200, 10)
        order_id = f"NC-G{card['id'][-6:]}{spent}".upper()
        moved = ledger.move(
            card, "spend", at, min(wanted, card["balance_minor"]), f"spend-{card['id']}-{spent}",
            order_id=order_id,
        )  # fmt: skip
        if draws.chance(0.05) and at + timedelta(days=3) < last:
            at += timedelta(days=3)
            ledger.move(
                card, "refund", at, moved["amount_minor"], f"refund-{card['id']}-{spent}",
                refund_of=moved["id"], order_id=order_id,
            )  # fmt: skip
        if draws.chance(0.06) and at + timedelta(days=1) < last:
            at += timedelta(days=1)
            ledger.move(card, "top_up", at, 2_500, f"top-up-{card['id']}-{spent}")
