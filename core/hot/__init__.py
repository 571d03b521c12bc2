"""The contract of a flash claim: what is asked, what is answered, and what an answer proves.

Three backends keep it: `core.hot.rust` (the compiled batcher), `core.hot.redis_py` (the same rules
in Python, also for TLS) and an in-memory one beside the tests. Nothing here knows HTTP or SQL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, NamedTuple, Protocol

BATCH_MAX = 256  # items of one script call: keeps a call under 1 ms, and so the server responsive
QUEUE_MAX = 4_096  # waiting items: about 50 ms of work at 80,000 items/s, more would only be late
FLIGHT_TIMEOUT_MS = 2_000  # a flight takes 1-20 ms with fsync; beyond two seconds the host is gone
RECONNECT_MS = (25, 500)  # first and longest pause: twenty tries in the first second at most
CIRCUIT_OPEN_MS = 1_000  # without a connection for so long, claims are refused at once
FINGERPRINT_CHARS = 32  # 128 bits in lower-case hex


class Outcome(IntEnum):
    """What became of a claim. The numbers are those of `claim.lua` and `hotpath/src/outcome.rs`."""

    WON = 0
    REPLAYED = 1
    MISMATCH = 2
    SOLD_OUT = 3
    CUSTOMER_LIMIT = 4
    NOT_STARTED = 5
    ENDED = 6
    PAUSED = 7
    BUSY = 8
    FENCED = 9  # the script's word; a backend seals the slot and answers UNAVAILABLE
    OVERLOADED = 10  # the queue was full: not applied
    EXPIRED = 11  # the deadline passed before it was sent: not applied
    UNAVAILABLE = 12  # no connection, sealed, or another server: not applied
    UNKNOWN = 13  # sent, and no trustworthy answer: ask again with the same key
    BLOCKED = 15  # on the block list
    ASK = 14  # crowd only: the facts are missing, stale or of another lineage: ask PostgreSQL


class Answer(NamedTuple):
    """The five fields a claim's future resolves with (as a plain tuple, `Answer(*raw)` names them).

    `seq`, `at_ms` and `remaining` are those of the first answer for REPLAYED (seq 0: settled by an
    earlier lease or by PostgreSQL). `detail` is the first answer's payload (REPLAYED) or the
    customer's reference (CUSTOMER_LIMIT: a decimal seq of this lease, or the text that was loaded).
    """

    outcome: int
    seq: int
    at_ms: int
    remaining: int
    detail: bytes | None


RawAnswer = tuple[int, int, int, int, bytes | None]
SealedReason = Literal["run_id", "fenced", "seq_not_above_mark", "asked", "dead"]


@dataclass(frozen=True, slots=True)
class SlotStatus:
    """One open slot. `mark` is the highest seq handed out through it (0 for a crowd).

    `run_id` is the process its claims go to, None while there is no connection.
    """

    target: str  # the lease's or the voucher's id
    sealed: bool
    sealed_reason: str | None
    mark: int
    run_id: str | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """Counters since the start, and where things stand. A dead batcher stays dead: make another."""

    connected: bool
    run_id: str | None  # None without a connection, and in a cluster: there each slot has its own
    dead: bool
    queued: int
    in_flight: int
    batches: int
    items: int
    wakeups: int
    last_error: str | None = None  # of the connection, or the last one a script call met
    marks_lost: bool = False  # the marks file was of an earlier boot: what it said is unknown
    slots: Mapping[int, SlotStatus] = field(default_factory=dict)


class ClaimBackend(Protocol):
    """Batches claims towards one Redis. Every method is called on the event loop's thread."""

    def open_lease(self, lease_id: str, run_id: str) -> int:
        """Give a slot for a lease; the same slot again while it is open.

        Claims go through only while the connection's server has this run id. A mark found in the
        marks file for this lease holds on.
        """
        ...

    def open_crowd(self, voucher_id: str, lineage: str) -> int:
        """Give a slot that answers a sold-out voucher's crowd from facts of this lineage."""
        ...

    def reopen(self, slot: int, run_id: str) -> None:
        """Unseal, after PostgreSQL has registered the new run id for the lease.

        A slot sealed as `seq_not_above_mark` opens as well: PostgreSQL has judged the marks.
        """
        ...

    def seal(self, slot: int) -> int:
        """Stop answering wins on this slot and return its mark, which no longer rises.

        What waits is UNAVAILABLE; wins in flight become UNKNOWN unless already handed out.
        """
        ...

    def close_slot(self, slot: int) -> None:
        """Forget a settled lease: seals, and frees its place in the marks file."""
        ...

    def forget_sold_out(self, slot: int) -> None:
        """Ask the script again, whatever a lease was a moment ago: it has grown."""
        ...

    def keep_marks(self, lease_ids: Sequence[str]) -> None:
        """Free the marks of leases that are neither open here nor named.

        Call it at the start with the leases PostgreSQL holds unsettled: what a predecessor left of
        others would fill the file (1,024 leases) in the end, and then no lease can be opened.
        """
        ...

    def claim(
        self,
        slot: int,
        key: str | None,
        fingerprint: str,
        customer: str | None,
        payload: bytes,
        deadline_ms: int,
    ) -> asyncio.Future[RawAnswer]:
        """Queue one claim. Never blocks and never awaits; a cancelled future cancels no claim.

        Idempotent on `key`. `fingerprint` is 32 hex characters; `payload` is UTF-8 and comes back
        in REPLAYED. Units: `deadline_ms` counts from now, and ends the waiting, not the flight.
        """
        ...

    def status(self) -> Status: ...

    async def aclose(self) -> None:
        """Answer what waits as UNAVAILABLE, wait for what is in flight (bounded), and stop."""
        ...
