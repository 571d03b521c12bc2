"""An order as a discount sees it: lines of whole units, and what shipping costs.

A caller gives either `order_value`, one number, or `order` with its items. Both become an `Order`;
a plain value is one nameless line.
"""

from typing import Annotated, Final

import msgspec

from core.errors import Invalid, Refusal
from core.rules import money

# The field's largest order in one request.
ITEMS_MAX: Final = 500
# A million units of one line; with the largest price it still adds up inside a bigint.
QUANTITY_MAX: Final = 1_000_000
REFERENCE_LENGTH_MAX: Final = 200
TAGS_MAX: Final = 20

Reference = Annotated[str, msgspec.Meta(min_length=1, max_length=REFERENCE_LENGTH_MAX)]
Number = Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema={"type": "number"})]
Scalar = str | int | float | bool | None


class NewItem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of an order as it arrives."""

    unit_price: Number
    quantity: Annotated[int, msgspec.Meta(ge=1, le=QUANTITY_MAX)] = 1
    product_id: Reference | None = None
    sku: Reference | None = None
    tags: Annotated[list[Reference], msgspec.Meta(max_length=TAGS_MAX)] = []


class NewOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An order as it arrives. `currency`, where it is given, must be the project's."""

    items: Annotated[list[NewItem], msgspec.Meta(min_length=1, max_length=ITEMS_MAX)]
    shipping: Number = msgspec.field(default_factory=msgspec.Raw)
    currency: str | None = None
    metadata: dict[str, Scalar] | None = None


class Item(msgspec.Struct, frozen=True):
    """One line: `quantity` units of `unit_minor` each."""

    product_id: str | None
    sku: str | None
    tags: tuple[str, ...]
    quantity: int
    unit_minor: int

    @property
    def value_minor(self) -> int:
        """What the line costs before discounts."""
        return self.quantity * self.unit_minor


class Order(msgspec.Struct, frozen=True):
    """What discounts are taken off. `is_itemised`: the caller named the lines."""

    items: tuple[Item, ...]
    shipping_minor: int
    is_itemised: bool

    @property
    def value_minor(self) -> int:
        """What the lines cost together, without shipping."""
        return sum(item.value_minor for item in self.items)

    @property
    def quantity(self) -> int:
        """How many units the lines have together."""
        return sum(item.quantity for item in self.items)


def of_value(value_minor: int) -> Order:
    """Return the order of a plain `order_value`: one nameless line."""
    return Order((Item(None, None, (), 1, value_minor),), 0, is_itemised=False)


def read(new: NewOrder, currency: str) -> Order | Refusal:
    """Read an order. Refuses: currency_mismatch. Raises: Invalid, with `field`."""
    if new.currency is not None and new.currency != currency:
        return Refusal(
            "currency_mismatch",
            f"The order is in {new.currency[:3]}; this project's money is {currency}.",
            {"rule": "currency", "seen": new.currency[:3], "wanted": currency},
        )
    items = tuple(
        Item(
            given.product_id,
            given.sku,
            tuple(given.tags),
            given.quantity,
            money.parse_amount(
                given.unit_price, currency, field=f"order.items[{place}].unit_price"
            ),
        )
        for place, given in enumerate(new.items)
    )
    shipping = 0
    if money.is_given(new.shipping):
        shipping = money.parse_amount(new.shipping, currency, field="order.shipping")
    order = Order(items, shipping, is_itemised=True)
    if order.value_minor + shipping > money.AMOUNT_MINOR_MAX:
        raise Invalid("order is worth more than an amount may be", field="order")
    return order


class Line(msgspec.Struct, frozen=True, array_like=True):
    """A line as the ledger keeps it: what was bought, and what came off it."""

    product_id: str | None
    sku: str | None
    quantity: int
    unit_minor: int
    discount_minor: int


class Discounted(msgspec.Struct, frozen=True, array_like=True):
    """An order after its discounts, as the ledger keeps it."""

    lines: tuple[Line, ...]
    shipping_minor: int
    shipping_discount_minor: int


class ShownLine(msgspec.Struct, frozen=True):
    """A line as the API shows it."""

    product_id: str | None
    sku: str | None
    quantity: int
    unit_price: Number
    value: Number
    discount: Number
    total: Number


class ShownOrder(msgspec.Struct, frozen=True):
    """An order after its discounts as the API shows it. `value`: the items before them."""

    items: tuple[ShownLine, ...]
    value: Number
    shipping: Number
    items_discount: Number
    shipping_discount: Number
    total: Number


def shown(after: Discounted, exponent: int) -> ShownOrder:
    """Write an order after its discounts as the API shows it."""

    def amount(minor: int) -> msgspec.Raw:
        return money.json_amount(minor, exponent)

    value = sum(line.quantity * line.unit_minor for line in after.lines)
    discount = sum(line.discount_minor for line in after.lines)
    rest = value - discount + after.shipping_minor - after.shipping_discount_minor
    return ShownOrder(
        items=tuple(
            ShownLine(
                product_id=line.product_id,
                sku=line.sku,
                quantity=line.quantity,
                unit_price=amount(line.unit_minor),
                value=amount(line.quantity * line.unit_minor),
                discount=amount(line.discount_minor),
                total=amount(line.quantity * line.unit_minor - line.discount_minor),
            )
            for line in after.lines
        ),
        value=amount(value),
        shipping=amount(after.shipping_minor),
        items_discount=amount(discount),
        shipping_discount=amount(after.shipping_discount_minor),
        total=amount(rest),
    )
