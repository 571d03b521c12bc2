"""Flash sales of the year: drops of rare beans, gone within a minute, settled and in the ledger."""

from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from core import ids
from core.demo_data.draws import Draws, Row, begin_of, text
from core.demo_data.orders import fingerprint
from core.demo_data.people import Crowd
from core.rules.discounts import discount_minor

# Name, code, how many days ago, stock for 100,000 redemptions a year, how much of it is sold.
_DROPS: Final = (
    ("Drop 1: Guji natural", "GUJI", 247, 900, 1.0),
    ("Drop 2: Gesha", "GESHA", 131, 1_400, 1.0),
    ("Drop 3: Sidra", "SIDRA", 24, 2_200, 0.87),
)
_NEXT: Final = ("Drop 4: Pacamara", "PACAMARA", 2_500)
DISCOUNT_BP: Final = 4_000
STOCK_MIN: Final = 40
# A sale opens at six in the evening; a crowd is gone within a minute or so.
OPENS: Final = timedelta(hours=18)
CROWD_S: Final = 14.0
_PER: Final = 100_000


class Sales:
    """The rows of sales and what goes with them."""

    def __init__(self) -> None:
        """Begin empty."""
        self.vouchers: list[Row] = []
        self.sales: list[Row] = []
        self.leases: list[Row] = []
        self.rows: list[Row] = []


def draw(draws: Draws, crowd: Crowd, count: int, until: datetime) -> Sales:
    """Return settled sales, a claim for each customer, and one sale that is to come."""
    found = Sales()
    for name, code, days, stock, share in _DROPS:
        opened = begin_of(until.date() - timedelta(days=days)) + OPENS
        units = max(STOCK_MIN, stock * count // _PER)
        voucher = _voucher(draws, code, opened - timedelta(days=3), units)
        sale = _sale(draws, voucher, name, units, opened, "settled")
        wins = int(units * share)
        _settle(draws, crowd, found, voucher, sale, wins, opened)
    name, code, stock = _NEXT
    opens = begin_of(until.date() + timedelta(days=2)) + OPENS
    units = max(STOCK_MIN, stock * count // _PER)
    voucher = _voucher(draws, code, until - timedelta(days=1), units)
    found.vouchers.append(voucher)
    found.sales.append(_sale(draws, voucher, name, units, opens, "scheduled"))
    return found


def _voucher(draws: Draws, code: str, at: datetime, units: int) -> Row:
    return {
        "id": draws.id_at(at), "code": code, "code_norm": code, "campaign_id": None,
        "status": "active", "discount_type": "PERCENT", "discount_bp": DISCOUNT_BP,
        "discount_minor": None, "min_order_minor": None, "max_redemptions": units,
        "per_customer_limit": 1, "expires_at": None, "promotion": None, "direct_count": 0,
        "leased_count": 0, "next_number": 1, "sale_only": True, "metadata": {},
        "created_at": text(at),
    }  # fmt: skip


def _sale(
    draws: Draws, voucher: Row, name: str, units: int, opens: datetime, status: str
) -> Row:  # fmt: skip
    is_over = status == "settled"
    return {
        "id": draws.id_at(datetime.fromisoformat(voucher["created_at"])), "status": status,
        "voucher_id": voucher["id"], "name": name, "stock": units, "leased_count": 0,
        "starts_at": text(opens), "ends_at": text(opens + timedelta(hours=2)),
        "opened_at": text(opens) if is_over else None,
        "closed_at": text(opens + timedelta(hours=2)) if is_over else None,
        "created_at": voucher["created_at"],
    }  # fmt: skip


def _settle(
    draws: Draws, crowd: Crowd, found: Sales, voucher: Row, sale: Row, wins: int, opened: datetime
) -> None:
    lease_id = UUID(draws.id_at(opened))
    tag = int(opened.timestamp() * 1000) << 16 | draws.random.getrandbits(16)
    at, claimed = opened, set[str]()
    for seq in range(1, wins + 1):
        at += timedelta(seconds=draws.random.expovariate(wins / CROWD_S) * (1 + 3 * seq / wins))
        while (customer := crowd.at(at)) in claimed:
            pass
        claimed.add(customer)
        key = f"claim-{voucher['code']}-{seq}"
        value = draws.random.randrange(2_490, 7_990, 50)
        found.rows.append(
            {
                "id": str(ids.win_id(tag, lease_id, seq)), "lease_id": str(lease_id), "seq": seq,
                "granted_size": sale["stock"], "voucher_id": voucher["id"], "campaign_id": None,
                "sale_id": sale["id"], "sale_seq": seq, "idempotency_key": key,
                "fingerprint": fingerprint(key), "customer_id": customer, "order_id": None,
                "order_value_minor": value,
                "discount_minor": discount_minor(
                    "PERCENT", bp=DISCOUNT_BP, amount_minor=None, order_value_minor=value
                ),
                "remaining": sale["stock"] - seq, "status": "redeemed", "redeemed_at": text(at),
            }
        )  # fmt: skip
    sale["leased_count"] = voucher["leased_count"] = wins
    found.vouchers.append(voucher)
    found.sales.append(sale)
    found.leases.append(
        {
            "id": str(lease_id), "tag": tag, "sale_id": sale["id"], "voucher_id": voucher["id"],
            "size": sale["stock"], "open_to": wins, "returned": sale["stock"] - wins,
            "armed_at": text(opened - timedelta(seconds=2)), "opened_at": text(opened),
            "settled_at": sale["closed_at"],
        }
    )  # fmt: skip
