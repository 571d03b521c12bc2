"""Who belongs to a group is decided when it is asked, and no group goes through itself."""

import random

import pytest

from core.errors import Invalid
from core.rules import segments
from core.rules.conditions import Rule

A, B, C = (f"seg_{letter * 26}" for letter in "ABC")


def names(*ids: str, test: str = "contains_any") -> Rule:
    return Rule(fact=segments.FACT, is_=test, value=ids)  # type: ignore[arg-type]


def test_a_segment_of_segments_is_asked_through_to_the_lists_and_attributes() -> None:
    gold = Rule(fact="customer.attributes.tier", is_="equals", value="gold")
    rules = {A: names(B, C, test="contains_all"), B: None, C: gold}
    facts = {"customer.id": "x", "customer.attributes.tier": "gold"}
    assert segments.belongs_to(rules, {B}, facts, 2) == (A, B, C)
    assert segments.belongs_to(rules, set(), facts, 2) == (C,)
    assert segments.belongs_to(rules, {B}, {"customer.id": "x"}, 2) == (B,)


def test_not_and_none_of_leave_out_exactly_the_members() -> None:
    rules = {A: Rule(not_=names(B)), B: None, C: names(B, test="contains_none")}
    assert segments.belongs_to(rules, {B}, {}, 2) == (B,)
    assert segments.belongs_to(rules, set(), {}, 2) == (A, C)


def test_an_expression_sees_attributes_and_the_segments_it_names() -> None:
    text = f"customer.attributes.age >= 18 && '{B}' in customer.segments"
    rules = {A: Rule(expression=text), B: None}
    assert list(segments.named_in(rules[A])) == [B]
    assert segments.belongs_to(rules, {B}, {"customer.attributes.age": 18}, 2) == (A, B)
    assert segments.belongs_to(rules, {B}, {"customer.attributes.age": 17}, 2) == (B,)
    assert segments.belongs_to(rules, {B}, {}, 2) == (B,), "what breaks is a no"


def test_a_circle_is_named_by_the_way_it_goes() -> None:
    with pytest.raises(Invalid, match=f"{A} → {B} → {C} → {A}"):
        segments.check_no_circle(A, {A: names(B), B: names(C), C: names(A)}, field="rule")
    with pytest.raises(Invalid, match=f"{A} → {A}"):
        segments.check_no_circle(A, {A: names(A)}, field="rule")
    segments.check_no_circle(A, {A: names(B, C), B: names(C), C: None}, field="rule")


def test_a_graph_is_refused_exactly_where_its_start_reaches_itself() -> None:
    for _ in range(300):
        ids = [f"seg_{n:026d}" for n in range(random.randint(2, 7))]
        edges = {one: random.sample(ids, random.randint(0, 2)) for one in ids}
        rules = {one: names(*below) if below else None for one, below in edges.items()}
        reached: set[str] = set()
        left = list(edges[ids[0]])
        while left:
            at = left.pop()
            if at not in reached:
                reached.add(at)
                left += edges[at]
        circular = any(one in _reach(edges, one) for one in reached | {ids[0]})
        if circular:
            with pytest.raises(Invalid):
                segments.check_no_circle(ids[0], rules, field="rule")
        else:
            segments.check_no_circle(ids[0], rules, field="rule")


def _reach(edges: dict[str, list[str]], start: str) -> set[str]:
    found: set[str] = set()
    left = list(edges[start])
    while left:
        at = left.pop()
        if at not in found:
            found.add(at)
            left += edges[at]
    return found


def test_whoever_leads_through_a_segment_is_held_to_how_many_it_leads_to() -> None:
    rules = {A: names(B), B: names(C), C: None}
    segments.check_reach(B, rules, 3, field="rule")
    with pytest.raises(Invalid, match=f"{A} leads to more than 2 segments"):
        segments.check_reach(B, rules, 2, field="rule")
    other = "seg_" + "D" * 26
    segments.check_reach(other, {**rules, other: names(C)}, 2, field="rule")


@pytest.mark.parametrize(
    "rule",
    [
        Rule(fact="order.value", is_="above", value=1),
        Rule(not_=Rule(all_=(Rule(fact="customer.voucher_redemptions", is_="above", value=1),))),
        Rule(expression="order.quantity > 1"),
    ],
)
def test_a_segment_knows_nothing_of_an_order_or_a_voucher(rule: Rule) -> None:
    with pytest.raises(Invalid):
        segments.check(rule, field="rule")
