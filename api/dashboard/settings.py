"""A project's settings, putting it away, and deleting it."""

from typing import Any, Final

from litestar import Request, get, post
from litestar.response import Response

from api.dashboard import forms, pages, visits
from api.dashboard.forms import Field
from api.dashboard.visits import Visit
from core import db, projects
from core.errors import Fault, Invalid, Refusal
from core.projects import Project, ProjectPatch

Req = Request[Any, Any, Any]

_SETTINGS: Final = (
    Field("name", "Name", required=True),
    Field(
        "currency", "Currency", required=True,
        hint="Three letters, such as EUR. Fixed once there is a voucher, campaign or card.",
    ),
    Field(
        "time_zone", "Time zone", required=True,
        hint="Such as Europe/Berlin; schedules and “today” go by it.",
    ),
    Field(
        "rollback_window_minutes", "Roll-backs are open for", "number", required=True,
        suffix="minutes", hint="How long a redemption can be given back.",
    ),
    Field(
        "mail_at_percent", "Mail at percent of a limit", "words",
        hint="Of a quota or budget, such as 80, 100. Empty: none.",
    ),
)  # fmt: skip


@get("/dashboard/{project:str}/settings", operation_id="dashboard.settings")
async def page(request: Req, project: str) -> Response[bytes]:
    """Show the project's settings."""
    return await _shown(await visits.begun(request, project))


async def _shown(visit: Visit, fault: Fault | None = None) -> Response[bytes]:
    async with visit.reading() as conn:
        one = await projects.get(conn, visit.caller.project_id, visit.member.role)
    visit.given = {**_given(one), **visit.given}
    return visit.form(
        "Settings",
        _SETTINGS,
        template="settings.html",
        fault=fault,
        send="Save",
        one=one,
        is_for_all=True,
    )


def _given(one: Project) -> dict[str, str]:
    return {
        "name": one.name,
        "currency": one.currency,
        "time_zone": one.time_zone,
        "rollback_window_minutes": str(one.rollback_window_minutes),
        "mail_at_percent": ", ".join(map(str, one.mail_at_percent)),
    }


@post("/dashboard/{project:str}/settings", operation_id="dashboard.settings.save")
async def save(request: Req, project: str) -> Response[bytes]:
    """Change the project's settings."""
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> Project:
        plain = tuple(one for one in _SETTINGS if one.kind != "words")
        percents = [
            forms.number(text) for text in forms.words(visit.given.get("mail_at_percent", ""))
        ]
        more = {"mail_at_percent": percents}
        asked = forms.read(ProjectPatch, plain, visit.given, visit.zone, more)
        return await projects.patch(conn, visit.caller, visit.member.role, asked)

    try:
        return await visit.act(work, "/settings", "saved")
    except Fault as fault:
        return await _shown(visit, fault)


async def _become(visit: Visit, status: str) -> Refusal | None:
    async def work(conn: db.Connection) -> Project | Refusal:
        return await projects.set_status(conn, visit.caller, visit.member.role, status)

    done = await visit.once(work)
    return done if isinstance(done, Refusal) else None


@post("/dashboard/{project:str}/settings/archive", operation_id="dashboard.settings.archive")
async def archive(request: Req, project: str) -> Response[bytes]:
    """Put the project away."""
    visit = await visits.changing(request, project, is_put_away=True)
    refused = await _become(visit, "archived")
    return visit.refused(refused) if refused else visit.redirect("/settings", "archived")


@post("/dashboard/{project:str}/settings/restore", operation_id="dashboard.settings.restore")
async def restore(request: Req, project: str) -> Response[bytes]:
    """Take the project back."""
    visit = await visits.changing(request, project, is_put_away=True)
    refused = await _become(visit, "active")
    return visit.refused(refused) if refused else visit.redirect("/settings", "restored")


@post("/dashboard/{project:str}/settings/delete", operation_id="dashboard.settings.delete")
async def delete(request: Req, project: str) -> Response[bytes]:
    """Delete the project for good, for who typed its name."""
    visit = await visits.changing(request, project, is_put_away=True)
    if visit.given.get("confirm", "").strip() != visit.member.name:
        visit.given = {}
        wrong = "Nothing was deleted: what was typed is not the project’s name."
        return await _shown(visit, Invalid(wrong))
    refused = await _become(visit, "deleting")
    return (
        visit.refused(refused) if refused else pages.redirect("/dashboard/projects?done=deleting")
    )


ROUTES: Final = [page, save, archive, restore, delete]
