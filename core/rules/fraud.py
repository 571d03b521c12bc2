"""What fraud looks like: the rules, their thresholds, and how a finding is scored. Pure.

`core.rules.patterns` is the detector that applies them to facts.
"""

from typing import Annotated, Final, Literal

import msgspec

from core.errors import Invalid

Action = Literal["alert", "review", "block"]
SubjectKind = Literal["customer", "code", "address", "device", "campaign", "redemption"]
FactKind = Literal["redeemed", "refused", "rolled_back", "referred"]
RuleName = Literal[
    "customer_velocity", "code_velocity", "address_velocity", "device_velocity",
    "device_accounts", "code_guessing", "failed_then_success", "unusual_discount",
    "unusual_order_value", "rollback_velocity", "referral_ring", "redemption_burst",
]  # fmt: skip

DAY_S: Final = 86_400
# The longest window: what a detector reads again when it starts.
WINDOW_S_MAX: Final = DAY_S
WINDOW_S_MIN: Final = 60
# Of a block that a rule makes: until somebody has looked at it.
BLOCK_S_DEFAULT: Final = 7 * DAY_S
BLOCK_S_MAX: Final = 366 * DAY_S
# A finding at its threshold is worth half of the scale; twice the threshold three quarters.
SCORE_MIN: Final = 50
SCORE_MAX: Final = 100
SCORE_EACH_MORE: Final = 10


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule as a project has it.

    `threshold`: from how many on it finds something, within `window_s` where it counts over time.
    `factor`: how many times what is usual there it must be as well. `block_for_s`: how long what
    it blocks is blocked.
    """

    enabled: bool = True
    action: Action = "alert"
    threshold: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    window_s: Annotated[int, msgspec.Meta(ge=WINDOW_S_MIN, le=WINDOW_S_MAX)] | None = None
    factor: Annotated[int, msgspec.Meta(ge=1, le=1_000)] | None = None
    block_for_s: Annotated[int, msgspec.Meta(ge=WINDOW_S_MIN, le=BLOCK_S_MAX)] = BLOCK_S_DEFAULT


class RuleChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is said of a rule; what is left out is as it comes."""

    enabled: bool | None = None
    action: Action | None = None
    threshold: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    window_s: Annotated[int, msgspec.Meta(ge=WINDOW_S_MIN, le=WINDOW_S_MAX)] | None = None
    factor: Annotated[int, msgspec.Meta(ge=1, le=1_000)] | None = None
    block_for_s: Annotated[int, msgspec.Meta(ge=WINDOW_S_MIN, le=BLOCK_S_MAX)] | None = None


DEFAULTS: Final[dict[RuleName, Rule]] = {
    "customer_velocity": Rule(threshold=8, window_s=3_600),
    "code_velocity": Rule(threshold=15, window_s=600, factor=6),
    "address_velocity": Rule(threshold=10, window_s=3_600),
    "device_velocity": Rule(threshold=7, window_s=3_600),
    "device_accounts": Rule(threshold=6, window_s=DAY_S),
    "code_guessing": Rule(threshold=12, window_s=600),
    "failed_then_success": Rule(threshold=8, window_s=900),
    "unusual_discount": Rule(threshold=6),
    "unusual_order_value": Rule(threshold=6),
    "rollback_velocity": Rule(threshold=6, window_s=DAY_S),
    "referral_ring": Rule(threshold=4, window_s=DAY_S),
    "redemption_burst": Rule(threshold=30, window_s=600, factor=6),
}
"""The rules as they come; docs/fraud.md says where the numbers are from."""

MEANINGS: Final[dict[RuleName, str]] = {
    "customer_velocity": "Redemptions of one customer that stand.",
    "code_velocity": "Redemptions of one code by new customers, against the code's own pace.",
    "address_velocity": "Redemptions from one address by new customers, less half of the known.",
    "device_velocity": "Redemptions on one device.",
    "device_accounts": "Customers on one device.",
    "code_guessing": "Codes that do not exist or are over, tried by one customer or at one place.",
    "failed_then_success": "Codes that were refused to one customer or device before one worked.",
    "unusual_discount": "A discount so many deviations above the campaign's usual one.",
    "unusual_order_value": "An order value so many deviations above the campaign's usual one.",
    "rollback_velocity": "Redemptions of one customer that were rolled back.",
    "referral_ring": "Referees of one customer who share a device, address or means of payment.",
    "redemption_burst": "Redemptions of a campaign by new customers, against its own pace.",
}


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened. `code` is a voucher's id, of what was refused any key of a code.

    `is_new`: the customer had redeemed nothing until a day before, or nobody knows who it was.
    `referrer`, `traits`: of a referral, who referred and what is known of the referee.
    """

    at_ms: int
    kind: FactKind
    id: str
    customer: str | None = None
    code: str = ""
    campaign: str | None = None
    is_sale: bool = False
    is_new: bool = False
    address: str | None = None
    device: str | None = None
    order_value_minor: int = 0
    discount_minor: int = 0
    reason: str | None = None
    referrer: str | None = None
    traits: tuple[str, ...] = ()


class Reason(msgspec.Struct, frozen=True):
    """Why a subject is suspected, in numbers and in words."""

    rule: RuleName
    detail: str
    observed: int
    expected: int
    window_s: int | None


class Finding(msgspec.Struct, frozen=True):
    """What a rule found: `reasons` begins with its own, others' of the same subject follow.

    `window_ms`: where the window begins within which it is one finding. `evidence`: ids of facts.
    """

    rule: RuleName
    subject_kind: SubjectKind
    subject: str
    at_ms: int
    window_ms: int
    score: int
    observed: int
    expected: int
    reasons: tuple[Reason, ...]
    evidence: tuple[str, ...]


def score_of(observed: int, expected: int, others: int) -> int:
    """Return 50 at what is expected, 75 at twice that, at most 100; 10 more for each other rule."""
    beyond = (observed - expected) * (SCORE_MAX - SCORE_MIN) // (2 * max(1, expected))
    return min(SCORE_MAX, SCORE_MIN + max(0, beyond) + SCORE_EACH_MORE * others)


def applied(changes: dict[RuleName, RuleChange]) -> dict[RuleName, Rule]:
    """Return all rules, with a project's changes. Raises: Invalid, naming the field."""
    rules = dict(DEFAULTS)
    for name, change in changes.items():
        given = {
            field: value
            for field, value in msgspec.structs.asdict(change).items()
            if value is not None
        }
        for field in ("window_s", "factor"):
            if field in given and getattr(rules[name], field) is None:
                raise Invalid(f"The rule {name} has no {field}.", field=f"rules.{name}.{field}")
        rules[name] = msgspec.structs.replace(rules[name], **given)
    return rules


def words_of(window_s: int) -> str:
    """Write a length of time as people say it."""
    for unit, length_s in (("hour", 3_600), ("minute", 60)):
        if window_s % length_s == 0:
            count = window_s // length_s
            return f"{count} {unit}s" if count > 1 else f"1 {unit}"
    return f"{window_s} seconds"
