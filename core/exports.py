"""Vouchers out of here: as a table that `imports` reads again, or a line of JSON each."""

import asyncio
import csv
import io
from typing import Any, Final

import msgspec

from core import db, ids, vouchers
from core.api_keys import Caller
from core.imports import FORMULA
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

_encode: Final = msgspec.json.Encoder().encode


async def part(
    conn: db.Connection, caller: Caller, *, campaign_id: str | None, after: str | None
) -> list[Voucher]:
    """Return up to PART_MAX vouchers, newest first, below the id of one. Raises: NotFound."""
    found: list[Voucher] = []
    last = ids.parse_id("vch", after) if after is not None else None
    while len(found) < PART_MAX:
        piece = await vouchers.page(
            conn, caller, campaign_id=campaign_id, status=None, after=last, limit=PIECE
        )
        found += piece
        if len(piece) < PIECE:
            break
        last = ids.parse_id("vch", piece[-1].id)
        await asyncio.sleep(0)
    return found


def table(found: list[Voucher], *, has_header: bool) -> bytes:
    """Write vouchers as CSV. Rules beyond plain terms have no column: see `lines`."""
    text = io.StringIO()
    writer = csv.writer(text)
    if has_header:
        writer.writerow(COLUMNS)
    for voucher in found:
        writer.writerow([_cell(name, voucher) for name in COLUMNS])
    return text.getvalue().encode()


def lines(found: list[Voucher]) -> bytes:
    """Write vouchers as newline-delimited JSON, each as the API shows it."""
    return msgspec.json.Encoder().encode_lines(found)


def _cell(name: str, voucher: Voucher) -> str:
    value: Any
    if name == "active":
        return "false" if voucher.status == "disabled" else "true"
    if name == "metadata":
        return _encode(voucher.metadata).decode() if voucher.metadata else ""
    value = voucher.redeemed_count if name == "redemption_count" else getattr(voucher, name)
    if value is None or value is msgspec.UNSET:
        return ""
    if isinstance(value, msgspec.Raw):
        return bytes(value).decode()
    written = value if isinstance(value, str) else _encode(value).decode().strip('"')
    return f"'{written}" if written.startswith(FORMULA) else written
