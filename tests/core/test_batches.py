"""A job of many codes shows how far it is, stops when told, and ends exact after every kill."""

import asyncio
from typing import Any

import msgspec
import pytest

from core import batches
from core.batches import NewBatch
from core.rules.codes import CodeConfig
from tests.core.conftest import House

pytestmark = pytest.mark.anyio


async def start(house: House, count: int, **members: Any) -> batches.Batch:
    new = NewBatch(count=count, discount_value=msgspec.Raw(b"10"), **members)
    async with house.services.database.transaction(house.project_id) as conn:
        return await batches.create(conn, house.caller, new)


async def shown(house: House, batch: batches.Batch) -> batches.Batch:
    async with house.services.database.transaction(house.project_id, reads_only=True) as conn:
        return await batches.get(conn, house.caller, batch.id)


async def test_a_job_goes_on_where_it_was_killed_and_ends_with_the_exact_count(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "ATOMIC_MAX", 1_000)
    monkeypatch.setattr(batches, "PIECE", 700)
    batch = await start(house, 10_001)
    assert (batch.status, batch.made) == ("running", 0)
    for kills in range(5):
        worker = asyncio.create_task(batches.run(house.worker_db))
        while (await shown(house, batch)).made <= kills * 1_000:
            await asyncio.sleep(0.005)
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
        made = (await shown(house, batch)).made
        assert made % 700 == 0 and 0 < made < 10_001
        assert await house.value("select count(*) from vf.vouchers") == made
    # Two workers at once: each piece is one's alone.
    workers = [asyncio.create_task(batches.run(house.worker_db)) for _ in range(2)]
    await house.until("select status from vf.batches", "done")
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    after = await shown(house, batch)
    assert (after.status, after.made) == ("done", 10_001)
    assert after.finished_at is not None
    assert await house.value("select count(distinct code_norm) from vf.vouchers") == 10_001


async def test_a_cancelled_job_makes_no_more_until_it_is_resumed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "ATOMIC_MAX", 10)
    monkeypatch.setattr(batches, "PIECE", 10)
    batch = await start(house, 35)

    async def switch(status: Any) -> None:
        async with house.services.database.transaction(house.project_id) as conn:
            await batches.switch(conn, house.caller, batch.id, status=status)

    async for _ in batches.pieces(house.worker_db):
        await switch("cancelled")
    assert (await shown(house, batch)).made == 10
    await switch("running")
    assert [one.id async for one in batches.pieces(house.worker_db)] != []
    after = await shown(house, batch)
    assert (after.status, after.made) == ("done", 35)
    await switch("cancelled")
    assert (await shown(house, batch)).status == "done"


async def test_a_job_whose_codes_are_used_up_is_cancelled_and_harms_no_other(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "ATOMIC_MAX", 10)
    monkeypatch.setattr(batches, "PIECE", 25)
    look = CodeConfig(length=3, charset="0123456789")
    for number in range(1_000):
        if number % 100:
            await house.voucher(f"{number:03}")
    batch = await start(house, 100, code_config=look)
    other = await start(house, 50)
    assert len([one async for one in batches.pieces(house.worker_db)]) > 1
    assert (await shown(house, batch)).status == "cancelled"
    assert (await shown(house, batch)).made == 0
    assert (await shown(house, other)).made == 50
