"""Connections go from tenant to tenant, and carry nothing over: also after errors and cut calls."""

import asyncio
import random
from collections import Counter
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import asyncpg
import pytest

from core import db
from core.db import Database
from core.settings import Settings
from tests.pgbouncer import pgbouncer

pytestmark = [pytest.mark.anyio, pytest.mark.long, pytest.mark.timeout(300)]

TENANTS = 50
TRANSACTIONS = 20_000
AT_ONCE = 32
CONNECTIONS = 2
# Of all transactions: what fails inside, and what is given up half-way.
FAILS, IS_CUT = 0.05, 0.05
SEEN = """
SELECT current_setting('app.project_id', true) AS project,
       array_agg(DISTINCT project_id) AS owners, count(*) AS rows
  FROM vf.customers WHERE NOT pg_sleep($1::float8) IS NULL
"""
BEHIND_THE_BACK = (
    "SELECT current_setting('app.project_id', true), (SELECT count(*) FROM vf.customers)"
)


async def settle(settings: Settings) -> list[UUID]:
    """Make tenants with as many customers as their number says."""
    owner = await asyncpg.connect(settings.database_dsn("owner"))
    account, projects = uuid4(), [uuid4() for _ in range(TENANTS)]
    await owner.execute(
        "INSERT INTO vf.accounts (id, name, plan) VALUES ($1, 'a', 'scale')", account
    )
    for number, project in enumerate(projects, 1):
        await owner.execute(
            "INSERT INTO vf.projects (id, account_id, name, currency, time_zone) "
            "VALUES ($1, $2, 'p', 'EUR', 'UTC')", project, account,
        )  # fmt: skip
        await owner.executemany(
            "INSERT INTO vf.customers (project_id, id, customer_id) VALUES ($1, $2, $3)",
            [(project, uuid4(), f"c{n}") for n in range(number)],
        )
    await owner.close()
    return projects


async def crowd(database: Database, projects: list[UUID]) -> Counter[str]:
    """Run the transactions, AT_ONCE at a time; returns how many ended how."""
    ended: Counter[str] = Counter()
    left = iter(range(TRANSACTIONS))

    async def one() -> str:
        number = random.randrange(TENANTS)
        chance = random.random()
        slept_s = 0.05 if chance < IS_CUT else 0.0
        async with database.transaction(projects[number]) as conn:
            [row] = await asyncio.wait_for(
                conn.fetch(SEEN, (slept_s / (number + 1),)), 0.02 if slept_s else None
            )
            assert row["project"] == str(projects[number])
            assert row["owners"] == [projects[number]]
            assert row["rows"] == number + 1, "its own rows, and all of them"
            if chance > 1 - FAILS:
                await conn.fetch("SELECT 1 / 0")
        return "committed"

    async def visitor() -> None:
        for _ in left:
            try:
                ended[await one()] += 1
            except db.StatementFailed:
                ended["failed"] += 1
            except (TimeoutError, db.Unavailable, db.RolledBack):
                ended["cut"] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(visitor())
    return ended


async def judge(database: Database, projects: list[UUID]) -> None:
    ended = await crowd(database, projects)
    print(dict(ended))
    assert ended.total() == TRANSACTIONS
    assert ended["committed"] > 0.85 * TRANSACTIONS
    assert ended["failed"] > 0.02 * TRANSACTIONS and ended["cut"] > 0.02 * TRANSACTIONS
    # Whoever names no project sees nothing, on every connection there is.
    async with asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS * 10):
            group.create_task(nobody(database))


async def nobody(database: Database) -> None:
    async with database.transaction(None) as conn:
        [row] = await conn.fetch(BEHIND_THE_BACK)
    assert (row[0] or "", row[1]) == ("", 0)


async def test_twenty_thousand_transactions_on_two_connections_see_their_own_tenant(
    settings: Settings,
) -> None:
    projects = await settle(settings)
    database = await Database.open(settings.database_dsn("app"), size_max=CONNECTIONS)
    await judge(database, projects)
    await database.close()


async def test_the_same_holds_behind_pgbouncer_in_transaction_mode(settings: Settings) -> None:
    projects = await settle(settings)
    with pgbouncer(settings.database_dsn("owner"), connections=CONNECTIONS) as url:
        parts = urlsplit(url)
        through = urlunsplit(parts._replace(netloc=f"vf_app@{parts.hostname}:{parts.port}"))
        # More clients than servers: who comes next is on a connection of somebody else's.
        database = await Database.open(through, size_max=AT_ONCE, statement_cache_size=0)
        await judge(database, projects)
        await database.close()
