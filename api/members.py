"""/v1/projects/{id}/members and /v1/projects/{id}/invitations"""

from typing import Any, Final

import msgspec
from litestar import Request, delete, get, patch, post
from litestar.response import Response

from api import answers, auth, bodies, idempotency, metrics
from api.docs import shape
from api.lifespan import Services
from core import members
from core.members import Invitation, Member, NewInvitation, RolePatch

Req = Request[Any, Any, Any]


class Members(msgspec.Struct, frozen=True, kw_only=True):
    """Everybody in a project, the longest first."""

    data: list[Member]


class Invitations(msgspec.Struct, frozen=True, kw_only=True):
    """Who was asked and has not come yet, newest first."""

    data: list[Invitation]


class Removed(msgspec.Struct, frozen=True, kw_only=True):
    """A person who is not in the project any more."""

    id: str
    status: str = "removed"


@get(
    "/v1/projects/{id:str}/members", operation_id="members.all", opt=shape(answer=Members)
)  # fmt: skip
async def listed(request: Req, id: str) -> Response[bytes]:
    """Return who is in a project, and as what."""
    place = await auth.place(request, id)
    services: Services = request.app.state.services
    async with services.database.transaction(place.caller.project_id, reads_only=True) as conn:
        return answers.ok(Members(data=await members.listed(conn)))


@patch(
    "/v1/projects/{id:str}/members/{user:str}", operation_id="members.update",
    opt=shape(body=RolePatch, answer=Member),
)  # fmt: skip
async def set_role(request: Req, id: str, user: str) -> Response[bytes]:
    """Change what a member is; the last owner stays one."""
    place = await auth.place(request, id)
    raw, wanted = await bodies.received(request, RolePatch)
    async with idempotency.write(request, place.caller, raw) as work:
        if not work.is_done:
            work.answer(200, await members.set_role(
                work.conn, place.caller, place.role, user, wanted.role))  # fmt: skip
    return work.response()


@delete(
    "/v1/projects/{id:str}/members/{user:str}", operation_id="members.remove", status_code=200,
    opt=shape(answer=Removed),
)  # fmt: skip
async def remove(request: Req, id: str, user: str) -> Response[bytes]:
    """Take a person out of a project; the last owner stays."""
    place = await auth.place(request, id)
    await bodies.received_nothing(request)
    async with idempotency.write(request, place.caller) as work:
        if not work.is_done:
            await members.remove(work.conn, place.caller, place.role, user)
            work.answer(200, Removed(id=user))
    return work.response()


@get(
    "/v1/projects/{id:str}/invitations", operation_id="invitations.all",
    opt=shape(answer=Invitations),
)  # fmt: skip
async def invitations(request: Req, id: str) -> Response[bytes]:
    """Return who was asked into a project and has not come yet."""
    place = await auth.place(request, id)
    services: Services = request.app.state.services
    async with services.database.transaction(place.caller.project_id, reads_only=True) as conn:
        return answers.ok(Invitations(data=await members.invitations(conn, place.caller)))


@post(
    "/v1/projects/{id:str}/invitations", operation_id="invitations.create",
    opt=shape(body=NewInvitation, answer=Invitation, status=201),
)  # fmt: skip
async def invite(request: Req, id: str) -> Response[bytes]:
    """Ask somebody into a project by mail; the link is good for a week."""
    place = await auth.place(request, id)
    raw, new = await bodies.received(request, NewInvitation)
    services: Services = request.app.state.services
    mail = None
    async with idempotency.write(request, place.caller, raw) as work:
        if not work.is_done:
            made, mail = await members.invite(
                work.conn, place.caller, place.role, new, services.settings)  # fmt: skip
            work.answer(201, made)
    if mail is not None:
        services.mailer.send(mail)
    metrics.count("person.invited")
    return work.response()


@delete(
    "/v1/projects/{id:str}/invitations/{invitation:str}", operation_id="invitations.revoke",
    status_code=200, opt=shape(answer=Invitation),
)  # fmt: skip
async def revoke(request: Req, id: str, invitation: str) -> Response[bytes]:
    """Take an invitation back; its link is worth nothing from now on."""
    place = await auth.place(request, id)
    await bodies.received_nothing(request)
    async with idempotency.write(request, place.caller) as work:
        if not work.is_done:
            work.answer(200, await members.revoke(work.conn, place.caller, place.role, invitation))
    return work.response()


ROUTES: Final = [listed, set_role, remove, invitations, invite, revoke]
