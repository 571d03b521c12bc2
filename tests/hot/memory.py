"""A server in memory that answers claims one item at a time: the reference the scripts are held to.

`MemoryServer` keeps leases and crowds in plain dictionaries; `MemoryLink` serves the Python
backend's flights from it, so that one suite runs with and without a real server.
"""

import asyncio
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import NoScriptError
from vauchflow_hotpath import CLAIM_LUA

from core.hot import Outcome, keys
from core.hot.leases import Customer, LeaseFacts, Record
from core.hot.redis_py import Call

Told = int | bytes
Item = tuple[str, str, str, bytes]  # key, fingerprint, customer, payload
NEVER_MS = 1 << 52


@dataclass
class MemoryLease:
    """One lease as Redis holds it, and the wins its stream would carry."""

    facts: LeaseFacts
    state: str = "open"
    size: int = 0
    issued: int = 0
    accounted: int = 0
    records: dict[str, bytes] = field(default_factory=dict)
    customers: dict[str, tuple[int, str]] = field(default_factory=dict)
    wins: list[tuple[int, Item]] = field(default_factory=list)

    @classmethod
    def armed(
        cls, facts: LeaseFacts, records: Iterable[Record] = (), customers: Iterable[Customer] = ()
    ) -> "MemoryLease":
        lease = cls(facts, facts.state, facts.size)
        for key, fingerprint, at_ms, remaining, payload in records:
            lease.records[key] = keys.record(fingerprint, 0, at_ms, remaining, payload)
        for customer, count, reference in customers:
            lease.customers[customer] = (count, reference)
        return lease

    def claim(self, item: Item, now_ms: int) -> Told:
        """Answer one claim, in the protocol's order of checks."""
        key, fingerprint, customer, payload = item
        facts = self.facts
        if self.state == "fenced":
            return -Outcome.FENCED
        record = self.records.get(key) if key else None
        if record is not None:
            is_same = record[:32] == fingerprint.encode()
            return b"R" + record[33:] if is_same else -Outcome.MISMATCH
        if self.state == "arming" or now_ms < facts.start_ms:
            return -Outcome.NOT_STARTED
        if self.state == "paused":
            return -Outcome.PAUSED
        if self.state == "closed" or now_ms >= (facts.end_ms or NEVER_MS):
            return -Outcome.ENDED
        if self.issued >= self.size:
            return -Outcome.SOLD_OUT
        is_limited = bool(facts.customer_limit and customer)
        count, reference = self.customers.get(customer, (0, ""))
        if is_limited and count >= facts.customer_limit:
            return b"C" + reference.encode()
        if self.issued - self.accounted >= facts.backlog_max:
            return -Outcome.BUSY
        self.issued += 1
        remaining = self.size - self.issued
        if key:
            self.records[key] = keys.record(fingerprint, self.issued, now_ms, remaining, payload)
        if is_limited:
            self.customers[customer] = (count + 1, str(self.issued))
        self.wins.append((self.issued, item))
        return self.issued


@dataclass
class MemoryCrowd:
    """The facts of one sold-out voucher."""

    lineage: str
    customer_limit: int
    records: dict[str, bytes]
    customers: dict[str, tuple[int, str]]
    is_fresh: bool = True

    def claim(self, lineage: str, key: str, fingerprint: str, customer: str) -> Told:
        if not self.is_fresh or lineage != self.lineage:
            return -Outcome.ASK
        record = self.records.get(key) if key else None
        if record is not None:
            is_same = record[:32] == fingerprint.encode()
            return b"R" + record[33:] if is_same else -Outcome.MISMATCH
        count, reference = self.customers.get(customer, (0, ""))
        if self.customer_limit and customer and count >= self.customer_limit:
            return b"C" + reference.encode()
        return -Outcome.SOLD_OUT


@dataclass
class MemoryServer:
    """All a server keeps, and the faults a test may ask of it."""

    run_id: str = field(default_factory=lambda: secrets.token_hex(20))
    leases: dict[str, MemoryLease] = field(default_factory=dict)
    crowds: dict[str, MemoryCrowd] = field(default_factory=dict)
    scripts: dict[str, str] = field(default_factory=dict)
    loads: int = 0
    runs: asyncio.Event = field(default_factory=asyncio.Event)  # cleared: frozen
    loses_next_reply: bool = False
    starts: int = 0  # how often it was started; connections to an earlier life are lost

    def __post_init__(self) -> None:
        self.runs.set()

    def restart(self) -> None:
        """Come back with the same data, as a server with an fsynced log does."""
        self.run_id = secrets.token_hex(20)
        self.scripts.clear()
        self.starts += 1

    async def connect(self) -> "MemoryLink":
        return MemoryLink(self)


class MemoryLink:
    """One connection to a `MemoryServer`; it ends with the server's life."""

    def __init__(self, server: MemoryServer) -> None:
        self._server = server
        self._start = server.starts
        self.run_id = server.run_id

    async def load(self, script: str) -> str:
        sha = f"sha-{len(script)}"
        self._server.scripts[sha] = script
        self._server.loads += 1
        return sha

    async def flight(self, calls: Sequence[Call]) -> list[Any]:
        await asyncio.sleep(0)
        await self._server.runs.wait()
        if await self.is_lost():
            raise ConnectionResetError("the server restarted")
        replies = [self._run(call) for call in calls]
        if self._server.loses_next_reply:
            self._server.loses_next_reply = False
            self._start = -1
            raise ConnectionResetError("the reply was lost")
        return replies

    def _run(self, call: Call) -> list[Told] | Exception:
        sha, first_key, subject, count = str(call[1]), str(call[3]), str(call[7]), int(call[8])
        script = self._server.scripts.get(sha)
        if script is None:
            return NoScriptError("No matching script.")
        target = first_key[4:-3]  # vf:{target}:s
        now_ms = time.time_ns() // 1_000_000
        told: list[Told] = []
        if script == CLAIM_LUA:
            lease = self._server.leases.get(target)
            for item in _rows(call[9:], 4, count):
                told.append(lease.claim(item, now_ms) if lease else -Outcome.FENCED)
            return [now_ms, lease.size if lease else 0, *told]
        crowd = self._server.crowds.get(target)
        for key, fingerprint, customer in _rows(call[9:], 3, count):
            answer = crowd.claim(subject, key, fingerprint, customer) if crowd else -Outcome.ASK
            told.append(answer)
        return [now_ms, 0, *told]

    async def is_lost(self) -> bool:
        return self._start != self._server.starts

    async def close(self) -> None:
        self._start = -1


def _rows(values: Sequence[Any], width: int, count: int) -> list[Any]:
    assert len(values) == width * count
    return [tuple(values[at : at + width]) for at in range(0, len(values), width)]
