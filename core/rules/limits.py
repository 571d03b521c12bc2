"""What a redemption is judged by: terms, windows and rests, of a voucher and its campaign.

The database judges again with the row in its hands; this is the same rule for an answer that
takes nothing (validate) and for prices.
"""

from datetime import UTC, datetime
from typing import Final, Literal

import msgspec

from core.errors import Invalid, Refusal
from core.rules import discounts, money
from core.rules.discounts import DealType

# A billion redemptions of one voucher; far below where sums of counts leave a bigint.
REDEMPTIONS_MAX: Final = 1_000_000_000
METADATA_KEYS_MAX: Final = 50
METADATA_KEY_LENGTH_MAX: Final = 40
METADATA_TEXT_LENGTH_MAX: Final = 500
# Instants outside are typing errors, and the edges of the calendar break in time zones.
INSTANT_MIN: Final = datetime(2000, 1, 1, tzinfo=UTC)
INSTANT_MAX: Final = datetime(9000, 1, 1, tzinfo=UTC)

Metadata = dict[str, str | int | float | bool | None]


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a price is computed from: a voucher's own terms, filled up with its campaign's."""

    discount_type: DealType
    discount_bp: int | None
    discount_minor: int | None
    min_order_minor: int | None
    starts_at: datetime | None
    expires_at: datetime | None

    def discount(self, order_value_minor: int | None) -> int:
        """Return what the voucher takes off an order, in minor units."""
        assert self.discount_type in ("PERCENT", "AMOUNT"), "richer terms are priced by core.quotes"
        return discounts.discount_minor(
            self.discount_type,
            bp=self.discount_bp,
            amount_minor=self.discount_minor,
            order_value_minor=order_value_minor,
        )


def smallest_rest(*rests: int | None) -> int | None:
    """Return the smallest limit that applies; None where none does."""
    given = [rest for rest in rests if rest is not None]
    return max(min(given), 0) if given else None


def window_refusal(terms: Terms, now: datetime) -> Refusal | None:
    """Return why a redemption would come too early or too late. The last moment is excluded."""
    if terms.starts_at is not None and now < terms.starts_at:
        return Refusal(
            "not_started",
            f"This code is valid from {terms.starts_at.isoformat()}.",
            {"starts_at": terms.starts_at},
        )
    if terms.expires_at is not None and now >= terms.expires_at:
        return Refusal(
            "voucher_expired",
            f"This code expired at {terms.expires_at.isoformat()}.",
            {"expires_at": terms.expires_at},
        )
    return None


def order_refusal(terms: Terms, order_value_minor: int | None, currency: str) -> Refusal | None:
    """Return why an order is too small. An order without a value is worth nothing."""
    least = terms.min_order_minor
    if not least or (order_value_minor or 0) >= least:
        return None
    exponent = money.exponent_of(currency)
    assert exponent is not None
    amount = money.json_amount(least, exponent)
    return Refusal(
        "order_value_too_low",
        f"The order must be worth at least {bytes(amount).decode()} {currency}.",
        {"min_order_value": amount},
    )


def order_value_too_low(seen_minor: int, wanted_minor: int, exponent: int) -> Refusal:
    """Return the refusal of an order that is worth less than it must be."""
    seen, wanted = (money.json_amount(minor, exponent) for minor in (seen_minor, wanted_minor))
    return Refusal(
        "order_value_too_low",
        f"The order is worth {bytes(seen).decode()}; this voucher needs {bytes(wanted).decode()}.",
        {"rule": "min_order_value", "seen": seen, "wanted": wanted},
    )


def check_window(
    starts_at: datetime | None,
    expires_at: datetime | None,
    *,
    prefix: str = "",
    end_name: str = "expires_at",
) -> None:
    """Hold dates that are about to be stored against the calendar and each other.

    Raises: Invalid, with `field`.
    """
    for name, at in (("starts_at", starts_at), (end_name, expires_at)):
        if at is not None and not INSTANT_MIN <= at < INSTANT_MAX:
            raise Invalid(
                f"{prefix}{name} must be between the years 2000 and 9000", field=prefix + name
            )
    if starts_at is not None and expires_at is not None and starts_at >= expires_at:
        raise Invalid(
            f"{prefix}{end_name} must be later than {prefix}starts_at",
            field=prefix + end_name,
        )


def check_metadata(metadata: Metadata, *, field: str = "metadata") -> None:
    """Hold free data against its bounds. Raises: Invalid, with `field`."""
    if len(metadata) > METADATA_KEYS_MAX:
        raise Invalid(f"{field} takes at most {METADATA_KEYS_MAX} members", field=field)
    for key, item in metadata.items():
        if not 0 < len(key) <= METADATA_KEY_LENGTH_MAX:
            raise Invalid(
                f"names in {field} take 1 to {METADATA_KEY_LENGTH_MAX} characters", field=field
            )
        if isinstance(item, str) and len(item) > METADATA_TEXT_LENGTH_MAX:
            raise Invalid(
                f"texts in {field} take at most {METADATA_TEXT_LENGTH_MAX} characters",
                field=f"{field}.{key}",
            )
        if isinstance(item, int) and abs(item) >= 1 << 63:
            raise Invalid(f"numbers in {field} take at most 64 bits", field=f"{field}.{key}")


class Discount(msgspec.Struct, frozen=True):
    """A discount as it is stored: one of `bp` and `amount_minor` by its type, or neither."""

    type: DealType
    bp: int | None
    amount_minor: int | None


def read_discount(
    discount_type: Literal["PERCENT", "AMOUNT"] | None,
    discount_value: bytes | msgspec.Raw,
    currency: str,
    *,
    prefix: str = "",
) -> Discount | None:
    """Read a discount as it arrives; None where neither member is given. PERCENT is the default.

    Raises: Invalid, with `field`, for a type without a value and for values out of range.
    """
    field = prefix + "discount_value"
    if not money.is_given(discount_value):
        if discount_type is not None:
            raise Invalid(f"{field} is required with discount_type", field=field)
        return None
    if discount_type == "AMOUNT":
        amount = money.parse_amount(discount_value, currency, field=field, minor_min=1)
        return Discount("AMOUNT", None, amount)
    return Discount("PERCENT", money.parse_percent(discount_value, field=field), None)


def show_discount(bp: int | None, minor: int | None, exponent: int) -> msgspec.Raw | None:
    """Write a stored discount as the JSON number it came as; what is free has none."""
    if bp is not None:
        return money.json_percent(bp)
    return None if minor is None else money.json_amount(minor, exponent)
