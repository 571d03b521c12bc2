"""Members of a project: who is in it, as what, and who was asked to be.

An owner does everything here, an admin what does not concern owners. A role holds from the next
request on: sessions keep none.
"""

import hmac
import secrets
from collections.abc import Awaitable
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import msgspec

from core import audit_log, db, ids, sessions
from core.api_keys import Caller
from core.errors import AlreadyExists, Forbidden, Invalid, NotFound
from core.mails import Mail
from core.rules import emails
from core.rules.emails import Email
from core.sessions import Role
from core.settings import Settings

INVITATION_LIFE: Final = timedelta(days=7)
TOKEN_BYTES: Final = 32


class NewInvitation(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Who is asked to come, and as what."""

    email: Email
    role: Role


class RolePatch(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a member is to be."""

    role: Role


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A person in a project."""

    id: str
    email: str
    name: str | None
    role: Role
    joined_at: datetime


class Invitation(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who was asked to come and has not come yet. What lets them in is in their mail."""

    id: str
    email: str
    role: Role
    created_at: datetime
    expires_at: datetime


class Invited(msgspec.Struct, frozen=True, kw_only=True):
    """An invitation whose token somebody has shown."""

    project_id: UUID
    id: UUID
    email: str
    role: Role
    project_name: str
    currency: str


class _Member(msgspec.Struct, frozen=True):
    user_id: UUID
    email: str
    name: str | None
    role: Role
    created_at: datetime


class _Invitation(msgspec.Struct, frozen=True):
    id: UUID
    email: str
    role: Role
    created_at: datetime
    expires_at: datetime


async def listed(conn: db.Connection) -> list[Member]:
    """Return who is in the project of the transaction."""
    rows = await db.many(conn, "members.list", _Member)
    return [
        Member(id=ids.format_id("usr", row.user_id), email=row.email, name=row.name, role=row.role,
               joined_at=row.created_at)
        for row in rows
    ]  # fmt: skip


async def invitations(conn: db.Connection, caller: Caller) -> list[Invitation]:
    """Return who was asked and has not come yet."""
    rows = await db.many(conn, "members.invitations", _Invitation, project_id=caller.project_id)
    return [_shown(row) for row in rows]


async def invite(
    conn: db.Connection, caller: Caller, role: Role | None, new: NewInvitation, settings: Settings
) -> tuple[Invitation, Mail]:
    """Ask somebody into the project; the mail is to be sent after the commit.

    An open invitation of the same e-mail is void then. Raises: Invalid, Forbidden, AlreadyExists
    for who is in the project.
    """
    user_id = _person(caller, role, new.role)
    email = emails.read(new.email)
    if any(member.email == email for member in await listed(conn)):
        raise AlreadyExists("This person is in the project already.", field="email")
    await db.run(conn, "members.revoke_open", project_id=caller.project_id, email=email)
    token = secrets.token_urlsafe(TOKEN_BYTES)
    row = await db.one(
        conn, "members.invite", _Invitation,
        project_id=caller.project_id, id=ids.new(), email=email, role=new.role,
        digest=_digest_of(token, settings), invited_by=user_id, life=INVITATION_LIFE,
    )  # fmt: skip
    assert row is not None
    invitation = _shown(row)
    await audit_log.write(
        conn, caller, "invitation.created", invitation.id, after={"email": email, "role": new.role}
    )
    return invitation, Mail(
        to=email,
        subject="You are invited to VauchFlow",
        text=f"You are asked to join a project on VauchFlow as {new.role}. Within a week:\n\n"
        f"{settings.base_url}/dashboard/invitation?token={token}\n",
    )


async def revoke(
    conn: db.Connection, caller: Caller, role: Role | None, public_id: str
) -> Invitation:
    """Take an open invitation back. Raises: NotFound, Forbidden."""
    _person(caller, role, "analyst")
    found = ids.parse_id("inv", public_id)
    row = None
    if found is not None:
        row = await db.one(
            conn, "members.revoke", _Invitation, project_id=caller.project_id, id=found
        )
    if row is None:
        raise NotFound("There is no such open invitation in this project.")
    await audit_log.write(conn, caller, "invitation.revoked", public_id, {"email": row.email})
    return _shown(row)


async def invited(database: db.Database, settings: Settings, token: str) -> Invited:
    """Return the invitation a token belongs to. Raises: NotFound, also for one that is over."""
    async with database.connection(reads_only=True) as conn:
        found = await db.one(
            conn, "members.invitation_by_digest", Invited, digest=_digest_of(token, settings)
        )
    if found is None:
        raise NotFound("This invitation is over, or never was.")
    return found


async def accept(conn: db.Connection, user_id: UUID, invitation: Invited) -> None:
    """Make a person a member, in a transaction of the project. Who is one keeps their role.

    Raises: NotFound, where somebody was faster.
    """
    project_id = invitation.project_id
    if not await db.run(conn, "members.accept", project_id=project_id, id=invitation.id):
        raise NotFound("This invitation is over, or never was.")
    await db.run(conn, "members.add", project_id=project_id, user_id=user_id, role=invitation.role)
    await audit_log.write(
        conn, sessions.caller_of(user_id, project_id, invitation.currency), "member.joined",
        ids.format_id("usr", user_id), after={"role": invitation.role},
    )  # fmt: skip


async def set_role(
    conn: db.Connection, caller: Caller, role: Role | None, public_id: str, wanted: Role
) -> Member:
    """Change what a member is. Raises: NotFound, Forbidden, Invalid for the last owner."""
    user_id, before = await _member(conn, caller, public_id)
    _person(caller, role, before, wanted)
    if wanted != before:
        await _unless_last_owner(
            db.run(
                conn, "members.set_role",
                project_id=caller.project_id, user_id=user_id, role=wanted,
            )
        )  # fmt: skip
        await audit_log.write(
            conn, caller, "member.updated", public_id,
            before={"role": before}, after={"role": wanted},
        )  # fmt: skip
    return next(one for one in await listed(conn) if one.id == ids.format_id("usr", user_id))


async def remove(conn: db.Connection, caller: Caller, role: Role | None, public_id: str) -> None:
    """Take a member out of the project. Raises: NotFound, Forbidden, Invalid for the last owner."""
    user_id, before = await _member(conn, caller, public_id)
    _person(caller, role, before)
    await _unless_last_owner(
        db.run(conn, "members.remove", project_id=caller.project_id, user_id=user_id)
    )
    await audit_log.write(conn, caller, "member.removed", public_id, before={"role": before})


async def _member(conn: db.Connection, caller: Caller, public_id: str) -> tuple[UUID, Role]:
    user_id = ids.parse_id("usr", public_id)
    if user_id is not None:
        found = await db.one(
            conn, "members.lock", str, project_id=caller.project_id, user_id=user_id
        )
        if found is not None:
            return user_id, msgspec.convert(found, Role)
    raise NotFound("There is no such member of this project.")


async def _unless_last_owner(change: Awaitable[int]) -> None:
    try:
        await change
    except db.CheckViolation:
        raise Invalid("A project keeps an owner; make somebody else one first.") from None


def _person(caller: Caller, role: Role | None, *touched: Role) -> UUID:
    """Return the person who asks, if they may touch members of these roles. Raises: Forbidden."""
    if caller.user_id is None or role not in ("owner", "admin"):
        raise Forbidden("Only an owner or admin of the project, logged in, may do that.")
    if role == "admin" and "owner" in touched:
        raise Forbidden("Only an owner makes, changes or removes owners.")
    return caller.user_id


def _shown(row: _Invitation) -> Invitation:
    return Invitation(
        id=ids.format_id("inv", row.id), email=row.email, role=row.role,
        created_at=row.created_at, expires_at=row.expires_at,
    )  # fmt: skip


def _digest_of(token: str, settings: Settings) -> bytes:
    return hmac.digest(settings.secret.encode(), f"invitation {token}".encode(), "sha256")
