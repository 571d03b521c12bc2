"""What one worker process holds open, from its first request to its last."""

from typing import Any, Protocol

from core.api_keys import KeyCache
from core.db import Database
from core.settings import Settings


class HotDoors(Protocol):
    """The two addresses that are answered before Litestar: redeem and claim."""

    async def handle(
        self, scope: dict[str, Any], receive: Any, send: Any, *, name: str, request_id: str
    ) -> None:
        """Answer one POST completely; `name` is the voucher's code or the sale's id, decoded."""

    async def start(self) -> None:
        """Open what the doors need; called once, with the database already open."""

    async def stop(self) -> None:
        """Finish what is in flight and close."""


class Services:
    """The open connections and caches of one worker. Made once by `create_app`."""

    settings: Settings
    database: Database
    keys: KeyCache
    doors: HotDoors | None
    is_draining: bool
