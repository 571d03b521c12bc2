"""What the control plane does to a lease in Redis: arm it, steer it, read what it sold, drop it.

Every step that must not be torn is one call of `lease.lua`. PostgreSQL is told first, always; this
file knows nothing of it. Clients are `redis.asyncio` with `decode_responses=False`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from itertools import product
from typing import Any, Literal, NamedTuple, TypeVar, cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError
from vauchflow_hotpath import LEASE_LUA

from core.hot import keys
from core.hot.nodes import nodes_of

LOAD_MAX = 500  # pairs of one loading call: 1,000 values, far below where Lua's stack ends (8,000)
CLOCK_SKEW_MS_MAX = 250  # windows are judged by Redis's clock; a quarter second is seen by nobody
SCAN_COUNT = 1_000  # key names of one scanning call: well under a millisecond of the server
BACKLOG_MAX = 200_000  # what a lost Redis may cost at most, the protocol's default

T = TypeVar("T")
State = Literal["arming", "open", "paused", "closed", "fenced"]
Record = tuple[str, str, int, int, bytes]  # key, fingerprint, at_ms, remaining, payload
Customer = tuple[str, int, str]  # customer, count, reference


class LeaseFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What PostgreSQL granted. Zero means none for `start_ms`, `end_ms` and `customer_limit`."""

    lease_id: str
    size: int
    backlog_max: int = BACKLOG_MAX
    start_ms: int = 0
    end_ms: int = 0
    customer_limit: int = 0
    state: Literal["open", "paused", "arming"] = "open"  # once everything is loaded
    pg_system: str = ""
    pg_timeline: str = ""
    sale: str = ""
    project: str = ""
    tag: int = 0
    seq_base: int = 0


class Blocked(msgspec.Struct, frozen=True):
    """Somebody or something that may not claim; of a code the lease's own. 0: without end."""

    kind: str
    value: str
    until_ms: int

    @property
    def field(self) -> str:
        """What it stands under beside the customers, whose names cannot hold a NUL."""
        return "\0b code" if self.kind == "code" else f"\0b {self.kind} {self.value}"


class LeaseState(msgspec.Struct, frozen=True, kw_only=True):
    """The state hash as it stands. `ready`: loaded completely at least once."""

    lease_id: str
    state: State
    ready: bool
    issued: int
    size: int
    accounted: int
    backlog_max: int
    start_ms: int
    end_ms: int
    customer_limit: int
    pg_system: str
    pg_timeline: str
    sale: str
    project: str


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A lease that was loaded, as Redis has it; `is_settled`: only what is kept of it.

    `tag` is 0 where the lease was armed by a version that did not store it.
    """

    lease_id: str
    state: str
    issued: int
    size: int
    accounted: int
    backlog_max: int
    tag: int
    seq_base: int
    sale: str
    project: str
    is_settled: bool
    is_given_up: bool
    is_fading: bool


class Win(NamedTuple):
    """One number given out, with what the claim brought."""

    seq: int
    key: str | None
    fingerprint: str
    customer: str | None
    payload: bytes
    remaining: int


class StreamEntry(msgspec.Struct, frozen=True):
    """One batch's wins, in seq order. With a `fault` (unreadable) there are none, only `raw`."""

    id: str
    at_ms: int
    wins: list[Win]
    fault: str | None = None
    raw: dict[bytes, bytes] = msgspec.field(default_factory=dict)


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a server says about itself. None where it does not let one ask."""

    run_id: str
    version: str
    role: str
    time_ms: int
    skew_ms: int | None
    aof_enabled: bool | None
    aof_last_write_status: str | None
    appendonly: str | None
    appendfsync: str | None
    no_appendfsync_on_rewrite: str | None
    maxmemory_policy: str | None
    loading: bool


_FIELDS = (
    "lease", "state", "ready", "issued", "size", "accounted", "backlog_max", "start_ms", "end_ms",
    "customer_limit", "pg_system", "pg_timeline", "sale", "project",
)  # fmt: skip
_wins_decoder = msgspec.msgpack.Decoder(list[tuple[str, str, str, str]])


async def _act(redis: Redis, lease_id: str, *args: str | bytes | int) -> int:
    return int(await redis.eval(LEASE_LUA, 4, *keys.of_lease(lease_id), lease_id, *args))


async def arm(
    redis: Redis,
    facts: LeaseFacts,
    records: AsyncIterable[Record] | Iterable[Record] = (),
    customers: AsyncIterable[Customer] | Iterable[Customer] = (),
    blocks: Sequence[Blocked] = (),
) -> bool:
    """Load a lease and, last of all, mark it ready in the state the facts name.

    Leftovers of an arming that broke off are deleted first. False when the lease was ready before
    or another loader has taken over: then nothing was changed that anybody may see.
    Cost: one round trip for each 500 records or customers.
    """
    loader = secrets.token_hex(8)
    begun = await _act(
        redis, facts.lease_id, "begin", loader,
        "issued", 0, "size", facts.size, "accounted", 0, "backlog_max", facts.backlog_max,
        "start_ms", facts.start_ms, "end_ms", facts.end_ms, "customer_limit", facts.customer_limit,
        "pg_system", facts.pg_system, "pg_timeline", facts.pg_timeline,
        "sale", facts.sale, "project", facts.project,
        "tag", facts.tag, "seq_base", facts.seq_base,
    )  # fmt: skip
    if begun != 1:
        return False
    async for chunk in chunks(records):
        flat = record_pairs(chunk)
        if await _act(redis, facts.lease_id, "load", loader, "records", *flat) != 1:
            return False
    async for held in chunks(customers):
        flat = customer_pairs(held)
        if await _act(redis, facts.lease_id, "load", loader, "customers", *flat) != 1:
            return False
    if blocks:
        await set_blocks(redis, facts.lease_id, blocks)
    return await mark_ready(redis, facts.lease_id, loader, facts.state)


async def set_blocks(redis: Redis, lease_id: str, blocks: Iterable[Blocked]) -> bool:
    """Say who may not claim, in place of all that was said before; False without the lease.

    Idempotent. Cost: one round trip, and for ten thousand some ten milliseconds of the server.
    """
    flat = [part for one in blocks for part in (one.field, one.until_ms)]
    return await _act(redis, lease_id, "blocks", *flat) == 1


async def mark_ready(redis: Redis, lease_id: str, loader: str, state: State) -> bool:
    """End an arming; only the loader that began it may."""
    return await _act(redis, lease_id, "ready", loader, state) == 1


async def set_state(redis: Redis, lease_id: str, state: State) -> LeaseState | None:
    """Move a lease to another state and return what stands then; None when Redis lacks the lease.

    Fenced is for ever, closed becomes only fenced, and a lease that is not loaded never opens:
    compare the returned state with the wanted one.
    """
    await _act(redis, lease_id, "state", state)
    return await read_state(redis, lease_id)


async def set_start(redis: Redis, lease_id: str, start_ms: int) -> LeaseState | None:
    """Move the start of the window (0: at once)."""
    await _act(redis, lease_id, "start", start_ms)
    return await read_state(redis, lease_id)


async def set_end(redis: Redis, lease_id: str, end_ms: int) -> LeaseState | None:
    """Move the end of the window (0: without end)."""
    await _act(redis, lease_id, "end", end_ms)
    return await read_state(redis, lease_id)


async def grow(redis: Redis, lease_id: str, size: int) -> LeaseState | None:
    """Tell Redis the lease's absolute size after a grant; the larger one wins, so order is free."""
    await _act(redis, lease_id, "raise", "size", size)
    return await read_state(redis, lease_id)


async def raise_accounted(redis: Redis, lease_id: str, accounted: int) -> int | None:
    """Say up to which seq PostgreSQL has decided; never lowers. Returns what is stored then.

    A return above `accounted` means that PostgreSQL was restored to an earlier moment.
    """
    stored = await _act(redis, lease_id, "raise", "accounted", accounted)
    return None if stored < 0 else stored


async def release(redis: Redis, lease_id: str, customer: str, release_id: str) -> bool:
    """Let a customer have one unit less. Idempotent on `release_id`; a count never goes below 0."""
    return await _act(redis, lease_id, "release", customer, release_id) == 1


class Admitted(msgspec.Struct, frozen=True):
    """A redemption of an earlier lease that a receipt brings back. No customer: none is counted."""

    key: str
    fingerprint: str
    at_ms: int
    remaining: int
    payload: bytes
    customer: str | None
    customer_limit: int
    redemption_id: str


async def admit(
    redis: Redis, lease_id: str, one: Admitted
) -> Literal["admitted", "key_taken", "customer_limit", "gone"]:
    """Count a redemption's key and customer in a live lease. Idempotent on its id."""
    told = await _act(
        redis, lease_id, "admit", one.key,
        keys.record(one.fingerprint, 0, one.at_ms, one.remaining, one.payload),
        one.customer or "", one.redemption_id, one.customer_limit, one.redemption_id,
    )  # fmt: skip
    if told == 1:
        return "admitted"
    return "key_taken" if told == 2 else "customer_limit" if told == 3 else "gone"


async def withdraw(redis: Redis, lease_id: str, one: Admitted) -> None:
    """Take back what was admitted and could not be written. Idempotent."""
    await _act(redis, lease_id, "withdraw", one.key, one.customer or "", one.redemption_id)


async def read_state(redis: Redis, lease_id: str) -> LeaseState | None:
    """Read the state hash; None when Redis does not have this lease."""
    return _state(lease_id, await redis.hmget(keys.of_lease(lease_id)[0], list(_FIELDS)))


async def read_state_of(redis: Redis, lease_id: str) -> tuple[str, LeaseState | None]:
    """Read the state hash and, on the same connection, the run id of the process that told it."""
    pipe = redis.pipeline(transaction=False)
    pipe.info("server")
    pipe.hmget(keys.of_lease(lease_id)[0], list(_FIELDS))
    server, found = await pipe.execute()
    return str(server["run_id"]), _state(lease_id, found)


def _state(lease_id: str, found: Sequence[Any]) -> LeaseState | None:
    values = [value.decode() if value is not None else "" for value in found]
    row = dict(zip(_FIELDS, values, strict=True))
    if row["lease"] != lease_id:
        return None
    return LeaseState(
        lease_id=lease_id,
        state=cast("State", row["state"]),
        ready=row["ready"] == "1",
        issued=int(row["issued"] or 0),
        size=int(row["size"] or 0),
        accounted=int(row["accounted"] or 0),
        backlog_max=int(row["backlog_max"] or 0),
        start_ms=int(row["start_ms"] or 0),
        end_ms=int(row["end_ms"] or 0),
        customer_limit=int(row["customer_limit"] or 0),
        pg_system=row["pg_system"],
        pg_timeline=row["pg_timeline"],
        sale=row["sale"],
        project=row["project"],
    )


# An entry of a stream as it was written: its id and its fields.
RawEntry = tuple[bytes, dict[bytes, bytes]]


async def read_raw(
    redis: Redis, lease_id: str, after_id: str, count: int, *, block_ms: int | None = None
) -> tuple[str, list[RawEntry]]:
    """Read entries as they were written and, on the same connection, the server's run id."""
    pipe = redis.pipeline(transaction=False)
    pipe.info("server")
    pipe.xread({keys.of_lease(lease_id)[3]: after_id}, count=count, block=block_ms)
    server, reply = await pipe.execute()
    found: Any = ()
    if reply:
        # RESP2 gives a list of [name, entries], RESP3 a dict of name to [entries].
        found = next(iter(reply.values()))[0] if isinstance(reply, dict) else reply[0][1]
    return str(server["run_id"]), list(found)


def decoded(entries: list[RawEntry]) -> list[StreamEntry]:
    """Read entries one by one; what cannot be read says so in its `fault`."""
    return [_entry(entry_id.decode(), fields) for entry_id, fields in entries]


async def read_wins(
    redis: Redis,
    lease_id: str,
    after_id: str = "0-0",
    count: int = 100,
    *,
    block_ms: int | None = None,
) -> list[StreamEntry]:
    """Read at most `count` entries after an id, in order; the empty list when there are none.

    With `block_ms` (at least 1) it waits so long for the first one, which holds a connection.
    """
    return decoded((await read_raw(redis, lease_id, after_id, count, block_ms=block_ms))[1])


def _entry(entry_id: str, fields: dict[bytes, bytes]) -> StreamEntry:
    try:
        first, at_ms, remaining = (int(fields[name]) for name in (b"f", b"t", b"r"))
        wins = [
            Win(
                first + i,
                key or None,
                fingerprint,
                customer or None,
                payload.encode(),
                remaining - i,
            )
            for i, (key, fingerprint, customer, payload) in enumerate(
                _wins_decoder.decode(fields[b"d"])
            )
        ]
    except (KeyError, ValueError, TypeError, msgspec.MsgspecError) as error:
        return StreamEntry(entry_id, 0, [], f"{type(error).__name__}: {error}", dict(fields))
    return StreamEntry(entry_id, at_ms, wins)


async def trim(redis: Redis, lease_id: str, min_id: str) -> int:
    """Delete the entries below an id and return how many; give one that PostgreSQL committed."""
    return int(await redis.xtrim(keys.of_lease(lease_id)[3], minid=min_id, approximate=False))


async def trim_to_bytes(redis: Redis, lease_id: str, bytes_max: int, below_id: str) -> int:
    """Cut a stream that is larger than a bound, oldest first; returns how many entries went.

    Nothing at or above `below_id` is touched, however large it is: give the committed offset. The
    cut is found from times, so that a stream that came in unevenly takes more than one call.
    """
    stream = keys.of_lease(lease_id)[3]
    used = await redis.memory_usage(stream) or 0
    if used <= bytes_max:
        return 0
    oldest: Any = await redis.xrange(stream, count=1)
    first_ms = int(bytes(oldest[0][0]).partition(b"-")[0])
    below_ms = int(below_id.partition("-")[0])
    cut_ms = first_ms + -(-(below_ms - first_ms) * (used - bytes_max) // used)
    return await trim(redis, lease_id, f"{min(cut_ms, below_ms)}-0")


async def retire(redis: Redis, lease_id: str, *, serve_s: int, keep_s: int) -> None:
    """Let a settled lease fade: claims find it for `serve_s`, its stream and facts stay `keep_s`.

    What stays is what a restored PostgreSQL can be given back. Idempotent; without `keep_s` the
    stream goes with the rest. Claims on what has gone are fenced.
    """
    state, records, customers, stream = keys.of_lease(lease_id)
    async with redis.pipeline(transaction=True) as pipe:
        if keep_s > serve_s:
            pipe.copy(state, keys.of_settled(lease_id), replace=True)
            pipe.expire(keys.of_settled(lease_id), keep_s)
        for key in (state, records, customers):
            pipe.expire(key, serve_s)
        pipe.expire(stream, max(keep_s, serve_s))
        await pipe.execute()


async def give_up(redis: Redis, lease_id: str, *, keep_s: int) -> None:
    """Say of a lease that the ledger cannot take it back; what is kept fades in `keep_s`."""
    kept = keys.of_settled(lease_id)
    await retire(redis, lease_id, serve_s=0, keep_s=keep_s)
    if await redis.exists(kept):
        await redis.hset(kept, "given_up", 1)


async def held(redis: Redis) -> AsyncIterator[Held]:
    """Yield every lease that was ever ready, settled ones for as long as they are kept.

    Cost: one pass over all key names, and a call a lease.
    """
    seen: set[str] = set()
    for node, pattern in product(await nodes_of(redis), keys.PATTERNS_OF_LEASES):
        async for key in node.scan_iter(match=pattern, count=SCAN_COUNT):
            found: Any = await node.hgetall(key)
            row = {name.decode(): value.decode() for name, value in found.items()}
            lease_id = row.get("lease", "")
            if row.get("ready") != "1" or lease_id in seen:
                continue
            seen.add(lease_id)
            yield Held(
                lease_id=lease_id,
                state=row["state"],
                issued=int(row["issued"]),
                size=int(row["size"]),
                accounted=int(row["accounted"]),
                backlog_max=int(row["backlog_max"]),
                tag=int(row.get("tag", 0)),
                seq_base=int(row.get("seq_base", 0)),
                sale=row.get("sale", ""),
                project=row.get("project", ""),
                is_settled=key.decode() == keys.of_settled(lease_id),
                is_given_up="given_up" in row,
                is_fading=await node.ttl(key) >= 0,
            )


async def server_facts(
    redis: Redis, pg_now_ms: int | None = None, asked_at_s: float | None = None
) -> ServerFacts:
    """Ask one server (`node_of`) what arming needs to know.

    Give PostgreSQL's time as read just before, and the monotonic instant at which it was asked:
    what passes from then, in a server or here, is not taken for a clock that is ahead.
    """
    began_s = time.monotonic() if asked_at_s is None else asked_at_s
    seconds, micros = await redis.time()
    waited_ms = int(1000 * (time.monotonic() - began_s))
    time_ms = int(seconds) * 1000 + int(micros) // 1000
    ahead_ms = time_ms - (pg_now_ms or 0)
    if ahead_ms > 0:
        ahead_ms = max(0, ahead_ms - waited_ms)
    info = await redis.info("server", "persistence", "replication")
    settings: dict[str, str] = {}
    for name in ("appendonly", "appendfsync", "no-appendfsync-on-rewrite", "maxmemory-policy"):
        try:
            reply = await redis.config_get(name)
        except ResponseError:  # managed servers hide CONFIG
            continue
        settings.update((_text(key), _text(value)) for key, value in reply.items())
    aof = info.get("aof_enabled")
    return ServerFacts(
        run_id=str(info["run_id"]),
        version=str(info.get("valkey_version") or info.get("redis_version") or ""),
        role=str(info.get("role", "")),
        time_ms=time_ms,
        skew_ms=None if pg_now_ms is None else ahead_ms,
        aof_enabled=None if aof is None else bool(aof),
        aof_last_write_status=info.get("aof_last_write_status"),
        appendonly=settings.get("appendonly"),
        appendfsync=settings.get("appendfsync"),
        no_appendfsync_on_rewrite=settings.get("no-appendfsync-on-rewrite"),
        maxmemory_policy=settings.get("maxmemory-policy") or info.get("maxmemory_policy"),
        loading=bool(info.get("loading", 0)),
    )


def arming_faults(facts: ServerFacts) -> list[str]:
    """Say in plain sentences why a fast sale must not be armed here; empty when it may."""
    faults = []
    if facts.loading:
        faults.append("Redis is still loading its data.")
    if facts.role not in ("", "master"):
        faults.append(f"This Redis is a {facts.role}, not a primary.")
    if not facts.aof_enabled:
        faults.append("The append-only file is off; set appendonly yes.")
    if facts.aof_last_write_status not in (None, "ok"):
        faults.append(f"The last write of the append-only file said {facts.aof_last_write_status}.")
    for name, value, wanted in (
        ("appendfsync", facts.appendfsync, "always"),
        ("no-appendfsync-on-rewrite", facts.no_appendfsync_on_rewrite, "no"),
        ("maxmemory-policy", facts.maxmemory_policy, "noeviction"),
    ):
        if value is None:
            faults.append(f"This Redis does not tell {name}, which must be {wanted}.")
        elif value != wanted:
            faults.append(f"{name} is {value}; it must be {wanted}.")
    if facts.skew_ms is not None and abs(facts.skew_ms) > CLOCK_SKEW_MS_MAX:
        faults.append(
            f"Redis's clock is {facts.skew_ms} ms from PostgreSQL's; "
            f"{CLOCK_SKEW_MS_MAX} ms are allowed."
        )
    return faults


def record_pairs(records: Sequence[Record]) -> list[str | bytes]:
    """Flatten records for HSET. Their seq is 0: they were not won in this lease."""
    flat: list[str | bytes] = []
    for key, fingerprint, at_ms, remaining, payload in records:
        flat += (key, keys.record(fingerprint, 0, at_ms, remaining, payload))
    return flat


def customer_pairs(customers: Sequence[Customer]) -> list[str | bytes]:
    """Flatten customers for HSET."""
    flat: list[str | bytes] = []
    for customer, count, reference in customers:
        flat += (customer, f"{count}|{reference}")
    return flat


async def chunks(items: AsyncIterable[T] | Iterable[T]) -> AsyncIterator[list[T]]:
    """Gather items into lists of at most `LOAD_MAX`, from an iterable of either kind."""
    chunk: list[T] = []
    if isinstance(items, AsyncIterable):
        async for item in items:
            chunk.append(item)
            if len(chunk) == LOAD_MAX:
                yield chunk
                chunk = []
    else:
        for item in items:
            chunk.append(item)
            if len(chunk) == LOAD_MAX:
                yield chunk
                chunk = []
    if chunk:
        yield chunk


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
