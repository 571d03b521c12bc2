"""Fixtures of the claim backends.

hot_server  session  a Valkey of this room's own, fsyncing every write, which tests may kill
hot_client  test     a plain client on it, flushed
world       test     three times: the compiled batcher and the Python one on that server, and the
                     Python one on the in-memory reference
"""

import shutil
from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from tests.hot.worlds import HotServer, MemoryWorld, RedisWorld, World


@pytest.fixture(scope="session")
def hot_server() -> Iterator[HotServer]:
    server = HotServer()
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(server.directory, ignore_errors=True)


@pytest.fixture
def hot_client(hot_server: HotServer) -> Iterator[redis.Redis]:
    with hot_server.client() as client:
        client.flushall()
        client.script_flush()
        yield client


@pytest.fixture(params=["rust", "redis_py", "memory"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    made: World
    if request.param == "memory":
        made = MemoryWorld()
    else:
        made = RedisWorld(request.param, request.getfixturevalue("hot_server"))
    try:
        yield made
    finally:
        await made.close()
