"""A listener is told a run of events without a gap, and what listens is bounded, also in a rush."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from core import deliveries, ids, live
from core.endings import end
from core.errors import Unavailable

pytestmark = pytest.mark.anyio


class Broken(live.Live):
    """A tail whose store answers nothing."""

    looks = 0

    async def _look(self) -> None:
        self.looks += 1
        raise Unavailable


async def tell_one(house: Any, code: str) -> None:
    """Have something happen, and the tail come by."""
    await house.redeem(code)
    while await deliveries.publish(house.worker_db):
        pass
    newest = await house.value("select id from vf.events order by id desc limit 1")
    channel = house.services.live._channels[house.project_id]
    async with asyncio.timeout(10):
        while channel.head < newest:
            await asyncio.sleep(0.02)


async def told(ear: AsyncGenerator[bytes]) -> list[str]:
    return ids_in([text async for text in ear])


def ids_in(texts: list[bytes]) -> list[str]:
    lines = b"".join(texts).decode().splitlines()
    return [line.removeprefix("id: ") for line in lines if line.startswith("id: ")]


async def test_who_is_too_slow_is_ended_before_the_first_it_did_not_get(house: Any) -> None:
    await house.voucher("SLOW")
    ear = house.services.live.listen(house.caller, None, None)
    assert (await anext(ear)).startswith(b"retry")
    for _ in range(live.QUEUE_MAX + 1):
        await tell_one(house, "SLOW")
    got = ids_in([await anext(ear)])
    # There is room again, and a gap before what comes now.
    await tell_one(house, "SLOW")
    got += await told(ear)
    rows = await house.owner.fetch("select id from vf.events order by id")
    listed = [ids.format_id("evt", row["id"]) for row in rows]
    assert got == listed[: live.QUEUE_MAX]
    again = house.services.live.listen(house.caller, None, ids.parse_id("evt", got[-1]))
    await anext(again)
    assert ids_in([await anext(again)]) == listed[live.QUEUE_MAX :]
    await again.aclose()


async def test_a_rush_of_listeners_does_not_pass_the_bound(
    house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "LISTENERS_MAX", 3)
    tail = house.services.live
    ears = [tail.listen(house.caller, None, None) for _ in range(6)]
    begun = await asyncio.gather(*map(anext, ears), return_exceptions=True)
    assert [type(one) for one in begun] == [bytes] * 3 + [Unavailable] * 3
    for ear in ears:
        await ear.aclose()
    last = tail.listen(house.caller, None, None)
    assert (await anext(last)).startswith(b"retry"), "who left makes room"
    await last.aclose()
    assert tail._channels == {}


async def test_a_store_that_is_away_is_asked_no_more_often_than_one_that_answers(
    house: Any,
) -> None:
    tail = Broken(house.services.database, house.doors.desk)
    ear = tail.listen(house.caller, None, None)
    await anext(ear)
    tail._channels[house.project_id].has_more = True
    tailing = asyncio.create_task(tail.run())
    await asyncio.sleep(4 * live.LOOK_S)
    await end(tailing)
    await ear.aclose()
    assert 2 <= tail.looks <= 5
