"""Fixtures every test may use.

servers          session   real PostgreSQL and Valkey in a directory of their own (`core.local`)
data_dir         test      an empty data directory that the servers' account can reach
settings         test      Settings with a migrated database of its own and a flushed Valkey
module_settings  module    the same, shared by the tests of one file that only add to it
redis_url        test      the URL of the session's Valkey, flushed
valkey           test      a redis.asyncio client on it (for async tests)
empty_database   test      the owner's URL of a database without tables
anyio_backend    session   asyncio; mark async tests with `@pytest.mark.anyio`

One seed rules `random` in every test; it is printed first, and VAUCHFLOW_TEST_SEED repeats it.
Nothing here reads the operator's VAUCHFLOW_ variables: tests never touch a real system.
"""

import asyncio
import contextlib
import itertools
import os
import random
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from core import settings as settings_module
from core.local import OWNER, Servers
from core.settings import Settings

SEED = int(os.environ.get("VAUCHFLOW_TEST_SEED") or secrets.randbelow(1_000_000))
SECRET = "5e" * 32
TEMPLATE = "vf_template"
MEMORY = Path("/dev/shm")
# WAL is kept to 1 GB, the largest tables of a test are some hundred MB, and Valkey's file is less.
MEMORY_FREE_BYTES_MIN = 4 * 1024**3

_numbers = itertools.count(1)


def pytest_report_header() -> str:
    return f"random seed: {SEED} (repeat with VAUCHFLOW_TEST_SEED={SEED})"


def pytest_runtest_setup(item: pytest.Item) -> None:
    random.seed(f"{SEED}:{item.nodeid}")


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": False}


@contextlib.contextmanager
def temporary_data_dir(parent: Path = Path("/tmp")) -> Iterator[Path]:
    """Make a directory that the servers' account can reach; pytest's own are closed to it."""
    path = Path(tempfile.mkdtemp(prefix="vf-test-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with temporary_data_dir() as path:
        yield path


def quick_place() -> Path:
    """Where the servers without fsync keep their data: in memory, if there is room.

    Half of the tests have a database of their own, which is 600 files: 30 ms there, and up to 700
    on a busy disk. What has to survive something has a directory on a disk of its own.
    """
    with contextlib.suppress(OSError):
        if shutil.disk_usage(MEMORY).free >= MEMORY_FREE_BYTES_MIN:
            return MEMORY
    return Path("/tmp")


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    with temporary_data_dir(quick_place()) as path:
        running = Servers(path, fast_for_tests=True)
        running.start()
        try:
            yield running
        finally:
            running.stop()


def database_named(url: str, name: str) -> str:
    """Return the same server's URL with another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def execute_as_owner(url: str, statement: str) -> None:
    """Run one statement outside any transaction, on a connection of its own."""

    async def execute() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(execute())


@pytest.fixture(scope="session")
def template_url(servers: Servers) -> str:
    """The migrated database every other one is a copy of. Nobody stays connected to it."""
    from core.db import migrate

    assert servers.database_url is not None
    url = database_named(servers.database_url, TEMPLATE)
    execute_as_owner(servers.database_url, f"create database {TEMPLATE}")
    with temporary_data_dir() as path:
        asyncio.run(migrate.migrate(settings_on(url, "", path)))
    return url


def settings_on(database_url: str, redis_url: str, data_dir: Path) -> Settings:
    """Return Settings as an operator's environment would give them, with the tests' one secret.

    One secret for all: the roles and their passwords belong to the whole cluster.
    """
    environ = {
        "VAUCHFLOW_DATABASE_URL": database_url,
        "VAUCHFLOW_REDIS_URL": redis_url,
        "VAUCHFLOW_SECRET": SECRET,
        "VAUCHFLOW_LOG_FORMAT": "json",
    }
    return settings_module.load(environ, data_dir, join_running=False)


@contextlib.contextmanager
def fresh_database(servers: Servers, template: str) -> Iterator[str]:
    """Create a database, give its owner's URL, and drop it with whoever is still connected."""
    assert servers.database_url is not None
    name = f"vf_test_{next(_numbers)}"
    execute_as_owner(
        servers.database_url,
        f"create database {name} template {template} strategy file_copy owner {OWNER}",
    )
    try:
        yield database_named(servers.database_url, name)
    finally:
        execute_as_owner(servers.database_url, f"drop database {name} with (force)")


@pytest.fixture
def empty_database(servers: Servers) -> Iterator[str]:
    with fresh_database(servers, "template0") as url:
        yield url


@pytest.fixture
def settings(
    servers: Servers, template_url: str, redis_url: str, data_dir: Path
) -> Iterator[Settings]:
    with fresh_database(servers, TEMPLATE) as url:
        yield settings_on(url, redis_url, data_dir)


@pytest.fixture(scope="module")
def module_settings(servers: Servers, template_url: str) -> Iterator[Settings]:
    with temporary_data_dir() as path, fresh_database(servers, TEMPLATE) as url:
        assert servers.redis_url is not None
        yield settings_on(url, servers.redis_url, path)


@pytest.fixture
def redis_url(servers: Servers) -> str:
    assert servers.redis_url is not None
    with redis.Redis.from_url(servers.redis_url) as client:
        client.flushall()
        client.script_flush()
    return servers.redis_url


@pytest.fixture
async def valkey(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    client = redis.asyncio.Redis.from_url(redis_url, retry=Retry(NoBackoff(), 0))
    try:
        yield client
    finally:
        await client.aclose()
