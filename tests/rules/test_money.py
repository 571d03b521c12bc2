"""Money crosses JSON exactly."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Invalid
from core.rules import money

CURRENCIES = ["EUR", "JPY", "KWD", "CLF"]


@pytest.mark.parametrize(
    ("text", "currency", "minor"),
    [
        ("89.99", "EUR", 8999),
        ("0.07", "EUR", 7),
        ("89.9", "EUR", 8990),
        ("89.990", "EUR", 8999),
        ("90", "EUR", 9000),
        ("8.999e1", "EUR", 8999),
        ("8999E-2", "EUR", 8999),
        ("-0", "EUR", 0),
        ("0e99", "EUR", 0),
        ("100.0", "JPY", 100),
        ("1.234", "KWD", 1234),
        ("1.2345", "CLF", 12345),
        ("10000000000000.00", "EUR", 1_000_000_000_000_000),
    ],
)
def test_a_number_is_read_as_minor_units(text: str, currency: str, minor: int) -> None:
    assert money.parse_amount(text.encode(), currency, field="x") == minor


@pytest.mark.parametrize(
    ("text", "currency", "detail"),
    [
        ("89.999", "EUR", "x has 3 decimals; EUR takes 2"),
        ("1.5", "JPY", "x has 1 decimals; JPY takes 0"),
        ("1e-99", "EUR", "x has 99 decimals; EUR takes 2"),
        ("-0.01", "EUR", "x must be at least 0.00"),
        ("10000000000000.01", "EUR", "x must be at most 10000000000000.00"),
        ("1e99", "EUR", "x must be at most 10000000000000.00"),
        ("1e999", "EUR", "x is out of range"),
        ("9" * 5000, "EUR", "x is out of range"),
        ("NaN", "EUR", "x must be a number"),
        ("Infinity", "EUR", "x must be a number"),
        ('"5"', "EUR", "x must be a number"),
        ("true", "EUR", "x must be a number"),
        ("[5]", "EUR", "x must be a number"),
        ("", "EUR", "x must be a number"),
        ("5\n", "EUR", "x is out of range"),
        ("٣", "EUR", "x must be a number"),
    ],
)
def test_anything_else_is_refused_with_the_mend(text: str, currency: str, detail: str) -> None:
    with pytest.raises(Invalid) as refused:
        money.parse_amount(text.encode(), currency, field="x")

    assert (refused.value.detail, refused.value.field) == (detail, "x")


@given(st.integers(0, money.AMOUNT_MINOR_MAX), st.sampled_from(CURRENCIES), st.integers(-5, 5))
def test_every_amount_survives_the_way_out_and_back(minor: int, currency: str, power: int) -> None:
    exponent = money.exponent_of(currency)
    assert exponent is not None
    text = bytes(money.json_amount(minor, exponent)).decode()

    assert money.parse_amount(text.encode(), currency, field="x") == minor
    assert Decimal(text) == Decimal(minor).scaleb(-exponent)
    assert len(text.partition(".")[2]) == exponent
    shifted = f"{Decimal(text).scaleb(power):f}e{-power}".encode()
    if len(shifted) <= 40:
        assert money.parse_amount(shifted, currency, field="x") == minor


@pytest.mark.parametrize(
    ("minor", "exponent", "text"),
    [(1800, 2, "18.00"), (5, 2, "0.05"), (0, 2, "0.00"), (100, 0, "100"), (5, 3, "0.005"),
     (-5, 2, "-0.05"), (-1800, 2, "-18.00")],
)  # fmt: skip
def test_an_amount_is_written_with_the_currencys_decimals(
    minor: int, exponent: int, text: str
) -> None:
    assert bytes(money.json_amount(minor, exponent)) == text.encode()


@pytest.mark.parametrize(
    ("text", "points"),
    [("20", 2000), ("0.01", 1), ("12.5", 1250), ("100", 10_000), ("1e1", 1000), ("33.33", 3333)],
)
def test_percent_is_read_as_basis_points_and_written_back(text: str, points: int) -> None:
    assert money.parse_percent(text.encode(), field="x") == points
    assert Decimal(bytes(money.json_percent(points)).decode()) == Decimal(text)


@pytest.mark.parametrize("text", ["0", "-1", "100.01", "1e9", "0.001", '"20"', "NaN", "null"])
def test_a_percentage_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        money.parse_percent(text.encode(), field="x")


def test_currencies_are_those_of_iso_4217() -> None:
    assert [money.exponent_of(code) for code in ("EUR", "JPY", "KWD", "CLF")] == [2, 0, 3, 4]
    assert money.exponent_of("ZZZ") is None
    assert money.exponent_of("eur") is None
