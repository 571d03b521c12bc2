"""A whole year: a million redemptions, four clocks, and every figure of it as the ledger has it."""

import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest

from core import analytics, db, overviews, verify
from tests.api.conftest import Api, Project
from tests.conftest import SEED
from tests.core.year import ZONES, Year

pytestmark = [pytest.mark.long, pytest.mark.timeout(1_500)]
REDEMPTIONS = 1_000_000
SHARE_ROLLED_BACK = 0.01
VOUCHERS = 1_000_000
RATIO_MAX = 3.0

# A tenth disabled, a third expired or about to, in the year around now.
_STOCK = """
    insert into vf.vouchers (project_id, id, code, code_norm, discount_type, discount_bp, status,
                             max_redemptions, expires_at)
    select $1, gen_random_uuid(), 'STOCK-' || n, 'STOCK-' || n, 'PERCENT', 1000,
           case when n % 10 = 0 then 'disabled' else 'active' end, 1,
           case when n % 3 > 0 then now() + (n % 1000 - 400) * interval '8 hours' end
      from generate_series(1, $2::bigint) n
"""


def median_s(client: httpx.Client, path: str, times: int = 300) -> float:
    took = []
    for _ in range(times):
        started_s = time.perf_counter()
        assert client.get(path).status_code == 200
        took.append(time.perf_counter() - started_s)
    return statistics.median(took)


async def count(worker: db.Database) -> None:
    while await overviews.count_vouchers(worker):
        pass


async def live_through(api: Api, project: Project) -> None:
    owner = await asyncpg.connect(api.owner_url)
    await owner.execute("set statement_timeout = '600s'")
    worker = await db.Database.open(api.settings.database_dsn("worker"), size_max=2)
    app = await db.Database.open(api.settings.database_dsn("app"), size_max=2)
    try:
        year = Year(owner, UUID(project.id), worker, app, SEED)
        await year.open()
        while not await analytics.begin(worker):
            await year.publish()
        await overviews.begin(worker)
        steps: list[tuple[str, Callable[[], Any]]] = [
            ("stocked", lambda: owner.execute(_STOCK, UUID(project.id), VOUCHERS)),
            ("counted", lambda: count(worker)),
            ("written", lambda: year.redeem(REDEMPTIONS)),
            ("published", year.publish),
            ("added up", year.add_up),
            ("rolled back", lambda: year.roll_back(SHARE_ROLLED_BACK)),
            ("published again", year.publish),
        ]
        for name, step in steps:
            started_s = time.monotonic()
            await step()
            print(f"{name}: {time.monotonic() - started_s:.1f} s")
        assert await analytics.roll_up(worker), "half of what was rolled back is added up"
        started_s = time.monotonic()
        print(f"{await year.compare()} points in {time.monotonic() - started_s:.1f} s")
        for zone in ZONES:
            await owner.execute(
                "update vf.projects set time_zone = $1 where id = $2", zone, UUID(project.id)
            )
            await year.compare_overview()
        await year.add_up()
        await year.compare_overview()
    finally:
        await worker.close()
        await app.close()
        await owner.close()


def test_every_figure_of_a_year_is_the_ledgers_and_the_overview_is_quick(
    api: Api, make_project: Callable[..., Project], capsys: pytest.CaptureFixture[str]
) -> None:
    project = make_project()
    asyncio.run(live_through(api, project))
    with api.client(project.secret_key) as client:
        pairs = [
            (median_s(client, "/v1/analytics/overview"), median_s(client, "/v1/vouchers/YEAR-0"))
            for _ in range(3)
        ]
    ratio = statistics.median(one / other for one, other in pairs)
    told = ", ".join(f"{one * 1e3:.2f}/{other * 1e3:.2f}" for one, other in pairs)
    print(f"seed {SEED}: overview / voucher in ms: {told}; {ratio:.2f} times")
    assert asyncio.run(verify.run(api.settings)) == verify.CLEAN
    lines = capsys.readouterr().out
    with capsys.disabled():
        print(lines)
    assert "I13" in lines
    assert ratio < RATIO_MAX
