import asyncio
from collections.abc import Sequence
from os import PathLike
from typing import Any, Final, TypedDict, final

__all__ = [
    "BUILD_PROFILE",
    "CLAIM_LUA",
    "CROWD_LUA",
    "FACTS_LUA",
    "LEASE_LUA",
    "RATE_LUA",
    "Batcher",
    "CommitBatch",
    "CommitQueue",
    "Door",
    "Listener",
    "Marks",
    "PlainCall",
    "PlainTerms",
    "read_marks",
    "settle_columns",
]

BUILD_PROFILE: Final[str]
CLAIM_LUA: Final[str]
CROWD_LUA: Final[str]
LEASE_LUA: Final[str]
RATE_LUA: Final[str]
FACTS_LUA: Final[str]

class _Status(TypedDict):
    connected: bool
    run_id: str | None
    dead: bool
    queued: int
    in_flight: int
    batches: int
    items: int
    wakeups: int
    last_error: str | None
    marks_lost: bool
    slots: dict[int, tuple[str, str | None, int]]

@final
class Batcher:
    def __new__(
        cls,
        loop: asyncio.AbstractEventLoop,
        address: str,
        *,
        username: str | None = None,
        password: str | None = None,
        db: int = 0,
        batch_max: int = 256,
        queue_max: int = 4096,
        flight_timeout_ms: int = 2000,
        marks: Marks | None = None,
    ) -> Batcher: ...
    def fileno(self) -> int: ...
    def open_lease(self, lease_id: str, run_id: str) -> int: ...
    def open_crowd(self, voucher_id: str, lineage: str) -> int: ...
    def reopen(self, slot: int, run_id: str) -> None: ...
    def seal(self, slot: int) -> int: ...
    def close_slot(self, slot: int, *, keeps_mark: bool = False) -> None: ...
    def keep_marks(self, lease_ids: Sequence[str]) -> None: ...
    def claim(
        self,
        slot: int,
        key: str | None,
        fingerprint: str,
        customer: str | None,
        payload: bytes,
        deadline_ms: int,
    ) -> asyncio.Future[tuple[int, int, int, int, bytes | None]]: ...
    def set_terms(
        self,
        slot: int,
        terms: PlainTerms,
        subject: object,
        lease_id: str,
        tag: int,
        seq_base: int,
        receipt_key: bytes,
        sold_out: tuple[bytes, bytes],
    ) -> None: ...
    def forget_sold_out(self, slot: int) -> None: ...
    def drain(self) -> None: ...
    def status(self) -> _Status: ...
    def close(self) -> None: ...
    def join(self) -> None: ...

@final
class PlainTerms:
    def __new__(
        cls,
        code_norm: str,
        code_json: str,
        currency: str,
        exponent: int,
        discount_bp: int | None,
        discount_minor: int,
        min_order_minor: int,
        tail: str,
    ) -> PlainTerms: ...

@final
class Door:
    def __new__(
        cls,
        process: str,
        win_headers: Sequence[tuple[str, str]],
        problem_headers: Sequence[tuple[str, str]],
        problems: dict[str, tuple[bytes, bytes]],
        queue_max: int,
        wait_ms: int,
    ) -> Door: ...
    def fileno(self) -> int: ...
    def drain(self) -> tuple[list[CommitQueue], list[PlainCall]]: ...
    def learn_claim(self, path: str, token: bytes, batcher: Batcher, slot: int) -> None: ...
    def learn_redeem(self, path: str, token: bytes, queue: CommitQueue) -> None: ...
    def knows(self, path: str, token: bytes) -> bool: ...
    def forget(self, token: bytes) -> None: ...
    def grant(self, token: bytes, more: int | None) -> None: ...
    def reclaim(self, token: bytes) -> int: ...
    def metered(self) -> list[tuple[bytes, int, int]]: ...
    def tallied(self) -> list[tuple[str, list[tuple[int, int]], list[int], int]]: ...

@final
class Listener:
    def __new__(cls, fd: int, door: Door, upstream: str | PathLike[str]) -> Listener: ...
    def close(self) -> None: ...

@final
class PlainCall:
    @property
    def route(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def authorization(self) -> bytes: ...
    @property
    def idempotency_key(self) -> bytes | None: ...
    @property
    def body(self) -> bytes: ...
    @property
    def request_id(self) -> str: ...
    @property
    def told(self) -> tuple[Any, Any]: ...
    def answer(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None: ...

@final
class CommitQueue:
    def __new__(cls, subject: object, terms: PlainTerms) -> CommitQueue: ...
    @property
    def subject(self) -> Any: ...
    def close(self) -> None: ...
    def take(self, batch_max: int) -> CommitBatch | None: ...

@final
class CommitBatch:
    def __len__(self) -> int: ...
    def columns(self, start: int, end: int) -> tuple[str, str, str, str, str, str, str]: ...
    def win_from(
        self, start: int, end: int, seq: int, remaining: int | None, at_ms: int
    ) -> None: ...
    def tell(self, at: int, decision: object) -> None: ...
    def fail(self, at: int, error: BaseException) -> None: ...

@final
class Marks:
    def __new__(cls, path: str | PathLike[str] | None = None) -> Marks: ...
    @property
    def were_lost(self) -> bool: ...
    def take(self, lease_id: str) -> int: ...
    def get(self, record: int) -> int: ...
    def raise_to(self, record: int, seq: int) -> None: ...
    def keep(self, lease_ids: Sequence[str]) -> None: ...
    def free(self, record: int) -> None: ...

def settle_columns(
    entries: Sequence[tuple[bytes, dict[bytes, bytes]]],
    lease_id: str,
    tag: int,
    rows_max: int,
) -> tuple[int, int, tuple[str | None, ...]] | None: ...
def read_marks(path: str | PathLike[str]) -> dict[str, int] | None: ...
