"""The whole year, drawn: rows by table, in the order in which they can be written. Pure."""

from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import msgspec

from core import ids
from core.demo_data import cards, friends, orders, people, sales, shop
from core.demo_data.draws import ZONE, Draws, Row, begin_of, text
from core.demo_data.orders import Book, Code
from core.demo_data.shop import Offer
from core.rules.codes import ALPHABET
from core.rules.conditions import Rule
from core.rules.promotions import Promotion
from core.rules.schedules import Schedule

DAYS: Final = 365
CUSTOMERS_MIN: Final = 200
# Redemptions for each gift card and each referral.
A_CARD: Final = 120
A_REFERRAL: Final = 240
# Fewer would not show what happens to them.
CARDS_MIN: Final = 80
REFERRALS_MIN: Final = 40
# Below it a shop is too small for its sales.
REDEMPTIONS_MIN: Final = 1_000


class Year(msgspec.Struct, frozen=True):
    """When it begins, and rows by table, each in the form of its table, less the project."""

    begins_at: datetime
    tables: dict[str, list[Row]]

    @property
    def row_count(self) -> int:
        """How many rows there are in all."""
        return sum(map(len, self.tables.values()))


def draw(seed: int, redemption_count: int, until: datetime) -> Year:
    """Draw the year that ends at `until`; the same for the same three."""
    draws = Draws(seed)
    until = until.astimezone(UTC)
    today = until.astimezone(ZONE).date()
    first = today - timedelta(days=DAYS - 1)
    begun = begin_of(first)
    come = people.draw(
        draws, max(CUSTOMERS_MIN, redemption_count // people.ORDERS_EACH), first, until
    )
    held = sales.draw(draws, people.Crowd(draws, come), redemption_count, until)
    book = Book(draws)
    direct = redemption_count - len(held.rows)
    codes = _codes(draws, shop.offers(today, first), direct, until)
    orders.draw(book, people.Crowd(draws, come), codes, direct, first, until)
    orders.set_limits(book, codes)
    ledger = cards.Ledger(draws)
    cards.draw(draws, ledger, come, max(CARDS_MIN, redemption_count // A_CARD), begun, until)
    known = friends.draw(
        draws, ledger, come, max(REFERRALS_MIN, redemption_count // A_REFERRAL), begun, until
    )
    campaigns = {code.campaign["id"]: code.campaign for code in codes if code.campaign is not None}
    return Year(
        begun,
        {
            "customers": people.rows(draws, come),
            **_segments(draws, come, begun),
            "campaigns": list(campaigns.values()),
            "vouchers": [one for code in codes for one in code.vouchers] + held.vouchers,
            "sales": held.sales, "leases": held.leases,
            "redemptions": book.rows + held.rows,
            "budgets": [one.pop("budget") for one in campaigns.values() if "budget" in one],
            "cards": ledger.cards, "transactions": ledger.transactions,
            "entries": ledger.entries, "programs": known.programs, "referral_codes": known.codes,
            "referrals": known.referrals, "rewards": known.rewards,
            "referral_history": known.history,
            "audit": _audit(draws, list(campaigns.values()), held.sales),
        },
    )  # fmt: skip


def _audit(draws: Draws, campaigns: list[Row], held: list[Row]) -> list[Row]:
    """Return who made what, as the audit log has it."""
    made: list[tuple[ids.Prefix, str, Row]] = [
        *(("cmp", "campaign.created", one) for one in campaigns),
        *(("fls", "flash_sale.created", one) for one in held),
    ]
    return [
        {
            "id": draws.id_at(datetime.fromisoformat(one["created_at"])), "action": action,
            "target": ids.format_id(prefix, UUID(one["id"])), "after": {"name": one["name"]},
            "at": one["created_at"],
        }
        for prefix, action, one in made
    ]  # fmt: skip


def _codes(draws: Draws, offers: list[Offer], count: int, until: datetime) -> list[Code]:
    found = []
    for offer in offers:
        made_at = min(
            begin_of(offer.first) - timedelta(days=draws.random.randint(2, 9)),
            until - timedelta(days=1),
        )
        campaign = None if offer.campaign is None else _campaign(draws, offer, made_at, until)
        if offer.code is not None:
            vouchers = [_voucher(draws, offer, made_at, offer.code)]
        else:
            vouchers = [
                _voucher(draws, offer, made_at, f"NEWS-{''.join(drawn)}") | {"max_redemptions": 1}
                for _ in range(offer.code_count * count // 1_000)
                if (drawn := draws.random.choices(ALPHABET, k=8))
            ]
        found.append(Code(offer, [_in(one, campaign) for one in vouchers], campaign))
    return found


def _in(voucher: Row, campaign: Row | None) -> Row:
    """Leave discount, least order and dates to the campaign, where there is one."""
    if campaign is not None:
        voucher |= {
            "campaign_id": campaign["id"], "discount_type": None, "discount_bp": None,
            "discount_minor": None, "min_order_minor": None, "expires_at": None,
        }  # fmt: skip
    return voucher


def _terms(offer: Offer) -> Row:
    return {
        "discount_type": offer.kind,
        "discount_bp": offer.value if offer.kind == "PERCENT" else None,
        "discount_minor": offer.value if offer.kind == "AMOUNT" else None,
        "min_order_minor": offer.min_order_minor, "max_redemptions": None, "direct_count": 0,
        "expires_at": text(begin_of(offer.end)) if offer.end else None,
    }  # fmt: skip


def _voucher(draws: Draws, offer: Offer, at: datetime, code: str) -> Row:
    is_disabled = offer.status == "disabled"
    return _terms(offer) | {
        "id": draws.id_at(at), "code": code, "code_norm": code.upper(), "campaign_id": None,
        "status": "disabled" if is_disabled else "active", "promotion": None,
        "per_customer_limit": offer.per_customer, "leased_count": 0, "next_number": 1,
        "sale_only": False, "created_at": text(at),
        "metadata": {} if offer.campaign else {"partner": code.rstrip("0123456789").title()},
    }  # fmt: skip


def _campaign(draws: Draws, offer: Offer, at: datetime, until: datetime) -> Row:
    starts, ends = begin_of(offer.first), begin_of(offer.end) if offer.end else None
    is_over = ends is not None and ends <= until
    schedule = Schedule(weekdays=("sat", "sun")) if offer.weekends else None
    promotion = None
    if offer.weekends or offer.budget is not None or offer.kind == "FREE_SHIPPING":
        least = Rule(fact="order.value", is_="at_least", value=offer.min_order_minor or 1)
        promotion = msgspec.to_builtins(
            Promotion(
                conditions=least if offer.kind == "FREE_SHIPPING" else None, schedule=schedule,
                time_zone=shop.TIME_ZONE,
            )
        )  # fmt: skip
    return _terms(offer) | {
        "id": draws.id_at(at), "name": offer.campaign, "promotion": promotion,
        "status": "paused" if offer.status == "paused" else "active",
        "starts_at": text(starts) if starts > at else None,
        "started_at": text(max(starts, at)) if starts <= until else None,
        "ended_at": text(ends) if is_over else None, "created_at": text(at),
    }  # fmt: skip


def _segments(
    draws: Draws, come: list[people.Person], at: datetime
) -> dict[str, list[Row]]:  # fmt: skip
    offices = {"id": draws.id_at(at), "name": "Offices", "rule": None, "created_at": text(at)}
    rule = Rule(fact="customer.redemptions", is_="at_least", value=5)
    regulars = {
        "id": draws.id_at(at), "name": "Regulars", "rule": msgspec.to_builtins(rule),
        "created_at": text(at),
    }  # fmt: skip
    chosen = draws.random.sample(come, 45)
    return {
        "segments": [offices, regulars],
        "segment_members": [
            {"segment_id": offices["id"], "customer_id": one.customer_id, "added_at": text(at)}
            for one in sorted(chosen, key=lambda one: one.customer_id)
        ],
    }
