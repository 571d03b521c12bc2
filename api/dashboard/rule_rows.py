"""A campaign's conditions as rows of a form, each a sentence: a fact, a test, a value.

What a merchant writes is one list of rules of which all or any must hold. A tree that goes deeper
came by the API: it is told in words here, and only the API changes it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from api.dashboard import forms, pages
from core.rules.schedules import Schedule

ROWS: Final = 4

FACTS: Final = (
    ("order.value", "the order’s value"),
    ("order.quantity", "the number of items"),
    ("items.sku", "an item’s SKU"),
    ("items.tag", "an item’s tag"),
    ("items.product_id", "an item’s product"),
    ("customer.segments", "the customer’s segment"),
    ("customer.redemptions", "the customer’s redemptions so far"),
    ("customer.is_new", "the customer being new"),
    ("time.weekday", "the day of the week"),
    ("time.hour", "the hour of the day"),
)
TESTS: Final = (
    ("at_least", "is at least"),
    ("at_most", "is at most"),
    ("above", "is above"),
    ("below", "is below"),
    ("equals", "is"),
    ("one_of", "is one of"),
    ("contains_any", "has any of"),
    ("contains_all", "has all of"),
    ("contains_none", "has none of"),
)
WEEKDAYS: Final = (
    ("mon", "Monday"), ("tue", "Tuesday"), ("wed", "Wednesday"), ("thu", "Thursday"),
    ("fri", "Friday"), ("sat", "Saturday"), ("sun", "Sunday"),
)  # fmt: skip
_LISTS: Final = frozenset({"one_of", "contains_any", "contains_all", "contains_none"})
_FACT_WORDS: Final = dict(FACTS)
_TEST_WORDS: Final = {
    **dict(TESTS), "starts_with": "starts with", "present": "is there",
}  # fmt: skip


class Row(msgspec.Struct, frozen=True):
    """One rule as the form shows it."""

    fact: str = ""
    is_: str = "at_least"
    value: str = ""


def read(given: forms.Given) -> dict[str, Any] | None:
    """Return what the rows ask for, as the API takes it; None where all are empty."""
    rules = [rule for place in range(ROWS) if (rule := _rule(given, place)) is not None]
    if not rules:
        return None
    return {"any" if given.get("match") == "any" else "all": rules}


def _rule(given: forms.Given, place: int) -> dict[str, Any] | None:
    fact = given.get(f"rule-{place}-fact", "")
    if not fact:
        return None
    # Of a yes or no there is one test.
    test = "equals" if fact == "customer.is_new" else given.get(f"rule-{place}-is", "")
    text = given.get(f"rule-{place}-value", "").strip()
    return {"fact": fact, "is": test, "value": _value(fact, test, text)}


def _value(fact: str, test: str, text: str) -> Any:
    if fact == "customer.is_new":
        return text.lower() not in ("no", "false", "0")
    if test in _LISTS:
        return [forms.number(word) if _counts(fact) else word for word in forms.words(text)]
    return forms.number(text) if _counts(fact) else text


def _counts(fact: str) -> bool:
    return fact.startswith("order.") or fact in ("customer.redemptions", "time.hour")


def posted(given: forms.Given) -> list[Row]:
    """Return the rows as they were posted, with empty ones to fill."""
    return [
        Row(
            given.get(f"rule-{place}-fact", ""),
            given.get(f"rule-{place}-is", "at_least"),
            given.get(f"rule-{place}-value", ""),
        )
        for place in range(ROWS)
    ]


def stored(conditions: Any) -> dict[str, str] | None:
    """Return what the form would have posted for these conditions, None where it could not have."""
    if not isinstance(conditions, Mapping):
        return {}
    if "fact" in conditions:
        conditions = {"all": [conditions]}
    match = "any" if "any" in conditions else "all"
    rules = conditions.get(match, ())
    known = all(rule.get("fact") in _FACT_WORDS for rule in rules)
    if not known or len(rules) > ROWS or not rules:
        return None
    given = {"match": match}
    for place, rule in enumerate(rules):
        given[f"rule-{place}-fact"] = rule["fact"]
        given[f"rule-{place}-is"] = rule["is"]
        given[f"rule-{place}-value"] = _text(rule["value"])
    return given


def _text(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_text(one) for one in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return pages.plain(value)


def sentences(conditions: Any) -> str:
    """Return conditions in words; everybody gets it where there are none."""
    if not isinstance(conditions, Mapping):
        return "for every order"
    return f"where {_words(conditions)}"


def _words(rule: Mapping[str, Any]) -> str:
    if "fact" in rule:
        fact = _FACT_WORDS.get(rule["fact"], rule["fact"])
        return f"{fact} {_TEST_WORDS.get(rule['is'], rule['is'])} {_text(rule['value'])}"
    if "not" in rule:
        return f"not ({_words(rule['not'])})"
    for name, between in (("all", " and "), ("any", " or ")):
        if name in rule:
            return between.join(
                f"({_words(one)})" if "all" in one or "any" in one else _words(one)
                for one in rule[name]
            )
    return str(rule.get("expression", ""))


def schedule(given: forms.Given) -> dict[str, Any] | None:
    """Return on which days and between which hours it is asked for; None for always."""
    days = [key for key, _ in WEEKDAYS if given.get(f"day-{key}") == "on"]
    hours = (given.get("hours-from", "").strip(), given.get("hours-to", "").strip())
    if not days and not any(hours):
        return None
    windows = [{"from": hours[0] or "00:00", "to": hours[1] or "24:00"}] if any(hours) else []
    return {"weekdays": days, "hours": windows}


def stored_schedule(kept: Any) -> dict[str, str] | None:
    """Return what the form would have posted for a schedule, None where it could not have."""
    if not isinstance(kept, Schedule):
        return {}
    if len(kept.hours) > 1:
        return None
    given = {f"day-{key}": "on" for key in kept.weekdays}
    for window in kept.hours:
        given |= {"hours-from": window.from_, "hours-to": window.to}
    return given


def times(kept: Any, time_zone: Any) -> str:
    """Return a schedule in words; nothing where it is always on."""
    if not isinstance(kept, Schedule):
        return ""
    names = dict(WEEKDAYS)
    days = [names[key] for key in kept.weekdays]
    on = (
        f" on {', '.join(days[:-1])} and {days[-1]}"
        if len(days) > 1
        else "".join(f" on {day}" for day in days)
    )
    hours = " or ".join(f"from {window.from_} to {window.to}" for window in kept.hours)
    return f"{on}{' ' if hours else ''}{hours} ({time_zone})"


def why_not(because: Mapping[str, Any] | None, detail: str) -> str:
    """Return in words why a rule of the form excludes an order; else `detail`."""
    if because is None:
        return detail
    reasons = because.get("any_of") or [because]
    if not all("fact" in reason for reason in reasons):
        return detail
    return "; ".join(_seen(reason) for reason in reasons)


def _seen(reason: Mapping[str, Any]) -> str:
    fact = _FACT_WORDS.get(reason["fact"], reason["fact"])
    test = _TEST_WORDS.get(reason["is"], reason["is"])
    seen = "not known" if reason.get("seen") in (None, (), []) else _text(reason["seen"])
    return f"{fact} {test} {_text(reason['wanted'])} does not hold: it is {seen}"
