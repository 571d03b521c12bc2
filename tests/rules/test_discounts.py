"""A discount is rounded once, half up, and never exceeds the order."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.rules import money
from core.rules.discounts import discount_minor


@pytest.mark.parametrize(
    ("order", "bp", "discount"),
    [(8999, 2000, 1800), (1, 5000, 1), (1, 4999, 0), (3, 5000, 2), (0, 2000, 0), (100, 10_000, 100),
     (8997, 2000, 1799), (25, 1000, 3), (24, 1000, 2)],
)  # fmt: skip
def test_percent_is_rounded_half_up_once(order: int, bp: int, discount: int) -> None:
    assert discount_minor("PERCENT", bp=bp, amount_minor=None, order_value_minor=order) == discount


@given(st.integers(0, money.AMOUNT_MINOR_MAX), st.integers(1, 10_000))
def test_percent_is_within_half_a_unit_and_never_above_the_order(order: int, bp: int) -> None:
    discount = discount_minor("PERCENT", bp=bp, amount_minor=None, order_value_minor=order)

    exact = Fraction(order * bp, 10_000)
    assert Fraction(-1, 2) < discount - exact <= Fraction(1, 2)
    assert 0 <= discount <= order


@pytest.mark.parametrize(("order", "discount"), [(None, 500), (0, 0), (499, 499), (500, 500)])
def test_an_amount_is_capped_at_the_order(order: int | None, discount: int) -> None:
    assert discount_minor("AMOUNT", bp=None, amount_minor=500, order_value_minor=order) == discount


def test_percent_of_an_unknown_order_is_nothing() -> None:
    assert discount_minor("PERCENT", bp=2000, amount_minor=None, order_value_minor=None) == 0
