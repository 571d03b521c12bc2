"""Out of here: vouchers, as a table that `imports` reads again or a line of JSON each, and the
audit log as a table.
"""

import asyncio
import csv
import io
from typing import Any, Final, Literal

import msgspec

from core import audit_log, db, ids, vouchers
from core.api_keys import Caller
from core.rules.cells import harmless
from core.vouchers import Voucher

# A part of some megabytes; who wants all asks again after the last one.
PART_MAX: Final = 10_000
# What is read and written at once: some 20 ms, between which others are answered.
PIECE: Final = 500
# As `imports` names them; metadata is one cell of JSON, since keys differ from line to line.
COLUMNS: Final = (
    "code", "discount_type", "discount_value", "campaign_id", "max_redemptions",
    "redemption_count", "per_customer_limit", "starts_at", "expires_at", "min_order_value",
    "active", "holder", "metadata",
)  # fmt: skip

Format = Literal["csv", "ndjson"]

_encoder: Final = msgspec.json.Encoder()
_encode: Final = _encoder.encode
_lines: Final = _encoder.encode_lines


class Part(msgspec.Struct, frozen=True):
    """Rows as they are written, and the id to go on after, where there may be more."""

    text: bytes
    count: int
    last: str | None


async def part(
    conn: db.Connection, caller: Caller, form: Format, *, campaign_id: str | None, after: str | None
) -> Part:
    """Write up to PART_MAX vouchers, newest first, below the id of one. Raises: NotFound.

    Lines of JSON are what the API shows. A table begins with its header where `after` is None, and
    has no column for rules beyond plain terms.
    """
    text: list[bytes] = []
    count, last = 0, after
    while count < PART_MAX:
        piece = await vouchers.page(
            conn, caller, campaign_id=campaign_id, status=None,
            after=None if last is None else ids.parse_id("vch", last), limit=PIECE,
        )  # fmt: skip
        is_table = form == "csv"
        text.append(_table(piece, has_header=last is None) if is_table else _lines(piece))
        count += len(piece)
        if len(piece) < PIECE:
            return Part(b"".join(text), count, None)
        last = piece[-1].id
        await asyncio.sleep(0)
    return Part(b"".join(text), count, last)


def _table(found: list[Voucher], *, has_header: bool) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    if has_header:
        writer.writerow(COLUMNS)
    for voucher in found:
        writer.writerow([_cell(name, voucher) for name in COLUMNS])
    return text.getvalue().encode()


def _cell(name: str, voucher: Voucher) -> str:
    if name == "active":
        return "false" if voucher.status == "disabled" else "true"
    if name == "metadata":
        return _encode(voucher.metadata).decode() if voucher.metadata else ""
    return cell(voucher.redeemed_count if name == "redemption_count" else getattr(voucher, name))


async def audit_log_part(conn: db.Connection, caller: Caller, *, after: str | None) -> Part:
    """Write up to PART_MAX entries of the audit log as a table, newest first, below the id of one.

    It begins with its header where `after` is None.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    if after is None:
        writer.writerow(audit_log.COLUMNS)
    count, last = 0, after
    while count < PART_MAX:
        piece = await audit_log.page(
            conn, caller, audit_log.Filters(),
            after=None if last is None else ids.parse_id("aud", last), limit=PIECE,
        )  # fmt: skip
        for entry in piece:
            values = (getattr(entry, name) for name in audit_log.COLUMNS)
            writer.writerow([cell(value) for value in values])
        count += len(piece)
        if len(piece) < PIECE:
            return Part(text.getvalue().encode(), count, None)
        last = piece[-1].id
        await asyncio.sleep(0)
    return Part(text.getvalue().encode(), count, last)


def cell(value: Any) -> str:
    """Write a value into a table; what is not one value is JSON, and text runs nothing."""
    if value is None or value is msgspec.UNSET or value == {}:
        return ""
    if isinstance(value, str):
        return harmless(value)
    if isinstance(value, msgspec.Raw):
        return bytes(value).decode()
    return _encode(value).decode().strip('"')
