"""The projects of a person: which there are, and another one."""

from typing import Any, Final

from litestar import Request, get, post
from litestar.response import Response

from api import metrics
from api.dashboard import forms, pages, visits
from api.dashboard.forms import Field
from core import projects
from core.errors import Fault
from core.projects import NewProject, Project

Req = Request[Any, Any, Any]

_PROJECT: Final = (
    Field("name", "Name", required=True, hint="A client, a brand or a shop."),
    Field(
        "currency", "Currency", required=True, value="EUR", hint="Three letters, such as EUR."
    ),
    Field(
        "time_zone", "Time zone", required=True, value="Europe/Berlin",
        hint="Such as Europe/Berlin; schedules and “today” go by it.",
    ),
)  # fmt: skip


@get("/dashboard/projects", operation_id="dashboard.projects")
async def page(request: Req) -> Response[bytes]:
    """List the projects of who is logged in."""
    visit = await visits.own(request)
    rows: list[Project] = []
    for one in visit.session.memberships:
        async with visit.services.database.transaction(one.project_id, reads_only=True) as conn:
            rows.append(await projects.get(conn, one.project_id, one.role))
    return visit.page("projects.html", title="Projects", rows=rows)


@get("/dashboard/projects/new", operation_id="dashboard.projects.new")
async def new(request: Req) -> Response[bytes]:
    """Show the form of a project."""
    return _form(await visits.own(request))


def _form(visit: visits.Visit, fault: Fault | None = None) -> Response[bytes]:
    return visit.form(
        "New project", _PROJECT, fault=fault, is_for_all=True,
        lead="A wall of its own: nothing of it is seen from another project.",
    )  # fmt: skip


@post("/dashboard/projects/new", operation_id="dashboard.projects.create")
async def create(request: Req) -> Response[bytes]:
    """Make a project of the person's account and show its first steps."""
    visit = await visits.changing_own(request)
    try:
        asked = forms.read(NewProject, _PROJECT, visit.given, visit.zone)
        made = await projects.create(
            visit.services.database, visit.session, asked, key=visit.given.get(visits.KEY) or None
        )
    except Fault as fault:
        return _form(visit, fault)
    metrics.count("project.created")
    return pages.redirect(f"/dashboard/{made.id}/first-steps")


ROUTES: Final = [page, new, create]
