"""What a list shows, as CSV: its own rows under its own filters, all of them and not a page."""

import csv
import io
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec
from litestar import Request, get
from litestar.response import Response

from api import pagination
from api.dashboard import flash_sales as sale_pages
from api.dashboard import redemptions as redemption_pages
from api.dashboard import visits
from api.dashboard.visits import Visit
from core import (
    audit_log,
    batches,
    campaigns,
    customers,
    deliveries,
    events,
    flash_sales,
    ids,
    redemptions,
    referrals,
    segments,
)
from core.audit_log import Filters
from core.errors import NotFound
from core.gift_cards import cards, ledger
from core.rules import cells

Req = Request[Any, Any, Any]
Given = dict[str, str]
Piece = Callable[[Visit, Given, UUID | None], Awaitable[list[Any]]]

# Read at once: some milliseconds, between which others are answered.
PIECE: Final = 500
# Of one download, which is held in memory: some 15 MB. The API's reports have no end.
ROWS_MAX: Final = 100_000


class Table(msgspec.Struct, frozen=True):
    """How a list becomes a table; a column is a member's name, parted by dots where it lies deeper.

    `prefix`: of the ids that its pages go on from; None where one piece is all.
    """

    columns: tuple[str, ...]
    filters: tuple[str, ...]
    piece: Piece
    prefix: ids.Prefix | None = None
    cursor: str = "id"


async def _campaigns(visit: Visit, given: Given, after: UUID | None) -> list[Any]:
    status: Any = given.get("status")
    async with visit.reading() as conn:
        return await campaigns.page(conn, visit.caller, status=status, after=after, limit=PIECE)


async def _redemptions(visit: Visit, given: Given, after: UUID | None) -> list[Any]:
    found, _ = await redemptions.list_page(
        visit.services.database, visit.caller,
        redemption_pages.narrowed(pagination.Page(PIECE, after, given)), before=after,
        limit=PIECE,
    )  # fmt: skip
    return found


async def _flash_sales(visit: Visit, given: Given, after: UUID | None) -> list[Any]:
    async with visit.reading() as conn:
        found = await flash_sales.page(conn, visit.caller, after=after, limit=PIECE)
    return [await sale_pages.shown(visit, sale_id) for sale_id in found]


async def _gift_cards(visit: Visit, given: Given, after: UUID | None) -> list[Any]:
    nothing = dict.fromkeys(("status", "last_four", "customer_id", "batch_id"))
    async with visit.reading() as conn:
        return await cards.page(
            conn, visit.caller, narrow={**nothing, **given}, after=after, limit=PIECE
        )


async def _entries(visit: Visit, given: Given, after: UUID | None) -> list[Any]:
    async with visit.reading() as conn:
        return await ledger.transactions(
            conn, visit.caller, given.get("of", ""), after=after, limit=PIECE
        )


async def _referrals(visit: Visit, given: Given, after: UUID | None) -> list[Any]:
    nothing = dict.fromkeys(("program_id", "referrer_id", "referee_id", "status", "review"))
    async with visit.reading() as conn:
        return await referrals.page(
            conn, visit.caller, narrow={**nothing, **given}, after=after, limit=PIECE
        )


async def _customers(visit: Visit, given: Given, after: UUID | None) -> list[Any]:
    async with visit.reading() as conn:
        return await customers.page(
            conn, visit.caller, email=given.get("email"), after=after, limit=PIECE
        )


async def _segments(visit: Visit, given: Given, after: UUID | None) -> list[Any]:
    async with visit.reading() as conn:
        return await segments.page(conn, visit.caller, after=after, limit=PIECE)


class _Member(msgspec.Struct, frozen=True):
    customer_id: str


async def _members(visit: Visit, given: Given, after: UUID | None) -> list[Any]:
    found: list[str] = []
    async with visit.reading() as conn:
        while len(found) < ROWS_MAX:
            last = found[-1] if found else None
            piece = await segments.members(conn, visit.caller, given.get("of", ""), after=last)
            found += piece.data
            if not piece.has_more:
                break
    return [_Member(one) for one in found]


async def _events(visit: Visit, given: Given, after: UUID | None) -> list[Any]:
    async with visit.reading() as conn:
        return await events.page(
            conn, visit.caller, type=given.get("type"), after=after, limit=PIECE
        )


async def _audit_log(visit: Visit, given: Given, after: UUID | None) -> list[Any]:
    async with visit.reading() as conn:
        return await audit_log.page(conn, visit.caller, Filters(**given), after=after, limit=PIECE)


async def _batches(visit: Visit, given: Given, after: UUID | None) -> list[Any]:
    async with visit.reading() as conn:
        return await batches.page(conn, visit.caller, after=after, limit=PIECE)


async def _deliveries(visit: Visit, given: Given, after: UUID | None) -> list[Any]:
    status: Any = given.get("status")
    async with visit.reading() as conn:
        return await deliveries.page(
            conn, visit.caller, given.get("of", ""), status=status, after=after, limit=PIECE
        )


TABLES: Final = {
    "campaigns": Table(
        (
            "id", "name", "status", "rules.discount_type", "rules.discount_value",
            "redeemed_count", "rules.max_redemptions", "rules.starts_at", "rules.expires_at",
            "created_at",
        ),
        ("status",), _campaigns, "cmp",
    ),
    "redemptions": Table(
        (
            "redemption_id", "redeemed_at", "code", "status", "customer_id", "order_id",
            "order_value", "discount_applied", "currency", "campaign_id", "flash_sale_id",
            "rolled_back_at", "rollback_reason",
        ),
        redemption_pages.FILTERS, _redemptions, "rdm", "redemption_id",
    ),
    "flash-sales": Table(
        (
            "id", "name", "code", "status", "durability", "stock", "claimed", "settled",
            "remaining", "written_off", "opened_at", "closed_at", "created_at",
        ),
        (), _flash_sales, "fls",
    ),
    "gift-cards": Table(
        (
            "id", "last_four", "status", "balance", "currency", "customer_id", "expires_at",
            "created_at",
        ),
        ("status", "last_four", "customer_id"), _gift_cards, "gft",
    ),
    "entries": Table(
        (
            "transaction_id", "created_at", "type", "change", "balance", "currency", "order_id",
            "reason", "reference",
        ),
        ("of",), _entries, "gfe", "transaction_id",
    ),
    "referrals": Table(
        (
            "id", "code", "status", "referrer_id", "referee_id", "reason", "review", "order_id",
            "order_value", "attributed_at", "converted_at", "created_at",
        ),
        ("status",), _referrals, "rfa",
    ),
    "customers": Table(
        ("customer_id", "name", "email", "redemption_count", "attributes", "created_at", "id"),
        ("email",), _customers, "cus",
    ),
    "segments": Table(
        ("id", "name", "type", "rule", "member_count", "created_at", "updated_at"),
        (), _segments, "seg",
    ),
    "members": Table(("customer_id",), ("of",), _members),
    "events": Table(("id", "created_at", "type", "subject", "data"), ("type",), _events, "evt"),
    "audit-log": Table(
        audit_log.COLUMNS, ("action", "actor", "target"), _audit_log, "aud"
    ),
    "batches": Table(
        ("id", "status", "count", "made", "campaign_id", "created_at", "finished_at"),
        (), _batches, "bat",
    ),
    "deliveries": Table(
        (
            "id", "event_id", "event_type", "status", "attempts", "next_attempt_at", "created_at",
            "ended_at",
        ),
        ("of", "status"), _deliveries, "dlv",
    ),
}  # fmt: skip


@get("/dashboard/{project:str}/tables/{name:str}", operation_id="dashboard.tables")
async def show(request: Req, project: str, name: str) -> Response[bytes]:
    """Download a list as CSV, with the filters that the page has."""
    visit = await visits.begun(request, project)
    table = TABLES.get(name.removesuffix(".csv"))
    if table is None:
        raise NotFound("There is no such table.")
    given = {k: v for k, v in pagination.parameters(request, *table.filters).items() if v}
    text, is_whole = await _written(visit, table, given)
    shown = name if is_whole else f"first-{ROWS_MAX}-{name}"
    headers = {"Content-Disposition": f'attachment; filename="{shown}"'}
    return Response(text, media_type="text/csv", headers=headers)


async def _written(visit: Visit, table: Table, given: Given) -> tuple[bytes, bool]:
    """Return the table's text, and whether it holds every row."""
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow(table.columns)
    count, after = 0, None
    while count < ROWS_MAX:
        rows = await table.piece(visit, given, after)
        lines.writerows([_cell(row, name) for name in table.columns] for row in rows)
        count += len(rows)
        if table.prefix is None or len(rows) < PIECE:
            return text.getvalue().encode(), count <= ROWS_MAX
        after = ids.parse_id(table.prefix, getattr(rows[-1], table.cursor))
    return text.getvalue().encode(), False


def _cell(row: Any, name: str) -> str:
    """Write one cell; text that a spreadsheet would run gets an apostrophe in front."""
    value = row
    for part in name.split("."):
        value = getattr(value, part)
    if value is None or value is msgspec.UNSET:
        return ""
    if isinstance(value, msgspec.Raw):
        return bytes(value).decode()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bool | int):
        return str(value).lower()
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return cells.harmless(text)


ROUTES: Final = [show]
