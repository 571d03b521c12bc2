"""What one worker process holds open, from its first request to its last."""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
from redis.exceptions import RedisError

from api.errors import Answer, Problems
from core.api_keys import Caller, KeyCache
from core.attempts import Counters
from core.attributions import People
from core.contexts import Contexts
from core.db import STATEMENT_CACHE_SIZE, Database
from core.endings import end
from core.errors import OutcomeUnknown, Unavailable
from core.flash_sales import SaleDesk
from core.gift_cards.vault import Vault
from core.hot.nodes import connect
from core.hot.rust import PlainCall
from core.live import Live
from core.mails import Mailer
from core.rate_limits import DRAW_TIMEOUT_S, DRAWS_MAX, Limiter
from core.receipts import Signer
from core.reports import Desk
from core.request_log import RequestLog
from core.settings import Settings
from core.signals import Signals
from core.usage import Meter, Ticket


class HotCall(msgspec.Struct, frozen=True, gc=False):
    """A request at a hot door: `name` from the address, its headers, and the body whole."""

    path: str
    name: str
    authorization: bytes | None
    idempotency_key: bytes | None
    content_type: bytes | None
    raw: bytes
    request_id: str
    origin: bytes | None = None
    tickets: list[Ticket] = []


class Entrance(NamedTuple):
    """Where requests arrive, and the Unix socket at which granian takes those handed on.

    `ending` is at its end when the server is told to: streams are ended then, since granian waits
    for them before it closes the services.
    """

    listening: socket.socket
    upstream: Path
    ending: Connection


class HotDoors(Protocol):
    """The two addresses that are answered before Litestar: redeem and claim."""

    desk: SaleDesk
    """What steers sales, with the stores the doors have open."""

    async def start(self) -> None:
        """Open what the doors need; called once, with the database pool already made."""

    async def stop(self) -> None:
        """Finish what is in flight and close. The database is closed afterwards."""

    async def listen(self, entrance: "Entrance", word: Callable[[PlainCall], None]) -> None:
        """Let requests in; `word` answers those that the compiled doors decide and do not word."""
        ...

    async def after_plain(self, call: HotCall, told: Any) -> Answer | None:
        """Word what a request that was taken is told other than a win.

        None: nothing was decided, and it must go through `redeem` or `claim`.
        """
        ...

    def forget_key(self, token: bytes) -> None:
        """Take nothing more with a key before it was looked up again."""

    def flush_metrics(self) -> None:
        """Count what the doors answered by themselves since the last time."""
        ...

    async def redeem(self, call: HotCall) -> Answer:
        """Answer POST /v1/vouchers/{code}/redeem. A Fault becomes its problem in `front`."""
        ...

    async def claim(self, call: HotCall) -> Answer:
        """Answer POST /v1/flash-sales/{id}/claim; as `redeem`."""
        ...


class Services:
    """The open connections and caches of one worker. Made once, by `api.app.create`."""

    def __init__(self, settings: Settings) -> None:
        """Make what needs no event loop; `start` opens the rest."""
        self.settings = settings
        self.problems = Problems(settings.base_url)
        self.receipts = Signer(settings.secret)
        self.vault = Vault(settings.secret)
        self.people = People(settings.secret)
        self.contexts = Contexts(settings.secret)
        self.database: Database
        self.keys: KeyCache
        self.meter: Meter
        self.limiter: Limiter
        self.attempts: Counters
        self.reports: Desk
        self.signals: Signals
        self.request_log: RequestLog
        self.live: Live
        self.doors: HotDoors | None = None
        self.is_draining = False
        self.mailer = Mailer(settings)
        self._poll: asyncio.Task[None] | None = None
        self._mailing: asyncio.Task[None] | None = None
        self._metering: asyncio.Task[None] | None = None
        self._limiting: asyncio.Task[None] | None = None
        self._noting: asyncio.Task[None] | None = None
        self._writing_requests: asyncio.Task[None] | None = None
        self._counting: asyncio.Task[None] | None = None
        self._tailing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open everything. PostgreSQL may be away: the worker serves 503 until it is there."""
        self.database = await Database.open(
            self.settings.database_dsn("app"),
            size_min=0,
            size_max=self.settings.pool_size_max,
            statement_cache_size=STATEMENT_CACHE_SIZE if self.settings.prepared_statements else 0,
            application_name="vauchflow api",
        )
        forget = self.doors.forget_key if self.doors is not None else None
        self.keys = KeyCache(self.database, self.settings.secret, forget)
        self._poll = asyncio.create_task(self.keys.poll_forever())
        self._mailing = asyncio.create_task(self.mailer.run())
        self.meter = Meter(self.database)
        self.reports = Desk(self.database)
        self._metering = asyncio.create_task(self.meter.run())
        # Of its own: requests must not wait for what steers sales, nor take its connections.
        self._rates = connect(
            self.settings.redis_url, max_connections=DRAWS_MAX,
            socket_timeout=DRAW_TIMEOUT_S, socket_connect_timeout=DRAW_TIMEOUT_S,
        )  # fmt: skip
        self.limiter = Limiter(self._rates)
        self._limiting = asyncio.create_task(self.limiter.run())
        self.signals = Signals(self.database, self.contexts)
        self._noting = asyncio.create_task(self.signals.run())
        self.request_log = RequestLog(self._rates)
        self._writing_requests = asyncio.create_task(self.request_log.run())
        self.attempts = Counters(self.database)
        self._counting = asyncio.create_task(self.attempts.run())
        if self.doors is not None:
            await self.doors.start()
            self.live = Live(self.database, self.doors.desk)
            self._tailing = asyncio.create_task(self.live.run())

    async def let_in(self, caller: Caller, *, stops: bool = True) -> Ticket:
        """Let a request of a caller in. Raises: RateLimited, PlanLimit. Cost: as both say."""
        standing = await self.limiter.take(caller)
        ticket = await self.meter.enter(caller, stops=stops)
        ticket.standing = standing
        return ticket

    def end_soon(self) -> None:
        """Take what comes still, but let balancers go elsewhere, and end what would go on."""
        self.is_draining = True
        self.reports.stop()
        if self._tailing is not None:
            self.live.stop()

    async def stop(self) -> None:
        """Finish what is in flight and close everything, doors first."""
        self.end_soon()
        if self._tailing is not None:
            await end(self._tailing)
        if self.doors is not None:
            await self.doors.stop()
        if self._poll is not None:
            await end(self._poll)
        if self._mailing is not None:
            await self.mailer.drain()
            await end(self._mailing)
        if self._metering is not None:
            await end(self._metering)
            with contextlib.suppress(Unavailable, OutcomeUnknown):
                await self.meter.flush()
        if self._writing_requests is not None:
            await end(self._writing_requests)
            with contextlib.suppress(RedisError, OSError):
                await self.request_log.flush()
        if self._limiting is not None:
            await end(self._limiting)
            await self._rates.aclose()
        if self._noting is not None:
            await end(self._noting)
            with contextlib.suppress(Unavailable, OutcomeUnknown):
                await self.signals.flush()
        if self._counting is not None:
            await end(self._counting)
            with contextlib.suppress(Unavailable, OutcomeUnknown):
                await self.attempts.flush()
        await self.database.close()
