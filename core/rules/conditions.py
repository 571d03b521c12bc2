"""Who and what a promotion is for: one tree of rules, read once and evaluated in one place.

A rule is `all`, `any` or `not` of rules, a fact held against a value, or a CEL expression over
the same facts. Where the answer is no, it says which rule, what was seen and what is wanted.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import ModuleType
from typing import Any, Final, Literal

import msgspec

from core.errors import Invalid
from core.rules import money
from core.rules.orders import TAGS_MAX, Number

# The package brings its terminal program along, and that a tool kit: a tenth of a second of every
# process's start for what is never run here.
sys.modules.setdefault("cel.cli", ModuleType("cel.cli"))

import cel  # noqa: E402

# What a person can still read; a tree of so many rules is judged in well under a millisecond.
RULES_MAX: Final = 100
DEPTH_MAX: Final = 8
VALUES_MAX: Final = 500
TEXT_LENGTH_MAX: Final = 200
EXPRESSION_LENGTH_MAX: Final = 500
# An expression that walks the 500 items of an order takes a millisecond; one that walks them for
# each of them would take a second, in which nobody else is answered. Two walks are two rules.
WALKS_MAX: Final = 1
_WALK: Final = re.compile(
    r"\.\s*(?:all|exists|exists_one|existsOne|map|filter)\s*\(\s*(\w*)", re.ASCII
)

Test = Literal[
    "equals", "one_of", "starts_with", "at_least", "at_most", "above", "below",
    "contains_any", "contains_all", "contains_none", "present",
]  # fmt: skip
Scalar = str | int | float | bool
Facts = Mapping[str, Any]
Kind = Literal["money", "count", "text", "texts", "truth", "any"]

_FACTS: Final[dict[str, Kind]] = {
    "order.value": "money",
    "order.shipping": "money",
    "order.quantity": "count",
    "order.lines": "count",
    "items.product_id": "texts",
    "items.sku": "texts",
    "items.tag": "texts",
    "customer.id": "text",
    "customer.redemptions": "count",
    "customer.voucher_redemptions": "count",
    "customer.campaign_redemptions": "count",
    "customer.is_new": "truth",
    "customer.segments": "texts",
    "time.weekday": "text",
    "time.hour": "count",
    "time.date": "text",
}
_OPEN_FACTS: Final = ("metadata.", "order.metadata.", "customer.attributes.")
_COMPARISONS: Final = ("at_least", "at_most", "above", "below")
_TESTS: Final[dict[Kind, tuple[str, ...]]] = {
    "money": ("equals", *_COMPARISONS),
    "count": ("equals", "one_of", *_COMPARISONS),
    "text": ("equals", "one_of", "starts_with", *_COMPARISONS),
    "texts": ("contains_any", "contains_all", "contains_none"),
    "truth": ("equals",),
    "any": ("equals", "one_of", "starts_with", "present", *_COMPARISONS),
}
_LISTS: Final = ("one_of", "contains_any", "contains_all", "contains_none")
_NAMES: Final = {"all_": "all", "any_": "any", "not_": "not", "is_": "is"}
_ROOTS: Final = frozenset({"order", "customer", "metadata", "time"})


class NewRule(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, rename=_NAMES):
    """A rule as it arrives: exactly one of `all`, `any`, `not`, `fact` and `expression`."""

    all_: list["NewRule"] | None = None
    any_: list["NewRule"] | None = None
    not_: "NewRule | None" = None
    fact: str | None = None
    is_: Test | None = None
    value: Number = msgspec.field(default_factory=msgspec.Raw)
    expression: str | None = None
    message: str | None = None


class Rule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename=_NAMES):
    """A rule that was checked; amounts are in minor units."""

    all_: tuple["Rule", ...] | None = None
    any_: tuple["Rule", ...] | None = None
    not_: "Rule | None" = None
    fact: str | None = None
    is_: Test | None = None
    value: Scalar | tuple[Scalar, ...] | None = None
    expression: str | None = None
    message: str | None = None

    def under(self) -> Iterator[tuple[str, "Rule"]]:
        """Yield the rules below with the last step of their path."""
        for name, rules in (("all", self.all_), ("any", self.any_)):
            for place, rule in enumerate(rules or ()):
                yield f"{name}[{place}]", rule
        if self.not_ is not None:
            yield "not", self.not_

    def tree(self) -> Iterator["Rule"]:
        """Yield this rule and all below it."""
        yield self
        for _, rule in self.under():
            yield from rule.tree()

    def expressions(self) -> Iterator[str]:
        """Yield the expressions of the tree."""
        return (rule.expression for rule in self.tree() if rule.expression is not None)

    def facts(self) -> Iterator[str]:
        """Yield the facts the tree asks for; an expression may ask for all of `customer`."""
        yield from (rule.fact for rule in self.tree() if rule.fact is not None)
        if any("customer" in _program(one).variables() for one in self.expressions()):
            yield from (fact for fact in _FACTS if fact.startswith("customer."))


def asks_only(rule: Rule, roots: frozenset[str]) -> bool:
    """Say whether a tree's expressions name nothing but these: order, customer, …"""
    return all(roots >= _ROOTS & {*_program(one).variables()} for one in rule.expressions())


def read(new: NewRule, currency: str, *, field: str) -> Rule:
    """Read a tree that is about to be stored. Raises: Invalid; `field` is the path in the tree."""
    return _read(new, currency, field, [RULES_MAX], DEPTH_MAX)


def _read(new: NewRule, currency: str, at: str, left: list[int], depth: int) -> Rule:
    left[0] -= 1
    if left[0] < 0:
        raise Invalid(f"{at} is one rule too many: there may be {RULES_MAX}", field=at)
    if depth == 0:
        raise Invalid(f"{at} is nested more than {DEPTH_MAX} deep", field=at)
    parts = (new.all_, new.any_, new.not_, new.fact, new.expression)
    if sum(part is not None for part in parts) != 1:
        raise Invalid(f"{at} must have one of all, any, not, fact and expression", field=at)
    if new.message is not None and not 0 < len(new.message) <= TEXT_LENGTH_MAX:
        raise Invalid(
            f"{at}.message must have 1 to {TEXT_LENGTH_MAX} characters", field=f"{at}.message"
        )
    if new.fact is not None:
        return _read_fact(new, new.fact, currency, at)
    if new.is_ is not None or money.is_given(new.value):
        raise Invalid(f"{at} takes is and value only with fact", field=at)
    if new.expression is not None:
        _check_expression(new.expression, f"{at}.expression")
        return Rule(expression=new.expression, message=new.message)
    if new.not_ is not None:
        below = _read(new.not_, currency, f"{at}.not", left, depth - 1)
        return Rule(not_=below, message=new.message)
    name = "all" if new.all_ is not None else "any"
    given = new.all_ if new.all_ is not None else new.any_
    if not given:
        raise Invalid(f"{at}.{name} must have at least one rule", field=f"{at}.{name}")
    rules = tuple(
        _read(rule, currency, f"{at}.{name}[{place}]", left, depth - 1)
        for place, rule in enumerate(given)
    )
    if name == "all":
        return Rule(all_=rules, message=new.message)
    return Rule(any_=rules, message=new.message)


def kind_of(fact: str) -> Kind | None:
    """Return what kind of value a fact has; None for a fact that there is not."""
    if fact.startswith(_OPEN_FACTS) and len(fact) <= TEXT_LENGTH_MAX:
        return "any"
    return _FACTS.get(fact)


def _read_fact(new: NewRule, fact: str, currency: str, at: str) -> Rule:
    kind = kind_of(fact)
    if kind is None:
        known = ", ".join((*_FACTS, *(f"{name}…" for name in _OPEN_FACTS)))
        raise Invalid(f"{at}.fact is not known; there are: {known}", field=f"{at}.fact")
    if new.is_ is None or new.is_ not in _TESTS[kind]:
        raise Invalid(
            f"{at}.is must be one of {', '.join(_TESTS[kind])} for {fact}", field=f"{at}.is"
        )
    value = _value(new.value, kind, new.is_, currency, f"{at}.value")
    return Rule(fact=fact, is_=new.is_, value=value, message=new.message)


def _value(
    raw: msgspec.Raw, kind: Kind, test: str, currency: str, at: str
) -> Scalar | tuple[Scalar, ...]:
    if not money.is_given(raw):
        raise Invalid(f"{at} is required", field=at)
    if kind == "money":
        return money.parse_amount(raw, currency, field=at)
    try:
        value = msgspec.json.decode(raw, type=list[Scalar] | Scalar)
    except msgspec.ValidationError:
        raise Invalid(f"{at} must be a string, a number, true, false or a list", field=at) from None
    if isinstance(value, list) != (test in _LISTS):
        wanted = "a list" if test in _LISTS else "one value"
        raise Invalid(f"{at} must be {wanted} for {test}", field=at)
    values = value if isinstance(value, list) else [value]
    if not 0 < len(values) <= VALUES_MAX:
        raise Invalid(f"{at} must have 1 to {VALUES_MAX} members", field=at)
    wants = "truth" if test == "present" else "text" if test == "starts_with" else kind
    for one in values:
        _check_scalar(one, wants, at)
    return tuple(values) if isinstance(value, list) else value


def _check_scalar(value: Scalar, kind: str, at: str) -> None:
    fits = {
        "count": isinstance(value, int) and not isinstance(value, bool),
        "text": isinstance(value, str),
        "texts": isinstance(value, str),
        "truth": isinstance(value, bool),
    }.get(kind, True)
    a_kind = {"count": "a whole number", "truth": "true or false"}.get(kind, "a string")
    if not fits:
        raise Invalid(f"{at} must be {a_kind}", field=at)
    if isinstance(value, str) and len(value) > TEXT_LENGTH_MAX:
        raise Invalid(f"{at} takes at most {TEXT_LENGTH_MAX} characters", field=at)
    if isinstance(value, int) and abs(value) >= 1 << 63:
        raise Invalid(f"{at} takes at most 64 bits", field=at)


def _check_expression(expression: str, at: str) -> None:
    if not 0 < len(expression) <= EXPRESSION_LENGTH_MAX:
        raise Invalid(f"{at} must have 1 to {EXPRESSION_LENGTH_MAX} characters", field=at)
    walked = _WALK.findall(expression)
    if len(walked) > WALKS_MAX:
        raise Invalid(f"{at} may walk a list once; use all for two expressions", field=at)
    try:
        unknown = set(_program(expression).variables()) - _ROOTS - set(walked)
    except Exception as error:
        reason = str(error).partition("ERROR: ")[2].partition("\n")[0] or str(error)[:120]
        raise Invalid(f"{at} is no CEL expression: {reason}", field=at) from None
    if unknown:
        known = ", ".join(sorted(_ROOTS))
        raise Invalid(f"{at} knows only {known}, not {sorted(unknown)[0]!a}", field=at)


@lru_cache(maxsize=1_024)
def _program(expression: str) -> cel.Program:
    return cel.compile(expression)


def why_not(
    rule: Rule, facts: Facts, exponent: int, *, path: str = "conditions"
) -> dict[str, Any] | None:
    """Return why the facts do not fit the tree: the rule, what was seen, what is wanted.

    None where they fit. `facts` has a value, or None for unknown, for every fact that
    `Rule.facts` names; None fits nothing but `present: false`. The message of the innermost rule
    that has one is the campaign's own. `exponent`: the decimals of amounts in the answer.
    """
    because: dict[str, Any] | None = None
    if rule.fact is not None:
        because = _fact_against(rule, facts, exponent, path)
    elif rule.expression is not None:
        because = _expression_against(rule.expression, facts, path)
    elif rule.not_ is not None:
        if why_not(rule.not_, facts, exponent) is None:
            because = {"rule": f"{path}.not", "wanted": "a rule that does not hold"}
    elif rule.all_ is not None:
        for step, below in rule.under():
            because = why_not(below, facts, exponent, path=f"{path}.{step}")
            if because is not None:
                break
    else:
        reasons = []
        for step, below in rule.under():
            reason = why_not(below, facts, exponent, path=f"{path}.{step}")
            if reason is None:
                return None
            reasons.append(reason)
        because = {"rule": f"{path}.any", "any_of": reasons}
    if because is not None and rule.message is not None:
        because.setdefault("message", rule.message)
    return because


def _fact_against(rule: Rule, facts: Facts, exponent: int, path: str) -> dict[str, Any] | None:
    assert rule.fact is not None and rule.is_ is not None and rule.value is not None
    seen: Any = facts.get(rule.fact)
    wanted: Any = rule.value
    if _holds(rule.is_, seen, wanted):
        return None
    if kind_of(rule.fact) == "money":
        wanted = money.json_amount(wanted, exponent)
        seen = None if seen is None else money.json_amount(seen, exponent)
    elif isinstance(seen, tuple):
        # An order of 500 items must not come back in its own refusal.
        seen = seen[:TAGS_MAX]
    return {"rule": path, "fact": rule.fact, "is": rule.is_, "seen": seen, "wanted": wanted}


def _holds(test: Test, seen: Any, wanted: Any) -> bool:
    if test == "present":
        return (seen is not None) is wanted
    if seen is None:
        return False
    if test.startswith("contains_"):
        found = set(seen).intersection(wanted)
        if test == "contains_all":
            return len(found) == len(set(wanted))
        return bool(found) == (test == "contains_any")
    if test == "one_of":
        return any(_same(seen, one) for one in wanted)
    if test == "equals":
        return _same(seen, wanted)
    if test == "starts_with":
        return isinstance(seen, str) and seen.startswith(wanted)
    # A number and a text have no order; true is no number here.
    if isinstance(seen, str) != isinstance(wanted, str) or bool in (type(seen), type(wanted)):
        return False
    match test:
        case "at_least":
            return bool(seen >= wanted)
        case "at_most":
            return bool(seen <= wanted)
        case "above":
            return bool(seen > wanted)
        case _:
            return bool(seen < wanted)


def _same(seen: Any, wanted: Any) -> bool:
    return isinstance(seen, bool) == isinstance(wanted, bool) and bool(seen == wanted)


def _expression_against(expression: str, facts: Facts, path: str) -> dict[str, Any] | None:
    try:
        answer = _program(expression).execute(facts["expression"])
    except Exception as error:
        answer = f"{type(error).__name__}: {str(error)[:120]}"
    if answer is True:
        return None
    return {"rule": path, "expression": expression, "seen": answer, "wanted": True}


def shown(rule: Rule, exponent: int) -> dict[str, Any]:
    """Write a tree as the API shows it: amounts as the decimals they came as."""
    members: dict[str, Any] = {}
    if rule.fact is not None:
        members = {"fact": rule.fact, "is": rule.is_, "value": rule.value}
        if kind_of(rule.fact) == "money":
            assert isinstance(rule.value, int)
            members["value"] = money.json_amount(rule.value, exponent)
    elif rule.expression is not None:
        members = {"expression": rule.expression}
    elif rule.not_ is not None:
        members = {"not": shown(rule.not_, exponent)}
    elif rule.all_ is not None:
        members = {"all": [shown(below, exponent) for below in rule.all_]}
    elif rule.any_ is not None:
        members = {"any": [shown(below, exponent) for below in rule.any_]}
    if rule.message is not None:
        members["message"] = rule.message
    return members
