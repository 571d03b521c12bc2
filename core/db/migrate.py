"""Bring a database to the newest schema: roles first, then every file that is not applied yet.

Files are `migrations/NNNN_{pre,post}_name.sql`, forward only: `pre` may run while the old code
serves, `post` only after it is gone. Each runs in one transaction as vf_owner, so that nothing is
owned by a superuser. An applied file may never change again; its checksum is kept in
vf.migrations. The owner's URL must lead to PostgreSQL itself, not through PgBouncer.

A migration that changes rows must name its tenants like everybody else: row-level security is
forced on vf_owner too, which has no policy and so sees no row of a tenant.
"""

import asyncio
import functools
import hashlib
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import asyncpg
import msgspec

from core.db import Connection, many
from core.db.faults import DRIVER_ERRORS, unavailable
from core.db.roles import prepare_roles
from core.settings import Settings

MIGRATIONS_DIR: Final = Path(__file__).with_name("migrations")

# "vauchflow" in bytes, cut to the 63 bits an advisory lock takes.
LOCK_KEY: Final = int.from_bytes(b"vauchflo") >> 1
# Another start may be migrating; the longest file is bounded by STATEMENT_TIMEOUT_MS a statement.
LOCK_WAIT_S: Final = 120.0
LOCK_POLL_S: Final = 0.1
# An index over some millions of rows.
STATEMENT_TIMEOUT_MS: Final = 60_000
# Who waits for a lock on a table makes everybody else wait behind: give up soon, and try again.
LOCK_TIMEOUT_MS: Final = 2_000
LOCK_ATTEMPTS_MAX: Final = 5
CONNECT_TIMEOUT_S: Final = 10.0

_FILE_NAME: Final = re.compile(r"(?P<number>\d{4})_(?P<phase>pre|post)_[a-z0-9_]+\.sql")
_LOCK_NOT_AVAILABLE: Final = "55P03"


class MigrationRefused(Exception):
    """One plain sentence for the operator: the database was not brought to the newest schema."""


class Migration(msgspec.Struct, frozen=True):
    """One file. `checksum` is the SHA-256 of its bytes in hex."""

    name: str
    phase: Literal["pre", "post"]
    checksum: str
    sql: str


class Applied(msgspec.Struct, frozen=True):
    """A row of vf.migrations."""

    name: str
    checksum: str


def load(directory: Path = MIGRATIONS_DIR) -> list[Migration]:
    """Read the files in the order they are applied.

    Raises: MigrationRefused for a name that does not fit, or a number given twice.
    """
    found: list[Migration] = []
    for path in sorted(directory.glob("*.sql")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            raise MigrationRefused(f"{path.name} is not called NNNN_pre_name.sql or NNNN_post_…")
        if found and found[-1].name[:4] == match["number"]:
            raise MigrationRefused(f"{found[-1].name} and {path.stem} have the same number")
        content = path.read_bytes()
        phase: Literal["pre", "post"] = "pre" if match["phase"] == "pre" else "post"
        checksum = hashlib.sha256(content).hexdigest()
        found.append(Migration(path.stem, phase, checksum, content.decode()))
    return found


async def migrate(
    settings: Settings,
    progress: Callable[[str], None] | None = None,
    *,
    through: Literal["pre", "post"] = "post",
    directory: Path = MIGRATIONS_DIR,
) -> list[str]:
    """Create the roles, apply what is missing, and return the names applied now.

    `through="pre"` stops before the first `post` file that is missing.

    Idempotent. Concurrency: two starts at once are safe; the second waits for the first.
    Raises: MigrationRefused when an applied file has changed or one fails (it is rolled back, those
    before it stay); Unavailable when PostgreSQL cannot be reached.
    """
    tell = progress or (lambda line: None)
    migrations = load(directory)
    try:
        raw = await asyncpg.connect(
            settings.database_dsn("owner"),
            timeout=CONNECT_TIMEOUT_S,
            server_settings={
                "application_name": "vauchflow migrate",
                "statement_timeout": str(STATEMENT_TIMEOUT_MS),
                "lock_timeout": str(LOCK_TIMEOUT_MS),
                "client_min_messages": "warning",
            },
        )
    except DRIVER_ERRORS as error:
        raise unavailable(f"the database cannot be reached ({error})") from error
    try:
        await _lock(raw, tell)
        await prepare_roles(raw, settings)
        missing = _missing(migrations, await _applied(raw))
        done: list[str] = []
        for migration in missing:
            if migration.phase == "post" and through == "pre":
                break
            tell(f"applying {migration.name}")
            await _apply(raw, migration)
            done.append(migration.name)
        return done
    except asyncpg.InsufficientPrivilegeError as error:
        raise MigrationRefused(
            f"the owner's login may not do what migrating needs: {error}; it must be able to "
            "create roles, or vf_owner, vf_app, vf_worker and vf_definer must be there"
        ) from error
    except (asyncpg.PostgresConnectionError, OSError) as error:
        raise unavailable("the connection to the database was lost") from error
    finally:
        # Closing gives the lock back, whatever happened.
        await raw.close(timeout=CONNECT_TIMEOUT_S)


async def is_at_head(conn: Connection) -> bool:
    """Say whether every file of this code is applied; files it does not know do no harm."""
    applied = {row.name: row.checksum for row in await many(conn, "migrations.applied", Applied)}
    return all(applied.get(name) == checksum for name, checksum in _own_checksums())


@functools.cache
def _own_checksums() -> list[tuple[str, str]]:
    # Read once: a deployment may replace the files under a process that still serves.
    return [(migration.name, migration.checksum) for migration in load()]


def _missing(migrations: list[Migration], applied: dict[str, str]) -> list[Migration]:
    for migration in migrations:
        if applied.get(migration.name, migration.checksum) != migration.checksum:
            raise MigrationRefused(
                f"{migration.name} was applied to this database and has changed since; "
                "restore the file and write a new one"
            )
    return [migration for migration in migrations if migration.name not in applied]


async def _lock(raw: Any, tell: Callable[[str], None]) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + LOCK_WAIT_S
    has_told = False
    while not await raw.fetchval("SELECT pg_try_advisory_lock($1)", LOCK_KEY):
        if loop.time() > deadline:
            raise MigrationRefused("another process has been migrating this database for minutes")
        if not has_told:
            tell("waiting for another process that migrates this database")
            has_told = True
        await asyncio.sleep(LOCK_POLL_S)


async def _applied(raw: Any) -> dict[str, str]:
    if await raw.fetchval("SELECT to_regclass('vf.migrations')") is None:
        return {}
    rows = await raw.fetch("SELECT name, checksum FROM vf.migrations")
    return {row["name"]: row["checksum"] for row in rows}


async def _apply(raw: Any, migration: Migration) -> None:
    for attempt in range(1, LOCK_ATTEMPTS_MAX + 1):
        try:
            async with raw.transaction():
                await raw.execute("SET LOCAL ROLE vf_owner")
                await raw.execute(migration.sql)
                await raw.execute(_ONE_PROJECT)
                await raw.execute(_RECORD)
                await raw.execute(
                    "INSERT INTO vf.migrations (name, checksum) VALUES ($1, $2)",
                    migration.name,
                    migration.checksum,
                )
            return
        except asyncpg.PostgresError as error:
            if error.sqlstate == _LOCK_NOT_AVAILABLE and attempt < LOCK_ATTEMPTS_MAX:
                await asyncio.sleep(random.uniform(0.5, 1.5) * attempt)
                continue
            if isinstance(error, asyncpg.PostgresConnectionError):
                raise
            raise MigrationRefused(
                f"{migration.name} failed{_line(migration.sql, error)}: {error}"
            ) from error


def _line(sql: str, error: asyncpg.PostgresError) -> str:
    position = error.as_dict().get("position")
    return f" at line {sql.count(chr(10), 0, int(position) - 1) + 1}" if position else ""


# PostgreSQL takes a column it knows nothing about for one of two hundred values, and a statement
# names its project twice: once itself, once by row-level security. A whole project then looks like
# one row, as cheap as a unique look-up, and a plan made so lives until the first ANALYZE
# (docs/decisions/0020-a-project-is-not-selective.md). So a table that was never analysed is said to
# hold one project, where PostgreSQL can be told (18 and newer).
_ONE_PROJECT: Final = """
DO $$
BEGIN
    IF to_regproc('pg_catalog.pg_restore_attribute_stats') IS NOT NULL THEN
        PERFORM pg_catalog.pg_restore_attribute_stats(
                    'schemaname', 'vf', 'relname', c.relname::text, 'attname', 'project_id',
                    'inherited', false, 'null_frac', 0::real, 'avg_width', 16,
                    'n_distinct', 1::real)
           FROM pg_catalog.pg_class c
           JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = 'project_id'
          WHERE c.relnamespace = 'vf'::regnamespace AND c.relkind = 'r' AND c.reltuples < 0;
    END IF;
END $$
"""

# The first file makes the schema, so the table is made after it, in the same transaction.
_RECORD: Final = """
CREATE TABLE IF NOT EXISTS vf.migrations (
    name        text PRIMARY KEY,
    checksum    text NOT NULL,
    applied_at  timestamptz NOT NULL DEFAULT now()
);
GRANT SELECT ON vf.migrations TO vf_app, vf_worker;
"""
