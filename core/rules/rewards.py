"""What a referral earns, and when two people are one: rewards, tiers, caps, identifiers. Pure."""

import re
from typing import Annotated, Final, Literal
from uuid import UUID

import msgspec

from core.rules.schedules import Period

Side = Literal["referrer", "referee"]
IdentifierKind = Literal["email", "phone", "device", "payment", "address"]

DAY_S: Final = 86_400
# A month is what the field gives a friend to come back in; ten years is for ever.
WINDOW_DAYS: Final = 30
WINDOW_DAYS_MAX: Final = 3_650
# Time to return goods is weeks; a year covers every law.
DELAY_S_MAX: Final = 366 * DAY_S
# Three days reach over a weekend.
REVIEW_HOURS: Final = 72
REVIEW_HOURS_MAX: Final = 24 * 90

_NO_DIGIT: Final = re.compile(r"[^0-9]")


class Reward(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is given: a voucher of a campaign, or credit on a gift card."""

    kind: Literal["voucher", "gift_card"]
    campaign_id: UUID | None = None
    amount_minor: int | None = None


class Tier(msgspec.Struct, frozen=True, kw_only=True):
    """Another reward for every n-th conversion, or from the n-th on."""

    reward: Reward
    every: int | None = None
    from_: int | None = None

    def holds_for(self, place: int) -> bool:
        """Say whether it is meant for a referrer's conversion number `place`, from 1."""
        if self.every is not None:
            return place % self.every == 0
        return self.from_ is not None and place >= self.from_


class Cap(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many rewards a referrer gets at most, in a period or for ever."""

    count: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    per: Period | None = None


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What a program gives, and to whom it does not."""

    referrer: Reward | None
    referee: Reward | None
    tiers: tuple[Tier, ...]
    cap: Cap | None
    window_days: int
    delay_s: int
    touch: Literal["first", "last"]
    review_hours: int
    on_lapse: Literal["reject", "approve"]
    new_customers_only: bool

    def reward_at(self, place: int) -> Reward | None:
        """Return what a referrer gets for a conversion: of the tiers that hold the last."""
        for tier in reversed(self.tiers):
            if tier.holds_for(place):
                return tier.reward
        return self.referrer


def normalised(kind: IdentifierKind, text: str) -> str:
    """Return the form in which two spellings of one identifier are equal; empty for none.

    An e-mail loses its dots and what follows a plus: many providers deliver all of them to one
    person, and whoever refers themselves knows that.
    """
    text = text.strip().casefold()
    if kind == "email":
        local, _, domain = text.rpartition("@")
        local = local.partition("+")[0].replace(".", "")
        return f"{local}@{domain}" if local and domain else ""
    if kind == "phone":
        return _NO_DIGIT.sub("", text).lstrip("0")
    return text
