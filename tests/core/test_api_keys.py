"""Keys: their checksum, and the cache that answers for them."""

import asyncio
import time
from collections.abc import AsyncIterator
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import api_keys, tenants
from core.api_keys import KeyCache
from core.db import Database
from core.errors import Unauthenticated, Unavailable
from core.local import Servers
from core.settings import Settings
from tests.conftest import settings_on, temporary_data_dir

pytestmark = pytest.mark.anyio


def test_a_generated_key_is_well_formed_and_differs() -> None:
    keys = {api_keys.generate("SECRET") for _ in range(100)}

    assert len(keys) == 100
    assert all(api_keys.is_well_formed(key.encode()) for key in keys)


@given(st.integers(0, 54), st.sampled_from(b"0123456789abcXYZ_-\x00\xff"))
def test_one_wrong_character_is_told_offline(position: int, character: int) -> None:
    key = api_keys.generate("PUBLISHABLE").encode()
    spoilt = key[:position] + bytes([character]) + key[position + 1 :]

    assert api_keys.is_well_formed(spoilt) == (spoilt == key)


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    database = await Database.open(settings.database_dsn("app"), size_max=4)
    yield database
    await database.close()


async def make_key(settings: Settings, currency: str = "EUR") -> tuple[UUID, bytes]:
    database = await Database.open(settings.database_dsn("worker"), size_max=1)
    async with database.transaction(None) as conn:
        account = await tenants.create_account(conn, name="A", plan="free")
        project = await tenants.create_project(conn, account, name="P", currency=currency)
        token = await tenants.create_first_key(
            conn, project, "SECRET", name="k", secret=settings.secret
        )
    await database.close()
    return project, token.encode()


async def revoke(settings: Settings, token: bytes) -> None:
    database = await Database.open(settings.database_dsn("worker"), size_max=1)
    async with database.transaction(None) as conn:
        digest = api_keys.digest_of(token, settings.secret)
        await conn.execute(
            "update vf.api_keys set revoked_at = clock_timestamp() where digest = $1", (digest,)
        )
    await database.close()


async def test_a_key_says_whose_it_is_and_in_which_currency(
    settings: Settings, database: Database
) -> None:
    project, token = await make_key(settings, "KWD")
    cache = KeyCache(database, settings.secret)

    assert cache.peek(token) is None
    caller = await cache.resolve(token)

    assert (caller.project_id, caller.kind, caller.currency) == (project, "SECRET", "KWD")
    assert (caller.exponent, caller.is_secret) == (3, True)
    assert cache.peek(token) is caller


async def test_many_misses_of_one_key_are_one_look_up(
    settings: Settings, database: Database
) -> None:
    _, token = await make_key(settings)
    cache = KeyCache(database, settings.secret)

    callers = await asyncio.gather(*(cache.resolve(token) for _ in range(500)))

    assert len({id(caller) for caller in callers}) == 1


async def test_a_caller_that_hangs_up_leaves_the_others_their_answer(
    settings: Settings, database: Database
) -> None:
    _, token = await make_key(settings)
    cache = KeyCache(database, settings.secret)

    first = asyncio.create_task(cache.resolve(token))
    second = asyncio.create_task(cache.resolve(token))
    await asyncio.sleep(0)
    first.cancel()

    assert (await second).kind == "SECRET"


async def test_another_secret_knows_no_key(settings: Settings, database: Database) -> None:
    _, token = await make_key(settings)

    with pytest.raises(Unauthenticated) as refused:
        await KeyCache(database, "another secret").resolve(token)

    assert refused.value.code == "invalid_key"


async def test_a_poll_forgets_what_was_revoked_and_nothing_else(
    settings: Settings, database: Database
) -> None:
    _, kept = await make_key(settings)
    _, revoked = await make_key(settings)
    cache = KeyCache(database, settings.secret)
    await cache.poll_once()
    for token in (kept, revoked):
        await cache.resolve(token)

    await revoke(settings, revoked)
    await cache.poll_once()

    assert cache.peek(kept) is not None
    assert cache.peek(revoked) is None
    with pytest.raises(Unauthenticated):
        await cache.resolve(revoked)


async def test_the_cache_is_bounded(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_keys, "CACHED_MAX", 2)
    tokens = [(await make_key(settings))[1] for _ in range(4)]
    cache = KeyCache(database, settings.secret)

    for token in tokens:
        await cache.resolve(token)

    assert [cache.peek(token) is not None for token in tokens] == [False, False, True, True]
    for _ in range(4):
        with pytest.raises(Unauthenticated):
            await cache.resolve(api_keys.generate("SECRET").encode())
    assert len(cache._unknown_until_s) <= 2


@pytest.mark.timeout(120)
async def test_known_keys_work_while_postgresql_is_away() -> None:
    from core.db import migrate

    with temporary_data_dir() as path:
        servers = Servers(path, valkey=False, fast_for_tests=True)
        servers.start()
        try:
            assert servers.database_url is not None
            settings = settings_on(servers.database_url, "", path)
            await migrate.migrate(settings)
            _, known = await make_key(settings)
            _, late = await make_key(settings)
            database = await Database.open(settings.database_dsn("app"), size_max=2)
            cache = KeyCache(database, settings.secret)
            caller = await cache.resolve(known)
            polling = asyncio.create_task(cache.poll_forever())
            await asyncio.sleep(2 * api_keys.POLL_INTERVAL_S)

            servers.stop()
            await asyncio.sleep(2 * api_keys.POLL_INTERVAL_S)
            assert cache.peek(known) is caller
            with pytest.raises(Unavailable):
                await cache.resolve(late)
            assert not polling.done()

            servers.start()
            assert (await cache.resolve(late)).kind == "SECRET"
            await revoke(settings, known)
            deadline_s = time.monotonic() + 1.0
            while cache.peek(known) is not None and time.monotonic() < deadline_s:
                await asyncio.sleep(0.05)
            assert cache.peek(known) is None
            polling.cancel()
            await database.close()
        finally:
            servers.stop()
