"""Events on their way to webhooks: at least once, retried for 72 hours, then a list to replay.

What waits is a row, taken for a while by whoever sends it; who dies with it in hand leaves it to be
taken again. Each webhook has a few places at a time, so a slow one delays nobody else.
"""

import asyncio
import random
import ssl
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal
from uuid import UUID

import msgspec
import structlog

from core import db, events, ids, outbound, webhooks
from core.api_keys import Caller
from core.errors import NotFound, OutcomeUnknown, Unavailable
from core.events import Event
from core.rules import money
from core.settings import Settings

Status = Literal["pending", "delivered", "dead"]

# Requests to one webhook at a time: what a small receiver takes without queueing.
PER_WEBHOOK_MAX: Final = 4
# To all: half of the files a process may have open. One that hangs soon gets a request at a time
# with rests in between, a third of a place, so hundreds of them leave room for everybody else.
AT_ONCE_MAX: Final = 500
# One look takes what is read and begun in some milliseconds.
TAKEN_MAX: Final = 100
# How long an idle look waits; a delivery starts that much later than its event at most.
LOOK_S: Final = 0.3
# Nobody is still sending after this: the request's own end and the writes beside it.
TAKEN_S: Final = outbound.TIMEOUT_S + 15.0
# A bulk replay is one statement; more than a million rows would hold it up.
REPLAY_MAX: Final = 100_000
# Of an answer's body, what the log keeps.
KEPT_CHARACTERS_MAX: Final = 2_000
# Half of a delivery's id is its own; the other is its event's.
_OWN_BITS: Final = (1 << 64) - 1

_log = structlog.get_logger("vauchflow.deliveries")


class Pace(msgspec.Struct, frozen=True):
    """When a failed delivery is tried again, and when a failing webhook is left alone.

    `delays_s`: before the second try, the third and so on, the last one again and again until
    `give_up_after_s`. After `failures_max` failures in a row the webhook is asked by one request
    at a time, first after `rest_s`, twice as long each time up to `rest_s_max`.
    """

    delays_s: tuple[float, ...] = (300, 1_800, 7_200, 18_000, 36_000, 43_200)
    give_up_after_s: float = 72 * 3_600
    jitter: float = 0.1
    failures_max: int = 5
    rest_s: float = 30
    rest_s_max: float = 600
    disable_after_s: float = 5 * 86_400

    def delay_s(self, tries: int) -> float:
        """Return how long to wait after so many tries."""
        delay_s = self.delays_s[min(tries, len(self.delays_s)) - 1]
        return delay_s * (1 + random.uniform(-self.jitter, self.jitter))

    def pause_s(self, failures: int) -> float:
        """Return how long a webhook is left alone after so many failures in a row."""
        if failures < self.failures_max:
            return 0
        return float(min(self.rest_s * 2 ** (failures - self.failures_max), self.rest_s_max))


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One try: the status that came back, or the error, and the beginning of the body."""

    number: int
    at: datetime
    status_code: int | None
    error: str | None
    response_body: str | None
    latency_ms: int


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """An event for a webhook. `next_attempt_at` while it is pending."""

    id: str
    webhook_id: str
    event_id: str
    event_type: str
    status: Status
    attempts: int
    next_attempt_at: datetime | None
    created_at: datetime
    ended_at: datetime | None


class DeliveryDetail(Delivery, frozen=True, kw_only=True):
    """The same with every attempt, and what was sent; `event` is None once it is forgotten."""

    log: list[Attempt]
    event: Event | None


class Replay(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which deliveries are sent again: those that failed for good, or any, since when."""

    status: Literal["dead", "delivered"] = "dead"
    since: datetime | None = None


class Replayed(msgspec.Struct, frozen=True):
    """How many deliveries are sent again."""

    replayed: int


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery's row."""

    id: UUID
    webhook_id: UUID
    event_id: UUID
    event_type: str
    status: Status
    attempt_count: int
    due_at: datetime
    created_at: datetime
    ended_at: datetime | None


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery in somebody's hands, with what its request is made of."""

    project_id: UUID
    id: UUID
    webhook_id: UUID
    event_id: UUID
    attempt_count: int
    try_count: int
    started_at: datetime
    url: str
    secret_version: int
    previous_until: datetime | None
    failure_count: int
    currency: str


async def page(
    conn: db.Connection, caller: Caller, webhook_id: str, *, status: Status | None,
    after: UUID | None, limit: int,
) -> list[Delivery]:  # fmt: skip
    """Return up to `limit` deliveries of a webhook, newest first. Raises: NotFound."""
    webhook = await webhooks.find(conn, caller, webhook_id)
    rows = await db.many(
        conn, "deliveries.page", Stored, project_id=caller.project_id, webhook_id=webhook.id,
        status=status, after=after, limit=limit,
    )  # fmt: skip
    return [show(row) for row in rows]


async def get(
    conn: db.Connection, caller: Caller, webhook_id: str, public_id: str
) -> DeliveryDetail:
    """Return a delivery with every attempt and the event as it was sent. Raises: NotFound."""
    stored = await _find(conn, caller, webhook_id, public_id)
    log = await db.many(
        conn, "deliveries.attempts", Attempt, project_id=caller.project_id, id=stored.id
    )
    try:
        event = await events.get(conn, caller, ids.format_id("evt", stored.event_id))
    except NotFound:
        event = None
    return DeliveryDetail(**msgspec.structs.asdict(show(stored)), log=log, event=event)


async def of_event(
    conn: db.Connection, caller: Caller, public_id: str, *, limit: int
) -> list[Delivery]:
    """Return up to `limit` deliveries of an event, by webhook; none of an id that is none."""
    event_id = ids.parse_id("evt", public_id)
    if event_id is None:
        return []
    begin = event_id.int & ~_OWN_BITS
    rows = await db.many(
        conn, "deliveries.of_event", Stored, project_id=caller.project_id, event_id=event_id,
        first=UUID(int=begin), last=UUID(int=begin | _OWN_BITS), limit=limit,
    )  # fmt: skip
    return [show(row) for row in rows]


async def _find(conn: db.Connection, caller: Caller, webhook_id: str, public_id: str) -> Stored:
    webhook = await webhooks.find(conn, caller, webhook_id)
    delivery_id = ids.parse_id("dlv", public_id)
    if delivery_id is not None:
        stored = await db.one(
            conn, "deliveries.by_id", Stored, project_id=caller.project_id, id=delivery_id
        )
        if stored is not None and stored.webhook_id == webhook.id:
            return stored
    raise NotFound("There is no such delivery of this webhook; they are kept for 30 days.")


async def replay(conn: db.Connection, caller: Caller, webhook_id: str, public_id: str) -> Delivery:
    """Send a delivery again from the start of its schedule. Idempotent while it is pending.

    Raises: NotFound.
    """
    stored = await _find(conn, caller, webhook_id, public_id)
    await db.run(conn, "deliveries.replay", project_id=caller.project_id, id=stored.id)
    return show(await _find(conn, caller, webhook_id, public_id))


async def replay_all(
    conn: db.Connection, caller: Caller, webhook_id: str, asked: Replay
) -> Replayed:
    """Send all deliveries of a status again, REPLAY_MAX at a time. Raises: NotFound."""
    webhook = await webhooks.find(conn, caller, webhook_id)
    count = await db.run(
        conn, "deliveries.replay_all", project_id=caller.project_id, webhook_id=webhook.id,
        status=asked.status, since=asked.since, limit=REPLAY_MAX,
    )  # fmt: skip
    return Replayed(count)


def show(stored: Stored) -> Delivery:
    """Write a row as the API shows it."""
    return Delivery(
        id=ids.format_id("dlv", stored.id),
        webhook_id=ids.format_id("whk", stored.webhook_id),
        event_id=ids.format_id("evt", stored.event_id),
        event_type=stored.event_type,
        status=stored.status,
        attempts=stored.attempt_count,
        next_attempt_at=stored.due_at if stored.status == "pending" else None,
        created_at=stored.created_at,
        ended_at=stored.ended_at,
    )


async def publish(database: db.Database) -> int:
    """Publish what waits and write down who is to be told, in one commit; return how many rows."""
    async with database.transaction(None) as conn:
        done = await events.publish(conn)
        if done.first_id is not None:
            await db.run(conn, "deliveries.enqueue", first=done.first_id, last=done.last_id)
    return done.row_count


async def publish_forever(database: db.Database) -> None:
    """Publish until cancelled. Several workers may run it; one at a time does."""
    while True:
        left = 0
        try:
            left = await publish(database)
        except (Unavailable, OutcomeUnknown) as error:
            _log.warning("publishing_waits", error=str(error))
        except Exception:
            _log.exception("publishing_broken")
        if left == 0:
            await asyncio.sleep(events.LOOK_S)


async def forget(database: db.Database) -> None:
    """Delete deliveries as old as the events that are forgotten. Raises: Unavailable."""
    for _ in range(events.FORGET_PIECES_MAX):
        async with database.connection() as conn:
            if not await db.run(conn, "deliveries.forget", keep_days=events.KEEP_DAYS):
                return


class Courier:
    """Sends what is due. One a process; several processes share the work."""

    def __init__(
        self, database: db.Database, settings: Settings, *, pace: Pace | None = None,
        resolver: outbound.Resolve = outbound.resolve, context: ssl.SSLContext | None = None,
    ) -> None:  # fmt: skip
        """The database is the worker's, and the caller's to close."""
        self._database = database
        self._pace = pace or Pace()
        self._signer = webhooks.Signer(settings.secret)
        self._allowed = outbound.networks_of(settings.webhook_allow)
        self._resolver = resolver
        self._context = context
        self._under_way: dict[asyncio.Task[None], UUID] = {}

    async def run(self) -> None:
        """Send until cancelled; what is under way then is taken again by somebody, later."""
        try:
            while True:
                try:
                    sent = await self.look()
                except (Unavailable, OutcomeUnknown) as error:
                    _log.warning("deliveries_wait", error=str(error))
                    sent = 0
                except Exception:
                    _log.exception("deliveries_broken")
                    sent = 0
                if sent == 0:
                    await asyncio.sleep(LOOK_S)
                elif self._under_way:
                    # A place is free again as soon as one of them is done.
                    await asyncio.wait(
                        self._under_way, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED
                    )
        finally:
            under_way = list(self._under_way)
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def look(self) -> int:
        """Take what is due and start sending it; return how much that is."""
        free = AT_ONCE_MAX - len(self._under_way)
        if free <= 0:
            return 0
        limit = min(free, TAKEN_MAX)
        busy = Counter(self._under_way.values())
        async with self._database.connection() as conn:
            taken = await db.many(
                conn, "deliveries.take", Taken,
                busy_ids=list(busy), busy_counts=list(busy.values()), places=PER_WEBHOOK_MAX,
                failures_max=self._pace.failures_max, limit=limit, taken_s=TAKEN_S,
            )  # fmt: skip
        by_project: dict[UUID, list[Taken]] = {}
        for one in taken:
            by_project.setdefault(one.project_id, []).append(one)
        for project_id, own in by_project.items():
            bodies = await self._bodies(project_id, own)
            for one in own:
                task = asyncio.create_task(self._send(one, bodies.get(one.event_id)))
                self._under_way[task] = one.webhook_id
                task.add_done_callback(lambda done: self._under_way.pop(done, None))
        return len(taken)

    async def _bodies(self, project_id: UUID, taken: Sequence[Taken]) -> dict[UUID, bytes]:
        exponent = money.exponent_of(taken[0].currency) or 0
        caller = Caller(project_id, None, "SECRET", taken[0].currency, exponent)
        wanted = {one.event_id for one in taken}
        async with self._database.transaction(project_id, reads_only=True) as conn:
            found = await events.of_ids(conn, caller, wanted)
        return {event_id: msgspec.json.encode(event) for event_id, event in found.items()}

    async def _send(self, one: Taken, body: bytes | None) -> None:
        try:
            await self._record(one, await self._ask(one, body))
        except (Unavailable, OutcomeUnknown) as error:
            # It is taken again after TAKEN_S, whatever was answered: at least once.
            _log.warning("delivery_unrecorded", delivery=str(one.id), error=str(error))
        except Exception:
            _log.exception("delivery_broken", delivery=str(one.id))

    async def _ask(self, one: Taken, body: bytes | None) -> outbound.Answer:
        if body is None:
            return outbound.Answer(None, "the event is forgotten", "", 0)
        now = datetime.now(UTC)
        secrets = self._signer.secrets(one.webhook_id, one.secret_version, one.previous_until, now)
        public_id = ids.format_id("evt", one.event_id)
        signed = webhooks.headers(secrets, public_id, int(time.time()), body)
        return await outbound.post(
            one.url, signed, body,
            allowed=self._allowed, resolver=self._resolver, context=self._context,
        )  # fmt: skip

    async def _record(self, one: Taken, answer: outbound.Answer) -> None:
        pace = self._pace
        is_done = answer.status is not None and 200 <= answer.status < 300
        is_gone = answer.status == 410
        delay_s = pace.delay_s(one.try_count)
        age_s = (datetime.now(UTC) - one.started_at).total_seconds()
        is_dead = is_gone or answer.error == "the event is forgotten"
        is_dead = is_dead or age_s + delay_s > pace.give_up_after_s
        result: dict[str, Any] = {
            "project_id": one.project_id, "id": one.id, "number": one.attempt_count,
            "status": "delivered" if is_done else "dead" if is_dead else "pending",
            "delay_s": delay_s, "status_code": answer.status, "error": answer.error,
            "body": answer.body[:KEPT_CHARACTERS_MAX], "latency_ms": answer.latency_ms,
        }  # fmt: skip
        async with self._database.transaction(one.project_id) as conn:
            await db.run(conn, "deliveries.record", **result)
            if not is_done:
                await db.run(
                    conn, "deliveries.count_failure",
                    project_id=one.project_id, webhook_id=one.webhook_id, is_gone=is_gone,
                    pause_s=pace.pause_s(one.failure_count + 1),
                    disable_after_s=pace.disable_after_s,
                )  # fmt: skip
            elif one.failure_count:
                await db.run(
                    conn, "deliveries.count_success",
                    project_id=one.project_id, webhook_id=one.webhook_id,
                )  # fmt: skip
