"""No tenant reaches another's rows, in any table there is, and a gap in the wall is found.

Tables, columns and policies come from the catalogs: a table made tomorrow is tested tomorrow.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from core import db
from core.db import audit
from core.settings import Settings

pytestmark = pytest.mark.anyio

ENTER = "SELECT set_config('app.project_id', $1, true)"
TENANT_TABLES = """
SELECT c.oid::regclass::text AS name,
       CASE c.relname WHEN 'projects' THEN 'id' ELSE 'project_id' END AS tenant_column,
       (SELECT json_object_agg(a.attname, a.atttypid::regtype::text)::text FROM pg_attribute a
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
           AND a.attgenerated = '') AS columns
  FROM pg_class c
 WHERE c.relnamespace = 'vf'::regnamespace AND c.relkind IN ('r', 'p')
   AND (c.relname = 'projects'
        OR EXISTS (SELECT FROM pg_attribute a
                    WHERE a.attrelid = c.oid AND a.attname = 'project_id'))
 ORDER BY 1
"""
# Checks, foreign keys and triggers that stand for one are not what is tested here, and would ask
# for rows that make sense.
WITHOUT_CHECKS = """
ALTER TABLE vf.redemptions DISABLE TRIGGER redemptions_sources, DISABLE TRIGGER redemptions_stay;
ALTER TABLE vf.vouchers DISABLE TRIGGER vouchers_stay, DISABLE TRIGGER vouchers_made,
    DISABLE TRIGGER vouchers_gone, DISABLE TRIGGER vouchers_changed;
DO $$ DECLARE k record; BEGIN
    FOR k IN SELECT conrelid::regclass AS t, conname FROM pg_constraint
              WHERE connamespace = 'vf'::regnamespace AND contype IN ('c', 'f') AND conparentid = 0
    LOOP EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', k.t, k.conname); END LOOP;
END $$
"""

# Foreign keys between tables of tenants: what they are made of, and their columns but the project.
KEYS = """
WITH tenants AS (SELECT attrelid AS id FROM pg_attribute WHERE attname = 'project_id')
SELECT f.conname AS name, f.conrelid::regclass::text AS child,
       f.confrelid::regclass::text AS parent, pg_get_constraintdef(f.oid) AS definition,
       array_agg(quote_ident(m.attname) ORDER BY k.n) AS mine,
       array_agg(quote_ident(t.attname) ORDER BY k.n) AS theirs
  FROM pg_constraint f
 CROSS JOIN LATERAL unnest(f.conkey, f.confkey) WITH ORDINALITY AS k (mine, theirs, n)
  JOIN pg_attribute m ON m.attrelid = f.conrelid AND m.attnum = k.mine
  JOIN pg_attribute t ON t.attrelid = f.confrelid AND t.attnum = k.theirs
 WHERE f.contype = 'f' AND f.connamespace = 'vf'::regnamespace AND m.attname <> 'project_id'
   AND f.conrelid IN (SELECT id FROM tenants) AND f.confrelid IN (SELECT id FROM tenants)
 GROUP BY f.oid, f.conname, f.conrelid, f.confrelid
 ORDER BY 2, 1
"""

_numbers = itertools.count(1)


class Table:
    """A tenant's table as the catalog describes it, and one row of it for each of two projects."""

    def __init__(self, name: str, tenant_column: str, columns: dict[str, str]) -> None:
        self.name = name
        self.tenant_column = tenant_column
        self.columns = columns

    def insert(self, project: UUID) -> str:
        values = {name: literal(kind) for name, kind in self.columns.items()}
        values[self.tenant_column] = f"'{project}'"
        return (
            f"INSERT INTO {self.name} ({', '.join(values)}) "
            f"OVERRIDING SYSTEM VALUE VALUES ({', '.join(values.values())})"
        )


def literal(kind: str) -> str:
    """Return a value of a type that no other row has, where the type is that large."""
    number = next(_numbers)
    if kind.endswith("[]"):
        return f"'{{}}'::{kind}"
    if kind in ("smallint", "integer", "bigint", "numeric", "double precision"):
        return str(number)
    if kind == "uuid":
        return f"'{UUID(int=number)}'"
    if kind == "boolean":
        return "true"
    if kind in ("json", "jsonb"):
        return f"'{{}}'::{kind}"
    if kind == "bytea":
        return f"'\\x{number:08x}'"
    if kind == "interval":
        return "'1 second'"
    if kind == "date" or kind.startswith("timestamp"):
        return f"timestamptz '2026-01-01' + interval '{number} s'"
    return f"'{number}'"


class Town:
    """A database with one row of project A and one of project B in every tenant's table."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.a = uuid4()
        self.b = uuid4()
        self.tables: list[Table] = []
        self.keys: list[Any] = []

    async def build(self) -> None:
        raw = await asyncpg.connect(self.settings.database_dsn("owner"))
        await raw.set_type_codec("text", schema="pg_catalog", encoder=str, decoder=str)
        self.keys = await raw.fetch(KEYS)
        await raw.execute(WITHOUT_CHECKS)
        for row in await raw.fetch(TENANT_TABLES):
            columns = await raw.fetch("SELECT key, value FROM json_each_text($1)", row["columns"])
            self.tables.append(Table(row["name"], row["tenant_column"], dict(map(tuple, columns))))
        for table in self.tables:
            for project in (self.a, self.b):
                await raw.execute(table.insert(project))
        await raw.close()


@pytest.fixture(scope="module")
def town(module_settings: Settings) -> Town:
    built = Town(module_settings)
    asyncio.run(built.build())
    return built


@pytest.fixture
async def app(town: Town) -> AsyncIterator[Any]:
    raw = await asyncpg.connect(town.settings.database_dsn("app"))
    yield raw
    await raw.close()


async def outcome(app: Any, project: UUID | None, sql: str, *args: Any) -> Any:
    """Run a statement as vf_app in a project; its rows or count, or the SQLSTATE of the refusal."""
    transaction = app.transaction()
    await transaction.start()
    try:
        if project is not None:
            await app.fetchval(ENTER, str(project))
        if sql.startswith("SELECT"):
            return await app.fetchval(sql, *args)
        return int((await app.execute(sql, *args)).rpartition(" ")[2])
    except asyncpg.PostgresError as error:
        return error.sqlstate
    finally:
        await transaction.rollback()


DENIED = "42501"  # by the wall, or because the verb is not granted at all


async def test_every_tenants_table_is_covered(town: Town) -> None:
    names = [table.name for table in town.tables]
    assert len(names) >= 13
    assert {"vf.projects", "vf.vouchers", "vf.redemptions", "vf.leases"} <= set(names)


async def test_a_project_reads_its_own_row_and_no_other(app: Any, town: Town) -> None:
    for table in town.tables:
        count = f"SELECT count(*) FROM {table.name}"
        of_a = f"{count} WHERE {table.tenant_column} = '{town.a}'"
        assert await outcome(app, town.a, count) == 1, table.name
        assert await outcome(app, town.a, of_a) == 1, table.name
        assert await outcome(app, town.b, of_a) == 0, table.name
        assert await outcome(app, uuid4(), count) == 0, table.name
        assert await outcome(app, None, count) == 0, table.name


async def test_a_project_writes_no_row_of_another(app: Any, town: Town) -> None:
    for table in town.tables:
        for project in (town.b, None):
            refused = await outcome(app, project, table.insert(town.a))
            assert refused == DENIED, f"insert into {table.name}"
        for sql in (
            f"UPDATE {table.name} SET {table.tenant_column} = {table.tenant_column} "
            f"WHERE {table.tenant_column} = '{town.a}'",
            f"DELETE FROM {table.name} WHERE {table.tenant_column} = '{town.a}'",
        ):
            for project in (town.b, None):
                assert await outcome(app, project, sql) in (0, DENIED), sql
        give_away = f"UPDATE {table.name} SET {table.tenant_column} = '{town.a}'"
        assert await outcome(app, town.b, give_away) == DENIED, give_away
        truncate = f"TRUNCATE {table.name}"
        assert await outcome(app, town.a, truncate) == DENIED, truncate


async def test_upserts_merges_and_copies_meet_the_same_wall(app: Any, town: Town) -> None:
    for table in town.tables:
        tenant = table.tenant_column
        upsert = f"{table.insert(town.a)} ON CONFLICT DO NOTHING"
        assert await outcome(app, town.b, upsert) == DENIED, upsert
        merge = (
            f"MERGE INTO {table.name} t USING (VALUES ('{town.a}'::uuid)) s (id) "
            f"ON t.{tenant} = s.id WHEN MATCHED THEN UPDATE SET {tenant} = '{town.b}'"
        )
        assert await outcome(app, town.b, merge) in (0, DENIED), merge
        async with app.transaction():
            await app.fetchval(ENTER, str(town.b))
            lines: list[bytes] = []

            async def keep(data: bytes, lines: list[bytes] = lines) -> None:
                lines.append(data)

            await app.copy_from_query(f"SELECT {tenant} FROM {table.name}", output=keep)
            assert b"".join(lines) == f"{town.b}\n".encode(), table.name
            lines.clear()
            await app.copy_from_table(table.name.removeprefix("vf."), schema_name="vf", output=keep)
            assert str(town.a).encode() not in b"".join(lines), table.name


async def test_no_row_points_at_a_row_of_another_project(town: Town) -> None:
    raw = await asyncpg.connect(town.settings.database_dsn("owner"))
    assert len(town.keys) >= 20
    for key in town.keys:
        transaction = raw.transaction()
        await transaction.start()
        # Triggers that keep rows as they are would ask why. A key is held up by none of them.
        await raw.execute("SET LOCAL session_replication_role = replica")
        mine, theirs = ", ".join(key["mine"]), ", ".join(key["theirs"])
        add = f"ALTER TABLE {key['child']} ADD CONSTRAINT planted {key['definition']}"
        try:
            for pointing, holds in ((town.a, True), (town.b, False)):
                await raw.execute(
                    f"UPDATE {key['child']} SET ({mine}) = (SELECT {theirs} FROM {key['parent']} "
                    f"WHERE project_id = $1) WHERE project_id = $2", town.a, pointing,
                )  # fmt: skip
                if not holds:
                    with pytest.raises(asyncpg.ForeignKeyViolationError):
                        await raw.execute(add)
                        raise AssertionError(f"{key['name']} takes another project's row")
        finally:
            await transaction.rollback()
    await raw.close()


async def test_the_operator_sees_every_project(town: Town) -> None:
    raw = await asyncpg.connect(town.settings.database_dsn("worker"))
    for table in town.tables:
        assert await raw.fetchval(f"SELECT count(*) FROM {table.name}") == 2, table.name
    await raw.close()


async def test_the_app_may_neither_make_objects_nor_become_another_role(
    app: Any, town: Town
) -> None:
    for sql in (
        "CREATE TABLE vf.mine (n int)",
        "CREATE TABLE public.mine (n int)",
        "CREATE SCHEMA mine",
        "SET ROLE vf_owner",
        "SET ROLE vf_definer",
        "SET SESSION AUTHORIZATION vf_worker",
        "ALTER TABLE vf.vouchers NO FORCE ROW LEVEL SECURITY",
        "DROP POLICY of_project ON vf.vouchers",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await app.execute(sql)


async def test_the_wall_has_no_gap_and_only_the_app_may_serve(settings: Settings) -> None:
    for role, faults in (("app", 0), ("owner", 3)):
        database = await db.Database.open(settings.database_dsn(role), size_max=1)
        async with database.connection(reads_only=True) as conn:
            assert await audit.findings(conn) == []
            assert len(await audit.session_faults(conn)) == faults
        await database.close()


PLANTED = [
    (
        "CREATE TABLE vf.planted (project_id uuid, n int); GRANT SELECT ON vf.planted TO vf_app",
        {("audit.open_tables", "vf.planted"), ("audit.unwalled_grants", "vf.planted")},
    ),
    (
        "ALTER TABLE vf.vouchers NO FORCE ROW LEVEL SECURITY",
        {("audit.open_tables", "vf.vouchers")},
    ),
    (
        "ALTER TABLE vf.vouchers DISABLE ROW LEVEL SECURITY",
        {("audit.open_tables", "vf.vouchers"), ("audit.unwalled_grants", "vf.vouchers")},
    ),
    (
        "CREATE POLICY planted ON vf.vouchers FOR SELECT TO vf_app USING (true)",
        {("audit.loose_policies", "vf.vouchers.planted")},
    ),
    (
        "ALTER POLICY of_project ON vf.outbox WITH CHECK (project_id IS NOT NULL)",
        {("audit.loose_policies", "vf.outbox.of_project")},
    ),
    (
        "DROP POLICY of_project ON vf.outbox; DROP POLICY of_operator ON vf.outbox",
        {("audit.open_tables", "vf.outbox")},
    ),
    (
        "ALTER TABLE vf.vouchers ADD CONSTRAINT campaigns_alone UNIQUE (id);"
        "ALTER TABLE vf.flash_sales ADD CONSTRAINT planted FOREIGN KEY (voucher_id) "
        "REFERENCES vf.vouchers (id)",
        {
            ("audit.unique_oracles", "vf.campaigns_alone"),
            ("audit.cross_project_keys", "vf.flash_sales.planted"),
        },
    ),
    (
        "CREATE UNIQUE INDEX planted ON vf.vouchers (code_norm)",
        {("audit.unique_oracles", "vf.planted")},
    ),
    (
        "CREATE FUNCTION vf.planted() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1';"
        "REVOKE ALL ON FUNCTION vf.planted() FROM PUBLIC",
        {("audit.unpinned_definers", "vf.planted()")},
    ),
    (
        "CREATE FUNCTION vf.planted() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        {("audit.public_functions", "vf.planted()")},
    ),
    (
        "GRANT TRUNCATE ON vf.vouchers TO vf_app; GRANT SELECT ON vf.outbox TO PUBLIC",
        {
            ("audit.grants_past_the_wall", "vf.vouchers TRUNCATE to vf_app"),
            ("audit.grants_past_the_wall", "vf.outbox SELECT to everybody"),
        },
    ),
    (
        "GRANT CREATE ON SCHEMA vf TO vf_app",
        {("audit.grants_past_the_wall", "schema vf CREATE to vf_app")},
    ),
    (
        "ALTER TABLE vf.vouchers OWNER TO postgres",
        {("audit.foreign_owners", "vf.vouchers")},
    ),
    (
        "CREATE VIEW vf.planted AS SELECT * FROM vf.vouchers; GRANT SELECT ON vf.planted TO vf_app",
        {("audit.careless_views", "vf.planted")},
    ),
    (
        "ALTER ROLE vf_app BYPASSRLS",
        {("audit.strong_roles", "vf_app has BYPASSRLS")},
    ),
    (
        "GRANT vf_owner TO vf_app",
        {
            ("audit.strong_roles", "vf_app is a member of vf_owner"),
            ("audit.grants_past_the_wall", "schema vf CREATE to vf_app"),
            ("audit.unwalled_grants", "vf.accounts"),
            ("audit.unwalled_grants", "vf.users"),
        },
    ),
]


@pytest.mark.parametrize(("fault", "expected"), PLANTED, ids=lambda value: str(value)[:60])
async def test_a_planted_gap_is_found(
    settings: Settings, fault: str, expected: set[tuple[str, str]]
) -> None:
    raw = await asyncpg.connect(settings.database_dsn("owner"))
    transaction = raw.transaction()
    await transaction.start()
    try:
        is_of_superuser = fault.startswith(("ALTER ROLE", "GRANT vf_owner")) or "OWNER TO" in fault
        if not is_of_superuser:
            await raw.execute("SET LOCAL ROLE vf_owner")
        await raw.execute(fault)
        conn = db.Connection(raw, is_alone=False)
        found = {(finding.check, finding.object) for finding in await audit.findings(conn)}
    finally:
        # Roles belong to the cluster that all tests share: nothing planted is ever committed.
        await transaction.rollback()
        await raw.close()
    assert found == expected
