"""The two hot doors: redeem a code, claim a unit of a sale.

They are answered before Litestar, from the parts this file opens and closes: the shared commits,
the claim backend and what this worker knows of live leases. One `Redeemer` serves both.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

import structlog
from msgspec import json
from redis.asyncio import Redis

from api import bodies, metrics
from api.auth import (
    REDEEM_SCOPE,
    caller_of,
    require_origin,
    require_scope,
    require_secret,
)
from api.errors import Answer
from api.front import JSON, JSON_PAIR, PROBLEM_PAIR, PROCESS_LENGTH, STRICT_PAIRS
from api.idempotency import key_of
from api.lifespan import Entrance, HotCall, Services
from core import customer_tokens, ids, redemptions
from core.api_keys import Caller
from core.crowds import Crowds
from core.db import STATEMENT_CACHE_SIZE, Database
from core.errors import (
    Fault,
    Forbidden,
    InvalidCustomerToken,
    NotFound,
    OutcomeUnknown,
    PlanLimit,
    Refusal,
    Unavailable,
)
from core.flash_sales import SaleDesk
from core.hot import ClaimBackend
from core.hot.nodes import connect, is_cluster
from core.hot.redis_py import RedisPyBackend
from core.hot.rust import Door, Listener, PlainCall, RustBackend
from core.hot.rust_cluster import RustCluster
from core.live_leases import LeaseKeeper, LiveLease
from core.plain_redeems import PlainRedeems
from core.redeemer import CLAIM_WAIT_MS, Redeemer
from core.redemptions import NewRedemption, Redemption
from core.rules import codes, money, plans
from core.seats import Seat
from core.shared_commits import FLIGHTS_MAX, SharedCommits
from core.terms import TermsCache
from core.usage import Ticket

# A redeem statement takes milliseconds; one that took two seconds is resolved by asking again.
COMMIT_TIMEOUT: Final = timedelta(seconds=2)
# The control plane's Redis client: a handful of connections, and no waiting for a frozen server.
REDIS_CONNECTIONS_MAX: Final = 32
REDIS_TIMEOUT_S: Final = 2.0

# Plain redeems that wait for a commit, in one process: a tenth of a second of work. Who would wait
# longer is better told at once.
PLAIN_QUEUE_MAX: Final = 1_024
# Whose keys the compiled doors may know: more than they remember addresses.
KEYS_TAUGHT_MAX: Final = 50_000
# Sales that browsers claim from; what is forgotten is read again.
BROWSER_SALES_MAX: Final = 1_000
# How late a counter may be that the compiled doors keep: less than any scrape's interval.
FLUSH_S: Final = 1.0

_OK: Final = [JSON]
# After these PostgreSQL's answer to a plain redeem, the general way has to find out anew.
_ENDS_PLAIN: Final = frozenset({"repriced", "rerouted", "sold_out", "limit_reached", "no_sale"})
# Stands for a request's id in a text that is cut around it.
_SOME_ID: Final = "<request id>"
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
        self._door: Door
        self._plain: PlainRedeems
        self._flushing: asyncio.TimerHandle
        self._listener: Listener | None = None
        # Of a sale that was opened: whether a browser's claim needs a token. It is frozen then.
        self._needs_token: dict[UUID, bool] = {}
        self._taught: dict[bytes, UUID] = {}
        # Keys that were granted a number since the last look.
        self._granted: dict[bytes, Caller] = {}
        self.redis: Redis
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
        self.redis = connect(
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
        self._door = Door(
            "".join(secrets.choice(ids.ALPHABET) for _ in range(PROCESS_LENGTH)),
            [*STRICT_PAIRS, JSON_PAIR],
            [*STRICT_PAIRS, PROBLEM_PAIR],
            {
                "overloaded": self._around_id(Unavailable(code="overloaded")),
                "late": self._around_id(
                    Unavailable("Nothing was applied: the queue did not move in time.")
                ),
                "away": self._around_id(Unavailable("Nothing was applied: the server is ending.")),
                "unknown": self._around_id(OutcomeUnknown()),
                "slow": self._around_id(bodies.too_slow()),
                "cut": self._around_id(bodies.cut_off()),
            },
            PLAIN_QUEUE_MAX,
            CLAIM_WAIT_MS,
        )
        self._plain = PlainRedeems(
            self._door,
            commits=self._commits,
            terms=terms,
            backend=self._backend,
            crowds=self._crowds,
            receipt_key=self._services.receipts.key,
            sold_out=self._around_id(redemptions.refusal("sold_out")),
        )
        self._services.meter.sources.append(self._metered)
        self._flush_soon()
        await self._keeper.start()

    def _around_id(self, no: Refusal | Fault) -> tuple[bytes, bytes]:
        """Return a problem's text before and after the request's id."""
        problems = self._services.problems
        if isinstance(no, Refusal):
            text = problems.of_refusal(no, _SOME_ID).body
        else:
            text = problems.of_fault(no, _SOME_ID).body
        head, tail = text.split(_SOME_ID.encode())
        return head, tail

    async def stop(self) -> None:
        """Answer what is queued, then close in reverse."""
        loop = asyncio.get_running_loop()
        if self._listener is not None:
            await loop.run_in_executor(None, self._listener.close)
            loop.remove_reader(self._door.fileno())
        self._flushing.cancel()
        await self._commits.drain()
        await self._crowds.stop()
        await self._keeper.stop()
        await self._backend.aclose()
        self._seat.leave()
        await self.redis.aclose()
        await self._commit_database.close()

    async def listen(self, entrance: Entrance, word: Callable[[PlainCall], None]) -> None:
        """Let requests in; `word` answers those that the compiled doors decide and do not word."""

        def drain() -> None:
            queues, calls = self._door.drain()
            for queue in queues:
                self._plain.begin(queue)
            for call in calls:
                word(call)

        asyncio.get_running_loop().add_reader(self._door.fileno(), drain)
        self._listener = Listener(entrance.listening.fileno(), self._door, entrance.upstream)

    def forget_key(self, token: bytes) -> None:
        """Take nothing more with a key before it was looked up again."""
        self._door.forget(token)

    async def after_plain(self, call: HotCall, told: Any) -> Answer | None:
        """Word what a request that was taken is told other than a win.

        None: nothing was decided, and it must go through `redeem` or `claim`.
        """
        caller, new, key = await self._read(call, is_in=True)
        subject, decided = told
        if isinstance(subject, LiveLease):
            return self._answer(
                caller, await self._redeemer.after_claim(caller, subject, new, key, decided), call
            )
        if decided.outcome in _ENDS_PLAIN:
            self._plain.forget(subject.voucher_id)
        answered = await self._redeemer.after_redeem(caller, subject, new, decided)
        if isinstance(answered, Refusal):
            self._note(caller, call, new, answered.code)
        return None if answered is None else self._answer(caller, answered, call)

    async def redeem(self, call: HotCall) -> Answer:
        """Answer POST /v1/vouchers/{code}/redeem."""
        caller, new, key = await self._read(call)
        # Most codes are redeemed once: only who comes back is worth learning.
        is_known = self._redeemer.knows(caller, call.name)
        try:
            async with self._room(call, caller, self._redeemer.live_of_code(caller, call.name)):
                answered = await self._redeemer.redeem(caller, call.name, new, key)
        except NotFound as fault:
            self._note(caller, call, new, fault.code)
            raise
        if isinstance(answered, Refusal):
            self._note(caller, call, new, answered.code)
        if is_known:
            self._learn(call, caller, None)
        return self._answer(caller, answered, call)

    async def claim(self, call: HotCall) -> Answer:
        """Answer POST /v1/flash-sales/{id}/claim."""
        caller, new, key = await self._read(call, for_browsers=True)
        sale_id = _parsed_id("fls", call.name)
        if sale_id is None:
            raise NotFound("There is no flash sale with this id.")
        if not caller.is_secret:
            await self._check_browser(caller, sale_id, new)
        async with self._room(call, caller, self._redeemer.live_of_sale(caller, sale_id)):
            answered = await self._redeemer.claim(caller, sale_id, new, key)
        if isinstance(answered, Refusal):
            self._note(caller, call, new, answered.code)
        self._learn(call, caller, sale_id)
        return self._answer(caller, answered, call)

    def _learn(self, call: HotCall, caller: Caller, sale_id: UUID | None) -> None:
        """Teach the compiled doors what this request has found out."""
        scheme, token = (call.authorization or b"")[:7], (call.authorization or b"")[7:]
        if scheme != b"Bearer " or not caller.is_secret or self._door.knows(call.path, token):
            return
        if plans.PLANS[caller.plan].stops:
            # The compiled doors count, and never ask whether there is room for more.
            return
        # Looked up and taught in one step of the loop, where keys are forgotten, too.
        if self._services.keys.peek(token) is not caller:
            return
        if not self._services.limiter.has_limit(caller):
            self._door.grant(token, None)
        if len(self._taught) >= KEYS_TAUGHT_MAX:
            self._taught.pop(next(iter(self._taught)))
        self._taught[token] = caller.project_id
        live = (
            self._redeemer.live_of_sale(caller, sale_id)
            if sale_id is not None
            else self._redeemer.live_of_code(caller, call.name)
        )
        if live is not None:
            self._plain.learn_claims(call.path, token, caller, live)
        else:
            norm = codes.normalise(call.name) if sale_id is None else None
            self._plain.learn_redeems(call.path, token, caller, norm, sale_id)

    def _room(
        self, call: HotCall, caller: Caller, live: LiveLease | None
    ) -> contextlib.AbstractAsyncContextManager[None]:
        """Let a plan's end be looked at where PostgreSQL decides; a lease was armed within it."""
        if live is not None:
            return contextlib.nullcontext()
        return self._services.meter.room_for_redemptions(
            caller, is_replay=lambda: self._is_replay(call, caller)
        )

    async def _is_replay(self, call: HotCall, caller: Caller) -> bool:
        key = key_of(call.idempotency_key)
        if key is None:
            return False
        sale_id = _parsed_id("fls", call.name) if call.path.endswith("/claim") else None
        code = call.name if sale_id is None else None
        return await self._redeemer.was_decided(caller, code, sale_id, key)

    def _metered(self) -> Iterator[tuple[UUID, int]]:
        """Return the calls of each project that the compiled doors have answered since."""
        for token, count, refused in self._door.metered():
            self._services.keys.peek(token)
            if (project_id := self._taught.get(token)) is not None:
                if refused:
                    # The only refusal that is worded there.
                    self._services.attempts.count(project_id, "redeem", "sold_out", refused)
                yield project_id, count

    def flush_metrics(self) -> None:
        """Count what the doors answered by themselves since the last time."""
        for route, statuses, buckets, sum_us in self._door.tallied():
            metrics.add(route, dict(statuses), buckets, sum_us / 1e6)
        status = self._backend.status()
        metrics.told(
            batches=status.batches,
            batch_items=status.items,
            batch_wakeups=status.wakeups,
            commits=self._commits.commits,
            commit_redeems=self._commits.decided,
        )

    async def _let_in(self, call: HotCall, caller: Caller) -> Ticket:
        """Let a request in, and the compiled doors have what was drawn beside it."""
        token = (call.authorization or b"")[7:]
        # Before more is drawn: the doors may have it, and leave this body to the general way.
        self._take_back(token)
        try:
            ticket = await self._services.let_in(caller)
        except PlanLimit:
            if not await self._is_replay(call, caller):
                raise
            return Ticket(caller, False)
        if (
            ticket.standing is not None
            and self._services.keys.peek(token) is caller
            and self._door.knows(call.path, token)
        ):
            self._door.grant(token, self._services.limiter.hand_over(caller))
            self._granted[token] = caller
        return ticket

    def _reclaim(self) -> None:
        """Take back what keys were granted and have not asked for; it is at hand here again."""
        while self._granted:
            self._take_back(next(iter(self._granted)))

    def _take_back(self, token: bytes) -> None:
        caller = self._granted.pop(token, None)
        if caller is not None:
            self._services.limiter.take_back(caller, self._door.reclaim(token))

    def _flush_soon(self) -> None:
        self.flush_metrics()
        self._reclaim()
        self._flushing = asyncio.get_running_loop().call_later(FLUSH_S, self._flush_soon)

    async def _check_browser(self, caller: Caller, sale_id: UUID, new: NewRedemption) -> None:
        """Let a browser claim where the sale allows it, for whom the shop has signed.

        Raises: Forbidden, InvalidCustomerToken, Invalid, NotFound.
        """
        needs_token = self._needs_token.get(sale_id)
        if needs_token is None:
            row = await self.desk.glance(caller.project_id, sale_id)
            if not row.publishable_claims:
                raise Forbidden("This sale takes no claims from browsers; claim with a secret key.")
            needs_token = row.per_customer_limit is not None
            if row.opened_at is not None:
                if len(self._needs_token) >= BROWSER_SALES_MAX:
                    self._needs_token.clear()
                self._needs_token[sale_id] = needs_token
        if new.customer_token is None:
            if needs_token:
                raise InvalidCustomerToken("customer_token is required: this sale is limited")
            return
        worth = None
        if money.is_given(new.order_value):
            worth = money.parse_amount(new.order_value, caller.currency, field="order_value")
        secret = customer_tokens.secret_of(self._services.settings.secret, sale_id)
        customer_tokens.check(new.customer_token, secret, sale_id, new.customer_id, worth)

    async def _read(
        self, call: HotCall, *, for_browsers: bool = False, is_in: bool = False
    ) -> tuple[Caller, NewRedemption, str | None]:
        """Find the caller, who is let in unless they are, and decode the body."""
        caller = await caller_of(self._services, call.authorization)
        if is_in:
            call.tickets.append(Ticket(caller, False))
        elif not call.tickets:
            call.tickets.append(await self._let_in(call, caller))
        if not for_browsers:
            require_secret(caller)
        require_scope(caller, REDEEM_SCOPE)
        require_origin(caller, call.origin)
        bodies.check_media_type(call.content_type)
        new = bodies.decode(call.raw, NewRedemption)
        if new.context is not None:
            require_secret(caller)
            new = self._services.contexts.hidden(caller.project_id, new)
        return caller, new, key_of(call.idempotency_key)

    def _note(self, caller: Caller, call: HotCall, new: NewRedemption, reason: str) -> None:
        """Keep what was refused for the fraud rules."""
        self._services.signals.note(
            caller.project_id, reason, call.name, new.customer_id, new.context
        )

    def _answer(self, caller: Caller, answered: Redemption | Refusal, call: HotCall) -> Answer:
        if isinstance(answered, Redemption):
            return Answer(200, _encode(self._services.receipts.signed(answered)), _OK)
        self._services.attempts.count(caller.project_id, "redeem", answered.code)
        return self._services.problems.of_refusal(answered, call.request_id)


def _backend(redis_url: str, seat: Seat) -> Any:
    """Return the compiled batcher, one for each master of a cluster, or Python's for TLS."""
    if redis_url.startswith("rediss://"):
        _log.warning("python_backend", reason="the compiled batcher does not speak TLS")
        return RedisPyBackend(redis_url, marks_path=str(seat.marks_path))
    if is_cluster(redis_url):
        return RustCluster(redis_url, marks_path=seat.marks_path)
    return RustBackend(redis_url, marks_path=seat.marks_path)
