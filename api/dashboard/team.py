"""Who is in a project, as what, and who is asked to come."""

from typing import Any, Final

from litestar import Request, get, post
from litestar.response import Response

from api.dashboard import forms, visits
from api.dashboard.forms import Field
from api.dashboard.visits import Visit
from core import db, members
from core.errors import Fault, Invalid
from core.mails import Mail
from core.members import Invitation, Member, NewInvitation, RolePatch

Req = Request[Any, Any, Any]

ROLES: Final = (
    ("analyst", "Analyst: looks at everything"), ("admin", "Admin: changes everything"),
    ("owner", "Owner: also people"),
)  # fmt: skip
_INVITATION: Final = (
    Field("email", "E-mail", "email", required=True),
    Field("role", "As", "choice", choices=ROLES, value="analyst"),
)
_ROLE: Final = (Field("role", "Role", "choice", choices=ROLES),)


@get("/dashboard/{project:str}/team", operation_id="dashboard.team")
async def page(request: Req, project: str) -> Response[bytes]:
    """Show who is in the project and who was asked."""
    return await _shown(await visits.begun(request, project))


async def _shown(visit: Visit, fault: Fault | None = None) -> Response[bytes]:
    async with visit.reading() as conn:
        rows = await members.listed(conn)
        invited = await members.invitations(conn, visit.caller)
    return visit.page(
        "team.html", 400 if fault else 200, title="Team", rows=rows, invited=invited, roles=ROLES,
        fields=_INVITATION, given=visit.given, told=fault.detail if fault else None,
    )  # fmt: skip


@post("/dashboard/{project:str}/team", operation_id="dashboard.team.invite")
async def invite(request: Req, project: str) -> Response[bytes]:
    """Ask somebody to come, by mail."""
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> tuple[Invitation, Mail]:
        new = forms.read(NewInvitation, _INVITATION, visit.given, visit.zone)
        settings = visit.services.settings
        return await members.invite(conn, visit.caller, visit.member.role, new, settings)

    try:
        made = await visit.once(work)
    except Fault as fault:
        return await _shown(visit, fault)
    if made is not None:
        visit.services.mailer.send(made[1])
    return visit.redirect("/team", "invited")


@post("/dashboard/{project:str}/team/{user:str}/role", operation_id="dashboard.team.role")
async def set_role(request: Req, project: str, user: str) -> Response[bytes]:
    """Change what somebody is."""
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> Member:
        wanted = forms.read(RolePatch, _ROLE, visit.given, visit.zone).role
        return await members.set_role(conn, visit.caller, visit.member.role, user, wanted)

    try:
        return await visit.act(work, "/team", "saved")
    except Invalid as fault:
        return await _shown(visit, fault)


@post("/dashboard/{project:str}/team/{user:str}/remove", operation_id="dashboard.team.remove")
async def remove(request: Req, project: str, user: str) -> Response[bytes]:
    """Take somebody out of the project."""
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> None:
        await members.remove(conn, visit.caller, visit.member.role, user)

    try:
        return await visit.act(work, "/team", "saved")
    except Invalid as fault:
        return await _shown(visit, fault)


@post(
    "/dashboard/{project:str}/invitations/{invitation:str}/revoke",
    operation_id="dashboard.team.revoke",
)
async def revoke(request: Req, project: str, invitation: str) -> Response[bytes]:
    """Take an invitation back."""
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> Invitation:
        return await members.revoke(conn, visit.caller, visit.member.role, invitation)

    return await visit.act(work, "/team", "saved")


ROUTES: Final = [page, invite, set_role, remove, revoke]
