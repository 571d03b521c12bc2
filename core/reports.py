"""Reports: what a time holds, newest first, as a table or a line of JSON each, without an end.

Each piece is a page below the last row of the one before, in a transaction of its own: a report of
any length holds one piece in memory, and no connection while the client reads.
"""

import asyncio
import csv
import io
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Final, Literal
from uuid import UUID

import msgspec
import structlog

from core import db, exports, ids, redemptions, referrals, usage, vouchers
from core.api_keys import Caller
from core.errors import Fault, Invalid, Unavailable
from core.gift_cards import ledger
from core.referrals import Referral
from core.rules import plans
from core.rules.plans import Hour
from core.vouchers import Voucher

# What is read and written at once: some 20 ms, between which others are answered.
PIECE: Final = 500
# Reports that one process writes at once: each takes up to half of its time.
STREAMS_MAX: Final = 4
# A report that has begun waits so long for a database that is away; fail-overs take less.
WAIT_S_MAX: Final = 60.0
RETRY_S: Final = 1.0
# Hours that a report of usage may ask for: two years.
USAGE_DAYS_MAX: Final = 732
_A_DAY: Final = timedelta(days=1)

Noun = Literal["redemptions", "vouchers", "gift-card-entries", "referrals", "usage"]

COLUMNS: Final[dict[Noun, tuple[str, ...]]] = {
    "redemptions": (
        "redemption_id", "status", "code", "discount_applied", "rolled_back_amount", "order_value",
        "currency", "customer_id", "order_id", "campaign_id", "flash_sale_id", "seq", "remaining",
        "redeemed_at", "rolled_back_at", "rollback_reason", "metadata",
    ),
    "vouchers": (
        "id", "code", "status", "discount_type", "discount_value", "campaign_id",
        "max_redemptions", "redeemed_count", "remaining", "per_customer_limit", "min_order_value",
        "starts_at", "expires_at", "holder", "created_at", "updated_at", "metadata",
    ),
    "gift-card-entries": (
        "transaction_id", "gift_card_id", "type", "amount", "change", "balance", "currency",
        "is_partial", "reference", "order_id", "reason", "other_card_id", "refund_of", "created_at",
    ),
    "referrals": (
        "id", "program_id", "code", "referrer_id", "referee_id", "status", "reason", "because",
        "review", "review_until", "attributed_at", "expires_at", "converted_at", "ended_at",
        "order_id", "order_value", "redemption_id", "rewards", "created_at",
    ),
    "usage": ("hour", "api_calls", "redemptions"),
}  # fmt: skip
"""What a table of each report has; metadata and whatever else is not one value is JSON."""

Rows = Sequence[msgspec.Struct]
_lines: Final = msgspec.json.Encoder().encode_lines
_log = structlog.get_logger("vauchflow.reports")


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a report is of; `to_at` is not in it."""

    from_at: datetime | None = None
    to_at: datetime | None = None
    campaign_id: str | None = None


class Used(msgspec.Struct, frozen=True):
    """What the project used in an hour."""

    hour: datetime
    api_calls: int
    redemptions: int


class Desk:
    """Reports of one process. Used from one event loop only."""

    def __init__(self, database: db.Database) -> None:
        """Begin with none under way."""
        self._database = database
        self._under_way = 0
        self._is_over = False

    def stop(self) -> None:
        """Break off what is under way, each at its next piece."""
        self._is_over = True

    async def write(
        self, caller: Caller, noun: Noun, form: exports.Format, asked: Asked
    ) -> AsyncGenerator[bytes]:
        """Write a report piece by piece; the first piece is there even where there are no rows.

        A database that goes away is waited for, up to a minute. Whatever keeps a report that has
        begun from its end is told by its last line: `{"error": …}`, in a table a cell that begins
        with "error:".

        Raises, before the first piece: Invalid, NotFound, Unavailable.
        """
        if self._under_way >= STREAMS_MAX:
            raise Unavailable(
                "Too many reports are being written; ask again soon.", code="overloaded"
            )
        self._under_way += 1
        try:
            has_begun = False
            try:
                async with aclosing(self._pieces(caller, noun, asked)) as pieces:
                    async for rows in pieces:
                        yield _written(noun, form, rows, has_header=not has_begun)
                        has_begun = True
            except Exception as error:
                if not has_begun:
                    raise
                yield _broken_off(form, error, noun)
        finally:
            self._under_way -= 1

    async def _pieces(self, caller: Caller, noun: Noun, asked: Asked) -> AsyncGenerator[Rows]:
        """Yield the rows of a report, a piece at a time, and one piece where there are none."""
        walk = _WALKS[noun](caller, asked)
        while True:
            rows = await self._piece(walk)
            yield rows
            if walk.is_over:
                return
            # Also where the client takes all at once, others are answered in between.
            await asyncio.sleep(0)
            if self._is_over:
                raise Unavailable("The server is ending.")

    async def _piece(self, walk: "_Walk") -> Rows:
        waited_s = 0.0
        while True:
            try:
                return await walk.step(self._database)
            except Unavailable:
                if not walk.has_begun or waited_s >= WAIT_S_MAX or self._is_over:
                    raise
            await asyncio.sleep(RETRY_S)
            waited_s += RETRY_S


class _Walk(ABC):
    """How far a report has come. A step that failed is taken again."""

    def __init__(self, caller: Caller, asked: Asked) -> None:
        self.caller = caller
        self.asked = asked
        self.after: UUID | None = None
        self.has_begun = False
        self.is_over = False

    async def step(self, database: db.Database) -> Rows:
        """Return the next piece."""
        rows = await self.read(database)
        self.has_begun = True
        return rows

    @abstractmethod
    async def read(self, database: db.Database) -> Rows:
        """Read the next piece and move on behind it."""

    def made_within(self, rows: Sequence[Voucher] | Sequence[Referral], prefix: ids.Prefix) -> Rows:
        """Keep what was made in the report's time. Ids rise with time: the first page that has
        nothing from after its beginning is the last one.
        """
        from_at, to_at = self.asked.from_at, self.asked.to_at
        self.is_over = len(rows) < PIECE
        if rows:
            self.after = ids.parse_id(prefix, rows[-1].id)
        if from_at is not None and all(row.created_at < from_at - _A_DAY for row in rows):
            self.is_over = True
        return [
            row for row in rows
            if (from_at is None or row.created_at >= from_at)
            and (to_at is None or row.created_at < to_at)
        ]  # fmt: skip


class _Redemptions(_Walk):
    async def read(self, database: db.Database) -> Rows:
        campaign_id = self.asked.campaign_id and ids.parse_id("cmp", self.asked.campaign_id)
        narrow = redemptions.Filter(
            campaign_id=campaign_id or None, from_at=self.asked.from_at, to_at=self.asked.to_at
        )
        rows, has_more = await redemptions.list_page(
            database, self.caller, narrow, before=self.after, limit=PIECE
        )
        self.is_over = not has_more
        if rows:
            self.after = ids.parse_id("rdm", rows[-1].redemption_id)
        return rows


class _Vouchers(_Walk):
    async def read(self, database: db.Database) -> Rows:
        async with database.transaction(self.caller.project_id, reads_only=True) as conn:
            rows = await vouchers.page(
                conn, self.caller, campaign_id=self.asked.campaign_id, status=None,
                after=self.after, limit=PIECE,
            )  # fmt: skip
        return self.made_within(rows, "vch")


class _Referrals(_Walk):
    async def read(self, database: db.Database) -> Rows:
        narrow = dict.fromkeys(("program_id", "referrer_id", "referee_id", "status", "review"))
        async with database.transaction(self.caller.project_id, reads_only=True) as conn:
            rows = await referrals.page(
                conn, self.caller, narrow=narrow, after=self.after, limit=PIECE
            )
        return self.made_within(rows, "rfa")


class _Entries(_Walk):
    last: ledger.Place | None = None

    async def read(self, database: db.Database) -> Rows:
        async with database.transaction(self.caller.project_id, reads_only=True) as conn:
            rows, self.last = await ledger.entries(
                conn, self.caller, from_at=self.asked.from_at, to_at=self.asked.to_at,
                after=self.last, limit=PIECE,
            )  # fmt: skip
        self.is_over = self.last is None
        return rows


class _Usage(_Walk):
    """A day at a time, the last one first."""

    def __init__(self, caller: Caller, asked: Asked) -> None:
        super().__init__(caller, asked)
        now = datetime.now(UTC)
        self.to_at = _hour(asked.to_at or now, up=True)
        self.from_at = _hour(asked.from_at or plans.month_of(min(now, self.to_at)))
        self.account_id: UUID | None = None
        if not timedelta(0) < self.to_at - self.from_at <= timedelta(days=USAGE_DAYS_MAX):
            raise Invalid(f"from must be before to, by at most {USAGE_DAYS_MAX} days", field="from")

    async def read(self, database: db.Database) -> Rows:
        from_at = max(self.from_at, self.to_at - _A_DAY)
        async with database.transaction(self.caller.project_id, reads_only=True) as conn:
            if self.account_id is None:
                self.account_id = (await usage.account_of(conn, self.caller)).account_id
            rows = await db.many(
                conn, "usage.by_hour", Hour,
                account_id=self.account_id, project_id=self.caller.project_id, from_at=from_at,
                to_at=self.to_at,
            )  # fmt: skip
        self.to_at = from_at
        self.is_over = from_at == self.from_at
        rows.sort(key=lambda row: row.hour, reverse=True)
        return [Used(row.hour, row.call_count, row.redemption_count) for row in rows]


def _hour(at: datetime, *, up: bool = False) -> datetime:
    begun = at.replace(minute=0, second=0, microsecond=0)
    return begun + timedelta(hours=1) if up and begun < at else begun


_WALKS: Final[dict[Noun, Callable[[Caller, Asked], _Walk]]] = {
    "redemptions": _Redemptions, "vouchers": _Vouchers, "gift-card-entries": _Entries,
    "referrals": _Referrals, "usage": _Usage,
}  # fmt: skip


def _written(noun: Noun, form: exports.Format, rows: Rows, *, has_header: bool) -> bytes:
    if form == "ndjson":
        return _lines(rows)
    text = io.StringIO()
    writer = csv.writer(text)
    columns = COLUMNS[noun]
    if has_header:
        writer.writerow(columns)
    writer.writerows([exports.cell(getattr(row, name)) for name in columns] for row in rows)
    return text.getvalue().encode()


def _broken_off(form: exports.Format, error: Exception, noun: Noun) -> bytes:
    if isinstance(error, Fault):
        code, reason = error.code, error.detail
    else:
        _log.error("report_failed", noun=noun, exc_info=error)
        code, reason = "internal", "Something broke here."
    told = f"This report is not complete: {reason}"
    if form == "ndjson":
        return _lines([{"error": {"code": code, "detail": told}}])
    text = io.StringIO()
    csv.writer(text).writerow([f"error: {told}"])
    return text.getvalue().encode()
