"""What a voucher or campaign may carry beyond a plain discount, and how it is judged.

A plain voucher has none of this (`Promotion` is None) and goes the fast way. Everything here is
pure: facts, orders and instants come in, a price or a reason goes out.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from core.errors import Invalid, Refusal
from core.rules import budgets, conditions, limits, money, orders, schedules
from core.rules.budgets import Budget, Budgets, Taking
from core.rules.conditions import NewRule, Rule
from core.rules.discounts import Choice, Deal, DealType, Match, Rests, Scope, Taken, Target, take
from core.rules.limits import Discount
from core.rules.orders import Discounted, Number, Order, Reference, ShownOrder
from core.rules.schedules import Schedule

# As many names as a merchant lists by hand; more items are told apart by a tag.
NAMES_MAX: Final = 500
PLAIN_TYPES: Final = ("PERCENT", "AMOUNT")

Owner = Literal["voucher", "campaign"]

Days = Annotated[int, msgspec.Meta(ge=1, le=schedules.DAYS_MAX)]
Names = Annotated[list[Reference], msgspec.Meta(max_length=NAMES_MAX)]


class NewMatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Items by any of their names, as they arrive."""

    product_ids: Names = []
    skus: Names = []
    tags: Names = []


class NewScope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a discount is taken off, as it arrives."""

    target: Target = "order"
    include: NewMatch | None = None
    exclude: NewMatch | None = None
    choose: Choice = "all"
    max_quantity: Annotated[int, msgspec.Meta(ge=1, le=orders.QUANTITY_MAX)] | None = None


class Stacking(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How a voucher goes with others in one order.

    `exclusive`: alone. `group`: at most one voucher of each group. The higher `priority` is taken
    off first.
    """

    exclusive: bool = False
    group: Annotated[str, msgspec.Meta(min_length=1, max_length=40)] | None = None
    priority: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] = 0


class Members(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the bodies of vouchers and of campaigns' rules have in common beyond plain terms."""

    max_discount: Number = msgspec.field(default_factory=msgspec.Raw)
    applies_to: NewScope | None = None
    conditions: NewRule | None = None
    schedule: Schedule | None = None
    budgets: Budgets | None = None
    stacking: Stacking | None = None
    time_zone: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    expires_after_days: Days | None = None


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """The same members as the API shows them; what was not given is left out."""

    max_discount: Number | UnsetType = UNSET
    applies_to: dict[str, Any] | UnsetType = UNSET
    conditions: dict[str, Any] | UnsetType = UNSET
    schedule: Schedule | UnsetType = UNSET
    budgets: list[dict[str, Any]] | UnsetType = UNSET
    stacking: Stacking | UnsetType = UNSET
    time_zone: str | UnsetType = UNSET


class Promotion(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is stored of it. `time_zone` is whose clock the schedule and the periods go by."""

    scope: Scope | None = None
    conditions: Rule | None = None
    schedule: Schedule | None = None
    budgets: tuple[Budget, ...] = ()
    stacking: Stacking | None = None
    time_zone: str = "UTC"


class Detail(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the ledger keeps of a richer redemption: the order, and what it took of budgets."""

    order: Discounted | None = None
    takings: tuple[Taking, ...] = ()

    def shown(self, exponent: int) -> ShownOrder | UnsetType:
        """Write the order as the API shows it; unset where the request had only a value."""
        return UNSET if self.order is None else orders.shown(self.order, exponent)


def read_discount(
    discount_type: DealType | None,
    discount_value: Number,
    currency: str,
    *,
    prefix: str = "",
) -> Discount | None:
    """Read type, basis points and amount of a discount; None where neither member is given.

    Raises: Invalid, with `field`.
    """
    field = prefix + "discount_value"
    if discount_type in ("FREE_SHIPPING", "FREE_ITEM"):
        if money.is_given(discount_value):
            raise Invalid(f"{field} cannot be given with {discount_type}", field=field)
        return Discount(discount_type, None, None)
    if discount_type == "FIXED":
        if not money.is_given(discount_value):
            raise Invalid(f"{field} is required with discount_type", field=field)
        price = money.parse_amount(discount_value, currency, field=field, minor_min=1)
        return Discount(discount_type, None, price)
    return limits.read_discount(
        "AMOUNT" if discount_type == "AMOUNT" else discount_type and "PERCENT",
        discount_value,
        currency,
        prefix=prefix,
    )


def read(
    new: Members,
    discount_type: DealType | None,
    currency: str,
    time_zone: str,
    *,
    prefix: str = "",
) -> Promotion | None:
    """Read what goes beyond plain terms; None where nothing does.

    `time_zone` is the project's, for a body that names none. Raises: Invalid, with `field`.
    """
    if new.time_zone is not None:
        time_zone = schedules.check_time_zone(new.time_zone, field=prefix + "time_zone")
    if new.schedule is not None:
        schedules.check(new.schedule, field=prefix + "schedule")
    stored = Promotion(
        scope=_read_scope(new, discount_type, currency, prefix),
        conditions=None
        if new.conditions is None
        else conditions.read(new.conditions, currency, field=prefix + "conditions"),
        schedule=new.schedule if new.schedule not in (None, Schedule()) else None,
        budgets=budgets.read(new.budgets or [], currency, field=prefix + "budgets"),
        stacking=new.stacking if new.stacking not in (None, Stacking()) else None,
        time_zone=time_zone,
    )
    return if_any(stored, discount_type)


def if_any(stored: Promotion, discount_type: DealType | None) -> Promotion | None:
    """Return None in place of a promotion that says nothing beyond plain terms."""
    is_plain = stored == Promotion(time_zone=stored.time_zone) and (
        discount_type is None or discount_type in PLAIN_TYPES
    )
    return None if is_plain else stored


def _read_scope(
    new: Members, discount_type: DealType | None, currency: str, prefix: str
) -> Scope | None:
    has_cap = money.is_given(new.max_discount)
    if discount_type is None and (has_cap or new.applies_to is not None):
        field = prefix + ("max_discount" if has_cap else "applies_to")
        raise Invalid(f"{field} needs a discount beside it", field=field)
    cap = None
    if has_cap:
        field = prefix + "max_discount"
        cap = money.parse_amount(new.max_discount, currency, field=field, minor_min=1)
    given = new.applies_to or NewScope()
    field = prefix + "applies_to"
    if discount_type == "FREE_SHIPPING" and new.applies_to is not None:
        raise Invalid(f"{field} cannot be given with FREE_SHIPPING", field=field)
    is_of_items = given.target == "items" or discount_type == "FREE_ITEM"
    if not is_of_items and (given.choose != "all" or given.max_quantity is not None):
        raise Invalid(f'{field} takes choose and max_quantity with "target": "items"', field=field)
    if discount_type == "FREE_ITEM" and given.include is None:
        raise Invalid(f"{field}.include is required with FREE_ITEM", field=f"{field}.include")
    scope = Scope(
        target="items" if is_of_items else "order",
        include=_read_match(given.include, f"{field}.include"),
        exclude=_read_match(given.exclude, f"{field}.exclude"),
        choose=given.choose,
        quantity_max=given.max_quantity,
        cap_minor=cap,
    )
    return None if scope == Scope() else scope


def _read_match(given: NewMatch | None, field: str) -> Match | None:
    if given is None:
        return None
    if not (given.product_ids or given.skus or given.tags):
        raise Invalid(f"{field} must name products, SKUs or tags", field=field)
    return Match(tuple(given.product_ids), tuple(given.skus), tuple(given.tags))


def shown(stored: Promotion | None, exponent: int) -> dict[str, Any]:
    """Write the members that were given as the API shows them; none for a plain voucher."""
    if stored is None:
        return {}
    members: dict[str, Any] = {}
    scope = stored.scope
    if scope is not None:
        if scope.cap_minor is not None:
            members["max_discount"] = money.json_amount(scope.cap_minor, exponent)
        applies_to = {
            "target": scope.target,
            "include": scope.include,
            "exclude": scope.exclude,
            "choose": scope.choose if scope.choose != "all" else None,
            "max_quantity": scope.quantity_max,
        }
        applies_to = {name: value for name, value in applies_to.items() if value is not None}
        if applies_to != {"target": "order"}:
            members["applies_to"] = applies_to
    if stored.conditions is not None:
        members["conditions"] = conditions.shown(stored.conditions, exponent)
    if stored.schedule is not None:
        members["schedule"] = stored.schedule
    if stored.budgets:
        members["budgets"] = [
            {
                "of": budget.of,
                "per": budget.per,
                "period": budget.period,
                "max": budgets.shown_max(budget, exponent),
            }
            for budget in stored.budgets
        ]
    if stored.stacking is not None:
        members["stacking"] = stored.stacking
    members["time_zone"] = stored.time_zone
    return members


def deal_of(
    kind: DealType, bp: int | None, amount_minor: int | None, owner: Promotion | None
) -> Deal:
    """Return a stored discount with the scope its owner, voucher or campaign, gave it."""
    scope = owner.scope if owner is not None else None
    return Deal(kind, bp, amount_minor, scope or Scope())


def needs_order(deal: Deal) -> bool:
    """Say whether a plain order value is not enough to price a discount."""
    scope = deal.scope
    return (
        deal.type in ("FREE_SHIPPING", "FREE_ITEM")
        or scope.target == "items"
        or scope.include is not None
        or scope.exclude is not None
    )


def price(deal: Deal, order: Order | None, rests: Rests | None) -> Taken | Refusal:
    """Take a discount off what is left of an order. Pure.

    Refuses: not_eligible, where the order has nothing the discount is for. Raises: Invalid, where
    the order is needed and not given.
    """
    if order is None or (needs_order(deal) and not order.is_itemised):
        name = "order" if needs_order(deal) else "order_value"
        raise Invalid(f"{name} is required: this voucher's discount depends on it", field=name)
    assert rests is not None
    taken = take(deal, order, rests)
    if taken is None:
        return Refusal(
            "not_eligible",
            "Nothing in this order is discounted by this code.",
            {"rule": "applies_to", "wanted": deal.scope.include or deal.scope.exclude},
        )
    return taken


def facts_of(
    order: Order | None, metadata: dict[str, Any], order_metadata: dict[str, Any]
) -> dict[str, Any]:
    """Return the facts that a request itself carries."""
    facts: dict[str, Any] = {f"metadata.{name}": value for name, value in metadata.items()}
    facts.update({f"order.metadata.{name}": value for name, value in order_metadata.items()})
    if order is None:
        return facts
    facts["order.value"] = order.value_minor
    if order.is_itemised:
        items = order.items
        facts.update(
            {
                "order.shipping": order.shipping_minor,
                "order.quantity": order.quantity,
                "order.lines": len(items),
                "items.product_id": tuple(i.product_id for i in items if i.product_id is not None),
                "items.sku": tuple(item.sku for item in items if item.sku is not None),
                "items.tag": tuple(tag for item in items for tag in item.tags),
            }
        )
    return facts


def _clock_facts(now: datetime, time_zone: str) -> dict[str, Any]:
    local = now.astimezone(schedules.zone_of(time_zone))
    return {
        "time.weekday": schedules.WEEKDAYS[local.weekday()],
        "time.hour": local.hour,
        "time.date": local.strftime("%Y-%m-%d"),
    }


def expression_facts(facts: Mapping[str, Any], order: Order | None) -> dict[str, Any]:
    """Nest the facts as an expression names them: `order.value_minor`, `customer.id`."""
    nested: dict[str, Any] = {
        "order": {"items": [], "metadata": {}}, "customer": {"attributes": {}, "segments": []},
        "metadata": {}, "time": {},
    }  # fmt: skip
    for name, value in facts.items():
        if name.startswith("items."):
            continue
        root, _, rest = name.partition(".")
        where = nested[root]
        if root == "order" and rest.startswith("metadata."):
            where, rest = where["metadata"], rest.removeprefix("metadata.")
        elif root == "customer" and rest.startswith("attributes."):
            where, rest = where["attributes"], rest.removeprefix("attributes.")
        elif name == "customer.segments":
            value = list(value)
        elif name in ("order.value", "order.shipping"):
            rest += "_minor"
        where[rest] = value
    if order is not None and order.is_itemised:
        nested["order"]["items"] = [
            {
                "product_id": item.product_id,
                "sku": item.sku,
                "tags": list(item.tags),
                "quantity": item.quantity,
                "unit_price_minor": item.unit_minor,
                "value_minor": item.value_minor,
            }
            for item in order.items
        ]
    return nested


def refusal(
    promotion: Promotion,
    facts: dict[str, Any],
    order: Order | None,
    now: datetime,
    exponent: int,
    *,
    owner: Owner,
) -> Refusal | None:
    """Return why a promotion is not for these facts or not on now. Pure."""
    if promotion.schedule is not None:
        off = schedules.refusal(promotion.schedule, now, promotion.time_zone)
        if off is not None:
            return off
    if promotion.conditions is None:
        return None
    known = {**facts, **_clock_facts(now, promotion.time_zone)}
    if any(promotion.conditions.expressions()):
        known["expression"] = expression_facts(known, order)
    because = conditions.why_not(promotion.conditions, known, exponent)
    if because is None:
        return None
    detail = because.get("message") or "A rule of this code excludes this order."
    return Refusal("not_eligible", detail, {"of": owner, **because})
