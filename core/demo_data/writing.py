"""A drawn year, written into the real tables: under their keys and CHECKs, in one commit."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import msgspec

from core import analytics, db, demo, ids
from core.demo_data import shop, year
from core.demo_data.draws import Row
from core.errors import Invalid
from core.settings import Settings

# Rows of one statement: a quarter of a second, so that the bar moves.
PIECE_ROWS: Final = 2_500
STATEMENT_TIMEOUT_MS: Final = 120_000
REDEMPTIONS: Final = 50_000
REDEMPTIONS_MAX: Final = 1_000_000
# Always the same, so that the year is there once however its project is called by then; and behind
# every other, because the account's first project is the one that `up` writes down.
PROJECT_ID: Final = UUID("f0000000-0000-7000-8000-00000000dda7")

Tell = Callable[[int, int | None], None]
"""Hears how many rows are written, of how many."""


class Made(msgspec.Struct, frozen=True):
    """What was written, by table; nothing where a year was there."""

    project_id: str
    counts: dict[str, int]


class _Owner(msgspec.Struct, frozen=True):
    account_id: UUID
    user_id: UUID


async def run(settings: Settings, seed: int, redemption_count: int, tell: Tell) -> Made:
    """Write the year that ends now, unless it is there. Idempotent.

    Raises: Invalid, where there is no demo account yet, or the year was deleted.
    """
    if not year.REDEMPTIONS_MIN <= redemption_count <= REDEMPTIONS_MAX:
        least, most = year.REDEMPTIONS_MIN, REDEMPTIONS_MAX
        raise Invalid(f"--redemptions must be {least:,} to {most:,}")
    # To the minute: who asks twice within one gets the same year.
    until = datetime.now(UTC).replace(second=0, microsecond=0)
    database = await db.Database.open(settings.database_dsn("worker"), size_max=1)
    try:
        async with database.connection(reads_only=True) as conn:
            if await _is_there(conn):
                return _made(None)
        drawn = year.draw(seed, redemption_count, until)
        return await write(database, drawn, tell)
    finally:
        await database.close()


async def write(database: db.Database, drawn: year.Year, tell: Tell) -> Made:
    """Write a year in one commit, so that nobody sees half of it, unless one is there.

    Raises: Invalid, as `run`.
    """
    async with database.transaction(None, statement_timeout_ms=STATEMENT_TIMEOUT_MS) as conn:
        await db.run(conn, "demo.lock")
        if await _is_there(conn):
            return _made(None)
        owner = await db.one(conn, "demo_data.owner", _Owner, email=demo.EMAIL)
        if owner is None:
            raise Invalid("there is no demo account yet: ./vauchflow up makes it")
        await db.run(
            conn, "demo_data.project", id=PROJECT_ID, account_id=owner.account_id,
            user_id=owner.user_id, project_name=shop.NAME, currency=shop.CURRENCY,
            time_zone=shop.TIME_ZONE, created_at=drawn.begins_at,
        )  # fmt: skip
        done = 0
        for table, rows in drawn.tables.items():
            for start in range(0, len(rows), PIECE_ROWS):
                piece = rows[start : start + PIECE_ROWS]
                await _insert(conn, table, piece, owner)
                done += len(piece)
                tell(done, drawn.row_count)
        await db.run(conn, "demo_data.count_customers", project_id=PROJECT_ID)
        # Where figures have still to begin, the year is among what they begin with.
        await db.run(
            conn, "demo_data.figures", project_id=PROJECT_ID, keep_days=analytics.KEEP_DAYS
        )
    return _made(drawn)


async def _is_there(conn: db.Connection) -> bool:
    state = await db.value(conn, "demo_data.state", str, project_id=PROJECT_ID)
    if state == "deleted":
        raise Invalid("the year was deleted here; --data-dir takes another directory")
    return state == "there"


def _made(drawn: year.Year | None) -> Made:
    counts = {name: len(rows) for name, rows in drawn.tables.items()} if drawn else {}
    return Made(ids.format_id("prj", PROJECT_ID), counts)


async def _insert(conn: db.Connection, table: str, rows: list[Row], owner: _Owner) -> None:
    """Write rows of one table."""
    given: dict[str, object] = {"project_id": PROJECT_ID, "rows": rows}
    match table:
        case "customers":
            await db.run(conn, "demo_data.customers", **given)
        case "segments":
            await db.run(conn, "demo_data.segments", **given)
        case "segment_members":
            await db.run(conn, "demo_data.segment_members", **given)
        case "campaigns":
            await db.run(conn, "demo_data.campaigns", **given)
        case "vouchers":
            await db.run(conn, "demo_data.vouchers", **given)
        case "sales":
            await db.run(conn, "demo_data.sales", **given)
        case "leases":
            await db.run(conn, "demo_data.leases", **given)
        case "redemptions":
            await db.run(conn, "demo_data.redemptions", **given)
        case "budgets":
            await db.run(conn, "demo_data.budgets", **given)
        case "cards":
            await db.run(conn, "demo_data.cards", **given)
        case "transactions":
            await db.run(conn, "demo_data.transactions", **given)
        case "entries":
            await db.run(conn, "demo_data.entries", **given)
        case "programs":
            await db.run(conn, "demo_data.programs", **given)
        case "referral_codes":
            await db.run(conn, "demo_data.referral_codes", **given)
        case "referrals":
            await db.run(conn, "demo_data.referrals", **given)
        case "rewards":
            await db.run(conn, "demo_data.rewards", **given)
        case "referral_history":
            await db.run(conn, "demo_data.referral_history", **given)
        case "audit":
            actor = ids.format_id("usr", owner.user_id)
            await db.run(conn, "demo_data.audit", **given, actor=actor)
        case _:
            raise AssertionError(table)
