"""/healthz and /readyz, for balancers and for `up`."""

import asyncio
from typing import Any, Final, Literal

import msgspec
import redis
import structlog
from litestar import Request, get
from litestar.response import Response

from api.lifespan import Services
from core.db import migrate
from core.errors import Fault
from core.hot.nodes import connect, nodes_of

# A balancer asks every second or two and gives up after one.
CHECK_S_MAX: Final = 0.25

_log = structlog.get_logger("vauchflow.health")


class Readiness(msgspec.Struct, kw_only=True):
    """Whether this worker can serve. Redis is not required: only fast sales need it."""

    status: Literal["ready", "not_ready"]
    postgres: Literal["ok", "away", "not_migrated"]
    redis: Literal["ok", "away", "not_configured"]
    is_draining: bool


@get("/healthz", operation_id="healthz")
async def healthz() -> dict[str, str]:
    """Answer as long as the event loop turns."""
    return {"status": "ok"}


@get("/readyz", operation_id="readyz")
async def readyz(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Answer 200 when PostgreSQL answers within 250 ms with the schema this code needs."""
    services: Services = request.app.state.services
    postgres, cache = await asyncio.gather(_postgres(services), _redis(services))
    is_ready = postgres == "ok" and not services.is_draining
    body = Readiness(
        status="ready" if is_ready else "not_ready",
        postgres=postgres,
        redis=cache,
        is_draining=services.is_draining,
    )
    return Response(
        msgspec.json.encode(body),
        status_code=200 if is_ready else 503,
        media_type="application/json",
    )


async def _postgres(services: Services) -> Literal["ok", "away", "not_migrated"]:
    try:
        async with (
            asyncio.timeout(CHECK_S_MAX),
            services.database.connection(reads_only=True) as conn,
        ):
            return "ok" if await migrate.is_at_head(conn) else "not_migrated"
    except (TimeoutError, Fault):
        return "away"


async def _redis(services: Services) -> Literal["ok", "away", "not_configured"]:
    url = services.settings.redis_url
    if not url:
        return "not_configured"
    client = connect(url)
    try:
        async with asyncio.timeout(CHECK_S_MAX):
            for node in await nodes_of(client):
                await node.ping()
            return "ok"
    except (TimeoutError, OSError, redis.RedisError):
        return "away"
    finally:
        await client.aclose()


ROUTES: Final = [healthz, readyz]
