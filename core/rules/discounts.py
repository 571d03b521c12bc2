"""What a discount is worth. Integers only, rounded once.

`discount_minor` prices the plain kinds on a plain value; it is what the compiled module computes,
too. `take` prices every kind on an order, line by line, after other discounts were taken.
"""

from typing import Final, Literal

import msgspec

from core.rules.orders import Item, Order

DiscountType = Literal["PERCENT", "AMOUNT"]
DealType = Literal["PERCENT", "AMOUNT", "FIXED", "FREE_SHIPPING", "FREE_ITEM"]
Target = Literal["order", "items"]
Choice = Literal["all", "cheapest", "most_expensive"]

_BP_WHOLE: Final = 10_000


def discount_minor(
    discount_type: DiscountType,
    *,
    bp: int | None,
    amount_minor: int | None,
    order_value_minor: int | None,
) -> int:
    """Return the discount on an order in minor units; never more than the order is worth.

    PERCENT is rounded half up, once: 20 % of 89.99 is 18.00. Without an order value PERCENT is
    worth 0 and AMOUNT its amount.
    """
    if discount_type == "PERCENT":
        assert bp is not None and 0 < bp <= _BP_WHOLE
        if order_value_minor is None:
            return 0
        assert order_value_minor >= 0
        return (order_value_minor * bp + _BP_WHOLE // 2) // _BP_WHOLE
    assert discount_type == "AMOUNT" and amount_minor is not None and amount_minor > 0
    if order_value_minor is None:
        return amount_minor
    return min(amount_minor, order_value_minor)


class Match(msgspec.Struct, frozen=True, omit_defaults=True):
    """Items by any of their names."""

    product_ids: tuple[str, ...] = ()
    skus: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    def fits(self, item: Item) -> bool:
        """Say whether the item has one of the names."""
        return (
            item.product_id in self.product_ids
            or item.sku in self.skus
            or not set(self.tags).isdisjoint(item.tags)
        )


class Scope(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a discount is taken off.

    On `items` it is taken off each chosen unit, dearest first unless the cheapest are asked for;
    at most `quantity_max` units. `cap_minor` bounds the whole discount.
    """

    target: Target = "order"
    include: Match | None = None
    exclude: Match | None = None
    choose: Choice = "all"
    quantity_max: int | None = None
    cap_minor: int | None = None

    def holds(self, item: Item) -> bool:
        """Say whether the discount may touch the item."""
        if self.include is not None and not self.include.fits(item):
            return False
        return self.exclude is None or not self.exclude.fits(item)


class Deal(msgspec.Struct, frozen=True):
    """A whole discount: one of `bp` and `amount_minor` by its type, and its scope."""

    type: DealType
    bp: int | None
    amount_minor: int | None
    scope: Scope = Scope()


class Rests(msgspec.Struct, frozen=True):
    """What is still to be paid of each line and of shipping."""

    lines: tuple[int, ...]
    shipping: int

    def less(self, taken: "Taken") -> "Rests":
        """Return what is left after a discount."""
        lines = tuple(rest - off for rest, off in zip(self.lines, taken.lines, strict=True))
        return Rests(lines, self.shipping - taken.shipping)


class Taken(msgspec.Struct, frozen=True):
    """What one discount takes off each line and off shipping."""

    lines: tuple[int, ...]
    shipping: int

    @property
    def total(self) -> int:
        """The whole discount."""
        return sum(self.lines) + self.shipping


def whole(order: Order) -> Rests:
    """Return the rests of an order before any discount."""
    return Rests(tuple(item.value_minor for item in order.items), order.shipping_minor)


def take(deal: Deal, order: Order, rests: Rests) -> Taken | None:
    """Return what a discount takes off what is left of an order.

    None where no item of the order is one it may touch. Never below zero, never more than is
    left, of the order and of each line; the parts are the whole.
    """
    nothing = (0,) * len(order.items)
    cap = deal.scope.cap_minor
    if deal.type == "FREE_SHIPPING":
        return Taken(nothing, rests.shipping if cap is None else min(cap, rests.shipping))
    if deal.type == "FREE_ITEM" or deal.scope.target == "items":
        bounds = _bounds_of_items(deal, order, rests)
    else:
        bounds = tuple(
            rest if deal.scope.holds(item) else 0
            for item, rest in zip(order.items, rests.lines, strict=True)
        )
    if not any(deal.scope.holds(item) for item in order.items):
        return None
    base = sum(bounds)
    if deal.type == "PERCENT":
        assert deal.bp is not None
        total = (base * deal.bp + _BP_WHOLE // 2) // _BP_WHOLE
    elif deal.scope.target == "items" or deal.type == "FREE_ITEM":
        total = base
    elif deal.type == "FIXED":
        assert deal.amount_minor is not None
        total = max(base - deal.amount_minor, 0)
    else:
        assert deal.amount_minor is not None
        total = min(deal.amount_minor, base)
    if cap is not None:
        total = min(total, cap)
    return Taken(spread(total, bounds), 0)


def _bounds_of_items(deal: Deal, order: Order, rests: Rests) -> tuple[int, ...]:
    """Return what could come off each line: for PERCENT the worth of its chosen units."""
    scope = deal.scope
    at_most = scope.quantity_max
    if at_most is None and (scope.choose != "all" or deal.type == "FREE_ITEM"):
        at_most = 1
    is_cheapest_first = scope.choose == "cheapest" or (
        deal.type == "FREE_ITEM" and scope.choose == "all"
    )
    places = [place for place, item in enumerate(order.items) if scope.holds(item)]
    places.sort(key=lambda place: order.items[place].unit_minor, reverse=not is_cheapest_first)
    bounds = [0] * len(order.items)
    for place in places:
        item, rest = order.items[place], rests.lines[place]
        units = item.quantity if at_most is None else min(item.quantity, at_most)
        worth = rest * units // item.quantity
        if deal.type == "AMOUNT":
            assert deal.amount_minor is not None
            worth = min(worth, deal.amount_minor * units)
        elif deal.type == "FIXED":
            assert deal.amount_minor is not None
            worth = max(worth - deal.amount_minor * units, 0)
        bounds[place] = worth
        if at_most is not None:
            at_most -= units
            if at_most == 0:
                break
    return tuple(bounds)


def spread(total: int, weights: tuple[int, ...]) -> tuple[int, ...]:
    """Split a total over weights by largest remainder; of equal remainders the first is served.

    The parts sum to the total, and none is above its weight as long as the total is not above
    theirs.
    """
    base = sum(weights)
    assert 0 <= total <= base
    if total == 0:
        return (0,) * len(weights)
    parts = [total * weight // base for weight in weights]
    rest = total - sum(parts)
    by_remainder = sorted(range(len(weights)), key=lambda place: -(total * weights[place] % base))
    for place in by_remainder[:rest]:
        parts[place] += 1
    return tuple(parts)
