"""Groups of customers: a list, or a rule over what is known of a customer. Pure.

A rule may name other segments, never in a circle. Nobody is written down as a member by a rule:
who belongs is decided when it is asked, from the rule and the customer as they are then.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final

from core.errors import Invalid
from core.rules import conditions, promotions
from core.rules.conditions import Rule

FACT: Final = "customer.segments"
# Facts of a customer that mean something without a voucher at hand.
_ALLOWED: Final = ("customer.id", "customer.redemptions", "customer.is_new", FACT)
_OPEN: Final = "customer.attributes."
_CUSTOMER: Final = frozenset({"customer"})
_ID: Final = re.compile(r"seg_[0-9A-Z]{26}", re.ASCII)

Rules = Mapping[str, Rule | None]
"""Segments by their public ids; None for a list."""


def named_in(rule: Rule | None) -> Iterator[str]:
    """Yield the public ids of segments that a tree names, in a value or in an expression."""
    for one in () if rule is None else rule.tree():
        if one.fact == FACT and isinstance(one.value, tuple):
            yield from map(str, one.value)
        if one.expression is not None:
            yield from _ID.findall(one.expression)


def asks_attributes(facts: Iterable[str]) -> bool:
    """Say whether these facts of a tree may need what the shop wrote down of a customer."""
    # An expression may read any of them, and asks for every fact of a customer, so for this one.
    return any(fact == FACT or fact.startswith(_OPEN) for fact in facts)


def check(rule: Rule, *, field: str) -> None:
    """Hold a segment's rule to what is known of a customer. Raises: Invalid, with `field`."""
    for one in rule.tree():
        if one.fact is not None and one.fact not in _ALLOWED and not one.fact.startswith(_OPEN):
            raise Invalid(
                f"{field} asks for {one.fact}; a segment knows {', '.join(_ALLOWED)}, {_OPEN}…",
                field=field,
            )
    if not conditions.asks_only(rule, _CUSTOMER):
        raise Invalid(f"{field}: an expression of a segment knows only customer", field=field)


def check_no_circle(start: str, rules: Rules, *, field: str) -> None:
    """Hold a segment against going through itself. Raises: Invalid, which names the way."""
    _walk(start, rules, (), set(), field)


def _walk(at: str, rules: Rules, way: tuple[str, ...], done: set[str], field: str) -> None:
    if at in way:
        circle = " → ".join((*way[way.index(at) :], at))
        raise Invalid(f"segments may not refer to each other in a circle: {circle}", field=field)
    if at in done:
        return
    for below in named_in(rules.get(at)):
        _walk(below, rules, (*way, at), done, field)
    done.add(at)


def check_reach(through: str, rules: Rules, reached_max: int, *, field: str) -> None:
    """Hold every segment that leads to one to how many it may lead to, itself among them.

    Raises: Invalid, which names the segment. `rules` are all there are.
    """
    named = {one: {*named_in(rule)} for one, rule in rules.items()}
    for one in named:
        reached = _reach(one, named)
        if through in reached and len(reached) > reached_max:
            detail = f"{field}: with it {one} leads to more than {reached_max} segments"
            raise Invalid(detail, field=field)


def _reach(start: str, named: Mapping[str, set[str]]) -> set[str]:
    found, new = {start}, {start}
    while new:
        new = {below for one in new for below in named[one]} - found
        found |= new
    return found


def belongs_to(
    rules: Rules, listed: Collection[str], facts: Mapping[str, Any], exponent: int
) -> tuple[str, ...]:
    """Return which of the segments a customer belongs to, in the order of `rules`.

    `listed`: the lists they are on. `facts`: what `conditions.Rule.facts` of the rules ask for.
    `rules` must have every segment that one of them names.
    """
    known: dict[str, bool] = {}
    return tuple(one for one in rules if _is_member(one, rules, listed, facts, exponent, known))


def _is_member(
    at: str,
    rules: Rules,
    listed: Collection[str],
    facts: Mapping[str, Any],
    exponent: int,
    known: dict[str, bool],
) -> bool:
    if at not in known:
        rule = rules[at]
        if rule is None:
            known[at] = at in listed
        else:
            below = {*named_in(rule)}
            mine = tuple(
                one for one in below if _is_member(one, rules, listed, facts, exponent, known)
            )
            seen = {**facts, FACT: mine}
            if any(rule.expressions()):
                seen["expression"] = promotions.expression_facts(seen, None)
            known[at] = conditions.why_not(rule, seen, exponent) is None
    return known[at]
