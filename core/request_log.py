"""What keys asked lately: the newest requests of a project, for whoever looks for a mistake.

Kept by Redis and by nothing else, at most: it is for a developer's eyes, not for the books. Routes
are kept as patterns, so no code and no customer is in here. Redeems and claims that were answered
as they should be are left out: the books have those, and the figures have the refusals.
"""

import asyncio
from collections import deque
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from core.api_keys import Caller
from core.hot import keys

# What is looked through by eye, on one page; some 40 kB a project.
KEPT_MAX: Final = 200
# A look at yesterday's trouble.
KEPT_S: Final = 86_400
# Nobody notices a second; a process that is killed takes it with it.
FLUSH_S: Final = 1.0
# Projects that one process notes in a second; of more, the rest is not noted.
PROJECTS_MAX: Final = 1_000

_log = structlog.get_logger("vauchflow.request_log")


class Asked(msgspec.Struct, frozen=True):
    """One request. `code`: of its error; `key_id`: who asked."""

    at: datetime
    method: str
    route: str
    status: int
    code: str | None
    elapsed_us: int
    request_id: str
    key_id: UUID | None


class _Problem(msgspec.Struct, frozen=True):
    code: str | None = None


_decode: Final = msgspec.json.Decoder(Asked).decode
_encode: Final = msgspec.json.Encoder().encode
_problem: Final = msgspec.json.Decoder(_Problem).decode


def code_of(body: bytes) -> str | None:
    """Return the code of an error's body, None where there is none."""
    try:
        return _problem(body).code
    except msgspec.MsgspecError:
        return None


class RequestLog:
    """Notes the requests of one process. Used from one event loop only."""

    def __init__(self, redis: Redis) -> None:
        """Begin with nothing; `run` writes down what is noted. Redis is the caller's to close."""
        self._redis = redis
        self._noted: dict[UUID, deque[Asked]] = {}

    def note(self, caller: Caller, asked: Asked) -> None:
        """Note a request that was answered. Cost: an append."""
        own = self._noted.get(caller.project_id)
        if own is None:
            if len(self._noted) >= PROJECTS_MAX:
                return
            own = self._noted[caller.project_id] = deque(maxlen=KEPT_MAX)
        own.append(asked)

    async def flush(self) -> None:
        """Write down what was noted, at most once. Raises: RedisError, OSError."""
        noted, self._noted = self._noted, {}
        for project_id, own in noted.items():
            name = keys.of_requests(str(project_id))
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.lpush(name, *map(_encode, own))
                pipe.ltrim(name, 0, KEPT_MAX - 1)
                pipe.expire(name, KEPT_S)
                await pipe.execute()

    async def run(self) -> None:
        """Flush every second until cancelled; what Redis does not take is forgotten."""
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                await self.flush()
            except (RedisError, OSError) as error:
                _log.warning("requests_not_noted", reason=str(error))

    async def read(self, caller: Caller) -> list[Asked] | None:
        """Return the project's requests, newest first; None while Redis does not answer."""
        name = keys.of_requests(str(caller.project_id))
        try:
            found = await self._redis.lrange(name, 0, KEPT_MAX - 1)
        except (RedisError, OSError) as error:
            _log.warning("requests_not_read", reason=str(error))
            return None
        return [_decode(one) for one in found]
