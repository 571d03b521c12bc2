"""What is gone of budgets is told of the caps as they are now."""

from typing import Any

import msgspec
import pytest

from core import budgets, campaigns, ids
from core.campaigns import CampaignPatch, NewCampaign

pytestmark = pytest.mark.anyio


def rules(cap: str) -> bytes:
    told = '{"discount_value": 20, "budgets": [{"of": "discount", "max": %s}]}'
    return f'{{"name": "c", "rules": {told % cap}}}'.encode()


async def test_a_cap_that_was_raised_is_not_near_its_end_any_more(house: Any) -> None:
    app = house.services.database
    async with app.transaction(house.project_id) as conn:
        made = await campaigns.create(
            conn, house.caller, msgspec.json.decode(rules("20.00"), type=NewCampaign)
        )
    await house.voucher(
        "CAP", campaign_id=ids.parse_id("cmp", made.id), discount_type=None, discount_bp=None
    )
    answered = await house.redeem("CAP", order_value=b"90.00")
    assert bytes(answered.discount_applied) == b"18.00", answered

    async def gone() -> list[budgets.Gone]:
        async with app.transaction(house.project_id, reads_only=True) as conn:
            shown = await campaigns.get(conn, house.caller, made.id)
            found = await budgets.gone(conn, house.caller, [shown])
            assert bool(budgets.low(found)) == (found[made.id][0].share >= budgets.LOW_FROM)
            return found[made.id]

    [before] = await gone()
    assert (bytes(before.used), bytes(before.max), before.share) == (b"18.00", b"20.00", 0.9)
    patch = rules("100.00").replace(b'"discount_value": 20, ', b"")
    async with app.transaction(house.project_id) as conn:
        await campaigns.edit(
            conn, house.caller, made.id, msgspec.json.decode(patch, type=CampaignPatch)
        )
    [after] = await gone()
    assert (bytes(after.used), bytes(after.max), after.share) == (b"18.00", b"100.00", 0.18)
