"""Terms, windows and rests."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from core.errors import Invalid
from core.rules import limits
from core.rules.limits import Terms

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
TERMS = Terms(
    discount_type="PERCENT", discount_bp=2000, discount_minor=None, min_order_minor=None,
    starts_at=None, expires_at=None,
)  # fmt: skip


@pytest.mark.parametrize(
    ("rests", "rest"),
    [((), None), ((None, None), None), ((5, None), 5), ((5, 3), 3), ((0, 9), 0), ((-2,), 0)],
)
def test_the_smallest_limit_that_applies_counts(rests: tuple, rest: int | None) -> None:
    assert limits.smallest_rest(*rests) == rest


def test_a_window_holds_its_first_moment_and_not_its_last() -> None:
    terms = msgspec.structs.replace(TERMS, starts_at=NOON, expires_at=NOON + timedelta(hours=1))

    def code_at(at: datetime) -> str | None:
        refusal = limits.window_refusal(terms, at)
        return refusal.code if refusal else None

    tick = timedelta(microseconds=1)
    assert code_at(NOON - tick) == "not_started"
    assert code_at(NOON) is None
    assert code_at(NOON + timedelta(hours=1) - tick) is None
    assert code_at(NOON + timedelta(hours=1)) == "voucher_expired"


def test_an_order_below_the_minimum_is_told_the_minimum() -> None:
    terms = msgspec.structs.replace(TERMS, min_order_minor=5000)

    assert limits.order_refusal(terms, 5000, "EUR") is None
    for order in (4999, 0, None):
        refusal = limits.order_refusal(terms, order, "EUR")
        assert refusal is not None
        assert refusal.code == "order_value_too_low"
        assert refusal.detail == "The order must be worth at least 50.00 EUR."


@pytest.mark.parametrize(
    ("starts_at", "expires_at", "field"),
    [
        (NOON, NOON, "expires_at"),
        (NOON, NOON - timedelta(days=1), "expires_at"),
        (datetime(1, 1, 1, tzinfo=UTC), None, "starts_at"),
        (None, datetime(9999, 12, 31, tzinfo=UTC), "expires_at"),
    ],
)
def test_dates_that_make_no_sense_are_refused(
    starts_at: datetime | None, expires_at: datetime | None, field: str
) -> None:
    with pytest.raises(Invalid) as refused:
        limits.check_window(starts_at, expires_at, prefix="rules.")

    assert refused.value.field == f"rules.{field}"


def test_percent_is_the_default_and_a_type_needs_a_value() -> None:
    given = limits.read_discount(None, b"20", "EUR")

    assert given == limits.Discount("PERCENT", 2000, None)
    assert limits.read_discount("AMOUNT", b"5", "EUR") == limits.Discount("AMOUNT", None, 500)
    assert limits.read_discount(None, b"", "EUR") is None
    assert limits.read_discount(None, b"null", "EUR") is None
    with pytest.raises(Invalid):
        limits.read_discount("PERCENT", b"", "EUR")
