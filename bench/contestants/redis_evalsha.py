"""What a flash sale usually is: a typed handler and one script call a request, by redis.asyncio.

The script does what a careful author's would: idempotency key, stock, one for each customer, and
an outbox entry. No key check, no metering, and nothing of it ever reaches PostgreSQL.
"""

import os
from typing import Any

import msgspec
import redis.asyncio
from litestar import Litestar, Request, post
from litestar.params import JSONBody
from litestar.response import Response

from bench.contestants import PATH, REDIS_DATABASE, REDIS_VARIABLE

UNITS = 1_000_000_000
KEYS = ("bench:stock", "bench:customers", "bench:keys", "bench:stream")
SCRIPT = """
local won = redis.call('HGET', KEYS[3], ARGV[1])
if won then return tonumber(won) end
if redis.call('HEXISTS', KEYS[2], ARGV[2]) == 1 then return -1 end
local rest = tonumber(redis.call('GET', KEYS[1]))
if rest <= 0 then return -2 end
redis.call('DECR', KEYS[1])
redis.call('HSET', KEYS[2], ARGV[2], rest)
redis.call('HSET', KEYS[3], ARGV[1], rest)
redis.call('XADD', KEYS[4], '*', 'k', ARGV[1], 'c', ARGV[2], 'v', ARGV[3])
return rest
"""


class Claim(msgspec.Struct):
    """The body of a claim."""

    customer_id: str
    order_value: float


_state: dict[str, Any] = {}


async def _open() -> None:
    client = redis.asyncio.from_url(os.environ[REDIS_VARIABLE], db=REDIS_DATABASE)
    await client.flushdb()
    await client.set(KEYS[0], UNITS)
    _state["client"] = client
    _state["sha"] = await client.script_load(SCRIPT)


async def _close() -> None:
    await _state["client"].flushdb()
    await _state["client"].aclose()


@post(PATH, status_code=200)
async def claim(data: JSONBody[Claim], request: Request[Any, Any, Any]) -> Response[dict[str, Any]]:
    """Take one unit."""
    key = request.headers["idempotency-key"]
    rest = await _state["client"].evalsha(
        _state["sha"], len(KEYS), *KEYS, key, data.customer_id, data.order_value
    )
    if rest < 0:
        return Response({"code": "sold_out"}, status_code=409)
    return Response({"seq": UNITS - rest + 1, "remaining": rest - 1})


app = Litestar(
    [claim],
    on_startup=[_open],
    on_shutdown=[_close],
    openapi_config=None,
    logging_config=None,
)
