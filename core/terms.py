"""What this process remembers of the vouchers that are being redeemed."""

import asyncio
import time
from collections import OrderedDict
from typing import Final
from uuid import UUID

from core import db
from core.redemptions import Terms

# Vouchers that a process redeems within minutes, at 1.5 kB each; a miss is one indexed read.
TERMS_MAX: Final = 20_000


class TermsCache:
    """The terms of vouchers that are being redeemed, by project and code.

    A hint: PostgreSQL is told the version and answers `repriced` when it has another.
    """

    def __init__(self, database: db.Database) -> None:
        """Start empty."""
        self._database = database
        self._known: OrderedDict[tuple[UUID, str], tuple[Terms, float]] = OrderedDict()
        self._loading: dict[tuple[UUID, str], asyncio.Task[Terms | None]] = {}
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
        """Read the terms anew; concurrent callers share one read. None: no such code."""
        at = (project_id, code_norm)
        task = self._loading.get(at)
        if task is None:
            task = asyncio.ensure_future(self._read(project_id, code_norm))
            self._loading[at] = task
            task.add_done_callback(lambda _: self._loading.pop(at, None))
        return await asyncio.shield(task)

    async def _read(self, project_id: UUID, code_norm: str) -> Terms | None:
        began = time.monotonic()
        async with self._database.transaction(project_id, reads_only=True) as conn:
            terms = await db.one(
                conn, "redemptions.terms", Terms, project_id=project_id, code_norm=code_norm
            )
        at = (project_id, code_norm)
        if terms is None:
            self._known.pop(at, None)
            return None
        self._known[at] = (terms, began)
        self._known.move_to_end(at)
        if terms.sale_id is not None:
            self._code_of_sale[project_id, terms.sale_id] = code_norm
            if len(self._code_of_sale) > TERMS_MAX:
                self._code_of_sale.popitem(last=False)
        if len(self._known) > TERMS_MAX:
            self._known.popitem(last=False)
        return terms
