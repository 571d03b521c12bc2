"""The worker looks at the books by itself, and /metrics says what it found."""

import time
from collections.abc import AsyncIterator

import pytest

from api import metrics
from core import db, verifications
from core.settings import Settings
from tests.core.books import DIRECT, Books

pytestmark = pytest.mark.anyio

LOOKED_AT = {"I1", "I3", "I5", "I6", "I9", "I10", "I11", "I12", "I13", "I14"}


@pytest.fixture
async def worker_db(settings: Settings) -> AsyncIterator[db.Database]:
    database = await db.Database.open(settings.database_dsn("worker"), size_max=2)
    try:
        yield database
    finally:
        await database.close()


async def shown(settings: Settings) -> dict[str, float]:
    """Return the gauges as a scraper reads them, asked with the API's own role."""
    database = await db.Database.open(settings.database_dsn("app"), size_max=1)
    try:
        async with database.connection(reads_only=True) as conn:
            text = metrics.gauges(await verifications.latest(conn)).decode()
    finally:
        await database.close()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def gauge(name: str, invariant: str) -> str:
    return f'vauchflow_invariant_{name}{{invariant="{invariant}"}}'


async def test_every_invariant_that_needs_no_history_has_a_gauge_that_tells_the_truth(
    books: Books, settings: Settings, worker_db: db.Database
) -> None:
    assert await shown(settings) == {}
    await verifications.look(settings, worker_db)
    seen = await shown(settings)
    assert {n: v for n, v in seen.items() if "violations" in n} == {
        gauge("violations", name): 0 for name in LOOKED_AT
    }
    checked_at_s = seen[gauge("checked_timestamp_seconds", "I1")]
    assert abs(checked_at_s - time.time()) < 5

    await books.owner.execute(
        f"update vf.vouchers set direct_count = direct_count + 1 where id = '{DIRECT}'"
    )
    await verifications.look(settings, worker_db)
    seen = await shown(settings)
    broken = {n for n, v in seen.items() if "violations" in n and v}
    # The voucher's counter is wrong; the figures are made of events, and are not.
    assert broken == {gauge("violations", "I1")}
    assert seen[gauge("violations", "I1")] == 1
    assert seen[gauge("checked_timestamp_seconds", "I1")] > checked_at_s

    await books.owner.execute(
        f"update vf.vouchers set direct_count = direct_count - 1 where id = '{DIRECT}'"
    )
    await verifications.look(settings, worker_db)
    assert sum(v for n, v in (await shown(settings)).items() if "violations" in n) == 0


async def test_what_could_not_be_looked_at_keeps_its_last_finding(
    books: Books, settings: Settings, worker_db: db.Database
) -> None:
    await verifications.look(settings, worker_db)
    before = await shown(settings)
    await books.valkey.config_set("requirepass", "closed")
    try:
        report = await verifications.look(settings, worker_db)
    finally:
        await books.valkey.config_set("requirepass", "")
    after = await shown(settings)
    assert report.unchecked
    stamp = gauge("checked_timestamp_seconds", "I10")
    assert after[stamp] == before[stamp]
    assert after[gauge("checked_timestamp_seconds", "I1")] > before[stamp]


async def test_looks_are_shared_and_take_at_most_a_hundredth_of_the_time(
    settings: Settings, worker_db: db.Database
) -> None:
    async def due_in_s() -> float:
        async with worker_db.connection(reads_only=True) as conn:
            return await db.value(
                conn,
                "verifications.due_in_s",
                float,
                pause_s=verifications.PAUSE_S,
                share=verifications.SHARE,
            )

    assert await due_in_s() == verifications.PAUSE_S
    await verifications.look(settings, worker_db)
    assert 0 < verifications.PAUSE_S - await due_in_s() < 5
    async with worker_db.connection() as conn:
        await db.run(
            conn, "verifications.write", invariants=["I1"], violations=[0], elapsed_ms=15_000
        )
    assert 1_495 < await due_in_s() <= 1_500
