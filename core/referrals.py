"""Referrals: who referred whom, how far it has come, and what both sides got.

Attributions are `core.attributions`'s, conversions `core.conversions`'s; both record here.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

import msgspec

from core import db, ids, referral_rewards
from core.api_keys import Caller
from core.errors import NotFound, Refusal
from core.referral_programs import Stored as Program
from core.referral_rewards import Row, Shown
from core.rules import money
from core.shapes import Amount

# A ring of more than ten people is a community, and a tree of more is not read.
DEPTH_MAX: Final = 10
TREE_MAX: Final = 1_000
# Referrals that are due at one look: some milliseconds each.
DUE_MAX: Final = 200

Status = Literal["invited", "attributed", "converted", "rewarded", "rejected", "reversed"]
Review = Literal["open", "approved", "rejected", "lapsed"]


class Referral(msgspec.Struct, frozen=True, kw_only=True):
    """A referral as the API shows it. `reason` and `because`: why it was rejected or reversed."""

    id: str
    program_id: str
    code: str
    referrer_id: str
    referee_id: str | None
    status: Status
    reason: str | None
    because: dict[str, Any] | None
    review: Review | None
    review_until: datetime | None
    attributed_at: datetime | None
    expires_at: datetime | None
    converted_at: datetime | None
    ended_at: datetime | None
    order_id: str | None
    order_value: Amount | None
    redemption_id: str | None
    rewards: list[Shown]
    created_at: datetime


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One referral in a customer's tree; `depth` 1 is their own."""

    referral_id: str
    program_id: str
    referrer_id: str
    referee_id: str | None
    status: Status
    depth: int


class Event(msgspec.Struct, frozen=True):
    """One thing that happened to a referral."""

    event: str
    detail: dict[str, Any]
    at: datetime


class Tree(msgspec.Struct, frozen=True):
    """Whom a customer was referred by, nearest first, and everybody who came through them."""

    customer_id: str
    referred_by: list[str]
    referrals: list[Node]


class Stored(msgspec.Struct, frozen=True):
    """A referral's row."""

    id: UUID
    program_id: UUID
    code_id: UUID
    code: str
    referrer_id: str
    referee_id: str | None
    status: Status
    reason: str | None
    because: dict[str, Any] | None
    review: Review | None
    review_until: datetime | None
    attributed_at: datetime | None
    expires_at: datetime | None
    is_over: bool
    converted_at: datetime | None
    ended_at: datetime | None
    order_id: str | None
    order_value_minor: int | None
    redemption_id: UUID | None
    created_at: datetime


class _Node(msgspec.Struct, frozen=True):
    id: UUID
    program_id: UUID
    referrer_id: str
    referee_id: str | None
    status: Status
    depth: int


class Live(msgspec.Struct, frozen=True):
    """An attribution that counts, also one that was reversed."""

    id: UUID
    program_id: UUID
    code_id: UUID
    status: Status


class Due(msgspec.Struct, frozen=True):
    """A referral that something is to be done about."""

    project_id: UUID
    id: UUID
    currency: str


async def record(
    conn: db.Connection, caller: Caller, referral_id: UUID, event: str, **detail: Any
) -> None:
    """Write down what happened to a referral, for its history and for whoever is told."""
    await db.run(
        conn, "referrals.record",
        project_id=caller.project_id, referral_id=referral_id, event=event, detail=detail,
    )  # fmt: skip


def closed(program: Program) -> Refusal:
    """Return the refusal of a program that is paused or has ended."""
    assert program.status != "active"
    return Refusal(program.status, f"This referral program is {program.status}.")


async def live_of(
    conn: db.Connection, caller: Caller, referee_id: str, program_id: UUID | None
) -> list[Live]:
    """Return a referee's attributions that count, in one program or all."""
    return await db.many(
        conn, "referrals.attributions", Live,
        project_id=caller.project_id, referee_id=referee_id, program_id=program_id,
    )  # fmt: skip


async def take(conn: db.Connection, caller: Caller, public_id: str) -> Stored:
    """Lock a referral and return its row. Raises: NotFound."""
    referral_id = ids.parse_id("rfa", public_id)
    params = {"project_id": caller.project_id, "id": referral_id}
    stored = await db.one(conn, "referrals.take", Stored, **params) if referral_id else None
    if stored is None:
        raise NotFound("There is no such referral in this project.")
    return stored


async def get(conn: db.Connection, caller: Caller, public_id: str) -> Referral:
    """Return a referral as the API shows it. Raises: NotFound."""
    [shown] = await _shown(conn, caller, [await _find(conn, caller, public_id)])
    return shown


async def _find(conn: db.Connection, caller: Caller, public_id: str) -> Stored:
    referral_id = ids.parse_id("rfa", public_id)
    params = {"project_id": caller.project_id, "id": referral_id}
    stored = await db.one(conn, "referrals.by_id", Stored, **params) if referral_id else None
    if stored is None:
        raise NotFound("There is no such referral in this project.")
    return stored


async def page(
    conn: db.Connection, caller: Caller, *, narrow: dict[str, Any], after: UUID | None, limit: int
) -> list[Referral]:
    """Return up to `limit` referrals, newest first.

    `narrow` has program_id, referrer_id, referee_id, status and review; None does not narrow.
    """
    rows = await db.many(
        conn, "referrals.page", Stored,
        project_id=caller.project_id, after=after, limit=limit, **narrow,
    )  # fmt: skip
    return await _shown(conn, caller, rows)


async def history(conn: db.Connection, caller: Caller, public_id: str) -> list[Event]:
    """Return what happened to a referral, in order. Raises: NotFound."""
    found = await _find(conn, caller, public_id)
    return await db.many(
        conn, "referrals.history", Event, project_id=caller.project_id, referral_id=found.id
    )


async def tree(conn: db.Connection, caller: Caller, customer_id: str) -> Tree:
    """Return whom a customer came through and who came through them, to DEPTH_MAX and TREE_MAX."""
    params: dict[str, Any] = {
        "project_id": caller.project_id, "customer_id": customer_id, "depth_max": DEPTH_MAX,
    }  # fmt: skip
    above = await db.many(conn, "referrals.referrers", str, **params)
    below = await db.many(conn, "referrals.tree", _Node, limit=TREE_MAX, **params)
    nodes = [
        Node(
            referral_id=ids.format_id("rfa", row.id),
            program_id=ids.format_id("rfp", row.program_id),
            referrer_id=row.referrer_id,
            referee_id=row.referee_id,
            status=row.status,
            depth=row.depth,
        )
        for row in below
    ]
    return Tree(customer_id, above, nodes)


async def _shown(conn: db.Connection, caller: Caller, rows: Sequence[Stored]) -> list[Referral]:
    """Write rows as the API shows them, with the rewards of those that have some."""
    rewards: dict[UUID, list[Row]] = {}
    converted = [row.id for row in rows if row.converted_at is not None]
    if converted:
        for reward in await referral_rewards.of_referrals(conn, caller, converted):
            rewards.setdefault(reward.referral_id, []).append(reward)
    return [_show(caller, row, rewards.get(row.id, [])) for row in rows]


def _show(caller: Caller, stored: Stored, rewards: Sequence[Row]) -> Referral:
    value = stored.order_value_minor
    return Referral(
        id=ids.format_id("rfa", stored.id),
        program_id=ids.format_id("rfp", stored.program_id),
        code=stored.code,
        referrer_id=stored.referrer_id,
        referee_id=stored.referee_id,
        status=stored.status,
        reason=stored.reason,
        because=stored.because,
        review=stored.review,
        review_until=stored.review_until,
        attributed_at=stored.attributed_at,
        expires_at=stored.expires_at,
        converted_at=stored.converted_at,
        ended_at=stored.ended_at,
        order_id=stored.order_id,
        order_value=None if value is None else money.json_amount(value, caller.exponent),
        redemption_id=ids.format_id("rdm", stored.redemption_id) if stored.redemption_id else None,
        rewards=referral_rewards.show(rewards, caller.exponent),
        created_at=stored.created_at,
    )


def acting(due: Due) -> Caller:
    """Return the caller that the clock's hand acts as in a project."""
    exponent = money.exponent_of(due.currency)
    assert exponent is not None, due.currency
    return Caller(due.project_id, UUID(int=0), "SECRET", due.currency, exponent)
