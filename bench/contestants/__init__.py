"""What the product is measured against, each served with granian as the product is.

Every contestant is asked by the very requests the product is asked: a POST with a key, an
Idempotency-Key and a JSON body, unique in each.

rsgi_empty      granian alone: no body is read, none is sent
rsgi_echo       granian's RSGI, JSON decoded and encoded
litestar_echo   the yardstick: the same in a raw ASGI handler of Litestar
litestar_typed  the same in a typed Litestar handler
redis_evalsha   a typed Litestar handler with one redis.asyncio EVALSHA a request
hot_row         a raw ASGI handler with one UPDATE of one PostgreSQL row a request
"""

from typing import NamedTuple

# Where a contestant finds the servers that the product started.
DATABASE_VARIABLE = "BENCH_DATABASE_URL"
REDIS_VARIABLE = "BENCH_REDIS_URL"
DATABASE = "bench_contestants"
# A database of Valkey that the product does not use.
REDIS_DATABASE = 1

PATH = "/echo"


class Contestant(NamedTuple):
    """Which interface of granian serves it."""

    interface: str


CONTESTANTS = {
    "rsgi_empty": Contestant("rsgi"),
    "rsgi_echo": Contestant("rsgi"),
    "litestar_echo": Contestant("asgi"),
    "litestar_typed": Contestant("asgi"),
    "redis_evalsha": Contestant("asgi"),
    "hot_row": Contestant("asgi"),
}
