"""Redis in the simulation: processes that are restarted, replaced, split, and slow to answer."""

import asyncio
import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from redis.exceptions import ConnectionError as RedisGone
from redis.exceptions import OutOfMemoryError, ResponseError

from core.hot.leases import (
    LeaseFacts,
    LeaseState,
    RawEntry,
    Record,
    StreamEntry,
    Win,
    decoded,
)
from core.hot.redis_py import Call
from tests.hot.memory import MemoryLease
from tests.sim.machine import EPOCH, Actor


@dataclass
class SimLease:
    """A lease with the stream of its wins; `armed` is what it was before the first one."""

    lease: MemoryLease
    armed: MemoryLease
    stream: list[StreamEntry] = field(default_factory=list)
    end_ms: int = 0

    @classmethod
    def load(cls, facts: LeaseFacts, records: list[Record], customers: list[Any]) -> "SimLease":
        made = MemoryLease.armed(facts, records, customers)
        return cls(made, copy.deepcopy(made))

    def older(self, kept: int) -> "SimLease":
        """Return what a backup or a lagging replica has: the first entries, and their effects."""
        older = SimLease(copy.deepcopy(self.armed), self.armed, list(self.stream[:kept]))
        for entry in older.stream:
            for win in entry.wins:
                item = (win.key or "", win.fingerprint, win.customer or "", win.payload)
                older.lease.claim(item, entry.at_ms)
        older.lease.accounted = min(self.lease.accounted, older.lease.issued)
        older.lease.size = max(older.lease.size, older.lease.issued)
        return older


@dataclass
class Process:
    """One run of a Redis server."""

    run_id: str
    leases: dict[str, SimLease] = field(default_factory=dict)
    is_up: bool = True
    frozen_until: float = 0.0


@dataclass
class SimRedis:
    """The address everybody connects to, and the process that answers there now."""

    dice: random.Random
    faults: float = 0.0  # the share of flights that something happens to
    runs: int = 1
    entries: int = 0
    applied: set[str] = field(default_factory=set)  # the attempts that ever won a number
    now: Process = field(default_factory=lambda: Process("run-1"))

    def replace(self, leases: dict[str, SimLease], *, old_stays: bool = False) -> None:
        """Put another process at the address; the old one dies, unless it is only cut off."""
        self.runs += 1
        self.now.is_up = old_stays
        self.now = Process(f"run-{self.runs}", leases)


class Client:
    """One process's connection: it stays with the Redis it has reached until that one is gone."""

    def __init__(self, redis: SimRedis, actor: Actor) -> None:
        self.redis = redis
        self.actor = actor
        self.at = redis.now

    async def reach(self) -> Process:
        """Return the process that answers, after the time it takes. Raises: ConnectionError."""
        await self.actor.wait()
        if not self.at.is_up:
            self.at = self.redis.now
            raise RedisGone("the server is gone")
        while (left := self.at.frozen_until - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(left)
        return self.at

    async def info(self, _section: str) -> dict[str, str]:
        return {"run_id": (await self.reach()).run_id}


class SimLink:
    """A batcher's connection: see `core.hot.redis_py.Link`. Replies get lost, late and cut here."""

    def __init__(self, redis: SimRedis, actor: Actor) -> None:
        self._redis = redis
        self._actor = actor
        self._at = redis.now
        self._is_closed = False
        self._late: set[asyncio.Task[None]] = set()
        self.run_id = redis.now.run_id

    async def load(self, script: str) -> str:
        await self._actor.wait()
        return f"sha-{len(script)}"

    async def flight(self, calls: Sequence[Call]) -> list[Any]:
        dice = self._redis.dice
        await self._actor.wait()
        fault = dice.choice(FLIGHT_FAULTS) if dice.random() < self._redis.faults else ""
        while (left := self._at.frozen_until - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(left)
        if await self.is_lost() or fault == "lost request":
            raise RedisGone("reset")
        if fault == "late":
            # It lies in a buffer and is run when nobody waits for it any more.
            task = asyncio.get_running_loop().create_task(self._run_late(calls, dice.random() * 4))
            self._late.add(task)
            await asyncio.sleep(60)
        if fault == "refused":
            return [OutOfMemoryError("OOM command not allowed") for _ in calls]
        replies = [self._run(call) for call in calls]
        if fault == "lost reply":
            raise RedisGone("reset")
        if fault == "broken":
            replies = [ResponseError("ERR something after the first write") for _ in calls]
        if fault == "cut":
            replies = [reply[:-1] for reply in replies]
        await self._actor.wait()
        return replies

    async def _run_late(self, calls: Sequence[Call], after_s: float) -> None:
        await asyncio.sleep(after_s)
        if self._at.is_up:
            for call in calls:
                self._run(call)

    def _run(self, call: Call) -> list[Any]:
        """`claim.lua` for one batch, with the stream entry of its wins."""
        lease_id, count = str(call[7]), int(call[8])
        held = self._at.leases.get(lease_id)
        now_ms = int(asyncio.get_running_loop().time() * 1000)
        if held is None:
            return [now_ms, 0, *[-9] * count]
        told: list[Any] = []
        won: list[Win] = []
        for at in range(9, 9 + 4 * count, 4):
            item: Any = tuple(call[at : at + 4])
            told.append(held.lease.claim(item, now_ms))
            if isinstance(told[-1], int) and told[-1] > 0:
                left = held.lease.size - told[-1]
                self._redis.applied.add(msgspec.json.decode(item[3])[2])
                won.append(Win(told[-1], item[0] or None, item[1], item[2] or None, item[3], left))
        if won:
            self._redis.entries += 1
            held.stream.append(StreamEntry(f"{self._redis.entries}-0", now_ms, won))
        return [now_ms, held.lease.size, *told]

    async def is_lost(self) -> bool:
        return self._is_closed or not self._at.is_up

    async def close(self) -> None:
        self._is_closed = True


FLIGHT_FAULTS = ("lost request", "lost reply", "late", "refused", "broken", "cut")


class SimLeases:
    """Stands in for `core.hot.leases`: what the control plane does to a lease in Redis."""

    State = str
    LeaseState = LeaseState
    StreamEntry = StreamEntry
    Win = Win

    async def _held(self, client: Client, lease_id: str) -> SimLease | None:
        return (await client.reach()).leases.get(lease_id)

    async def read_state(self, client: Client, lease_id: str) -> LeaseState | None:
        return (await self.read_state_of(client, lease_id))[1]

    async def read_state_of(self, client: Client, lease_id: str) -> tuple[str, LeaseState | None]:
        process = await client.reach()
        held = process.leases.get(lease_id)
        if held is None:
            return process.run_id, None
        lease = held.lease
        known: dict[str, Any] = {
            "lease_id": lease_id,
            "state": lease.state,
            "ready": True,
            "issued": lease.issued,
            "size": lease.size,
            "accounted": lease.accounted,
            "backlog_max": lease.facts.backlog_max,
            "start_ms": 0,
            "end_ms": held.end_ms,
            "customer_limit": lease.facts.customer_limit,
        }
        names = dict.fromkeys(LeaseState.__struct_fields__, "")
        return process.run_id, LeaseState(**(names | known))

    async def set_state(self, client: Client, lease_id: str, state: str) -> None:
        held = await self._held(client, lease_id)
        if held is None or held.lease.state == "fenced":
            return
        if held.lease.state != "closed" or state == "fenced":
            held.lease.state = state

    async def set_end(self, client: Client, lease_id: str, end_ms: int) -> None:
        held = await self._held(client, lease_id)
        if held is not None:
            held.end_ms = end_ms

    async def grow(self, client: Client, lease_id: str, size: int) -> None:
        held = await self._held(client, lease_id)
        if held is not None:
            held.lease.size = max(held.lease.size, size)

    async def raise_accounted(self, client: Client, lease_id: str, accounted: int) -> int | None:
        held = await self._held(client, lease_id)
        if held is None:
            return None
        held.lease.accounted = max(held.lease.accounted, accounted)
        return held.lease.accounted

    async def release(self, client: Client, lease_id: str, customer: str, _release: str) -> bool:
        raise AssertionError("nothing is rolled back in the simulation")

    async def read_wins(
        self, client: Client, lease_id: str, after_id: str, count: int = 100
    ) -> list[StreamEntry]:
        return decoded((await self.read_raw(client, lease_id, after_id, count))[1])

    decoded = staticmethod(decoded)

    async def read_raw(
        self,
        client: Client,
        lease_id: str,
        after_id: str,
        count: int,
        *,
        block_ms: int | None = None,
    ) -> tuple[str, list[RawEntry]]:
        process = await client.reach()
        entries = self._after(process, lease_id, after_id)
        if not entries and block_ms:
            await asyncio.sleep(block_ms / 1000)
            process = await client.reach()
            entries = self._after(process, lease_id, after_id)
        found = entries[:count]
        await client.actor.wait()
        return process.run_id, [_as_written(entry) for entry in found]

    def _after(self, process: Process, lease_id: str, after_id: str) -> list[StreamEntry]:
        held = process.leases.get(lease_id)
        after = int(after_id.partition("-")[0])
        stream = held.stream if held is not None else []
        return [entry for entry in stream if int(entry.id.partition("-")[0]) > after]

    async def trim(self, client: Client, lease_id: str, min_id: str) -> int:
        held = await self._held(client, lease_id)
        if held is not None:
            least = int(min_id.partition("-")[0])
            held.stream = [one for one in held.stream if int(one.id.partition("-")[0]) >= least]
        return 0

    async def trim_to_bytes(self, client: Client, lease_id: str, most: int, until: str) -> int:
        return 0

    async def retire(self, client: Client, lease_id: str, *, serve_s: int, keep_s: int) -> None:
        (await client.reach()).leases.pop(lease_id, None)

    async def server_facts(self, client: Client, _now_ms: int, _asked_at_s: float) -> str:
        return (await client.reach()).run_id

    def arming_faults(self, _facts: str) -> list[str]:
        return []


def at_ms(now: Any) -> int:
    """Return a simulated instant in milliseconds since the simulation's start."""
    return int((now - EPOCH).total_seconds() * 1000)


def _as_written(entry: StreamEntry) -> RawEntry:
    """An entry as claim.lua would have written it."""
    first = entry.wins[0]
    packed = [
        (win.key or "", win.fingerprint, win.customer or "", win.payload.decode())
        for win in entry.wins
    ]
    fields = {
        b"f": b"%d" % first.seq,
        b"t": b"%d" % entry.at_ms,
        b"r": b"%d" % first.remaining,
        b"d": msgspec.msgpack.encode(packed),
    }
    return entry.id.encode(), fields
