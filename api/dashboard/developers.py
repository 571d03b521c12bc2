"""Keys, the audit log, and where the documentation is."""

from typing import Any, Final

from litestar import Request, get, post
from litestar.response import Response

from api import api_keys as of_api
from api import pagination
from api.api_keys import NewKey
from api.dashboard import forms, visits
from api.dashboard.forms import Field
from api.dashboard.visits import Visit
from core import api_keys, audit_log, db
from core.api_keys import ApiKey
from core.audit_log import Filters
from core.errors import Fault

Req = Request[Any, Any, Any]

_KEY: Final = (
    Field(
        "type", "Kind", "choice", value="SECRET",
        choices=(
            ("SECRET", "Secret: for your server"), ("PUBLISHABLE", "Publishable: for browsers"),
            ("AGENT", "Agent: with scopes and an end"),
        ),
    ),
    Field("name", "Name", hint="Where it is used, such as checkout."),
    Field("scopes", "Scopes", "words", hint="Such as vouchers:read, *:read. Empty: everything."),
    Field("origins", "Origins", "words", hint="For browsers: such as https://shop.example."),
    Field("expires_in_days", "Ends after days", "number"),
)  # fmt: skip
_FILTERS: Final = ("action", "actor", "target")


@get("/dashboard/{project:str}/developers", operation_id="dashboard.developers")
async def page(request: Req, project: str) -> Response[bytes]:
    """Show the project's keys and how to begin."""
    return await _shown(await visits.begun(request, project))


async def _shown(
    visit: Visit, fault: Fault | None = None, made: tuple[ApiKey, str] | None = None
) -> Response[bytes]:
    asked = visit.asked("key")
    async with visit.reading() as conn:
        rows = await api_keys.page(conn, visit.caller, after=asked.after, limit=asked.limit + 1)
    listed = pagination.listed(rows, asked)
    status = 400 if fault else 201 if made else 200
    return visit.page(
        "developers.html", status, title="Developers", rows=listed.data, has_more=listed.has_more,
        fields=_KEY, told=fault.detail if fault else None, token=made[1] if made else None,
        base_url=visit.services.settings.base_url, given=visit.given,
    )  # fmt: skip


@post("/dashboard/{project:str}/developers", operation_id="dashboard.developers.create")
async def create(request: Req, project: str) -> Response[bytes]:
    """Make a key and show it, once."""
    visit = await visits.changing(request, project)
    secret = visit.services.settings.secret

    async def work(conn: db.Connection) -> tuple[ApiKey, str]:
        asked = forms.read(NewKey, _KEY, visit.given, visit.zone)
        new = of_api.checked(request, asked)
        return await api_keys.create(conn, visit.caller, new, secret=secret)

    try:
        return await _shown(visit, made=await visit.once(work))
    except Fault as fault:
        return await _shown(visit, fault)


@post(
    "/dashboard/{project:str}/developers/{key:str}/revoke",
    operation_id="dashboard.developers.revoke",
)
async def revoke(request: Req, project: str, key: str) -> Response[bytes]:
    """Revoke a key."""
    visit = await visits.changing(request, project)

    async def work(conn: db.Connection) -> ApiKey:
        return await api_keys.revoke(conn, visit.caller, key)

    return await visit.act(work, "/developers", "revoked")


@get("/dashboard/{project:str}/audit-log", operation_id="dashboard.audit_log")
async def audit(request: Req, project: str) -> Response[bytes]:
    """List who changed what, newest first."""
    visit = await visits.begun(request, project)
    asked = visit.asked("aud", *_FILTERS)
    async with visit.reading() as conn:
        rows = await audit_log.page(
            conn, visit.caller, Filters(**asked.filters), after=asked.after, limit=asked.limit + 1
        )
    listed = pagination.listed(rows, asked)
    given = {name: asked.filters.get(name, "") for name in _FILTERS}
    return visit.page(
        "audit_log.html", title="Audit log", rows=listed.data, has_more=listed.has_more, asked=given
    )


ROUTES: Final = [page, create, revoke, audit]
