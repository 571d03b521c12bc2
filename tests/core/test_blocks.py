"""Blocks hold in a fast sale, too: loaded as it is armed, told while it is open, and taken back."""

from typing import Any

import pytest

from core import blocks
from core.blocks import Block, NewBlock
from core.contexts import Context
from core.errors import AlreadyExists, Invalid, Refusal
from core.redemptions import Redemption
from tests.core.conftest import House

pytestmark = pytest.mark.anyio


async def block(house: House, kind: Any, value: str) -> Block:
    async with house.services.database.transaction(house.project_id) as conn:
        return await blocks.create(
            conn, house.caller, house.services.contexts, NewBlock(kind=kind, value=value)
        )


async def unblock(house: House, block: Block) -> None:
    async with house.services.database.transaction(house.project_id) as conn:
        await blocks.remove(conn, house.caller, block.id)


def is_blocked(answered: Any) -> bool:
    assert isinstance(answered, Redemption | Refusal), answered
    assert isinstance(answered, Redemption) or answered.code == "blocked"
    return isinstance(answered, Refusal)


def lying(name: str) -> dict[str, Any]:
    told = f'"{name}":"dead'
    return {"order_id": f"{{{told}", "metadata": {f"A{told[:-7]}": "dead", "B": f",{told}"}}


async def test_a_fast_sale_refuses_who_is_blocked_from_its_first_claim_on(house: House) -> None:
    eve = await block(house, "customer", "eve")
    sale = await house.sale("DROP", 20)
    await house.open_sale(sale)
    assert is_blocked(await house.claim(sale, "eve"))
    assert is_blocked(await house.redeem("DROP", "eve"))
    first = await house.claim(sale, "ann", key="k1")
    assert isinstance(first, Redemption) and first.seq == 1
    teller = blocks.Teller(house.worker_db, house.worker_redis)
    context = house.services.contexts.hide(
        house.project_id, Context(address="203.0.113.9", device="phone")
    )
    for kind, value, claim in (
        ("address", "203.0.113.9", {"customer": "bob", "context": context}),
        ("device", "phone", {"customer": "bob", "context": context, "metadata": {"a": 'x"'}}),
        # What a shopper may choose must not pass for where they are.
        ("address", "203.0.113.9", {"customer": "bob", "context": context, **lying("_address")}),
        ("device", "phone", {"customer": "bob", "context": context, **lying("_device")}),
        ("customer", "ann", {"customer": "ann"}),
        ("code", "drop", {"customer": "bob"}),
    ):
        assert not is_blocked(await house.claim(sale, **claim))
        added = await block(house, kind, value)
        await teller.look()
        assert is_blocked(await house.claim(sale, **claim)), kind
        assert is_blocked(await house.claim(sale, "carl")) == (kind == "code")
        replayed = await house.claim(sale, "ann", key="k1")
        assert isinstance(replayed, Redemption)
        assert replayed.redemption_id == first.redemption_id
        await unblock(house, added)
        await teller.look()
    await unblock(house, eve)
    await teller.look()
    assert not is_blocked(await house.claim(sale, "eve"))
    sold = 1 + 6 + 5 + 1
    await house.until("select count(*) from vf.redemptions", sold)
    assert await house.value("select count(*) from vf.redemptions where metadata ? '_device'") == 4


async def test_a_full_list_takes_no_more(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCKS_MAX", 3)
    for name in ("ann", "bob"):
        await block(house, "customer", name)
    with pytest.raises(AlreadyExists):
        await block(house, "customer", "ann")
    await block(house, "customer", "carl")
    with pytest.raises(Invalid, match="at most 3"):
        await block(house, "customer", "dora")
    assert await house.value("select count(*) from vf.blocks") == 3
