"""The demo project is made once and survives a lost file."""

import asyncio
import stat

import argon2
import asyncpg
import msgspec

from core import api_keys, demo
from core.settings import Settings


def rows(settings: Settings, sql: str) -> list[asyncpg.Record]:
    async def fetch() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(settings.database_dsn("owner"))
        try:
            return await connection.fetch(sql)
        finally:
            await connection.close()

    return asyncio.run(fetch())


def test_the_demo_is_written_down_for_its_owner_only(settings: Settings) -> None:
    made = asyncio.run(demo.seed(settings))

    path = settings.data_dir / "demo.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert msgspec.json.decode(path.read_bytes()) == {
        "base_url": settings.base_url,
        "secret_key": made.secret_key,
        "publishable_key": made.publishable_key,
        "project_id": made.project_id,
        "dashboard_email": "demo@vauchflow.local",
        "dashboard_password": made.dashboard_password,
    }
    assert api_keys.is_well_formed(made.secret_key.encode())
    assert made.publishable_key.startswith("vf_pk_")
    assert made.project_id.startswith("prj_")
    plan, currency, password_hash = rows(
        settings,
        "select a.plan, p.currency, u.password_hash from vf.accounts a "
        "join vf.projects p on p.account_id = a.id join vf.users u on u.account_id = a.id",
    )[0]
    assert (plan, currency) == ("enterprise", "EUR")
    assert password_hash.startswith("$argon2id$")
    assert argon2.PasswordHasher().verify(password_hash, made.dashboard_password)


def test_a_second_start_changes_nothing_but_the_address(settings: Settings) -> None:
    first = asyncio.run(demo.seed(settings))
    moved = msgspec.structs.replace(settings, port=9999)

    second = asyncio.run(demo.seed(moved))

    assert second == msgspec.structs.replace(first, base_url="http://127.0.0.1:9999")
    assert rows(settings, "select count(*) from vf.projects")[0][0] == 1
    assert rows(settings, "select count(*) from vf.api_keys")[0][0] == 2


def test_a_lost_or_broken_file_gets_new_keys_for_the_same_project(settings: Settings) -> None:
    first = asyncio.run(demo.seed(settings))
    (settings.data_dir / "demo.json").write_text("{")

    second = asyncio.run(demo.seed(settings))

    assert second.project_id == first.project_id
    assert second.secret_key != first.secret_key
    assert rows(settings, "select count(*) from vf.users")[0][0] == 1


def test_a_file_of_another_database_is_not_believed(settings: Settings) -> None:
    first = asyncio.run(demo.seed(settings))
    rows(settings, "update vf.api_keys set revoked_at = now() returning 1")

    second = asyncio.run(demo.seed(settings))

    assert {second.secret_key, second.publishable_key}.isdisjoint(
        {first.secret_key, first.publishable_key}
    )
