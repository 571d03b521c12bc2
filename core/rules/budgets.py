"""Limits beyond a plain count: by customer and period, on what was given away or sold.

A budget is a cap on a sum. What a redemption takes of it is computed here; the database adds it
up, and adds nothing that would go beyond the cap.
"""

from datetime import datetime
from typing import Annotated, Final, Literal
from uuid import UUID

import msgspec

from core.errors import Invalid, Refusal
from core.rules import money, schedules
from core.rules.orders import Number
from core.rules.schedules import Period

BUDGETS_MAX: Final = 10
# As many redemptions as a voucher may have at all.
COUNT_MAX: Final = 1_000_000_000

Measure = Literal["redemptions", "discount", "order_value"]


class NewBudget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A cap as it arrives. `max` counts redemptions, or is an amount."""

    of: Measure
    max: Number
    per: Literal["customer"] | None = None
    period: Period | None = None


class Budget(msgspec.Struct, frozen=True, omit_defaults=True):
    """A cap as it is stored, in redemptions or minor units."""

    of: Measure
    max: int
    per: Literal["customer"] | None = None
    period: Period | None = None

    @property
    def label(self) -> str:
        """Its name among the budgets of one voucher or campaign."""
        return "/".join(filter(None, (self.of, self.per, self.period)))


class Taking(msgspec.Struct, frozen=True):
    """What one redemption takes of one budget, named as the columns of `vf.budgets` are.

    `scope_id`: the voucher or campaign it is of. `used`: what is taken.
    """

    scope_id: UUID
    label: str
    subject: str
    period: str
    used: int
    used_max: int


Budgets = Annotated[list[NewBudget], msgspec.Meta(max_length=BUDGETS_MAX)]


def read(new: list[NewBudget], currency: str, *, field: str) -> tuple[Budget, ...]:
    """Read budgets that are about to be stored. Raises: Invalid, with `field`."""
    found: list[Budget] = []
    for place, given in enumerate(new):
        at = f"{field}[{place}].max"
        if given.of == "redemptions":
            text = bytes(given.max)
            if not text.isdigit() or not 0 < len(text) <= 10 or not 0 < int(text) <= COUNT_MAX:
                raise Invalid(f"{at} must be a whole number from 1 to {COUNT_MAX}", field=at)
            most = int(text)
        else:
            most = money.parse_amount(given.max, currency, field=at, minor_min=1)
        budget = Budget(given.of, most, given.per, given.period)
        if any(budget.label == other.label for other in found):
            raise Invalid(f"{field}[{place}] is there twice", field=f"{field}[{place}]")
        found.append(budget)
    return tuple(found)


def shown_max(budget: Budget, exponent: int) -> int | msgspec.Raw:
    """Write a cap as the JSON number it came as."""
    if budget.of == "redemptions":
        return budget.max
    return money.json_amount(budget.max, exponent)


def takings(
    budgets: tuple[Budget, ...],
    *,
    scope_id: UUID,
    customer_id: str | None,
    order_value_minor: int,
    discount_minor: int,
    now: datetime,
    time_zone: str,
) -> list[Taking]:
    """Return what a redemption takes of each budget.

    Raises: Invalid, where a budget is per customer and nobody is named.
    """
    amounts: dict[Measure, int] = {
        "redemptions": 1,
        "discount": discount_minor,
        "order_value": order_value_minor,
    }
    found = []
    for budget in budgets:
        if budget.per == "customer" and customer_id is None:
            raise Invalid(
                "customer_id is required: this voucher is limited per customer",
                field="customer_id",
            )
        found.append(
            Taking(
                scope_id,
                budget.label,
                customer_id if budget.per == "customer" and customer_id is not None else "",
                schedules.period_of(budget.period, now, time_zone),
                amounts[budget.of],
                budget.max,
            )
        )
    return found


def refusal(taking: Taking, used: int, exponent: int) -> Refusal:
    """Return the refusal of a taking that would go beyond its cap, `used` of which are gone."""
    parts = taking.label.split("/")
    is_count = parts[0] == "redemptions"

    def shown(number: int) -> int | msgspec.Raw:
        return number if is_count else money.json_amount(number, exponent)

    because = {
        "rule": "budgets",
        "budget": taking.label,
        "period": taking.period or None,
        "seen": shown(used),
        "taken": shown(taking.used),
        "wanted": shown(taking.used_max),
    }
    if not is_count:
        return Refusal("budget_reached", "The budget of this code is spent.", because)
    if "customer" in parts:
        return Refusal(
            "customer_limit_reached",
            "This customer has used the code as often as allowed for now.",
            because,
        )
    return Refusal(
        "limit_reached", "This code has been redeemed as often as it may be for now.", because
    )
