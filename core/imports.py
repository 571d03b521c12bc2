"""Vouchers from elsewhere: a list as JSON or CSV, and a report of each line that was refused.

The columns of Voucherify's export are understood. What is fine is stored in one commit; a line
that is not leaves the others alone.
"""

import asyncio
import csv
import io
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec

from core import campaigns, db, ids, vouchers
from core.api_keys import Caller
from core.errors import Fault, Invalid
from core.rules import codes
from core.rules.cells import plain
from core.rules.limits import Metadata
from core.vouchers import NewVoucher

# One commit of about ten seconds; larger files are cut by whoever has them.
LINES_MAX: Final = 50_000
# What is read, checked and stored at once: some 30 ms, between which others are answered.
PIECE: Final = 500

# Columns of Voucherify's export that say nothing here, or are read beside the others.
_IGNORED: Final = """
id voucher_type category campaign gift_balance loyalty_balance loyalty_points qr_code qr_code_url
bar_code barcode_code_url is_referral_code created_at updated_at customer_id customer_source_id
redemption_count active additional_info discount_unit_type discount_unit_effect
validity_timeframe_interval validity_timeframe_duration validity_day_of_week
"""
_ALIASES: Final = {
    "value": "discount_value",
    "start_date": "starts_at",
    "expiration_date": "expires_at",
    "redemption_quantity": "max_redemptions",
    "discount_amount_limit": "max_discount",
}
_IGNORED_NAMES: Final = frozenset(_IGNORED.split())
_NUMBERS: Final = ("discount_value", "min_order_value", "max_discount")
_COUNTS: Final = ("max_redemptions", "per_customer_limit")
_INSTANTS: Final = ("starts_at", "expires_at")
_NUMBER: Final = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,10})?", re.ASCII)


class NewImport(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Vouchers as they would be created one by one, each with its code."""

    vouchers: Annotated[list[NewVoucher], msgspec.Meta(min_length=1, max_length=LINES_MAX)]


class RefusedLine(msgspec.Struct, frozen=True):
    """A line that was not imported, and why; lines count from 1, without a CSV's header."""

    line: int
    code: str | None
    detail: str
    field: str | None


class Imported(msgspec.Struct, frozen=True):
    """How many vouchers were made, and each line that was not."""

    imported: int
    refused: list[RefusedLine]


class _Line(msgspec.Struct):
    number: int
    code: str | None
    new: NewVoucher | None = None
    is_active: bool = True
    fault: Invalid | None = None


def listed(new: NewImport) -> Iterator[_Line]:
    """Yield the lines of a JSON import."""
    for number, voucher in enumerate(new.vouchers, start=1):
        yield _Line(number, voucher.code, voucher)


def read_table(raw: bytes, lines_max: int | None = LINES_MAX) -> Iterator[_Line]:
    """Yield the lines of a CSV file with a header. Raises: Invalid for one that is no table."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise Invalid(f"The file is not UTF-8: see line {line}.") from None
    if "\0" in text:
        raise Invalid("The file holds NUL characters; it is no CSV.")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip().lower().replace(" ", "_") for name in next(reader, [])]
        if "code" not in header or len(set(header)) != len(header):
            raise Invalid("The first line must name the columns, each once, and one must be code.")
        number = 0
        for cells in reader:
            if not any(cells):
                continue
            number += 1
            if lines_max is not None and number > lines_max:
                raise Invalid(f"The file may have at most {lines_max} lines.")
            yield _read_line(number, header, cells)
    except csv.Error as error:
        raise Invalid(f"The file is no CSV: line {reader.line_num}, {error}.") from None


def _read_line(number: int, header: list[str], cells: list[str]) -> _Line:
    code = dict(zip(header, cells, strict=False)).get("code", "").strip() or None
    try:
        if len(cells) != len(header):
            raise Invalid(f"the line has {len(cells)} cells, the header {len(header)}")
        given = {name: plain(cell.strip()) for name, cell in zip(header, cells, strict=True)}
        new = _voucher(given)
        is_active = given.get("active", "").lower() not in ("false", "0", "no")
    except Invalid as fault:
        return _Line(number, code, fault=fault)
    return _Line(number, code, new, is_active)


def _voucher(given: dict[str, str]) -> NewVoucher:
    """Turn the cells of a line into a voucher. Raises: Invalid, with `field`."""
    if given.get("voucher_type", "").upper() not in ("", "DISCOUNT_VOUCHER", "DISCOUNT"):
        raise Invalid("only discount vouchers are imported here", field="voucher_type")
    members: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    for name, cell in given.items():
        column = _ALIASES.get(name, name)
        if cell in ("", "null") or name in _IGNORED_NAMES:
            continue
        if column in _NUMBERS:
            if not _NUMBER.fullmatch(cell):
                raise Invalid(f"{name} must be a number", field=name)
            # A leading zero is fine in a table and none in JSON.
            members[column] = msgspec.Raw(re.sub(r"^(-?)0+(?=[0-9])", r"\1", cell).encode())
        elif column in _COUNTS:
            members[column] = _count(name, cell)
        elif column in _INSTANTS:
            members[column] = _instant(name, cell)
        elif column == "discount_type":
            members[column] = cell.upper()
        elif column == "code":
            members[column] = cell
        elif column == "campaign_id":
            if cell.startswith("cmp_"):
                members[column] = cell
        elif column == "holder":
            members[column] = cell
        elif column == "metadata":
            metadata |= _metadata(cell)
        else:
            metadata[name.removeprefix("metadata.")] = cell
    if members.get("discount_type") not in (None, "PERCENT", "AMOUNT", "FIXED"):
        raise Invalid("discount_type must be PERCENT, AMOUNT or FIXED", field="discount_type")
    used = given.get("redemption_count", "")
    if used not in ("", "null", "0") and "max_redemptions" in members:
        left = members["max_redemptions"] - _count("redemption_count", used)
        if left <= 0:
            raise Invalid("this code is used up", field="redemption_count")
        members["max_redemptions"] = left
    return NewVoucher(**members, metadata=metadata or None)


def _metadata(cell: str) -> Metadata:
    try:
        return msgspec.json.decode(cell, type=Metadata)
    except msgspec.DecodeError:
        raise Invalid("metadata must be a JSON object of plain values", field="metadata") from None


def _count(name: str, cell: str) -> int:
    if not cell.isascii() or not cell.isdigit() or not 0 < len(cell) <= 9 or int(cell) == 0:
        raise Invalid(f"{name} must be a whole number above 0", field=name)
    return int(cell)


def _instant(name: str, cell: str) -> datetime:
    try:
        at = datetime.fromisoformat(cell)
    except ValueError:
        raise Invalid(f"{name} must be a time such as 2030-01-31T12:00:00Z", field=name) from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


async def store(conn: db.Connection, caller: Caller, lines: Iterator[_Line]) -> Imported:
    """Store the lines that can be, in the caller's transaction, and report the others.

    A code that is there already, or comes twice, is refused. Raises: what `lines` raises.
    """
    time_zone = await campaigns.time_zone(conn, caller)
    known: dict[str, campaigns.Stored] = {}
    imported = 0
    refused: list[RefusedLine] = []
    rows: dict[str, tuple[_Line, dict[str, Any]]] = {}
    for line in lines:
        try:
            norm, row = await _row(conn, caller, line, time_zone, known)
            if norm in rows:
                raise Invalid("the code comes twice", field="code")
            rows[norm] = (line, row)
        except Fault as fault:
            refused.append(RefusedLine(line.number, line.code, fault.detail, fault.field))
        if len(rows) == PIECE:
            imported += await _stored(conn, rows, refused)
        elif line.number % PIECE == 0:
            await asyncio.sleep(0)
    if rows:
        imported += await _stored(conn, rows, refused)
    refused.sort(key=lambda one: one.line)
    return Imported(imported, refused)


async def _row(
    conn: db.Connection,
    caller: Caller,
    line: _Line,
    time_zone: str,
    known: dict[str, campaigns.Stored],
) -> tuple[str, dict[str, Any]]:
    if line.fault is not None:
        raise line.fault
    new = line.new
    assert new is not None
    if new.code is None:
        raise Invalid("code is required", field="code")
    norm = codes.checked(new.code)
    campaign = None
    if new.campaign_id is not None:
        campaign = known.get(new.campaign_id)
        if campaign is None:
            campaign = await campaigns.find(conn, caller, new.campaign_id, field="campaign_id")
            known[new.campaign_id] = campaign
    row = {
        "project_id": caller.project_id,
        "id": ids.new(),
        "code": new.code.strip(" "),
        "code_norm": norm,
        "status": "active" if line.is_active else "disabled",
        **vouchers.columns_of(caller, new, campaign, time_zone),
    }
    await vouchers.check_segments(conn, caller, row)
    return norm, row


async def _stored(
    conn: db.Connection,
    rows: dict[str, tuple[_Line, dict[str, Any]]],
    refused: list[RefusedLine],
) -> int:
    made = set(await db.many(conn, "imports.store", str, rows=[row for _, row in rows.values()]))
    for norm, (line, _) in rows.items():
        if norm not in made:
            detail = "a voucher with this code is there already"
            refused.append(RefusedLine(line.number, line.code, detail, "code"))
    rows.clear()
    return len(made)
