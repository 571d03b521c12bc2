"""The yardstick: one hot row of PostgreSQL, updated once a request, and nothing else.

A raw ASGI handler on an asyncpg pool: no routing, no key check, no JSON decoding, no idempotency,
no customer limit. `python -m bench.contestants.hot_row DSN PORT` serves it with granian, as the
product is served.
"""

import os
import sys
from typing import Any

import asyncpg

POOL_SIZE = 20
UNITS = 1_000_000_000
UPDATE = "update hot_row set n = n + 1 where id = 1 and n < units returning n"

_pool: Any = None


async def prepare(dsn: str) -> None:
    """Make the row, with nothing taken from it."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(
            "drop table if exists hot_row;"
            "create table hot_row (id int primary key, n bigint not null, units bigint not null)"
            " with (fillfactor = 50);"
            f"insert into hot_row values (1, 0, {UNITS})"
        )
    finally:
        await connection.close()


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Take one unit and say which."""
    global _pool
    if scope["type"] == "lifespan":
        await receive()
        _pool = await asyncpg.create_pool(
            os.environ["HOT_ROW_DSN"], min_size=POOL_SIZE, max_size=POOL_SIZE
        )
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


def main() -> None:
    """Serve until a signal."""
    from granian import Granian
    from granian.constants import HTTPModes, Interfaces, Loops
    from granian.log import LogLevels

    os.environ["HOT_ROW_DSN"] = sys.argv[1]
    Granian(
        "bench.contestants.hot_row:app",
        address="127.0.0.1",
        port=int(sys.argv[2]),
        interface=Interfaces.ASGI,
        loop=Loops.uvloop,
        http=HTTPModes.http1,
        websockets=False,
        log_access=False,
        log_level=LogLevels.warning,
        backlog=1024,
    ).serve()


if __name__ == "__main__":
    main()
