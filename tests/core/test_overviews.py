"""The overview is exact at every moment, and costs the same however many vouchers there are."""

import asyncio
import random
from typing import Any

import pytest

from core import overviews, verify
from tests.conftest import SEED

pytestmark = pytest.mark.anyio

RECOMPUTED = """
    select count(*) filter (where status = 'active' and coalesce(expires_at > m.at, true)),
           count(*) filter (where status = 'disabled'),
           count(*) filter (where status = 'active' and expires_at <= m.at)
      from vf.vouchers,
           (select greatest(now(), expired_to) as at from vf.voucher_mark) m
     where project_id = $1
"""
MANY = """
    insert into vf.vouchers (project_id, id, code, code_norm, discount_type, discount_bp, status,
                             expires_at)
    select $1, gen_random_uuid(), $2 || n, $2 || n, 'PERCENT', 100,
           case when n % 10 = 0 then 'disabled' else 'active' end,
           case n % 4 when 0 then null when 1 then now() - n * interval '1 second'
                else now() + n * interval '20 milliseconds' end
      from generate_series(1, $3::bigint) n
"""


async def compare(house: Any) -> tuple[int, ...]:
    """Hold the counts against the vouchers themselves, at one moment."""
    async with house.services.database.transaction(
        house.project_id, reads_only=True, isolation="repeatable read"
    ) as conn:
        seen = await overviews.counts_of(conn, house.project_id)
        rows = await conn.fetch(RECOMPUTED, (house.project_id,))
    found = (seen.active_vouchers, seen.disabled_vouchers, seen.expired_vouchers)
    assert found == tuple(rows[0]), SEED
    return found


async def change_some(house: Any, chance: random.Random) -> None:
    """Disable, enable, prolong, end and delete some vouchers, a statement each."""
    rows = await house.owner.fetch("select id from vf.vouchers order by id")
    for row in chance.sample(rows, 12):
        await house.owner.execute(
            chance.choice((
                "update vf.vouchers set status = 'disabled' where id = $1",
                "update vf.vouchers set status = 'active', expires_at = now() where id = $1",
                "update vf.vouchers set expires_at = null where id = $1",
                "update vf.vouchers set expires_at = now() + interval '50 ms' where id = $1",
                "update vf.vouchers set max_redemptions = 5 where id = $1",
                "delete from vf.vouchers where id = $1",
            )),
            row["id"],
        )  # fmt: skip


async def count_all(house: Any) -> None:
    while await overviews.count_vouchers(house.worker_db, 0):
        pass


async def test_vouchers_are_counted_exactly_before_while_and_after_it_is_done(house: Any) -> None:
    chance = random.Random(SEED)
    seen = set()
    await house.owner.execute(MANY, house.project_id, "OLD", 400)
    await change_some(house, chance)
    seen.add(await compare(house))
    assert await overviews.count_vouchers(house.worker_db) is None, "it has not begun"
    await overviews.begin(house.worker_db)
    assert await house.value("select count(*) from vf.voucher_changes") == 0
    seen.add(await compare(house))
    for wave in range(6):
        await house.owner.execute(MANY, house.project_id, f"NEW{wave}-", 100)
        await change_some(house, chance)
        seen.add(await compare(house))
        if wave % 2:
            await overviews.count_vouchers(house.worker_db)
            seen.add(await compare(house))
        await asyncio.sleep(0.1)
    assert await verify.run(house.settings) == verify.CLEAN
    await count_all(house)
    seen.add(await compare(house))
    assert len(seen) > 8, "time goes on, and vouchers change"


async def test_those_who_change_and_count_at_once_lose_and_double_none(
    house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overviews, "CHANGES_MAX", 7)
    await overviews.begin(house.worker_db)

    async def make(place: int) -> None:
        for n in range(10):
            code = f"AT-ONCE-{place}-{n}"
            async with house.services.database.transaction(house.project_id) as conn:
                await conn.execute(
                    "insert into vf.vouchers (project_id, id, code, code_norm, discount_type, "
                    "discount_bp) values ($1, gen_random_uuid(), $2, $2, 'PERCENT', 100)",
                    (house.project_id, code),
                )
            async with house.services.database.transaction(house.project_id) as conn:
                await conn.execute(
                    "update vf.vouchers set expires_at = now() + interval '20 ms' "
                    "where code = $1", (code,),
                )  # fmt: skip

    async def count() -> None:
        for _ in range(20):
            await overviews.count_vouchers(house.worker_db, 0)

    async def look() -> None:
        for _ in range(20):
            await compare(house)

    await asyncio.gather(*(make(place) for place in range(4)), count(), count(), look())
    await asyncio.sleep(0.05)
    await count_all(house)
    assert await compare(house) == (0, 0, 40)
    assert await house.value("select count(*) from vf.voucher_changes") == 0


async def test_a_redeem_writes_no_count_and_waits_for_none(house: Any) -> None:
    await house.voucher("QUIET", max_redemptions=2)
    await overviews.begin(house.worker_db)
    await house.redeem("QUIET", "anna")
    async with house.owner.transaction():
        await house.owner.execute("lock table vf.voucher_changes, vf.voucher_counts")
        async with asyncio.timeout(5):
            await house.redeem("QUIET", "bert")
    assert await house.value("select count(*) from vf.voucher_changes") == 0
    assert await compare(house) == (1, 0, 0)


async def test_a_count_that_is_not_the_vouchers_is_found_by_verify(house: Any, capsys: Any) -> None:
    await house.voucher("OFF")
    await overviews.begin(house.worker_db)
    assert await verify.run(house.settings) == verify.CLEAN
    capsys.readouterr()
    await house.owner.execute("update vf.voucher_counts set active_count = active_count + 1")
    assert await verify.run(house.settings) == verify.BROKEN
    assert "active vouchers of prj_" in capsys.readouterr().out
