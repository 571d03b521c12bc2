"""One hot row of PostgreSQL, updated once a request, and nothing else.

A raw ASGI handler on an asyncpg pool: no routing, no key check, no JSON decoding, no idempotency,
no customer limit.
"""

import os
from typing import Any

import asyncpg

from bench.contestants import DATABASE_VARIABLE

POOL_SIZE = 20
UNITS = 1_000_000_000
UPDATE = "update hot_row set n = n + 1 where id = 1 and n < units returning n"

_pool: Any = None


async def _open() -> None:
    global _pool
    _pool = await asyncpg.create_pool(
        os.environ[DATABASE_VARIABLE], min_size=POOL_SIZE, max_size=POOL_SIZE
    )
    await _pool.execute(
        "drop table if exists hot_row;"
        "create table hot_row (id int primary key, n bigint not null, units bigint not null)"
        " with (fillfactor = 50);"
        f"insert into hot_row values (1, 0, {UNITS})"
    )


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Take one unit and say which."""
    if scope["type"] == "lifespan":
        await receive()
        await _open()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await _pool.close()
        await send({"type": "lifespan.shutdown.complete"})
        return
    more = True
    while more:
        more = (await receive()).get("more_body", False)
    n = await _pool.fetchval(UPDATE)
    body = b'{"n":%d}' % n if n is not None else b'{"code":"limit_reached"}'
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    status = 200 if n is not None else 409
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
