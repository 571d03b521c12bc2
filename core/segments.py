"""Segments: groups of customers that rules of vouchers and campaigns may name.

A list has its members written down; a rule is asked anew each time, so that a change of the rule
or of a customer counts at once.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec

from core import audit_log, db, ids
from core.api_keys import Caller
from core.errors import AlreadyExists, Invalid, NotFound
from core.rules import conditions, segments
from core.rules.conditions import NewRule, Rule
from core.rules.limits import Metadata
from core.shapes import CustomerId

# Who belongs to what is asked of all of them at once; a few milliseconds.
SEGMENTS_MAX: Final = 500
# What the rules of one voucher or segment may lead to, over any number of steps.
REACHED_MAX: Final = 50
MEMBERS_MAX: Final = 1_000

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Members = Annotated[list[CustomerId], msgspec.Meta(max_length=MEMBERS_MAX)]
Type = Literal["static", "rule"]


class NewSegment(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A group by `rule`, or a list that begins with `customer_ids`."""

    name: Name
    rule: NewRule | None = None
    customer_ids: Members | None = None


class SegmentPatch(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What may change of a segment: members that are left out stay."""

    name: Name | None = None
    rule: NewRule | None = None


class MembersPatch(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Who is put on a list and who is taken off it, in this order."""

    add: Members = []
    remove: Members = []


class Stored(msgspec.Struct, frozen=True):
    """A segment's row; without a rule it is a list."""

    id: UUID
    name: str
    rule: Rule | None
    member_count: int
    created_at: datetime
    updated_at: datetime


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """A segment as the API shows it; only a list has a count."""

    id: str
    name: str
    type: Type
    rule: dict[str, Any] | None
    member_count: int | None
    created_at: datetime
    updated_at: datetime


class MemberList(msgspec.Struct, frozen=True):
    """A part of a list, by customer."""

    data: list[str]
    has_more: bool


class Named(msgspec.Struct, frozen=True):
    """A segment by its name."""

    id: UUID
    name: str


class _Rule(msgspec.Struct, frozen=True):
    id: UUID
    rule: Rule | None


async def create(conn: db.Connection, caller: Caller, new: NewSegment) -> Segment:
    """Make a segment. Raises: Invalid, also for a circle; AlreadyExists for the name."""
    if new.rule is not None and new.customer_ids is not None:
        raise Invalid("customer_ids cannot be given with rule", field="customer_ids")
    await db.run(conn, "segments.lock", project_id=caller.project_id)
    if await db.value(conn, "segments.count", int, project_id=caller.project_id) >= SEGMENTS_MAX:
        raise Invalid(f"A project has at most {SEGMENTS_MAX} segments.")
    segment_id = ids.new()
    rule = None if new.rule is None else await _read(conn, caller, new.rule, segment_id)
    try:
        await db.run(
            conn, "segments.create",
            project_id=caller.project_id, id=segment_id, segment_name=new.name, rule=rule,
        )  # fmt: skip
    except db.UniqueViolation:
        raise _name_taken() from None
    if new.customer_ids:
        await _add(conn, caller, segment_id, new.customer_ids)
    made = await get(conn, caller, ids.format_id("seg", segment_id))
    await audit_log.write_change(conn, caller, "segment.created", made.id, after=made)
    return made


async def find(conn: db.Connection, caller: Caller, public_id: str) -> Stored:
    """Return a segment's row. Raises: NotFound."""
    segment_id = ids.parse_id("seg", public_id)
    if segment_id is not None:
        stored = await db.one(
            conn, "segments.by_id", Stored, project_id=caller.project_id, id=segment_id
        )
        if stored is not None:
            return stored
    raise NotFound("There is no such segment in this project.")


async def get(conn: db.Connection, caller: Caller, public_id: str) -> Segment:
    """Return a segment as the API shows it. Raises: NotFound."""
    return show(await find(conn, caller, public_id), caller)


async def page(
    conn: db.Connection, caller: Caller, *, after: UUID | None, limit: int
) -> list[Segment]:
    """Return up to `limit` segments, newest first."""
    rows = await db.many(
        conn, "segments.page", Stored, project_id=caller.project_id, after=after, limit=limit
    )
    return [show(row, caller) for row in rows]


async def edit(conn: db.Connection, caller: Caller, public_id: str, patch: SegmentPatch) -> Segment:
    """Change name or rule; whoever is asked from now on is judged by the new one.

    Raises: NotFound, AlreadyExists for the name, Invalid: for a circle, a rule for a list.
    """
    await db.run(conn, "segments.lock", project_id=caller.project_id)
    stored = await find(conn, caller, public_id)
    if patch.rule is not None and stored.rule is None:
        raise Invalid("rule cannot be given to a list of customers", field="rule")
    rule = None if patch.rule is None else await _read(conn, caller, patch.rule, stored.id)
    try:
        await db.run(
            conn, "segments.edit",
            project_id=caller.project_id, id=stored.id, segment_name=patch.name, rule=rule,
        )  # fmt: skip
    except db.UniqueViolation:
        raise _name_taken() from None
    after = await get(conn, caller, public_id)
    await audit_log.write_change(
        conn, caller, "segment.updated", after.id, before=show(stored, caller), after=after
    )
    return after


async def change_members(
    conn: db.Connection, caller: Caller, public_id: str, patch: MembersPatch
) -> Segment:
    """Put customers on a list and take others off. Idempotent. Raises: NotFound, Invalid."""
    stored = await find(conn, caller, public_id)
    if stored.rule is not None:
        raise Invalid("The members of this segment are found by its rule.", field="add")
    await _add(conn, caller, stored.id, patch.add)
    await db.run(
        conn, "segments.remove",
        project_id=caller.project_id, id=stored.id, customer_ids=patch.remove,
    )  # fmt: skip
    after = await get(conn, caller, public_id)
    await audit_log.write_change(
        conn, caller, "segment.members_changed", after.id,
        before=show(stored, caller), after=after,
    )  # fmt: skip
    return after


async def members(
    conn: db.Connection, caller: Caller, public_id: str, *, after: str | None
) -> MemberList:
    """Return up to MEMBERS_MAX customers of a list, after one of them. Raises: NotFound."""
    stored = await find(conn, caller, public_id)
    found = await db.many(
        conn, "segments.members", str,
        project_id=caller.project_id, id=stored.id, after=after, limit=MEMBERS_MAX + 1,
    )  # fmt: skip
    return MemberList(found[:MEMBERS_MAX], len(found) > MEMBERS_MAX)


async def of_customer(conn: db.Connection, caller: Caller, customer_id: str) -> list[str]:
    """Return the public ids of all segments a customer belongs to now."""
    rules = await _all(conn, caller.project_id)
    wanted = {fact for rule in rules.values() if rule is not None for fact in rule.facts()}
    known = await facts_of(conn, caller.project_id, customer_id, wanted)
    return [*await belonging(conn, caller, customer_id, rules, known)]


async def names(conn: db.Connection, caller: Caller, public_ids: Iterable[str]) -> list[Named]:
    """Return the names of some segments, the oldest first; unknown ones are left out."""
    wanted = [one for one in map(_uuid, public_ids) if one is not None]
    return await db.many(conn, "segments.names", Named, project_id=caller.project_id, ids=wanted)


async def check_named(
    conn: db.Connection, caller: Caller, rule: Rule | None, *, field: str
) -> None:
    """Hold a tree's segments against those there are. Raises: Invalid, with `field`."""
    named = list(segments.named_in(rule))
    if named:
        reached = await _reached(conn, caller.project_id, named)
        _check_known(reached, named, field)
        if len(reached) > REACHED_MAX:
            raise Invalid(f"{field} leads to more than {REACHED_MAX} segments", field=field)


async def rules_named(
    conn: db.Connection, project_id: UUID, rules: Iterable[Rule]
) -> dict[str, Rule | None]:
    """Return the segments that some trees name, with those that they lead to."""
    named = [one for rule in rules for one in segments.named_in(rule)]
    return await _reached(conn, project_id, named) if named else {}


async def belonging(
    conn: db.Connection,
    caller: Caller,
    customer_id: str,
    rules: Mapping[str, Rule | None],
    known: Mapping[str, Any],
) -> tuple[str, ...]:
    """Return which segments of `rules` a customer with these facts belongs to."""
    lists = [_uuid(one) for one, rule in rules.items() if rule is None]
    listed: set[str] = set()
    if lists:
        rows = await db.many(
            conn, "segments.listed", UUID,
            project_id=caller.project_id, customer_id=customer_id, ids=lists,
        )  # fmt: skip
        listed = {ids.format_id("seg", one) for one in rows}
    return segments.belongs_to(rules, listed, known, caller.exponent)


async def facts_of(
    conn: db.Connection, project_id: UUID, customer_id: str, wanted: Iterable[str]
) -> dict[str, Any]:
    """Return what segments may ask of a customer; reads only what is wanted."""
    wanted = set(wanted)
    known: dict[str, Any] = {"customer.id": customer_id}
    if segments.asks_attributes(wanted):
        known |= await attributes(conn, project_id, customer_id)
    if wanted & {"customer.redemptions", "customer.is_new"}:
        count = await db.value(
            conn, "segments.redemption_count", int, project_id=project_id, customer_id=customer_id
        )
        known |= {"customer.redemptions": count, "customer.is_new": count == 0}
    return known


async def attributes(conn: db.Connection, project_id: UUID, customer_id: str) -> dict[str, Any]:
    """Return the attributes of a customer as facts; none of one who is not registered."""
    found = await db.one(
        conn, "segments.attributes", Metadata, project_id=project_id, customer_id=customer_id
    )
    return {f"customer.attributes.{name}": value for name, value in (found or {}).items()}


def show(stored: Stored, caller: Caller) -> Segment:
    """Write a row as the API shows it."""
    rule = stored.rule
    return Segment(
        id=ids.format_id("seg", stored.id),
        name=stored.name,
        type="static" if rule is None else "rule",
        rule=None if rule is None else conditions.shown(rule, caller.exponent),
        member_count=stored.member_count if rule is None else None,
        created_at=stored.created_at,
        updated_at=stored.updated_at,
    )


async def _read(conn: db.Connection, caller: Caller, new: NewRule, own_id: UUID) -> Rule:
    """Read a segment's rule; what it leads to must be there, be few and not come back to it."""
    rule = conditions.read(new, caller.currency, field="rule")
    segments.check(rule, field="rule")
    own = ids.format_id("seg", own_id)
    rules = {**await _all(conn, caller.project_id), own: rule}
    _check_known(rules, segments.named_in(rule), "rule")
    segments.check_no_circle(own, rules, field="rule")
    segments.check_reach(own, rules, REACHED_MAX, field="rule")
    return rule


def _check_known(known: Mapping[str, Rule | None], named: Iterable[str], field: str) -> None:
    for one in named:
        if one not in known:
            raise Invalid(f"{field} names a segment that there is not: {one[:40]!a}", field=field)


async def _all(conn: db.Connection, project_id: UUID) -> dict[str, Rule | None]:
    rows = await db.many(conn, "segments.all_rules", _Rule, project_id=project_id)
    return {ids.format_id("seg", row.id): row.rule for row in rows}


async def _reached(
    conn: db.Connection, project_id: UUID, named: list[str]
) -> dict[str, Rule | None]:
    """Return segments and whatever they lead to, a read a step; unknown ones are left out."""
    found: dict[str, Rule | None] = {}
    asked: set[str] = set()
    while named:
        asked |= set(named)
        wanted = [one for one in map(_uuid, named) if one is not None]
        rows = await db.many(conn, "segments.rules", _Rule, project_id=project_id, ids=wanted)
        new = {ids.format_id("seg", row.id): row.rule for row in rows}
        found |= new
        named = [x for rule in new.values() for x in segments.named_in(rule) if x not in asked]
    return found


async def _add(
    conn: db.Connection, caller: Caller, segment_id: UUID, customer_ids: list[str]
) -> None:
    await db.run(
        conn, "segments.add",
        project_id=caller.project_id, id=segment_id, customer_ids=list(dict.fromkeys(customer_ids)),
    )  # fmt: skip


def _uuid(public_id: str) -> UUID | None:
    return ids.parse_id("seg", public_id)


def _name_taken() -> AlreadyExists:
    return AlreadyExists("A segment with this name is there already.", field="name")
