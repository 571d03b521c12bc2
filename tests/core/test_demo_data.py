"""The believable year: the same for a seed, true to the books, and there once."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from core import db, demo, ids, verify
from core.demo_data import writing, year
from core.errors import Invalid
from core.settings import Settings

UNTIL = datetime(2026, 11, 23, 13, tzinfo=UTC)
REDEMPTIONS = 1_500


def fetch(settings: Settings, sql: str, *args: Any) -> list[Any]:
    async def asked() -> list[Any]:
        connection = await asyncpg.connect(settings.database_dsn("owner"))
        try:
            return [tuple(row) for row in await connection.fetch(sql, *args)]
        finally:
            await connection.close()

    return asyncio.run(asked())


def write(settings: Settings, drawn: year.Year) -> writing.Made:
    async def written() -> writing.Made:
        database = await db.Database.open(settings.database_dsn("worker"), size_max=1)
        try:
            return await writing.write(database, drawn, lambda done, total: None)
        finally:
            await database.close()

    return asyncio.run(written())


def test_a_seed_always_draws_the_same_year() -> None:
    first = year.draw(7, REDEMPTIONS, UNTIL)
    assert year.draw(7, REDEMPTIONS, UNTIL) == first
    assert year.draw(8, REDEMPTIONS, UNTIL) != first
    assert len(first.tables["redemptions"]) == REDEMPTIONS


@pytest.mark.parametrize("month", range(1, 13))
def test_a_year_that_ends_in_any_month_has_something_of_everything(month: int) -> None:
    until = datetime(2028, month, 29, 9, 30, tzinfo=UTC)
    tables = year.draw(month, REDEMPTIONS, until).tables
    assert all(tables.values())
    moments = [datetime.fromisoformat(row["redeemed_at"]) for row in tables["redemptions"]]
    assert max(moments) <= until and (until - min(moments)).days in (363, 364)
    assert {row["status"] for row in tables["redemptions"]} == {"redeemed", "rolled_back"}
    assert {row["status"] for row in tables["referrals"]} >= {"rewarded", "rejected"}
    assert {row["kind"] for row in tables["transactions"]} >= {"issue", "spend", "expire"}


def test_the_year_is_in_the_books_and_the_books_are_right(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = asyncio.run(demo.seed(settings)).project_id
    drawn = year.draw(7, REDEMPTIONS, UNTIL)
    told: list[tuple[int, int | None]] = []

    made = asyncio.run(writing.run(settings, 7, REDEMPTIONS, lambda *at: told.append(at)))

    assert made.project_id == ids.format_id("prj", writing.PROJECT_ID) != mine
    assert made.counts["redemptions"] == REDEMPTIONS
    assert told[-1][0] == told[-1][1] == sum(made.counts.values())
    assert asyncio.run(verify.run(settings, None)) == 0, capsys.readouterr().out
    assert fetch(settings, "select project_id, count(*) from vf.redemptions group by 1") == [
        (writing.PROJECT_ID, REDEMPTIONS)
    ]
    # Where figures have begun they have the year; here no worker ran, so they have still to.
    assert fetch(settings, "select count(*) from vf.figures") == [(0,)]
    assert len(drawn.tables["sales"]) == 4
    # The next start finds the project it made, with its keys.
    assert asyncio.run(demo.seed(settings)).project_id == mine
    owners = "select u.email from vf.memberships m join vf.users u on u.id = m.user_id"
    assert fetch(settings, f"{owners} where m.project_id = $1", writing.PROJECT_ID) == [
        (demo.EMAIL,)
    ]


def test_a_year_that_is_there_stays_as_it_is(settings: Settings) -> None:
    asyncio.run(demo.seed(settings))
    fetch(settings, "select vf.begin_figures()")
    drawn = year.draw(7, REDEMPTIONS, UNTIL)
    assert write(settings, drawn).counts["redemptions"] == REDEMPTIONS
    ledger = (
        "select count(*), sum(discount_minor) filter (where status = 'redeemed') "
        "from vf.redemptions"
    )
    before = fetch(settings, ledger)
    assert fetch(
        settings,
        "select redeemed, discount_minor - undone_discount_minor from vf.figures "
        "where scope_id = $1 and grain_s = 0",
        writing.PROJECT_ID,
    ) == [tuple(map(int, before[0]))]

    assert write(settings, year.draw(9, REDEMPTIONS, UNTIL)).counts == {}

    assert fetch(settings, ledger) == before
    assert fetch(settings, "select count(*) from vf.projects") == [(2,)]


def test_without_a_demo_account_nothing_is_written(settings: Settings) -> None:
    with pytest.raises(Invalid, match="no demo account"):
        asyncio.run(writing.run(settings, 1, REDEMPTIONS, lambda *at: None))
    with pytest.raises(Invalid, match="--redemptions"):
        asyncio.run(writing.run(settings, 1, 10, lambda *at: None))
    assert fetch(settings, "select count(*) from vf.projects") == [(0,)]
