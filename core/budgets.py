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


async def used_of(
    conn: db.Connection, caller: Caller, asked: Sequence[tuple[UUID, str, str]]
) -> dict[tuple[UUID, str, str], int]:
    """Return what is gone of budgets that all customers share, by campaign, label and period.

    Of one that nobody has used yet nothing is there.
    """
    if not asked:
        return {}
    rows = await db.many(
        conn, "budgets.used", _Used, project_id=caller.project_id,
        scopes=[scope_id for scope_id, *_ in asked], labels=[label for _, label, _ in asked],
        periods=[period for *_, period in asked],
    )  # fmt: skip
    return {(row.scope_id, row.label, row.period): row.used for row in rows}


async def gone(
    conn: db.Connection, caller: Caller, shown: Sequence[Campaign]
) -> dict[str, list[Gone]]:
    """Return what is gone of each campaign's limit and budgets, by id; those per customer are not.

    A budget nobody has used yet is there with nothing. Cost: one look-up a budget.
    """
    now = datetime.now(UTC)
    asked: list[tuple[str, dict[str, Any], tuple[UUID, str, str]]] = []
    for one in shown:
        campaign_id = ids.parse_id("cmp", one.id)
        assert campaign_id is not None
        for budget in one.rules.budgets or []:
            if budget.get("per") is None:
                label = "/".join(filter(None, (budget["of"], budget.get("period"))))
                period = schedules.period_of(budget.get("period"), now, str(one.rules.time_zone))
                asked.append((one.id, budget, (campaign_id, label, period)))
    counted = await used_of(conn, caller, [key for *_, key in asked])
    found: dict[str, list[Gone]] = {one.id: _limit(one) for one in shown}
    for public_id, budget, key in asked:
        found[public_id].append(_budget(caller, budget, counted.get(key, 0)))
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


def _budget(caller: Caller, budget: dict[str, Any], gone: int) -> Gone:
    of: Measure = budget["of"]
    exponent = 0 if of == "redemptions" else caller.exponent
    most = budget["max"]
    cap = money.json_amount(most, 0) if isinstance(most, int) else most
    return Gone(
        of=of, period=budget.get("period"), used=money.json_amount(gone, exponent), max=cap,
        # Of the cap as it is now: the counter has the one of the last redemption.
        share=gone / 10**exponent / float(bytes(cap)),
    )  # fmt: skip


def low(found: dict[str, list[Gone]]) -> dict[str, Gone]:
    """Return the cap of each campaign that is nearest to its end, of those that are near it."""
    nearest = {
        public_id: max(caps, key=lambda one: one.share) for public_id, caps in found.items() if caps
    }
    return {key: one for key, one in nearest.items() if one.share >= LOW_FROM}
