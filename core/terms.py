"""What this process remembers of the vouchers that are being redeemed."""

import asyncio
import time
from collections import OrderedDict
from typing import Final
from uuid import UUID

from core import db
from core.errors import Unavailable
from core.redemptions import Terms

# Vouchers that a process redeems within minutes, at 1.5 kB each; a miss is one indexed read.
TERMS_MAX: Final = 20_000
# Codes of one read: 256 look-ups are about 3 ms, which nobody behind them notices.
READ_MAX: Final = 256
# A restart of PostgreSQL leaves a pool of dead connections; each try throws one away, at once.
RETRY_WITHIN_S: Final = 0.1
RETRY_PAUSE_S: Final = 0.005

Waiting = dict[str, "asyncio.Future[Terms | None]"]


class TermsCache:
    """The terms of vouchers that are being redeemed, by project and code.

    A hint: PostgreSQL is told the version and answers `repriced` when it has another.
    """

    def __init__(self, database: db.Database) -> None:
        """Start empty."""
        self._database = database
        self._known: OrderedDict[tuple[UUID, str], tuple[Terms, float]] = OrderedDict()
        self._waiting: dict[UUID, Waiting] = {}
        self._reading: set[asyncio.Task[None]] = set()
        self._code_of_sale: OrderedDict[tuple[UUID, UUID], str] = OrderedDict()

    def of_sale(self, project_id: UUID, sale_id: UUID) -> Terms | None:
        """Return the cached terms of the voucher that a strict sale is armed or open on."""
        norm = self._code_of_sale.get((project_id, sale_id))
        known = self._known.get((project_id, norm)) if norm is not None else None
        return known[0] if known is not None and known[0].sale_id == sale_id else None

    def peek(self, project_id: UUID, code_norm: str) -> tuple[Terms, float] | None:
        """Return cached terms and their age in seconds."""
        known = self._known.get((project_id, code_norm))
        return (known[0], time.monotonic() - known[1]) if known else None

    async def load(self, project_id: UUID, code_norm: str) -> Terms | None:
        """Read the terms anew; concurrent callers share one read. None: no such code.

        Codes that are asked for while a read is under way go together next.
        """
        waiting = self._waiting.get(project_id)
        if waiting is None:
            waiting = self._waiting[project_id] = {}
            reading = asyncio.get_running_loop().create_task(self._read(project_id, waiting))
            self._reading.add(reading)
            reading.add_done_callback(self._reading.discard)
        future = waiting.get(code_norm)
        if future is None:
            future = waiting[code_norm] = asyncio.get_running_loop().create_future()
        return await asyncio.shield(future)

    async def _read(self, project_id: UUID, waiting: "Waiting") -> None:
        """Answer what waits, a batch at a time, until nothing does."""
        try:
            while waiting:
                batch = {code: waiting.pop(code) for code in list(waiting)[:READ_MAX]}
                try:
                    found = await self._ask(project_id, list(batch))
                except Exception as error:
                    for future in batch.values():
                        future.set_exception(error)
                        # A waiter that has gone away must not be told by the event loop.
                        future.exception()
                    continue
                for code, future in batch.items():
                    future.set_result(found.get(code))
        finally:
            del self._waiting[project_id]

    async def _ask(self, project_id: UUID, codes: list[str]) -> dict[str, Terms]:
        """Read and remember. Raises: Unavailable."""
        began = time.monotonic()
        while True:
            try:
                async with self._database.connection(reads_only=True) as conn:
                    rows = await db.many(
                        conn, "redemptions.terms", Terms, project_id=project_id, codes=codes
                    )
                break
            except Unavailable as error:
                if error.code == "overloaded" or time.monotonic() - began > RETRY_WITHIN_S:
                    raise
                await asyncio.sleep(RETRY_PAUSE_S)
        found = {terms.code_norm: terms for terms in rows}
        for code in codes:
            self._keep(project_id, code, found.get(code), began)
        return found

    def _keep(self, project_id: UUID, code_norm: str, terms: Terms | None, began: float) -> None:
        at = (project_id, code_norm)
        if terms is None:
            self._known.pop(at, None)
            return
        self._known[at] = (terms, began)
        self._known.move_to_end(at)
        if terms.sale_id is not None:
            self._code_of_sale[project_id, terms.sale_id] = code_norm
            if len(self._code_of_sale) > TERMS_MAX:
                self._code_of_sale.popitem(last=False)
        if len(self._known) > TERMS_MAX:
            self._known.popitem(last=False)
