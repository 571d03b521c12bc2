"""One tree decides who a code is for, and says why not."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Invalid
from core.rules import conditions, promotions
from core.rules.conditions import NewRule, Rule
from core.rules.orders import Item, Order

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)  # a Tuesday
CART = Order((Item("shirt", None, ("clothes",), 3, 1_000),), 500, is_itemised=True)


def rule(tree: Any) -> Rule:
    new = msgspec.json.decode(msgspec.json.encode(tree), type=NewRule)
    return conditions.read(new, "EUR", field="conditions")


def asked(tree: Any, order: Order | None = CART, **facts: Any) -> dict[str, Any] | None:
    promotion = promotions.Promotion(conditions=rule(tree))
    known = {**promotions.facts_of(order, {}, {}), **facts}
    refused = promotions.refusal(promotion, known, order, NOON, 2, owner="voucher")
    return None if refused is None else refused.because


@pytest.mark.parametrize(
    "tree",
    [
        {"fact": "order.value", "is": "at_least", "value": 30},
        {"fact": "order.value", "is": "equals", "value": 30.00},
        {"fact": "order.quantity", "is": "one_of", "value": [1, 3]},
        {"fact": "items.tag", "is": "contains_any", "value": ["clothes", "x"]},
        {"fact": "items.tag", "is": "contains_none", "value": ["x"]},
        {"not": {"fact": "items.product_id", "is": "contains_all", "value": ["shirt", "mug"]}},
        {"fact": "customer.id", "is": "starts_with", "value": "vip_"},
        {"fact": "metadata.channel", "is": "present", "value": False},
        {"fact": "time.weekday", "is": "equals", "value": "tue"},
        {"fact": "time.date", "is": "below", "value": "2030-02-01"},
        {"any": [{"fact": "time.hour", "is": "above", "value": 20},
                 {"all": [{"fact": "time.hour", "is": "equals", "value": 12}]}]},
        {"expression": "order.value_minor >= 3000 && order.items.exists(i, 'clothes' in i.tags)"},
        {"expression": "customer.id.startsWith('vip_') && time.hour == 12"},
    ],
)  # fmt: skip
def test_a_rule_that_fits_lets_the_order_through(tree: Any) -> None:
    assert asked(tree, **{"customer.id": "vip_1"}) is None


def test_a_refusal_names_the_rule_what_was_seen_and_what_is_wanted() -> None:
    tree = {
        "all": [
            {"fact": "order.quantity", "is": "at_least", "value": 1},
            {"fact": "order.value", "is": "at_least", "value": 50, "message": "Spend 50!"},
        ]
    }
    because = asked(tree)
    assert because is not None
    assert msgspec.json.decode(msgspec.json.encode(because)) == {
        "of": "voucher",
        "rule": "conditions.all[1]",
        "fact": "order.value",
        "is": "at_least",
        "seen": 30.00,
        "wanted": 50.00,
        "message": "Spend 50!",
    }
    assert bytes(because["seen"]) == b"30.00"


def test_any_names_every_rule_that_failed() -> None:
    because = asked({"any": [
        {"fact": "time.weekday", "is": "equals", "value": "sun"},
        {"expression": "order.value_minor > 9000"},
    ]})  # fmt: skip
    assert because == {
        "of": "voucher",
        "rule": "conditions.any",
        "any_of": [
            {"rule": "conditions.any[0]", "fact": "time.weekday", "is": "equals",
             "seen": "tue", "wanted": "sun"},
            {"rule": "conditions.any[1]", "expression": "order.value_minor > 9000",
             "seen": False, "wanted": True},
        ],
    }  # fmt: skip


def test_what_is_not_known_fits_nothing_and_an_expression_that_breaks_is_a_no() -> None:
    for tree in (
        {"fact": "customer.id", "is": "equals", "value": "a"},
        {"fact": "metadata.age", "is": "below", "value": 5},
        {"not": {"fact": "metadata.age", "is": "present", "value": False}},
        {"expression": "metadata.age > 3"},
        {"expression": "order.value_minor / 0 == 1"},
        {"expression": "order.value_minor"},
        {"expression": "'1'"},
    ):
        assert asked(tree) is not None, tree


def test_numbers_texts_and_truth_are_not_mixed_up() -> None:
    for fact, test, value in (("1", "equals", 1), (True, "equals", 1), ("9", "above", 5),
                              (True, "above", 0), (1, "one_of", [True])):  # fmt: skip
        tree = {"fact": "metadata.x", "is": test, "value": value}
        assert asked(tree, **{"metadata.x": fact}) is not None, tree
    assert asked({"fact": "metadata.x", "is": "above", "value": 4}, **{"metadata.x": 4.5}) is None


LEAF = {"fact": "time.hour", "is": "equals", "value": 1}


def nested(depth: int) -> Any:
    return LEAF if depth == 1 else {"not": nested(depth - 1)}


@pytest.mark.parametrize(
    ("tree", "field"),
    [
        ({}, "conditions"),
        ({"all": []}, "conditions.all"),
        ({"all": [LEAF], "any": [LEAF]}, "conditions"),
        ({"all": [LEAF, {"any": [LEAF, {"fact": "order.colour", "is": "equals", "value": 1}]}]},
         "conditions.all[1].any[1].fact"),
        ({"fact": "order.value", "is": "contains_any", "value": [1]}, "conditions.is"),
        ({"fact": "order.value", "value": 1}, "conditions.is"),
        ({"fact": "order.value", "is": "at_least"}, "conditions.value"),
        ({"fact": "order.value", "is": "at_least", "value": 1.234}, "conditions.value"),
        ({"fact": "order.lines", "is": "at_least", "value": "1"}, "conditions.value"),
        ({"fact": "order.lines", "is": "one_of", "value": 1}, "conditions.value"),
        ({"fact": "order.lines", "is": "equals", "value": 1 << 63}, "conditions.value"),
        ({"fact": "items.sku", "is": "contains_any", "value": []}, "conditions.value"),
        ({"fact": "items.sku", "is": "contains_any", "value": ["a"] * 501}, "conditions.value"),
        ({"fact": "customer.is_new", "is": "equals", "value": "yes"}, "conditions.value"),
        ({"not": {"expression": "1 +"}}, "conditions.not.expression"),
        ({"expression": "colour == 1"}, "conditions.expression"),
        ({"expression": "order.items.all(i, order.items.all(j, true))"}, "conditions.expression"),
        ({"expression": "true || " * 100 + "true"}, "conditions.expression"),
        ({"expression": "true", "value": 1}, "conditions"),
        ({**LEAF, "message": ""}, "conditions.message"),
        (nested(9), "conditions" + ".not" * 8),
        ({"all": [LEAF] * 100}, "conditions.all[99]"),
        ({"any": [LEAF] * 10_000}, "conditions.any[99]"),
    ],
)  # fmt: skip
def test_a_bad_tree_is_refused_with_the_path_to_what_is_bad(tree: Any, field: str) -> None:
    with pytest.raises(Invalid) as refused:
        rule(tree)
    assert refused.value.field == field


LEAVES = st.sampled_from([True, False]).map(
    lambda holds: {"fact": "time.hour", "is": "equals", "value": 12 if holds else 1}
)
TREES = st.recursive(
    LEAVES,
    lambda below: st.one_of(
        st.fixed_dictionaries({"all": st.lists(below, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"any": st.lists(below, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"not": below}),
    ),
    max_leaves=12,
)


def truth(tree: Any) -> bool:
    if "all" in tree:
        return all(truth(below) for below in tree["all"])
    if "any" in tree:
        return any(truth(below) for below in tree["any"])
    return not truth(tree["not"]) if "not" in tree else tree["value"] == 12


@given(TREES)
def test_a_tree_means_what_logic_says_and_comes_back_as_it_was_given(tree: Any) -> None:
    try:
        read = rule(tree)
    except Invalid:
        return
    assert (asked(tree) is None) == truth(tree)
    assert conditions.shown(read, 2) == tree
