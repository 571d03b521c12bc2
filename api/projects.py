"""/v1/projects"""

from typing import Any, Final

from litestar import Request, delete, get, patch, post
from litestar.response import Response

from api import answers, auth, bodies, idempotency, metrics, pagination
from api.docs import shape
from api.lifespan import Services
from core import projects
from core.projects import NewProject, Project, ProjectPatch

Req = Request[Any, Any, Any]


@get(
    "/v1/projects",
    operation_id="projects.list",
    opt=shape(answer=pagination.Listed[Project]),
)
async def page(request: Req) -> Response[bytes]:
    """List the projects of who asks: a person's, or a key's one."""
    places = await auth.places(request)
    asked = pagination.asked(request, "prj")
    found = [
        place for place in places
        if asked.after is None or place.caller.project_id > asked.after
    ]  # fmt: skip
    services: Services = request.app.state.services
    shown = []
    for place in found[: asked.limit + 1]:
        project_id = place.caller.project_id
        async with services.database.transaction(project_id, reads_only=True) as conn:
            shown.append(await projects.get(conn, project_id, place.role))
    return answers.ok(pagination.listed(shown, asked))


@post(
    "/v1/projects", operation_id="projects.create",
    opt=shape(body=NewProject, answer=Project, status=201, asker="person"),
)  # fmt: skip
async def create(request: Req) -> Response[bytes]:
    """Make a project in the account of who is logged in."""
    session = await auth.session_of(request)
    _, new = await bodies.received(request, NewProject)
    services: Services = request.app.state.services
    key = idempotency.given_key(request)
    made = await projects.create(services.database, session, new, key=key)
    metrics.count("project.created")
    answer = answers.ok(made)
    answer.status_code = 201
    return answer


@get("/v1/projects/{id:str}", operation_id="projects.get", opt=shape(answer=Project))
async def show(request: Req, id: str) -> Response[bytes]:
    """Return a project."""
    place = await auth.place(request, id)
    services: Services = request.app.state.services
    async with services.database.transaction(place.caller.project_id, reads_only=True) as conn:
        return answers.ok(await projects.get(conn, place.caller.project_id, place.role))


@patch(
    "/v1/projects/{id:str}", operation_id="projects.update",
    opt=shape(body=ProjectPatch, answer=Project),
)  # fmt: skip
async def update(request: Req, id: str) -> Response[bytes]:
    """Change a project's name, time zone, rollback window, mails, or unused currency."""
    place = await auth.place(request, id)
    raw, wanted = await bodies.received(request, ProjectPatch)
    async with idempotency.write(request, place.caller, raw) as work:
        if not work.is_done:
            work.answer(200, await projects.patch(work.conn, place.caller, place.role, wanted))
    return work.response()


async def _become(request: Req, id: str, status: str) -> Response[bytes]:
    place = await auth.place(request, id, is_put_away=True)
    await bodies.received_nothing(request)
    async with idempotency.write(request, place.caller) as work:
        if not work.is_done:
            work.answer(200, await projects.set_status(work.conn, place.caller, place.role, status))
    return work.response()


@post(
    "/v1/projects/{id:str}/archive", operation_id="projects.archive", status_code=200,
    opt=shape(answer=Project),
)  # fmt: skip
async def archive(request: Req, id: str) -> Response[bytes]:
    """Put a project away: its keys stop, and nothing in it changes any more."""
    return await _become(request, id, "archived")


@post(
    "/v1/projects/{id:str}/restore", operation_id="projects.restore", status_code=200,
    opt=shape(answer=Project),
)  # fmt: skip
async def restore(request: Req, id: str) -> Response[bytes]:
    """Take an archived project back; its keys work again."""
    return await _become(request, id, "active")


@delete(
    "/v1/projects/{id:str}", operation_id="projects.delete", status_code=200,
    opt=shape(answer=Project),
)  # fmt: skip
async def remove(request: Req, id: str) -> Response[bytes]:
    """Delete a project for good: its sales are closed and settled, then nothing of it is left."""
    return await _become(request, id, "deleting")


ROUTES: Final = [page, create, show, update, archive, restore, remove]
