import asyncio
from collections.abc import Sequence
from os import PathLike
from typing import Final, TypedDict, final

__all__ = [
    "BUILD_PROFILE",
    "CLAIM_LUA",
    "CROWD_LUA",
    "FACTS_LUA",
    "LEASE_LUA",
    "Batcher",
    "Marks",
    "PlainAsk",
    "PlainTerms",
    "read_marks",
]

BUILD_PROFILE: Final[str]
CLAIM_LUA: Final[str]
CROWD_LUA: Final[str]
LEASE_LUA: Final[str]
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
        marks_path: str | PathLike[str] | None = None,
    ) -> Batcher: ...
    def fileno(self) -> int: ...
    def open_lease(self, lease_id: str, run_id: str) -> int: ...
    def open_crowd(self, voucher_id: str, lineage: str) -> int: ...
    def reopen(self, slot: int, run_id: str) -> None: ...
    def seal(self, slot: int) -> int: ...
    def close_slot(self, slot: int) -> None: ...
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
        self, slot: int, terms: PlainTerms, lease_id: str, tag: int, seq_base: int
    ) -> None: ...
    def claim_plain(
        self,
        slot: int,
        body: bytes,
        key: str | None,
        deadline_ms: int,
        protocol: object,
        headers: list[tuple[str, str]],
    ) -> asyncio.Future[tuple[int, int, int, int, bytes | None] | None] | None: ...
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
    def read(self, body: bytes) -> PlainAsk | None: ...

@final
class PlainAsk:
    @property
    def customer_id(self) -> str: ...
    @property
    def order_id(self) -> str | None: ...
    @property
    def order_value_minor(self) -> int: ...
    @property
    def discount_minor(self) -> int: ...
    @property
    def fingerprint(self) -> bytes: ...
    def answer(self, id: bytes, seq: int, remaining: int | None, at_ms: int) -> bytes: ...

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

def read_marks(path: str | PathLike[str]) -> dict[str, int] | None: ...
