"""The audit log: who changed what, from where, written in the transaction of the change.

Append-only, and a chain: PostgreSQL numbers each entry and seals it together with the one before,
so that none can be changed or taken out unseen (`verify` looks). Redemptions and what gift cards
pay are not in here: those have ledgers of their own.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec

from core import db, ids

if TYPE_CHECKING:
    from core.api_keys import Caller


class Origin(msgspec.Struct, frozen=True):
    """Where a change was asked for: the request, and the address it came from."""

    request_id: str | None = None
    address: str | None = None


# Every door tells it once a request. Handed from operation to operation it would be an argument of
# all of them, and of interest to none.
_origin: ContextVar[Origin | None] = ContextVar("origin", default=None)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One change as the API shows it. `before` and `after`: what of the target changed."""

    id: str
    number: int
    at: datetime
    actor: str
    actor_email: str | None
    action: str
    target: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    detail: dict[str, Any]
    address: str | None
    request_id: str | None
    hash: str


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    number: int
    at: datetime
    actor: str
    action: str
    target: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    detail: dict[str, Any]
    address: str | None
    request_id: str | None
    hash: str


class _Person(msgspec.Struct, frozen=True):
    user_id: UUID
    email: str


class Filters(msgspec.Struct, frozen=True, kw_only=True):
    """What entries are asked for; None: all."""

    action: str | None = None
    actor: str | None = None
    target: str | None = None


@contextlib.contextmanager
def asked_from(request_id: str, address: str | None) -> Iterator[None]:
    """Say where the changes of this block are asked for."""
    token = _origin.set(Origin(request_id, address))
    try:
        yield
    finally:
        _origin.reset(token)


async def write(
    conn: db.Connection,
    caller: "Caller",
    action: str,
    target: str,
    detail: dict[str, Any] | None = None,
    *,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> None:
    """Add an entry; write it last. No secrets in here, and nothing of a shop's customers.

    Concurrency: entries of a project wait for each other until the commit.
    """
    origin = _origin.get() or Origin()
    await db.run(
        conn, "audit_log.write",
        project_id=caller.project_id, id=ids.new(), actor=caller.actor, action=action,
        target=target, detail=detail or {}, before=before, after=after,
        address=origin.address, request_id=origin.request_id,
    )  # fmt: skip


async def write_change(
    conn: db.Connection,
    caller: "Caller",
    action: str,
    target: str,
    *,
    before: msgspec.Struct | None = None,
    after: msgspec.Struct | None = None,
) -> None:
    """Add an entry of what differs between an object as the API showed it and as it shows it now.

    Where nothing does, nothing is added. Not for objects that hold what is known of customers.
    """
    old, new = _told(before), _told(after)
    if before is None or after is None:
        await write(conn, caller, action, target, before=old or None, after=new or None)
        return
    changes = changed(old, new)
    if changes["after"]:
        await write(conn, caller, action, target, **changes)


# What changes by itself is nobody's change.
_BY_ITSELF: Final = frozenset({"updated_at", "redeemed_count", "remaining", "effect", "holder"})


def _told(shown: msgspec.Struct | None) -> dict[str, Any]:
    if shown is None:
        return {}
    # Amounts are texts of numbers, which only writing and reading makes plain.
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(shown))
    return {name: value for name, value in plain.items() if name not in _BY_ITSELF}


def changed(old: dict[str, Any], new: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return `before` and `after` of what differs, for `write`."""
    names = [name for name in new if old.get(name) != new[name]]
    return {
        "before": {name: old.get(name) for name in names},
        "after": {name: new[name] for name in names},
    }


async def page(
    conn: db.Connection, caller: "Caller", filters: Filters, *, after: UUID | None, limit: int
) -> list[Entry]:
    """Return up to `limit` entries, newest first, below the one with the id `after`."""
    rows = await db.many(
        conn, "audit_log.page", _Row,
        project_id=caller.project_id, after_id=after, limit=limit,
        action=filters.action, actor=filters.actor, target=filters.target,
    )  # fmt: skip
    people = await db.many(conn, "audit_log.people", _Person)
    emails = {ids.format_id("usr", person.user_id): person.email for person in people}
    return [
        Entry(
            **{**msgspec.structs.asdict(row), "id": ids.format_id("aud", row.id)},
            actor_email=emails.get(row.actor),
        )
        for row in rows
    ]


COLUMNS: Final = (
    "number", "at", "actor", "actor_email", "action", "target", "before", "after", "detail",
    "address", "request_id", "id", "hash",
)  # fmt: skip
