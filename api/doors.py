"""The two hot doors: redeem a code, claim a unit of a sale.

They are answered before Litestar, from the parts this file opens and closes: the shared commits,
the claim backend and what this worker knows of live leases. One `Redeemer` serves both.
"""

import asyncio
import re
from datetime import timedelta
from functools import lru_cache
from typing import Any, Final, NamedTuple

import redis.asyncio
import structlog
from msgspec import json

from api import bodies
from api.auth import caller_of, require_secret
from api.errors import Answer
from api.front import JSON
from api.idempotency import key_of
from api.lifespan import HotCall, Services
from core import ids
from core.api_keys import Caller
from core.crowds import Crowds
from core.db import STATEMENT_CACHE_SIZE, Database
from core.errors import NotFound, Refusal
from core.flash_sales import SaleDesk
from core.hot import ClaimBackend, RawAnswer
from core.hot.redis_py import RedisPyBackend
from core.hot.rust import RustBackend
from core.live_leases import LeaseKeeper, LiveLease
from core.redeemer import Redeemer
from core.redemptions import NewRedemption, Redemption, TermsCache
from core.seats import Seat
from core.shared_commits import FLIGHTS_MAX, SharedCommits

# A redeem statement takes milliseconds; one that took two seconds is resolved by asking again.
COMMIT_TIMEOUT: Final = timedelta(seconds=2)
# The control plane's Redis client: a handful of connections, and no waiting for a frozen server.
REDIS_CONNECTIONS_MAX: Final = 32
REDIS_TIMEOUT_S: Final = 2.0

_OK: Final = [JSON]
# A key that means itself: no quotes around it, nothing to strip.
_PLAIN_KEY: Final = re.compile(r"[!#-~]{1,255}", re.ASCII)
# A sale is claimed by one address, again and again.
_parsed_id = lru_cache(maxsize=4_096)(ids.parse_id)
_encode = json.Encoder().encode
_log = structlog.get_logger("vauchflow.doors")


class Plain(NamedTuple):
    """Whose plain claim it was, on which lease, under which key."""

    caller: Caller
    live: LiveLease
    key: str | None


class Doors:
    """Opened once a worker, after its database pool."""

    def __init__(self, services: Services) -> None:
        """Open nothing yet."""
        self._services = services
        self._commit_database: Database
        self._commits: SharedCommits
        self._backend: ClaimBackend
        self._seat: Seat
        self._keeper: LeaseKeeper
        self._crowds: Crowds
        self._redeemer: Redeemer
        self.redis: redis.asyncio.Redis
        self.desk: SaleDesk

    async def start(self) -> None:
        """Open everything. Both stores may be away: requests then say so until they are there."""
        settings = self._services.settings
        database = self._services.database
        self._commit_database = await Database.open(
            settings.database_dsn("app"),
            size_min=0,
            size_max=FLIGHTS_MAX,
            statement_cache_size=STATEMENT_CACHE_SIZE if settings.prepared_statements else 0,
            command_timeout_s=COMMIT_TIMEOUT.total_seconds(),
            application_name="vauchflow redeem",
        )
        self._commits = SharedCommits(self._commit_database)
        self.redis = redis.asyncio.from_url(
            settings.redis_url,
            max_connections=REDIS_CONNECTIONS_MAX,
            socket_timeout=REDIS_TIMEOUT_S,
            socket_connect_timeout=REDIS_TIMEOUT_S,
        )
        self._seat = Seat(settings.data_dir)
        self._backend = _backend(settings.redis_url, self._seat)
        terms = TermsCache(database)
        self.desk = SaleDesk(database, self.redis, settings)
        self._keeper = LeaseKeeper(database, self.redis, self._backend, terms, self._seat)
        self._crowds = Crowds(database, self._backend, self.desk.leases)
        self._redeemer = Redeemer(
            database=database,
            commits=self._commits,
            terms=terms,
            keeper=self._keeper,
            backend=self._backend,
            desk=self.desk,
            crowds=self._crowds,
        )
        await self._keeper.start()

    async def stop(self) -> None:
        """Answer what is queued, then close in reverse."""
        await self._commits.drain()
        await self._crowds.stop()
        await self._keeper.stop()
        await self._backend.aclose()
        self._seat.leave()
        await self.redis.aclose()
        await self._commit_database.close()

    def plainly(
        self, route: str, name: str, headers: Any, raw: bytes, protocol: Any, sent: Any
    ) -> "tuple[Plain, asyncio.Future[Any]] | None":
        """Try the way that nearly every claim of a live lease can go; None: the general one.

        The future gets None when the win has been sent, with the headers `sent`.
        """
        authorization = headers.get("authorization")
        if authorization is None or authorization[:7] != "Bearer ":
            return None
        caller = self._services.keys.peek(authorization[7:].encode())
        key = headers.get("idempotency-key")
        if (
            caller is None
            or not caller.is_secret
            or headers.get("content-type") != "application/json"
            or (key is not None and not _PLAIN_KEY.fullmatch(key))
        ):
            return None
        live = (
            self._redeemer.live_of_sale(caller, _parsed_id("fls", name))
            if route == "claim"
            else self._redeemer.live_of_code(caller, name)
        )
        if live is None:
            return None
        told = self._redeemer.claim_plainly(caller, live, raw, key, protocol, sent)
        return None if told is None else (Plain(caller, live, key), told)

    async def after_plain(self, plain: "Plain", call: HotCall, told: RawAnswer) -> Answer:
        """Answer a plain claim that did not win."""
        new = bodies.decode(call.raw, NewRedemption)
        caller, live, key = plain
        answered = await self._redeemer.after_plain(caller, live, new, key, told)
        return self._answer(answered, call)

    async def redeem(self, call: HotCall) -> Answer:
        """Answer POST /v1/vouchers/{code}/redeem."""
        caller, new, key = await self._read(call)
        return self._answer(await self._redeemer.redeem(caller, call.name, new, key), call)

    async def claim(self, call: HotCall) -> Answer:
        """Answer POST /v1/flash-sales/{id}/claim."""
        caller, new, key = await self._read(call)
        sale = _parsed_id("fls", call.name)
        if sale is None:
            raise NotFound("There is no flash sale with this id.")
        return self._answer(await self._redeemer.claim(caller, sale, new, key), call)

    async def _read(self, call: HotCall) -> tuple[Caller, NewRedemption, str | None]:
        caller = require_secret(await caller_of(self._services, call.authorization))
        bodies.check_media_type(call.content_type)
        return caller, bodies.decode(call.raw, NewRedemption), key_of(call.idempotency_key)

    def _answer(self, answered: Redemption | Refusal, call: HotCall) -> Answer:
        if isinstance(answered, Redemption):
            return Answer(200, _encode(answered), _OK)
        return self._services.problems.of_refusal(answered, call.request_id)


def _backend(redis_url: str, seat: Seat) -> Any:
    """Return the compiled batcher, or the Python one where the address needs TLS."""
    if redis_url.startswith("rediss://"):
        _log.warning("python_backend", reason="the compiled batcher does not speak TLS")
        return RedisPyBackend(redis_url, marks_path=str(seat.marks_path))
    return RustBackend(redis_url, marks_path=seat.marks_path)
