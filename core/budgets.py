"""How much of campaigns' budgets and limits is gone, as their counters have it."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from core import db, ids
from core.api_keys import Caller
from core.campaigns import Campaign
from core.rules import money, schedules
from core.rules.budgets import Measure
from core.rules.schedules import Period
from core.shapes import Amount

# Whoever reads this wants to do something about it while there is time.
LOW_FROM: Final = 0.8


class Gone(msgspec.Struct, frozen=True, kw_only=True):
    """What is gone of one cap of a campaign, `share` of 1 of it; money, or a count of uses."""

    of: Measure
    period: Period | None
    used: Amount
    max: Amount
    share: float


class _Used(msgspec.Struct, frozen=True):
    scope_id: UUID
    label: str
    period: str
    used: int
    used_max: int


async def gone(
    conn: db.Connection, caller: Caller, shown: Sequence[Campaign]
) -> dict[str, list[Gone]]:
    """Return what is gone of each campaign's limit and budgets, by id; those per customer are not.

    A budget nobody has used yet is there with nothing. Cost: one look-up a budget.
    """
    now = datetime.now(UTC)
    asked: list[tuple[str, dict[str, Any], str, str]] = []
    for one in shown:
        for budget in one.rules.budgets or []:
            if budget.get("per") is None:
                label = "/".join(filter(None, (budget["of"], budget.get("period"))))
                period = schedules.period_of(budget.get("period"), now, str(one.rules.time_zone))
                asked.append((one.id, budget, label, period))
    rows: list[_Used] = []
    if asked:
        rows = await db.many(
            conn, "budgets.used", _Used, project_id=caller.project_id,
            scopes=[ids.parse_id("cmp", public_id) for public_id, *_ in asked],
            labels=[label for *_, label, _ in asked], periods=[period for *_, period in asked],
        )  # fmt: skip
    used = {(ids.format_id("cmp", row.scope_id), row.label, row.period): row for row in rows}
    found: dict[str, list[Gone]] = {one.id: _limit(one) for one in shown}
    for public_id, budget, label, period in asked:
        row = used.get((public_id, label, period))
        found[public_id].append(_budget(caller, budget, row))
    return found


def _limit(one: Campaign) -> list[Gone]:
    most = one.rules.max_redemptions
    if most is None:
        return []
    return [
        Gone(
            of="redemptions", period=None, used=money.json_amount(one.redeemed_count, 0),
            max=money.json_amount(most, 0), share=one.redeemed_count / most,
        )
    ]  # fmt: skip


def _budget(caller: Caller, budget: dict[str, Any], row: _Used | None) -> Gone:
    of: Measure = budget["of"]
    most = budget["max"]
    exponent = 0 if of == "redemptions" else caller.exponent
    return Gone(
        of=of, period=budget.get("period"),
        used=money.json_amount(row.used if row else 0, exponent),
        max=money.json_amount(most, 0) if isinstance(most, int) else most,
        share=row.used / row.used_max if row else 0.0,
    )  # fmt: skip


def low(found: dict[str, list[Gone]]) -> dict[str, Gone]:
    """Return the cap of each campaign that is nearest to its end, of those that are near it."""
    nearest = {
        public_id: max(caps, key=lambda one: one.share) for public_id, caps in found.items() if caps
    }
    return {key: one for key, one in nearest.items() if one.share >= LOW_FROM}
