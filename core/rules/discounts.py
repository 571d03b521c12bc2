"""What a discount is worth. Integers only, rounded once."""

from typing import Final, Literal

DiscountType = Literal["PERCENT", "AMOUNT"]

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
