"""What every discount holds to on every order: sums, bounds, order of lines and of codes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Invalid
from core.rules import promotions
from core.rules.discounts import Deal, Match, Scope, Taken, spread, take, whole
from core.rules.orders import Item, Order, of_value

NAMES = st.sampled_from(["a", "b", "c"])
ITEMS = st.builds(
    Item,
    product_id=st.none() | NAMES,
    sku=st.none() | NAMES,
    tags=st.lists(NAMES, max_size=2).map(tuple),
    quantity=st.integers(1, 9),
    unit_minor=st.integers(0, 10_000),
)
ORDERS = st.builds(
    Order,
    items=st.lists(ITEMS, min_size=1, max_size=6).map(tuple),
    shipping_minor=st.integers(0, 2_000),
    is_itemised=st.just(True),
)
MATCHES = st.none() | st.builds(Match, product_ids=NAMES.map(lambda n: (n,)), tags=st.just(("a",)))
SCOPES = st.builds(
    Scope,
    target=st.sampled_from(["order", "items"]),
    include=MATCHES,
    exclude=MATCHES,
    choose=st.sampled_from(["all", "cheapest", "most_expensive"]),
    quantity_max=st.none() | st.integers(1, 5),
    cap_minor=st.none() | st.integers(1, 5_000),
)
DEALS = st.one_of(
    st.builds(Deal, st.just("PERCENT"), st.integers(1, 10_000), st.none(), SCOPES),
    st.builds(Deal, st.sampled_from(["AMOUNT", "FIXED"]), st.none(), st.integers(1, 9_999), SCOPES),
    st.builds(Deal, st.sampled_from(["FREE_SHIPPING", "FREE_ITEM"]), st.none(), st.none(), SCOPES),
)  # fmt: skip


def off(deal: Deal, order: Order) -> Taken:
    return take(deal, order, whole(order)) or Taken((0,) * len(order.items), 0)


@given(st.lists(DEALS, max_size=5), ORDERS)
def test_no_line_ever_costs_less_than_nothing(deals: list[Deal], order: Order) -> None:
    rests = whole(order)
    total = 0
    for deal in deals:
        taken = take(deal, order, rests)
        if taken is None:
            continue
        assert all(0 <= part <= rest for part, rest in zip(taken.lines, rests.lines, strict=True))
        assert 0 <= taken.shipping <= rests.shipping
        assert taken.total == sum(taken.lines) + taken.shipping
        if deal.scope.cap_minor is not None:
            assert taken.total <= deal.scope.cap_minor
        rests = rests.less(taken)
        total += taken.total
    assert total + sum(rests.lines) + rests.shipping == order.value_minor + order.shipping_minor


@given(DEALS, ORDERS)
def test_what_the_scope_excludes_is_never_touched(deal: Deal, order: Order) -> None:
    for item, part in zip(order.items, off(deal, order).lines, strict=True):
        assert part == 0 or deal.scope.holds(item)


@given(ORDERS, SCOPES, st.integers(1, 9_999))
def test_a_higher_rate_never_takes_less(order: Order, scope: Scope, bp: int) -> None:
    low = off(Deal("PERCENT", bp, None, scope), order).total
    high = off(Deal("PERCENT", bp + 1, None, scope), order).total
    assert low <= high


@given(ORDERS, SCOPES, st.integers(1, 9_999))
def test_a_higher_amount_never_takes_less_and_a_higher_price_never_more(
    order: Order, scope: Scope, amount: int
) -> None:
    def total(kind: str, minor: int) -> int:
        return off(Deal(kind, None, minor, scope), order).total  # type: ignore[arg-type]

    assert total("AMOUNT", amount) <= total("AMOUNT", amount + 1)
    assert total("FIXED", amount) >= total("FIXED", amount + 1)


@given(st.lists(st.integers(0, 10**15), min_size=1, max_size=30).map(tuple), st.data())
def test_the_parts_of_a_spread_are_the_whole_and_fit_their_lines(
    weights: tuple[int, ...], data: st.DataObject
) -> None:
    total = data.draw(st.integers(0, sum(weights)))
    parts = spread(total, weights)

    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        assert 0 <= part <= weight
        assert abs(part * sum(weights) - total * weight) < sum(weights) or total == 0


@given(st.integers(0, 10**15), st.integers(1, 10_000))
def test_a_plain_value_costs_the_same_as_one_nameless_line(value: int, bp: int) -> None:
    plain = (value * bp + 5_000) // 10_000
    assert off(Deal("PERCENT", bp, None), of_value(value)).total == plain


@pytest.mark.parametrize(
    ("value", "bp", "discount"),
    [(50, 2900, 15), (8999, 2000, 1800), (89, 2000, 18), (12_345, 1250, 1543), (1, 1, 0)],
)
def test_half_a_unit_is_rounded_up(value: int, bp: int, discount: int) -> None:
    assert off(Deal("PERCENT", bp, None), of_value(value)).total == discount


SHIRT = Item("shirt", "shirt-m", ("clothes",), 3, 1_000)
MUG = Item("mug", "mug-1", ("kitchen",), 1, 333)
CART = Order((SHIRT, MUG), 500, is_itemised=True)


@pytest.mark.parametrize(
    ("deal", "lines", "shipping"),
    [
        (Deal("PERCENT", 2000, None), (600, 67), 0),
        (Deal("PERCENT", 2000, None, Scope(cap_minor=100)), (90, 10), 0),
        (Deal("AMOUNT", None, 1_000), (900, 100), 0),
        (Deal("AMOUNT", None, 9_999), (3_000, 333), 0),
        (Deal("FIXED", None, 1_000), (2_100, 233), 0),
        (Deal("FIXED", None, 9_999), (0, 0), 0),
        (Deal("FREE_SHIPPING", None, None), (0, 0), 500),
        (Deal("FREE_SHIPPING", None, None, Scope(cap_minor=300)), (0, 0), 300),
        (Deal("FREE_ITEM", None, None, Scope("items", Match(("shirt",)))), (1_000, 0), 0),
        (Deal("FREE_ITEM", None, None, Scope("items", Match(tags=("clothes", "kitchen")))),
         (0, 333), 0),
        (Deal("FREE_ITEM", None, None, Scope("items", Match(("shirt",)), quantity_max=2)),
         (2_000, 0), 0),
        (Deal("PERCENT", 5000, None, Scope("items", choose="most_expensive")), (500, 0), 0),
        (Deal("PERCENT", 5000, None, Scope("items", choose="cheapest")), (0, 167), 0),
        (Deal("PERCENT", 5000, None, Scope("items", quantity_max=2)), (1_000, 0), 0),
        (Deal("AMOUNT", None, 400, Scope("items")), (1_200, 333), 0),
        (Deal("FIXED", None, 900, Scope("items", Match(skus=("shirt-m",)))), (300, 0), 0),
        (Deal("PERCENT", 1000, None, Scope(exclude=Match(("mug",)))), (300, 0), 0),
    ],
)  # fmt: skip
def test_each_kind_takes_what_it_says(deal: Deal, lines: tuple[int, ...], shipping: int) -> None:
    assert off(deal, CART) == Taken(lines, shipping)


def test_a_cart_without_what_the_code_is_for_is_told_so() -> None:
    deal = Deal("PERCENT", 1000, None, Scope(include=Match(("hat",))))

    refused = promotions.price(deal, CART, whole(CART))
    assert not isinstance(refused, Taken)
    assert refused.code == "not_eligible"
    assert refused.because == {"rule": "applies_to", "wanted": Match(("hat",))}
    with pytest.raises(Invalid) as missing:
        promotions.price(deal, of_value(100), whole(of_value(100)))
    assert missing.value.field == "order"
