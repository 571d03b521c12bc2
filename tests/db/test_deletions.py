"""Deleting a project takes everything of it, whatever table it is in, and nothing of another."""

from uuid import UUID

import asyncpg
import pytest

from core.settings import Settings
from tests.db.test_wall import Town

pytestmark = pytest.mark.anyio


async def counts(raw: asyncpg.Connection, town: Town) -> dict[str, tuple[int, int]]:
    """Return how many rows of A and of B each table of tenants has."""
    return {
        table.name: tuple(
            await raw.fetchrow(
                f"select count(*) filter (where {table.tenant_column} = $1), "
                f"count(*) filter (where {table.tenant_column} = $2) from {table.name}",
                town.a,
                town.b,
            )
        )
        for table in town.tables
    }


async def test_a_purge_leaves_no_row_of_the_project_and_every_row_of_others(
    settings: Settings,
) -> None:
    town = Town(settings)
    await town.build()
    owner = await asyncpg.connect(settings.database_dsn("owner"))
    worker = await asyncpg.connect(settings.database_dsn("worker"))
    account = await owner.fetchval(
        "insert into vf.accounts (id, name) values (gen_random_uuid(), 'A') returning id"
    )
    await owner.execute(
        "update vf.projects set status = 'deleting', deleting_at = now(), account_id = $1 "
        "where id = $2",
        account,
        town.a,
    )
    assert set((await counts(owner, town)).values()) == {(1, 1)}

    pieces = []
    while not pieces or pieces[-1]:
        pieces.append(await worker.fetchval("select vf.purge_project($1, 3)", town.a))

    assert set((await counts(owner, town)).values()) == {(0, 1)}
    assert all(piece <= 3 for piece in pieces)
    assert sum(pieces) == len(town.tables) - 1, "each row but the project's own is counted once"
    gone = await owner.fetch("select id, account_id from vf.deleted_projects")
    assert [tuple(row) for row in gone] == [(town.a, account)]
    await owner.close()
    await worker.close()


async def test_a_project_that_is_not_being_deleted_loses_nothing(settings: Settings) -> None:
    town = Town(settings)
    await town.build()
    owner = await asyncpg.connect(settings.database_dsn("owner"))
    worker = await asyncpg.connect(settings.database_dsn("worker"))
    await owner.execute("update vf.projects set status = 'active', deleting_at = null")
    await owner.execute(
        "update vf.projects set status = 'archived', archived_at = now() where id = $1", town.a
    )

    for project in (town.a, town.b):
        assert await worker.fetchval("select vf.purge_project($1, 1000)", project) == 0

    assert set((await counts(owner, town)).values()) == {(1, 1)}
    await owner.close()
    await worker.close()


async def test_requests_cannot_purge(settings: Settings) -> None:
    app = await asyncpg.connect(settings.database_dsn("app"))
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await app.fetchval("select vf.purge_project($1, 1)", UUID(int=1))
    await app.close()
