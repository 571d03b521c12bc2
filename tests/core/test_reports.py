"""A report that has begun is whole, or says that it is not."""

import asyncio
import json
import time
from typing import Any

import asyncpg
import pytest

from core import reports
from core.errors import Unavailable
from core.reports import Asked

pytestmark = pytest.mark.anyio
COUNT = 3 * reports.PIECE


class Door:
    """PostgreSQL's own, shut for the application and opened again."""

    def __init__(self, house: Any) -> None:
        self.house = house

    async def shut(self, is_shut: bool) -> None:
        name = await self.house.value("select current_database()")
        word = "false" if is_shut else "true"
        beside = await asyncpg.connect(
            self.house.settings.database_dsn("owner"), database="postgres"
        )
        await beside.execute(f'alter database "{name}" with allow_connections {word}')
        await beside.close()
        if is_shut:
            await self.house.owner.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where datname = current_database() and pid <> pg_backend_pid()"
            )


async def begun(house: Any, desk: reports.Desk | None = None) -> tuple[Any, list[bytes]]:
    await house.owner.execute(
        "insert into vf.vouchers (project_id, id, code, code_norm, discount_type, discount_bp) "
        "select $1, gen_random_uuid(), 'R' || n, 'R' || n, 'PERCENT', 100 "
        "from generate_series(1, $2::bigint) n",
        house.project_id, COUNT,
    )  # fmt: skip
    desk = desk or reports.Desk(house.services.database)
    written = desk.write(house.caller, "vouchers", "ndjson", Asked())
    return written, [await anext(written)]


async def test_a_database_that_goes_away_and_comes_back_costs_no_row(house: Any) -> None:
    written, pieces = await begun(house)
    door = Door(house)
    await door.shut(True)

    async def rest() -> None:
        pieces.extend([piece async for piece in written])

    reading = asyncio.create_task(rest())
    await asyncio.sleep(0.5)
    assert not reading.done()
    await door.shut(False)
    await asyncio.wait_for(reading, 20)
    codes = [json.loads(line)["code"] for line in b"".join(pieces).splitlines()]
    assert len(codes) == len(set(codes)) == COUNT


async def test_one_that_stays_away_ends_the_report_with_a_line_that_says_so(
    house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "WAIT_S_MAX", 1.0)
    written, pieces = await begun(house)
    door = Door(house)
    await door.shut(True)
    try:
        pieces.extend([piece async for piece in written])
    finally:
        await door.shut(False)
    lines = [json.loads(line) for line in b"".join(pieces).splitlines()]
    assert len(lines) == reports.PIECE + 1
    assert lines[-1]["error"]["code"] == "unavailable"
    assert "not complete" in lines[-1]["error"]["detail"]


async def test_a_server_that_ends_breaks_a_report_off_and_says_so(house: Any) -> None:
    desk = reports.Desk(house.services.database)
    written, pieces = await begun(house, desk)
    desk.stop()
    pieces.extend([piece async for piece in written])
    lines = [json.loads(line) for line in b"".join(pieces).splitlines()]
    assert len(lines) == reports.PIECE + 1
    assert lines[-1]["error"]["code"] == "unavailable"
    assert "not complete" in lines[-1]["error"]["detail"]


async def written_again(house: Any, desk: reports.Desk) -> int:
    """Return how many pieces a report has; one that a busy machine refuses is asked for again."""
    until_s = time.monotonic() + 20
    while True:
        try:
            again = desk.write(house.caller, "vouchers", "csv", Asked())
            return len([piece async for piece in again])
        except Unavailable:
            assert time.monotonic() < until_s, "a seat was not given back"
            await asyncio.sleep(0.2)


async def test_whatever_breaks_in_the_middle_is_told_and_makes_room(house: Any) -> None:
    desk = reports.Desk(house.services.database)
    written, pieces = await begun(house, desk)
    await house.owner.execute("alter table vf.vouchers rename to vouchers_away")
    try:
        pieces.extend([piece async for piece in written])
    finally:
        await house.owner.execute("alter table vf.vouchers_away rename to vouchers")
    lines = [json.loads(line) for line in b"".join(pieces).splitlines()]
    assert len(lines) == reports.PIECE + 1
    assert lines[-1]["error"]["code"] == "internal"
    assert "not complete" in lines[-1]["error"]["detail"]
    for _ in range(reports.STREAMS_MAX + 1):
        assert await written_again(house, desk) >= COUNT // reports.PIECE
