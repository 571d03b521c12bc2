"""Projects: the tenants, one client of an agency each. Made, changed and put away by their people.

An archived project can be looked at and does nothing more: its keys stop. One that is deleted is
purged by `deletions`, as soon as all that was under way in it has come to its end.
"""

import hashlib
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec

from core import audit_log, db, ids, sessions, usage
from core.api_keys import Caller
from core.errors import AlreadyExists, Forbidden, IdempotencyMismatch, Invalid, NotFound, Refusal
from core.rules import money, schedules
from core.sessions import Role, Session

# A year: whoever takes orders back later does so by a new voucher.
ROLLBACK_MINUTES_MAX: Final = 525_600
NO_PROJECT: Final = "There is no such project."

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
Percent = Annotated[int, msgspec.Meta(ge=1, le=100)]


class NewProject(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a project is made from."""

    name: Name
    currency: str = "EUR"
    time_zone: str = "UTC"


class ProjectPatch(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What of a project is to change; what is left out stays as it is."""

    name: Name | msgspec.UnsetType = msgspec.UNSET
    currency: str | msgspec.UnsetType = msgspec.UNSET
    time_zone: str | msgspec.UnsetType = msgspec.UNSET
    rollback_window_minutes: (
        Annotated[int, msgspec.Meta(ge=0, le=ROLLBACK_MINUTES_MAX)] | msgspec.UnsetType
    ) = msgspec.UNSET
    mail_at_percent: Annotated[list[Percent], msgspec.Meta(max_length=5)] | msgspec.UnsetType = (
        msgspec.UNSET
    )


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """A project as the API shows it; `role` is the asking person's, a key has none."""

    id: str
    name: str
    status: str
    currency: str
    time_zone: str
    rollback_window_minutes: int
    mail_at_percent: list[int]
    role: Role | None
    created_at: datetime
    archived_at: datetime | None


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    name: str
    status: str
    currency: str
    time_zone: str
    rollback_window_s: int
    mail_at_percent: list[int]
    created_at: datetime
    archived_at: datetime | None
    deleting_at: datetime | None


def id_for(user_id: UUID, key: str | None) -> UUID:
    """Return the id of a project that is to be made: one for each idempotency key of a person."""
    if key is None:
        return ids.new()
    return UUID(bytes=hashlib.sha256(user_id.bytes + key.encode()).digest()[:16])


async def insert(conn: db.Connection, user_id: UUID, project_id: UUID, new: NewProject) -> None:
    """Store a new project in the transaction of `project_id`, whose owner is who asks.

    Raises: Invalid, PlanLimit, db.UniqueViolation.
    """
    check(new)
    with usage.within_plan():
        await db.run(
            conn, "projects.create",
            user_id=user_id, project_id=project_id, project_name=new.name, currency=new.currency,
            time_zone=new.time_zone,
        )  # fmt: skip
    await audit_log.write(
        conn, sessions.caller_of(user_id, project_id, new.currency), "project.created",
        ids.format_id("prj", project_id), after=msgspec.structs.asdict(new),
    )  # fmt: skip


async def create(
    database: db.Database, session: Session, new: NewProject, *, key: str | None
) -> Project:
    """Make a project that this person owns, once for each idempotency key.

    Raises: Invalid; PlanLimit; IdempotencyMismatch.
    """
    project_id = id_for(session.user_id, key)
    try:
        async with database.transaction(project_id) as conn:
            await insert(conn, session.user_id, project_id, new)
            return await get(conn, project_id, "owner")
    except db.UniqueViolation:
        async with database.transaction(project_id, reads_only=True) as conn:
            made = await get(conn, project_id, session.membership(project_id).role)
    if (made.name, made.currency, made.time_zone) != (new.name, new.currency, new.time_zone):
        raise IdempotencyMismatch()
    return made


async def get(conn: db.Connection, project_id: UUID, role: Role | None) -> Project:
    """Return the project that was entered. Raises: NotFound."""
    row = await db.one(conn, "projects.get", _Row, project_id=project_id)
    if row is None:
        raise NotFound(NO_PROJECT)
    return _shown(row, role)


async def patch(
    conn: db.Connection, caller: Caller, role: Role | None, patch: ProjectPatch
) -> Project:
    """Change a project. Raises: Invalid, also for the currency of a project with amounts."""
    before = await _locked(conn, caller)
    given = {
        name: value
        for name, value in msgspec.structs.asdict(patch).items()
        if value is not msgspec.UNSET
    }
    wanted = msgspec.structs.replace(_shown(before, role), **given)
    schedules.check_time_zone(wanted.time_zone, field="time_zone")
    if wanted.currency != before.currency:
        await _set_currency(conn, caller, wanted.currency)
    await db.run(
        conn, "projects.patch",
        project_id=caller.project_id, project_name=wanted.name, time_zone=wanted.time_zone,
        rollback_window_s=wanted.rollback_window_minutes * 60,
        mail_at_percent=sorted(set(wanted.mail_at_percent)),
    )  # fmt: skip
    after = await get(conn, caller.project_id, role)
    changes = audit_log.changed(_settings(_shown(before, role)), _settings(after))
    if changes["after"]:
        await audit_log.write(conn, caller, "project.updated", after.id, **changes)
    return after


async def set_status(
    conn: db.Connection, caller: Caller, role: Role | None, status: str
) -> Project | Refusal:
    """Archive a project, take it back (`active`), or begin to delete it. Idempotent.

    Refuses: sale_live, to archive while a flash sale is not over. Raises: Forbidden to all but
    owners; AlreadyExists for one that is being deleted; PlanLimit where a plan has no room.
    """
    if role != "owner":
        raise Forbidden("Only a person who owns the project may do that.")
    before = await _locked(conn, caller)
    if before.status == status:
        return _shown(before, role)
    if before.status == "deleting":
        raise AlreadyExists("The project is being deleted.")
    if status == "archived" and await db.value(
        conn, "projects.has_live_sale", bool, project_id=caller.project_id
    ):
        return Refusal(code="sale_live", detail="A flash sale of this project is not over.")
    with usage.within_plan():
        await db.run(conn, "projects.set_status", project_id=caller.project_id, status=status)
    await db.run(conn, "projects.refresh_keys", project_id=caller.project_id)
    after = await get(conn, caller.project_id, role)
    await audit_log.write(
        conn, caller, _ACTIONS[status], after.id,
        before={"status": before.status}, after={"status": status},
    )  # fmt: skip
    return after


_ACTIONS: Final = {
    "archived": "project.archived",
    "active": "project.restored",
    "deleting": "project.deleted",
}


def check(new: NewProject) -> None:
    """Raises: Invalid for a currency or a time zone nobody knows."""
    check_currency(new.currency)
    schedules.check_time_zone(new.time_zone, field="time_zone")


def check_currency(currency: str) -> None:
    """Raises: Invalid for a currency ISO 4217 does not know."""
    if money.exponent_of(currency) is None:
        raise Invalid("currency must be a code of ISO 4217, such as EUR", field="currency")


async def _locked(conn: db.Connection, caller: Caller) -> _Row:
    row = await db.one(conn, "projects.lock", _Row, project_id=caller.project_id)
    if row is None:
        raise NotFound(NO_PROJECT)
    return row


async def _set_currency(conn: db.Connection, caller: Caller, currency: str) -> None:
    check_currency(currency)
    if not await db.run(
        conn, "projects.set_currency", project_id=caller.project_id, currency=currency
    ):
        raise Invalid(
            "currency cannot change any more: the project has vouchers, campaigns, gift cards or "
            "referral programs",
            field="currency",
        )
    await db.run(conn, "projects.refresh_keys", project_id=caller.project_id)


def _settings(project: Project) -> dict[str, Any]:
    names = ("name", "currency", "time_zone", "rollback_window_minutes", "mail_at_percent")
    return {name: getattr(project, name) for name in names}


def _shown(row: _Row, role: Role | None) -> Project:
    return Project(
        id=ids.format_id("prj", row.id), name=row.name, status=row.status, currency=row.currency,
        time_zone=row.time_zone, rollback_window_minutes=row.rollback_window_s // 60,
        mail_at_percent=row.mail_at_percent, role=role, created_at=row.created_at,
        archived_at=row.archived_at,
    )  # fmt: skip
