"""The detector: facts in the order of time go in, findings come out. Pure, integers only.

It keeps what its windows need and no more, so the same facts give the same findings wherever it
begins, once it has seen a day. A subject is told once a window, and again where it has grown by
half, so that an alert knows how bad it became.
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final

from core.rules.fraud import (
    DAY_S,
    Fact,
    Finding,
    Reason,
    Rule,
    RuleName,
    SubjectKind,
    score_of,
    words_of,
)

# Subjects that one rule watches of one project: some tens of megabytes. Those that were quiet for
# longest go first.
SUBJECTS_MAX: Final = 100_000
# What one subject's window holds, some megabytes: of more the newest count. A guest's account and
# a carrier's address stay whole; who tries thousands a second is told of all the same.
WINDOW_MAX: Final = 20_000
# What an alert names of what it is about.
EVIDENCE_MAX: Final = 10
# At an address, two redemptions of known customers explain one of a new one: friends, colleagues.
KNOWN_FOR_NEW: Final = 2
# And ten of anybody count as one: no address is as busy as that.
KNOWN_ALONE: Final = 10
# Own history: windows of a scope that are over, and how many there must be to judge by.
HISTORY_MAX: Final = 36
HISTORY_MIN: Final = 6
# Values of a scope that others are held against; below the least nothing is unusual yet.
VALUES_MAX: Final = 400
VALUES_MIN: Final = 60
# Logarithms are counted in 256ths of a doubling; a deviation is at least half of one.
OCTAVE: Final = 256
DEVIATION_MIN: Final = OCTAVE // 2
# Alerts of one rule and day: more nobody reads, and a rule that finds more is set wrong.
TOLD_MAX: Final = 1_000
DAY_MS: Final = DAY_S * 1_000
# Codes that are tried and cannot be redeemed by anybody.
GUESSED: Final = frozenset({"not_found", "voucher_inactive", "voucher_expired", "limit_reached"})

Subject = tuple[SubjectKind, str]


class Hit:
    """A rule's finding before it is scored."""

    __slots__ = ("detail", "evidence", "expected", "observed", "subject")

    def __init__(
        self, subject: Subject, observed: int, expected: int, detail: str, evidence: Sequence[str]
    ) -> None:
        """Say what of whom was seen."""
        self.subject = subject
        self.observed = observed
        self.expected = expected
        self.detail = detail
        self.evidence = tuple(evidence)


class _Window:
    """What happened to one subject lately, counted as it comes and goes.

    A fact costs the same however much there is: who tries a thousand codes a second must not
    become dear.
    """

    __slots__ = ("_counts", "entries", "new_count")

    def __init__(self) -> None:
        # When, whether by a new customer, what, and the fact's id.
        self.entries: deque[tuple[int, bool, str, str]] = deque()
        self._counts: dict[str, int] = {}
        self.new_count = 0

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def different(self) -> int:
        """How many different things happened."""
        return len(self._counts)

    def evidence(self) -> tuple[str, ...]:
        """Return the ids of the newest facts, the oldest of them first."""
        return tuple(one[3] for one in islice(reversed(self.entries), EVIDENCE_MAX))[::-1]

    def add(self, at_ms: int, is_new: bool, what: str, id: str) -> None:
        self.entries.append((at_ms, is_new, what, id))
        self._counts[what] = self._counts.get(what, 0) + 1
        self.new_count += is_new

    def trim(self, from_ms: int, most: int) -> None:
        """Forget what is not after an instant, and the oldest of what is too much."""
        while self.entries and (self.entries[0][0] <= from_ms or len(self.entries) > most):
            self._uncount(self.entries.popleft())

    def take_out(self, id: str) -> None:
        """Forget one thing."""
        for one in [one for one in self.entries if one[3] == id]:
            self.entries.remove(one)
            self._uncount(one)

    def _uncount(self, one: tuple[int, bool, str, str]) -> None:
        _, is_new, what, _ = one
        self.new_count -= is_new
        self._counts[what] -= 1
        if not self._counts[what]:
            del self._counts[what]


class _Windows:
    """What happened to each subject within a rule's window."""

    def __init__(self, rule: Rule) -> None:
        assert rule.window_s is not None
        self.within = words_of(rule.window_s)
        self._window_ms = rule.window_s * 1_000
        # At an address ten of anybody count as one.
        self._most = max(WINDOW_MAX, rule.threshold * KNOWN_ALONE)
        self._of: dict[str, _Window] = {}

    def add(self, subject: str, at_ms: int, is_new: bool, what: str, id: str) -> _Window:
        """Add to a subject's window and return it, without what has left it."""
        # Out and in again: the front is who was quiet for longest.
        window = self._of.pop(subject, None)
        if window is None:
            window = _Window()
            self._make_room()
        self._of[subject] = window
        window.add(at_ms, is_new, what, id)
        return self._trimmed(window, at_ms)

    def get(self, subject: str, at_ms: int) -> _Window:
        """Return a subject's window, which may be empty."""
        return self._trimmed(self._of.get(subject) or _Window(), at_ms)

    def take_out(self, subject: str, id: str) -> None:
        """Forget one thing of a subject."""
        window = self._of.get(subject)
        if window is not None:
            window.take_out(id)

    def forget(self, subject: str) -> None:
        self._of.pop(subject, None)

    def _trimmed(self, window: _Window, at_ms: int) -> _Window:
        window.trim(at_ms - self._window_ms, self._most)
        return window

    def _make_room(self) -> None:
        if len(self._of) < SUBJECTS_MAX:
            return
        for subject in list(self._of)[: SUBJECTS_MAX // 4]:
            del self._of[subject]


class _Velocity:
    """So many redemptions of one subject within the window."""

    def __init__(self, rule: Rule, kind: SubjectKind) -> None:
        self._rule, self._kind = rule, kind
        self._seen = _Windows(rule)

    def feed(self, fact: Fact) -> Iterator[Hit]:
        subject = getattr(fact, self._kind)
        if subject is None:
            return
        if fact.kind == "rolled_back":
            self._seen.take_out(subject, fact.id)
        elif fact.kind == "redeemed":
            window = self._seen.add(subject, fact.at_ms, fact.is_new, "", fact.id)
            observed = self._weighed(window) if len(window) >= self._rule.threshold else 0
            if observed >= self._rule.threshold:
                detail = f"{len(window)} redemptions within {self._seen.within}{self._more(window)}"
                yield Hit((self._kind, subject), observed, self._rule.threshold, detail,
                          window.evidence())  # fmt: skip

    def _weighed(self, window: _Window) -> int:
        return len(window)

    def _more(self, window: _Window) -> str:
        return ""


class _OfNew(_Velocity):
    """So many by new customers. An address that many known ones share is an office or a carrier."""

    def _weighed(self, window: _Window) -> int:
        new = window.new_count
        return max(new - (len(window) - new) // KNOWN_FOR_NEW, len(window) // KNOWN_ALONE)

    def _more(self, window: _Window) -> str:
        return f", {window.new_count} of them by new customers"


class _Accounts:
    """So many different customers on one device."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._seen = _Windows(rule)

    def feed(self, fact: Fact) -> Iterator[Hit]:
        if fact.kind != "redeemed" or fact.device is None or fact.customer is None:
            return
        window = self._seen.add(fact.device, fact.at_ms, False, fact.customer, fact.id)
        if len(window) >= self._rule.threshold:
            observed = window.different
            if observed >= self._rule.threshold:
                detail = f"{observed} customers on one device within {self._seen.within}"
                yield Hit(("device", fact.device), observed, self._rule.threshold, detail,
                          window.evidence())  # fmt: skip


class _Guesses:
    """So many different codes that nobody can redeem, tried by one actor."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._seen = _Windows(rule)

    def feed(self, fact: Fact) -> Iterator[Hit]:
        if fact.kind != "refused" or fact.reason not in GUESSED:
            return
        for kind, subject in _actors(fact, "device", "address", "customer"):
            window = self._seen.add(f"{kind} {subject}", fact.at_ms, False, fact.code, fact.id)
            if len(window) < self._rule.threshold:
                continue
            observed = window.different
            if observed >= self._rule.threshold:
                detail = f"{observed} codes that cannot be redeemed within {self._seen.within}"
                yield Hit((kind, subject), observed, self._rule.threshold, detail, ())


class _FailedThenSuccess:
    """So many codes refused to one actor, and then one that worked."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._refused = _Windows(rule)

    def feed(self, fact: Fact) -> Iterator[Hit]:
        for kind, subject in _actors(fact, "device", "customer"):
            key = f"{kind} {subject}"
            if fact.kind == "refused":
                self._refused.add(key, fact.at_ms, False, fact.code, fact.id)
            elif fact.kind == "redeemed":
                window = self._refused.get(key, fact.at_ms)
                observed = window.different
                if observed >= self._rule.threshold:
                    within = self._refused.within
                    detail = f"{observed} codes refused within {within} before one worked"
                    yield Hit((kind, subject), observed, self._rule.threshold, detail, [fact.id])
                    self._refused.forget(key)


class _Rollbacks:
    """So many redemptions of one customer that were rolled back."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._seen = _Windows(rule)

    def feed(self, fact: Fact) -> Iterator[Hit]:
        if fact.kind != "rolled_back" or fact.customer is None:
            return
        window = self._seen.add(fact.customer, fact.at_ms, False, "", fact.id)
        if len(window) >= self._rule.threshold:
            detail = f"{len(window)} redemptions rolled back within {self._seen.within}"
            yield Hit(("customer", fact.customer), len(window), self._rule.threshold, detail,
                      window.evidence())  # fmt: skip


class _Values:
    """A discount or order value far above what is usual where it was redeemed.

    Held against the last ones of the campaign by the median and its mean deviation, both of
    logarithms: what is usual may be twice as much, and rarely ten times.
    """

    def __init__(self, rule: Rule, field: str, noun: str) -> None:
        self._rule, self._field, self._noun = rule, field, noun
        self._of: dict[str, tuple[deque[int], list[int]]] = {}

    def feed(self, fact: Fact) -> Iterator[Hit]:
        value = getattr(fact, self._field)
        if fact.kind != "redeemed" or value <= 0:
            return
        scope = fact.campaign or fact.code
        if scope not in self._of and len(self._of) >= SUBJECTS_MAX // VALUES_MAX:
            del self._of[next(iter(self._of))]
        recent, ordered = self._of.setdefault(scope, (deque(), []))
        here = log2(value)
        if len(ordered) >= VALUES_MIN:
            middle = ordered[len(ordered) // 2]
            # The middle half of a normal distribution is 1.35 deviations wide.
            spread = ordered[len(ordered) * 3 // 4] - ordered[len(ordered) // 4]
            deviation = max(DEVIATION_MIN, spread * 100 // 135)
            observed = (here - middle) // deviation
            if observed >= self._rule.threshold:
                detail = f"{self._noun} {observed} deviations above what is usual here"
                yield Hit(("redemption", fact.id), observed, self._rule.threshold, detail,
                          [fact.id])  # fmt: skip
        recent.append(here)
        insort(ordered, here)
        if len(recent) > VALUES_MAX:
            del ordered[bisect_left(ordered, recent.popleft())]


class _Pace:
    """Redemptions by new and by known customers in windows that follow each other."""

    __slots__ = ("counts", "current", "first")

    def __init__(self, window: int) -> None:
        self.first = window
        self.current = window
        self.counts: deque[tuple[int, int]] = deque([(0, 0)])

    def add(self, window: int, is_new: bool) -> None:
        self.move(window)
        new, known = self.counts[-1]
        self.counts[-1] = (new + is_new, known + (not is_new))

    def move(self, window: int) -> None:
        steps = min(window - self.current, HISTORY_MAX + 1)
        for _ in range(max(0, steps)):
            self.counts.append((0, 0))
            if len(self.counts) > HISTORY_MAX + 1:
                self.counts.popleft()
        self.current = max(self.current, window)


class _Burst:
    """New customers of a scope, against its own pace and what happens elsewhere at the moment.

    A newsletter brings known customers, and a sale brings everybody everywhere; a code that leaked
    brings new ones to one place. A scope without a history is not judged.
    """

    def __init__(self, rule: Rule, kind: SubjectKind) -> None:
        assert rule.window_s is not None and rule.factor is not None
        self._rule, self._kind = rule, kind
        self._window_ms = rule.window_s * 1_000
        self._within = words_of(rule.window_s)
        self._of: dict[str, _Pace] = {}
        self._all: _Pace | None = None

    def feed(self, fact: Fact) -> Iterator[Hit]:
        scope = getattr(fact, self._kind)
        if fact.kind != "redeemed" or fact.is_sale or not scope:
            return
        window = fact.at_ms // self._window_ms
        pace = self._of.pop(scope, None) or _Pace(window)
        if len(self._of) >= SUBJECTS_MAX // HISTORY_MAX:
            del self._of[next(iter(self._of))]
        self._of[scope] = pace
        if self._all is None:
            self._all = _Pace(window)
        pace.add(window, fact.is_new)
        self._all.add(window, fact.is_new)
        observed, known = pace.counts[-1]
        assert self._rule.factor is not None
        if observed < self._rule.threshold or pace.current - pace.first < HISTORY_MIN:
            return
        past = list(pace.counts)[:-1]
        usual = sum(new for new, _ in past) // len(past) + 1
        # How much busier it is elsewhere than it used to be there, new customers alone.
        busier = self._elsewhere(pace)
        expected = max(self._rule.threshold, self._rule.factor * usual * busier // 100)
        if observed >= expected and observed > known:
            detail = (
                f"{observed} redemptions by new customers within {self._within}, "
                f"{usual} are usual here"
            )
            yield Hit((self._kind, scope), observed, expected, detail, [fact.id])

    def _elsewhere(self, pace: _Pace) -> int:
        """Return how busy all else is, in percent of its own pace; at least 100."""
        assert self._all is not None
        past = list(self._all.counts)[:-1]
        own_past = list(pace.counts)[:-1]
        usual = sum(new for new, _ in past) - sum(new for new, _ in own_past)
        now = self._all.counts[-1][0] - pace.counts[-1][0]
        return max(100, now * len(past) * 100 // max(1, usual))


class _Ring:
    """Referees of one referrer who are linked: by what they share, or by closing a circle."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._seen = _Windows(rule)

    def feed(self, fact: Fact) -> Iterator[Hit]:
        if fact.kind != "referred" or fact.referrer is None:
            return
        traits = "\n".join(fact.traits)
        window = self._seen.add(fact.referrer, fact.at_ms, False, traits, fact.id)
        if fact.reason == "ring":
            yield Hit(("customer", fact.referrer), self._rule.threshold, self._rule.threshold,
                      "The referral closes a circle of referrals", ())  # fmt: skip
            return
        owners: dict[str, int] = {}
        for one in window.entries:
            for trait in filter(None, one[2].split("\n")):
                owners[trait] = owners.get(trait, 0) + 1
        shared = {trait for trait, count in owners.items() if count > 1}
        linked = [one for one in window.entries if shared.intersection(one[2].split("\n"))]
        if len(linked) >= self._rule.threshold:
            detail = (
                f"{len(linked)} referees share what tells people apart, within {self._seen.within}"
            )
            yield Hit(("customer", fact.referrer), len(linked), self._rule.threshold, detail, ())


def _actors(fact: Fact, *kinds: SubjectKind) -> Iterator[Subject]:
    for kind in kinds:
        subject = getattr(fact, kind)
        if subject is not None:
            yield kind, subject


def log2(value: int) -> int:
    """Return the logarithm of a positive number in 256ths, straight between powers of two."""
    whole = value.bit_length() - 1
    return whole * OCTAVE + ((value << 8 >> whole) - OCTAVE)


_MAKES: Final[dict[RuleName, Callable[[Rule], Callable[[Fact], Iterator[Hit]]]]] = {
    "customer_velocity": lambda rule: _Velocity(rule, "customer").feed,
    "code_velocity": lambda rule: _Burst(rule, "code").feed,
    "address_velocity": lambda rule: _OfNew(rule, "address").feed,
    "device_velocity": lambda rule: _Velocity(rule, "device").feed,
    "device_accounts": lambda rule: _Accounts(rule).feed,
    "code_guessing": lambda rule: _Guesses(rule).feed,
    "failed_then_success": lambda rule: _FailedThenSuccess(rule).feed,
    "unusual_discount": lambda rule: _Values(rule, "discount_minor", "A discount").feed,
    "unusual_order_value": lambda rule: _Values(rule, "order_value_minor", "An order").feed,
    "rollback_velocity": lambda rule: _Rollbacks(rule).feed,
    "referral_ring": lambda rule: _Ring(rule).feed,
    "redemption_burst": lambda rule: _Burst(rule, "campaign").feed,
}


class Detector:
    """The rules of one project at work."""

    def __init__(self, rules: dict[RuleName, Rule]) -> None:
        """Begin without having seen anything."""
        self._rules = rules
        self._feeds = [(name, _MAKES[name](rule)) for name, rule in rules.items() if rule.enabled]
        self._told: dict[tuple[RuleName, Subject], tuple[int, int]] = {}
        self._reasons: dict[Subject, dict[RuleName, tuple[int, Reason]]] = {}
        self._told_on: dict[tuple[RuleName, int], int] = {}

    def feed(self, fact: Fact) -> list[Finding]:
        """Take a fact, no earlier than the one before but for moments; return what it proves."""
        found = []
        for name, feed in self._feeds:
            for hit in feed(fact):
                finding = self._finding(name, hit, fact.at_ms)
                if finding is not None:
                    found.append(finding)
        return found

    def _finding(self, name: RuleName, hit: Hit, at_ms: int) -> Finding | None:
        """Score a hit; None where its window was told as bad as that before."""
        window_s = self._rules[name].window_s
        length_ms = (window_s or DAY_S) * 1_000
        window = at_ms // length_ms
        key = (name, hit.subject)
        told_window, told = self._told.get(key, (-1, 0))
        if told_window == window and hit.observed < told + max(1, told // 2):
            return None
        if len(self._told) >= SUBJECTS_MAX:
            self._told.clear()
            self._reasons.clear()
        told_today = self._told_on.get((name, at_ms // DAY_MS), 0)
        if told_window != window:
            if told_today >= TOLD_MAX:
                return None
            self._told_on = {
                key: n for key, n in self._told_on.items() if key[1] >= at_ms // DAY_MS - 1
            }
            self._told_on[name, at_ms // DAY_MS] = told_today + 1
        self._told[key] = (window, hit.observed)
        own = Reason(name, hit.detail, hit.observed, hit.expected, window_s)
        known = self._reasons.setdefault(hit.subject, {})
        others = [
            reason for rule, (seen_ms, reason) in known.items()
            if rule != name and seen_ms > at_ms - DAY_MS
        ]  # fmt: skip
        known[name] = (at_ms, own)
        kind, subject = hit.subject
        return Finding(
            name, kind, subject, at_ms, window * length_ms,
            score_of(hit.observed, hit.expected, len(others)), hit.observed, hit.expected,
            (own, *others), hit.evidence,
        )  # fmt: skip
