"""Several codes on one order: which go together, and in which order they are taken off.

The order is the codes' own, never that in which they were sent: higher priority first, then what
is taken off items, then prices, percentages, amounts, and shipping last; then by code.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from core.errors import Refusal
from core.rules.discounts import Deal
from core.rules.promotions import Stacking

_RANK: Final = {"FREE_ITEM": 0, "FIXED": 2, "PERCENT": 3, "AMOUNT": 4, "FREE_SHIPPING": 5}


class Stacked(msgspec.Struct, frozen=True):
    """A code as stacking sees it."""

    code_norm: str
    deal: Deal
    stacking: Stacking

    @property
    def rank(self) -> tuple[int, int, str]:
        """Where it stands among the others; no two are equal."""
        on_items = self.deal.scope.target == "items" and self.deal.type != "FREE_SHIPPING"
        kind = 1 if on_items and self.deal.type != "FREE_ITEM" else _RANK[self.deal.type]
        return -self.stacking.priority, kind, self.code_norm


def places(codes: Sequence[Stacked]) -> list[int]:
    """Return the places of the codes in the order in which they are taken off."""
    return sorted(range(len(codes)), key=lambda place: codes[place].rank)


def refusal(codes: Sequence[Stacked]) -> tuple[int, Refusal] | None:
    """Return the place of the first code that does not go with those before it, and why."""
    groups: dict[str, Stacked] = {}
    for place, code in enumerate(codes):
        if len(codes) > 1 and code.stacking.exclusive:
            return place, Refusal(
                "not_combinable",
                "This code is redeemed alone.",
                {"rule": "stacking.exclusive", "seen": len(codes), "wanted": 1},
            )
        group = code.stacking.group
        if group is None:
            continue
        other = groups.setdefault(group, code)
        if other is not code:
            return place, Refusal(
                "not_combinable",
                "Another code of this group is in the order already.",
                {"rule": "stacking.group", "group": group, "with": other.code_norm},
            )
    return None


def choices(codes: Sequence[Stacked], worth: Sequence[int]) -> list[list[int]]:
    """Return the combinations among which the best deal is: places in the order of the codes.

    Each exclusive code alone, and all others with the most valuable of each group; `worth` is
    what each takes off alone. Of equal ones the first by rank is taken.
    """
    together: list[int] = []
    best: dict[str, int] = {}
    alone: list[list[int]] = []
    for place in places(codes):
        stacking = codes[place].stacking
        if stacking.exclusive:
            alone.append([place])
        elif stacking.group is None:
            together.append(place)
        else:
            held = best.get(stacking.group)
            if held is None or worth[place] > worth[held]:
                best[stacking.group] = place
    together = sorted([*together, *best.values()])
    return [choice for choice in (together, *alone) if choice]
