"""What a transaction promises, and what is said when the promise cannot be kept."""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from core import db
from core.db import WAITING_MAX_PER_CONNECTION, rows
from core.local import Servers
from core.settings import Settings

pytestmark = pytest.mark.anyio

OWN_PROJECT = "SELECT current_setting('app.project_id', true)"


@pytest.fixture
async def things(settings: Settings) -> str:
    """Return the owner's URL of a database with a table to break rules on."""
    url = settings.database_dsn("owner")
    raw = await asyncpg.connect(url)
    await raw.execute(
        """
        CREATE TABLE things (id int CONSTRAINT things_key PRIMARY KEY,
                             n int CONSTRAINT things_small CHECK (n < 10),
                             parent int CONSTRAINT things_parent REFERENCES things);
        CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql
            AS $$ BEGIN PERFORM pg_sleep(30); RETURN NULL; END $$;
        CREATE TABLE slow_to_commit (id int);
        CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON slow_to_commit
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION dawdle();
        """
    )
    await raw.close()
    return url


@pytest.fixture
async def database(things: str) -> AsyncIterator[db.Database]:
    opened = await db.Database.open(things, size_min=0, size_max=2)
    yield opened
    await opened.close()


async def ids_of(url: str, table: str = "things") -> list[int]:
    raw = await asyncpg.connect(url)
    found = await raw.fetch(f"SELECT id FROM {table} ORDER BY id")
    await raw.close()
    return [row["id"] for row in found]


async def terminate(url: str, pid: int) -> None:
    raw = await asyncpg.connect(url)
    assert await raw.fetchval("SELECT pg_terminate_backend($1, 5000)", pid)
    await raw.close()


async def terminate_asleep(url: str, pid: int) -> None:
    """Terminate a session once it is at work: sooner, its client might have sent nothing yet."""
    raw = await asyncpg.connect(url)
    asleep = "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = $1"
    while not await raw.fetchval(asleep, pid):
        await asyncio.sleep(0.01)
    await raw.close()
    await terminate(url, pid)


async def pid_of(conn: db.Connection) -> int:
    return int((await conn.fetch("SELECT pg_backend_pid()"))[0][0])


async def test_a_transaction_is_in_its_project_and_the_next_one_is_in_none(
    database: db.Database,
) -> None:
    project = uuid4()
    async with database.transaction(project) as conn:
        assert (await conn.fetch(OWN_PROJECT))[0][0] == str(project)
        pid = await pid_of(conn)
    async with database.connection(reads_only=True) as conn:
        assert await pid_of(conn) == pid
        assert (await conn.fetch(OWN_PROJECT))[0][0] == ""
    async with database.transaction(None) as conn:
        assert (await conn.fetch(OWN_PROJECT))[0][0] == ""


async def test_no_project_leaks_between_tenants_through_cancels_and_errors(
    things: str,
) -> None:
    database = await db.Database.open(things, size_max=2)
    projects = [uuid4() for _ in range(50)]
    seen = 0

    async def work(project: UUID, turn: int) -> None:
        nonlocal seen
        async with database.transaction(project) as conn:
            assert (await conn.fetch(OWN_PROJECT))[0][0] == str(project)
            if turn % 3 == 0:
                await conn.fetch("SELECT 1 / 0")
            if turn % 3 == 1:
                await conn.fetch("SELECT pg_sleep(0.01)")
            assert (await conn.fetch(OWN_PROJECT))[0][0] == str(project)
            seen += 1

    async def one_turn(turn: int) -> None:
        task = asyncio.create_task(work(random.choice(projects), turn))
        if turn % 5 == 0:
            await asyncio.sleep(random.random() * 0.01)
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled() and task.exception() is not None:
            assert isinstance(task.exception(), db.StatementFailed | db.Unavailable), task

    for start in range(0, 600, 30):
        await asyncio.gather(*(one_turn(turn) for turn in range(start, start + 30)))
    assert seen > 200
    async with database.connection(reads_only=True) as conn:
        assert (await conn.fetch(OWN_PROJECT))[0][0] in (None, "")
    await database.close()


@pytest.mark.parametrize(
    ("statement", "fault", "constraint"),
    [
        ("INSERT INTO things VALUES (1)", db.UniqueViolation, "things_key"),
        ("INSERT INTO things VALUES (2, 10)", db.CheckViolation, "things_small"),
        ("INSERT INTO things VALUES (2, 1, 9)", db.ForeignKeyViolation, "things_parent"),
    ],
)
async def test_a_violation_names_its_constraint_and_changes_nothing(
    database: db.Database,
    things: str,
    statement: str,
    fault: type[db.StatementFailed],
    constraint: str,
) -> None:
    async with database.transaction(None) as conn:
        assert await conn.execute("INSERT INTO things VALUES (1)") == "INSERT 0 1"
    with pytest.raises(fault) as caught:
        async with database.transaction(None) as conn:
            await conn.execute("INSERT INTO things VALUES (7)")
            await conn.execute(statement)
    assert caught.value.constraint == constraint
    assert await ids_of(things) == [1]


async def test_an_exception_rolls_back_and_goes_on(database: db.Database, things: str) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with database.transaction(None) as conn:
            await conn.execute("INSERT INTO things VALUES (1)")
            raise KeyError("mine")
    assert await ids_of(things) == []


async def test_a_swallowed_error_is_never_taken_for_a_commit(
    database: db.Database, things: str
) -> None:
    with pytest.raises(AssertionError, match="swallowed"):
        async with database.transaction(None) as conn:
            await conn.execute("INSERT INTO things VALUES (1)")
            with pytest.raises(db.StatementFailed):
                await conn.fetch("SELECT 1 / 0")
    assert await ids_of(things) == []


async def test_a_cancelled_transaction_is_rolled_back_and_its_connection_is_free_again(
    things: str,
) -> None:
    database = await db.Database.open(things, size_max=1)

    async def insert_and_wait() -> None:
        async with database.transaction(None) as conn:
            await conn.execute("INSERT INTO things VALUES (1)")
            await conn.fetch("SELECT pg_sleep(30)")

    task = asyncio.create_task(insert_and_wait())
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with database.transaction(None) as conn:
        await conn.execute("INSERT INTO things VALUES (2)")
    assert await ids_of(things) == [2]
    await database.close()


async def test_who_finds_no_free_connection_is_told_so_in_time(things: str) -> None:
    database = await db.Database.open(things, size_max=1)

    async def ask() -> str:
        with pytest.raises(db.Unavailable) as caught:
            async with database.transaction(None):
                pass
        return caught.value.code

    async with database.transaction(None):
        waiting = [asyncio.create_task(ask()) for _ in range(WAITING_MAX_PER_CONNECTION)]
        await asyncio.sleep(0)
        began = time.monotonic()
        assert await ask() == "overloaded"
        assert time.monotonic() - began < 0.5, "a full queue answers at once"
        assert set(await asyncio.gather(*waiting)) == {"overloaded"}
        assert time.monotonic() - began < 5
    async with database.transaction(None) as conn:
        assert await pid_of(conn) > 0
    await database.close()


async def test_a_locked_row_a_deadlock_and_a_slow_statement_may_be_run_again(
    database: db.Database, things: str
) -> None:
    async with database.transaction(None) as conn:
        await conn.execute("INSERT INTO things VALUES (1, 0), (2, 0)")

    async with database.transaction(None) as first:
        await first.execute("UPDATE things SET n = 1 WHERE id = 1")
        with pytest.raises(db.RolledBack) as locked:
            async with database.transaction(None) as second:
                await second.execute("UPDATE things SET n = 2 WHERE id = 1")
    assert locked.value.sqlstate == "55P03"

    both_hold_one = asyncio.Barrier(2)

    async def cross(mine: int, theirs: int) -> str:
        try:
            async with database.transaction(None) as conn:
                await conn.execute("SET LOCAL lock_timeout = 0; SET LOCAL deadlock_timeout = 50")
                await conn.execute("UPDATE things SET n = 3 WHERE id = $1", (mine,))
                await both_hold_one.wait()
                await conn.execute("UPDATE things SET n = 3 WHERE id = $1", (theirs,))
        except db.RolledBack as error:
            return error.sqlstate
        return "committed"

    assert sorted(await asyncio.gather(cross(1, 2), cross(2, 1))) == ["40P01", "committed"]

    with pytest.raises(db.RolledBack) as slow:
        async with database.transaction(None, statement_timeout_ms=50) as conn:
            await conn.fetch("SELECT pg_sleep(5)")
    assert slow.value.sqlstate == "57014"
    assert slow.value.retry_after_s == 1


async def test_a_connection_lost_before_the_commit_applied_nothing(
    database: db.Database, things: str
) -> None:
    with pytest.raises(db.Unavailable, match="Nothing was applied"):
        async with database.transaction(None) as conn:
            await conn.execute("INSERT INTO things VALUES (1)")
            await terminate(things, await pid_of(conn))
            await conn.execute("INSERT INTO things VALUES (2)")
    with pytest.raises(db.Unavailable, match="Nothing was applied"):
        async with database.transaction(None) as conn:
            await conn.execute("INSERT INTO things VALUES (3)")
            await terminate(things, await pid_of(conn))
            await asyncio.sleep(0.05)
    assert await ids_of(things) == []


async def test_a_connection_lost_during_the_commit_leaves_the_outcome_unknown(
    database: db.Database, things: str
) -> None:
    async with asyncio.TaskGroup() as group:
        with pytest.raises(db.OutcomeUnknown):
            async with database.transaction(None) as conn:
                await conn.execute("INSERT INTO slow_to_commit VALUES (1)")
                pid = await pid_of(conn)
                group.create_task(terminate_asleep(things, pid))


async def test_a_connection_lost_in_a_call_that_commits_by_itself_is_unknown(
    database: db.Database, things: str
) -> None:
    for reads_only, expected in ((False, db.OutcomeUnknown), (True, db.Unavailable)):
        async with database.connection(reads_only=reads_only) as conn:
            pid = await pid_of(conn)
            call = asyncio.create_task(conn.fetch("SELECT pg_sleep(30)"))
            await terminate_asleep(things, pid)
            with pytest.raises(expected):
                await call
            # And nothing more is sent on it: that surely was not applied.
            with pytest.raises(db.Unavailable):
                await conn.fetch("SELECT 1")


async def test_a_reported_error_in_a_call_that_commits_by_itself_is_no_mystery(
    database: db.Database, things: str
) -> None:
    async with database.connection() as conn:
        assert await conn.execute("INSERT INTO things VALUES (1)") == "INSERT 0 1"
        with pytest.raises(db.UniqueViolation):
            await conn.execute("INSERT INTO things VALUES (1)")
        assert await conn.execute("INSERT INTO things VALUES (2)") == "INSERT 0 1"
    assert await ids_of(things) == [1, 2]


async def test_every_session_has_its_limits_also_behind_pgbouncer(
    empty_database: str, data_dir: Path
) -> None:
    from core.db.migrate import migrate
    from tests.conftest import settings_on

    settings = settings_on(empty_database, "", data_dir)
    await migrate(settings)
    for cache_size in (100, 0):
        database = await db.Database.open(
            settings.database_dsn("app"), size_max=1, statement_cache_size=cache_size
        )
        async with database.transaction(None) as conn:
            shown = [
                (await conn.fetch(f"SHOW {name}"))[0][0]
                for name in (
                    "statement_timeout",
                    "lock_timeout",
                    "idle_in_transaction_session_timeout",
                )
            ]
        assert shown == ["5s", "1s", "10s"]
        await database.close()


async def test_without_prepared_statements_none_is_left_and_each_call_commits(
    things: str,
) -> None:
    database = await db.Database.open(things, size_max=1, statement_cache_size=0)
    async with database.connection() as conn:
        assert await conn.execute("INSERT INTO things VALUES ($1)", (1,)) == "INSERT 0 1"
        with pytest.raises(db.UniqueViolation):
            await conn.execute("INSERT INTO things VALUES ($1)", (1,))
        assert await conn.execute("INSERT INTO things VALUES ($1)", (2,)) == "INSERT 0 1"
        assert await conn.fetch("SELECT name FROM pg_prepared_statements") == []
    async with database.transaction(uuid4()) as conn:
        assert await conn.execute("INSERT INTO things VALUES ($1)", (3,)) == "INSERT 0 1"
        assert await conn.fetch("SELECT name FROM pg_prepared_statements") == []
    assert await ids_of(things) == [1, 2, 3]
    await database.close()


async def test_a_pool_survives_a_killed_and_restarted_postgresql(data_dir: Path) -> None:
    servers = Servers(data_dir, valkey=False)
    servers.start()
    try:
        assert servers.database_url is not None
        database = await db.Database.open(servers.database_url, size_min=2, size_max=4)
        async with database.transaction(None) as conn, database.transaction(None):
            await conn.execute("CREATE TABLE kept (id int); INSERT INTO kept VALUES (1)")
        os.kill(servers.processes["postgres"].pid, signal.SIGKILL)
        with pytest.raises(db.Unavailable):
            for _ in range(50):
                async with database.transaction(None) as conn:
                    await conn.fetch("SELECT 1")
                await asyncio.sleep(0.02)
        # The restart holds the event loop up: nobody has noticed yet that connections are dead.
        servers.start_one("postgres")
        async with database.transaction(None) as conn:
            assert [row[0] for row in await conn.fetch("SELECT id FROM kept")] == [1]
        await database.close()
    finally:
        servers.stop()


class Part(msgspec.Struct):
    name: str
    sizes: list[int]


class Thing(msgspec.Struct, kw_only=True):
    id: UUID
    made_at: datetime
    parts: list[Part]
    note: str | None
    count: int = 3


async def test_a_row_becomes_a_struct_by_name_with_its_json_inside(database: db.Database) -> None:
    made_at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    thing = Thing(id=uuid4(), made_at=made_at, parts=[Part("ä", [1, 2])], note=None)
    async with database.transaction(None) as conn:
        found = await conn.fetch(
            "SELECT $1::jsonb AS parts, $2::uuid AS id, NULL::text AS note, "
            "$3::timestamptz AS made_at",
            (thing.parts, thing.id, made_at),
        )
        assert rows.convert_rows(found, Thing) == [thing]
        in_array = await conn.fetch("SELECT ($1::jsonb[])[2] ->> 'name'", ([{}, Part("b", [])],))
        assert in_array[0][0] == "b"


@pytest.mark.parametrize(
    ("sql", "type_", "error"),
    [
        ("SELECT 1::numeric AS x", int, msgspec.ValidationError),
        ("SELECT NULL::int AS x", int, msgspec.ValidationError),
        ("SELECT 1 AS x, 2 AS y", int, TypeError),
        ("SELECT 'a' AS name", Part, TypeError),
        ("SELECT 'a' AS name, '[1]'::jsonb AS sizes, 1 AS more", Part, TypeError),
        ("SELECT 'a' AS name, '[\"1\"]'::jsonb AS sizes", Part, msgspec.ValidationError),
    ],
)
async def test_a_row_that_does_not_fit_its_type_fails_at_once(
    database: db.Database, sql: str, type_: type, error: type[Exception]
) -> None:
    async with database.transaction(None) as conn:
        with pytest.raises(error):
            rows.convert_rows(await conn.fetch(sql), type_)
