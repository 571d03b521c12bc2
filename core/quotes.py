"""Pricing what goes beyond plain terms: the order, the rules, the budgets. Takes nothing.

A quote has everything computed that will ever be computed of a request, so that what redeems it
(`core.checkouts`) and what only asks (`core.validations`) mean the same by construction.
"""

import hashlib
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from core import db, segments
from core.api_keys import Caller
from core.errors import Invalid, Refusal
from core.redemptions import NewRedemption, Terms
from core.rules import budgets, discounts, limits, money, orders, promotions
from core.rules.budgets import Taking
from core.rules.discounts import Deal, Rests, Taken
from core.rules.orders import Discounted, Line, Order
from core.rules.promotions import Detail, Owner, Promotion
from core.rules.segments import FACT, asks_attributes

_COUNTS: Final = {
    "customer.redemptions", "customer.voucher_redemptions", "customer.campaign_redemptions",
    "customer.is_new",
}  # fmt: skip

_encoder: Final = msgspec.json.Encoder(order="deterministic")


class Request(msgspec.Struct, frozen=True):
    """A request as pricing sees it, whichever address it came to. `order` is None for a value.

    `order_value_minor` is what is written down: 0 where neither was given.
    """

    customer_id: str | None
    order: Order | None
    order_value_minor: int
    metadata: dict[str, Any]
    order_metadata: dict[str, Any]
    now: datetime


class Quote(msgspec.Struct, frozen=True):
    """One code on one order: what it takes off each line, and of which budgets."""

    terms: Terms
    deal: Deal
    taken: Taken
    takings: tuple[Taking, ...]


class CustomerFacts(msgspec.Struct, frozen=True):
    """How often a customer redeemed, as far as the ledger knows."""

    redemptions: int
    voucher_redemptions: int
    campaign_redemptions: int


def read(new: NewRedemption, caller: Caller) -> Request | Refusal:
    """Read the order of a request. Refuses: currency_mismatch. Raises: Invalid."""
    order: Order | None = None
    if new.order is not None:
        if money.is_given(new.order_value):
            raise Invalid("order_value cannot be given with order", field="order_value")
        if new.order.metadata:
            limits.check_metadata(new.order.metadata, field="order.metadata")
        found = orders.read(new.order, caller.currency)
        if isinstance(found, Refusal):
            return found
        order = found
    elif money.is_given(new.order_value):
        value = money.parse_amount(new.order_value, caller.currency, field="order_value")
        order = orders.of_value(value)
    return Request(
        customer_id=new.customer_id,
        order=order,
        order_value_minor=order.value_minor if order is not None else 0,
        metadata=new.metadata or {},
        order_metadata=(new.order and new.order.metadata) or {},
        now=datetime.now(UTC),
    )


def fingerprint(code_norm: str, new: NewRedemption, request: Request) -> bytes:
    """Return what tells this request from another with the same idempotency key.

    Without `order` it is what a plain redeem of the same body has.
    """
    order = request.order
    value = request.order_value_minor if order is not None else None
    parts: tuple[Any, ...] = (new.customer_id, value, new.order_id, new.metadata)
    if new.hold_id is not None:
        parts += (new.hold_id,)
    if new.customer is not None:
        parts += (new.customer,)
    if order is not None and order.is_itemised:
        parts += (order.items, order.shipping_minor, request.order_metadata)
    return hashlib.sha256(code_norm.encode() + b"\n" + _encoder.encode(parts)).digest()[:16]


async def facts(
    conn: db.Connection, caller: Caller, terms: Terms, request: Request
) -> dict[str, Any]:
    """Return what the rules of a voucher and its campaign ask for. Reads only what they ask for."""
    known = promotions.facts_of(request.order, request.metadata, request.order_metadata)
    known["customer.id"] = request.customer_id
    rules = [
        owner.conditions
        for owner in (terms.promotion, terms.campaign_promotion)
        if owner is not None and owner.conditions is not None
    ]
    wanted = {fact for rule in rules for fact in rule.facts() if fact.startswith("customer.")}
    if request.customer_id is None or wanted <= {"customer.id"}:
        return known
    reached = await segments.rules_named(conn, terms.project_id, rules)
    asked = wanted.union(*(rule.facts() for rule in reached.values() if rule is not None))
    if asked & _COUNTS:
        counted = await db.one(
            conn, "quotes.customer", CustomerFacts,
            project_id=terms.project_id, customer_id=request.customer_id,
            voucher_id=terms.voucher_id, campaign_id=terms.campaign_id,
        )  # fmt: skip
        assert counted is not None, "an aggregate has a row"
        known |= {
            "customer.redemptions": counted.redemptions,
            "customer.voucher_redemptions": counted.voucher_redemptions,
            "customer.campaign_redemptions": counted.campaign_redemptions,
            "customer.is_new": counted.redemptions == 0,
        }
    if asks_attributes(asked):
        known |= await segments.attributes(conn, terms.project_id, request.customer_id)
    if FACT in wanted:
        known[FACT] = await segments.belonging(conn, caller, request.customer_id, reached, known)
    return known


def quote(
    terms: Terms,
    request: Request,
    known: dict[str, Any],
    rests: Rests | None,
    caller: Caller,
    *,
    names_customer: bool = True,
) -> Quote | Refusal:
    """Price one code on what other codes left of an order. Pure.

    `names_customer`: a limit per customer wants one; who only asks may leave them out, and is
    not told of such limits. Refuses: order_value_too_low, not_eligible. Raises: Invalid, where
    the request lacks what the terms need.
    """
    if names_customer and terms.needs_customer and request.customer_id is None:
        raise Invalid(
            "customer_id is required: this voucher is limited per customer", field="customer_id"
        )
    refused = _minimum_refusal(terms, request, caller) or _rules_refusal(
        terms, request, known, caller
    )
    if refused is not None:
        return refused
    owner = terms.promotion if terms.owns_discount else terms.campaign_promotion
    deal = promotions.deal_of(terms.discount_type, terms.discount_bp, terms.discount_minor, owner)
    order = request.order
    if order is None and deal.type in promotions.PLAIN_TYPES and not promotions.needs_order(deal):
        # An order of unknown worth: as for a plain voucher, an amount is worth itself.
        order = orders.of_value(deal.amount_minor or 0)
    if rests is None and order is not None:
        rests = discounts.whole(order)
    taken = promotions.price(deal, order, rests)
    if isinstance(taken, Refusal):
        return taken
    takings = _takings(terms, request, taken, names_customer=names_customer)
    return Quote(terms, deal, taken, takings)


def _takings(
    terms: Terms, request: Request, taken: Taken, *, names_customer: bool
) -> tuple[Taking, ...]:
    found: list[Taking] = []
    for owner, scope_id in (
        (terms.promotion, terms.voucher_id),
        (terms.campaign_promotion, terms.campaign_id),
    ):
        if owner is None or scope_id is None:
            continue
        found += budgets.takings(
            owner.budgets
            if names_customer or request.customer_id is not None
            else tuple(budget for budget in owner.budgets if budget.per is None),
            scope_id=scope_id,
            customer_id=request.customer_id,
            order_value_minor=request.order_value_minor,
            discount_minor=taken.total,
            now=request.now,
            time_zone=owner.time_zone,
        )
    return tuple(found)


def _minimum_refusal(terms: Terms, request: Request, caller: Caller) -> Refusal | None:
    if not terms.min_order_minor:
        return None
    if request.order is None:
        raise Invalid("order_value is required: this voucher has a minimum", field="order_value")
    if request.order_value_minor >= terms.min_order_minor:
        return None
    return limits.order_value_too_low(
        request.order_value_minor, terms.min_order_minor, caller.exponent
    )


def _rules_refusal(
    terms: Terms, request: Request, known: dict[str, Any], caller: Caller
) -> Refusal | None:
    owners: tuple[tuple[Owner, Promotion | None], ...] = (
        ("campaign", terms.campaign_promotion),
        ("voucher", terms.promotion),
    )
    for name, promotion in owners:
        if promotion is not None:
            refused = promotions.refusal(
                promotion, known, request.order, request.now, caller.exponent, owner=name
            )
            if refused is not None:
                return refused
    return None


def detail(request: Request, taken: Taken, takings: tuple[Taking, ...]) -> Detail:
    """Return what the ledger keeps of one code on an order."""
    order = request.order
    if order is None or not order.is_itemised:
        return Detail(None, takings)
    lines = tuple(
        Line(item.product_id, item.sku, item.quantity, item.unit_minor, off)
        for item, off in zip(order.items, taken.lines, strict=True)
    )
    return Detail(Discounted(lines, order.shipping_minor, taken.shipping), takings)


async def budget_refusal(
    conn: db.Connection, project_id: UUID, takings: tuple[Taking, ...], exponent: int
) -> Refusal | None:
    """Return the first budget that what is asked would go beyond, as the ledger stands now."""
    for taking in takings:
        used = await db.one(
            conn, "quotes.used", int,
            project_id=project_id, scope_id=taking.scope_id, label=taking.label,
            subject=taking.subject, period=taking.period,
        )  # fmt: skip
        if (used or 0) + taking.used > taking.used_max:
            return budgets.refusal(taking, used or 0, exponent)
    return None
