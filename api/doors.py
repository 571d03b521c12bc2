"""The two hot doors: redeem a code, claim a unit of a sale.

They are answered before Litestar, from the parts this file opens and closes: the shared commits,
the claim backend and what this worker knows of live leases. One `Redeemer` serves both.
"""

import re
from datetime import timedelta
from functools import lru_cache
from typing import Any, Final

import redis.asyncio
import structlog
from msgspec import json

from api import bodies
from api.auth import caller_of, require_secret
from api.errors import Answer
from api.front import JSON
from api.idempotency import key_of
from api.lifespan import HotCall, Services
from core import ids, redemptions
from core.api_keys import Caller
from core.crowds import Crowds
from core.db import STATEMENT_CACHE_SIZE, Database
from core.errors import NotFound, Refusal
from core.flash_sales import SaleDesk
from core.hot import ClaimBackend
from core.hot.redis_py import RedisPyBackend
from core.hot.rust import RustBackend
from core.live_leases import LeaseKeeper
from core.redeemer import PlainRedeem, Redeemer
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
_PLAIN_KEY: Final = re.compile(rb"[!#-~]{1,255}")
# A sale is claimed by one address, again and again.
_parsed_id = lru_cache(maxsize=4_096)(ids.parse_id)
_encode = json.Encoder().encode
_log = structlog.get_logger("vauchflow.doors")


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

    async def plainly(
        self, route: str, call: HotCall, protocol: Any, sent: Any
    ) -> Answer | bool | None:
        """Try the way that nearly every redeem can go: without an object but its answer.

        True: the answer was sent, with the headers `sent`. An Answer is to be sent. None: the
        request must go the general way, and nothing was decided.
        """
        asker = self._plain_asker(call)
        if asker is None:
            return None
        caller, key = asker
        sale_id = _parsed_id("fls", call.name) if route == "claim" else None
        if route == "claim" and sale_id is None:
            return None
        live = (
            self._redeemer.live_of_sale(caller, sale_id)
            if sale_id is not None
            else self._redeemer.live_of_code(caller, call.name)
        )
        if live is not None:
            told = self._redeemer.claim_plainly(caller, live, call.raw, key, protocol, sent)
            if told is None:
                return None
            raw = await told
            if raw is None:
                return True
            new = bodies.decode(call.raw, NewRedemption)
            answered = await self._redeemer.after_plain(caller, live, new, key, raw)
            return self._answer(answered, call)
        plain = self._redeemer.redeem_plainly(
            caller, code=call.name, sale_id=sale_id, body=call.raw, key=key
        )
        return None if plain is None else await self._plain_answer(caller, plain, call)

    def _plain_asker(self, call: HotCall) -> tuple[Caller, str | None] | None:
        authorization, key = call.authorization, call.idempotency_key
        if authorization is None or authorization[:7] != b"Bearer ":
            return None
        caller = self._services.keys.peek(authorization[7:])
        if (
            caller is None
            or not caller.is_secret
            or call.content_type != b"application/json"
            or (key is not None and not _PLAIN_KEY.fullmatch(key))
        ):
            return None
        return caller, key.decode() if key is not None else None

    async def _plain_answer(
        self, caller: Caller, plain: PlainRedeem, call: HotCall
    ) -> Answer | None:
        decision = await plain.future
        if decision.outcome == "redeemed":
            assert decision.id is not None and decision.seq is not None
            assert decision.redeemed_at is not None
            at_ms = redemptions.ms_of(decision.redeemed_at)
            told = (decision.id.bytes, decision.seq, decision.remaining, at_ms)
            return Answer(200, plain.ask.answer(*told), _OK)
        if decision.outcome in ("repriced", "rerouted"):
            return None
        new = bodies.decode(call.raw, NewRedemption)
        return self._answer(await self._redeemer.after_redeem_plain(caller, plain, new), call)

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
