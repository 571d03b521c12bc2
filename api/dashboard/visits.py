"""A visit: who is here, in which project, as what, and what they may change.

The session's cookie says who; the address says which project; the membership says what. A change
needs a role that may change, and the session's token in the form.
"""

import hmac
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final
from urllib.parse import quote

import msgspec
from litestar import Request
from litestar.response import Response

from api import auth, pagination
from api.dashboard import forms, pages
from api.dashboard.forms import Field
from api.lifespan import Services
from core import db, idempotency, ids, sessions
from core.api_keys import Caller
from core.errors import Fault, NotFound, Refusal, Unauthenticated
from core.flash_sales import SaleDesk
from core.sessions import Membership, Session

Req = Request[Any, Any, Any]
Work = Callable[[db.Connection], Awaitable[Any]]

# The form's own name for one submission: a double click is one change.
KEY: Final = "key"
CSRF: Final = "csrf"
THEME_COOKIE: Final = "vauchflow_theme"
THEMES: Final = ("light", "dark")


class LogInFirst(Exception):
    """Nobody is logged in. `back` is where the visitor wanted to go."""

    def __init__(self, back: str) -> None:
        """Take an address of the dashboard."""
        super().__init__(back)
        self.back = back


class Project(msgspec.Struct, frozen=True):
    """A project a person may open."""

    id: str
    name: str
    role: sessions.Role


class Visit:
    """One request of somebody who is logged in, in one project."""

    def __init__(self, request: Req, session: Session, member: Membership) -> None:
        """Made by `begun` and `changing` only."""
        self.request = request
        self.services: Services = request.app.state.services
        self.session = session
        self.member = member
        self.caller: Caller = session.caller(member.project_id)
        self.given: dict[str, str] = {}
        self.root = root_of(member)

    @property
    def desk(self) -> SaleDesk:
        """What steers flash sales."""
        assert self.services.doors is not None
        return self.services.doors.desk

    @property
    def may_change(self) -> bool:
        """Whether the visitor's role and the project's state let anything be changed."""
        return self.member.role != "analyst" and self.member.status == "active"

    @property
    def zone(self) -> str:
        """The project's time zone."""
        return self.member.time_zone

    def reading(self) -> AbstractAsyncContextManager[db.Connection]:
        """Open a transaction that reads this project."""
        return self.services.database.transaction(self.caller.project_id, reads_only=True)

    def asked(self, prefix: ids.Prefix, *filters: str) -> pagination.Page:
        """Read the query of a list as the API does; an empty filter was not given."""
        page = pagination.asked(self.request, prefix, *filters, "done")
        given = {name: text for name, text in page.filters.items() if text and name != "done"}
        return pagination.Page(page.limit, page.after, given)

    def page(self, template: str, code: int = 200, **context: Any) -> Response[bytes]:
        """Answer a page of this project."""
        done = self.request.query_params.get("done", "")
        path: str = self.request.scope["path"]
        below = path.removeprefix(self.root) if path.startswith(f"{self.root}/") else ""
        return pages.answer(
            pages.render(
                template,
                theme=theme_of(self.request),
                my_email=self.session.email,
                projects=projects_of(self.session),
                member=self.member,
                may_change=self.may_change,
                csrf=csrf_of(self.request),
                root=self.root,
                zone=self.zone,
                currency=self.caller.currency,
                path=path,
                section="/".join(below.split("/")[:2]),
                nav=pages.NAVIGATION,
                table=pages.table_of(template, path, dict(self.request.query_params)),
                notice=pages.NOTICES.get(done),
                undo=pages.undo_of(below, done),
                new_key=ids.format_id("evt", ids.new()),
                **context,
            ),
            code,
        )

    def form(
        self,
        title: str,
        fields: tuple[Field, ...],
        *,
        send: str = "Create",
        template: str = "form.html",
        fault: Fault | None = None,
        refusal: Refusal | None = None,
        is_for_all: bool = False,
        **context: Any,
    ) -> Response[bytes]:
        """Answer a form, empty or as it was posted with what is wrong with it.

        `is_for_all`: also to who may change nothing in the project. Raises: Forbidden.
        """
        if not is_for_all:
            sessions.require_writer(self.member)
        blamed = forms.blamed(fields, fault.field if fault else None)
        told = fault.detail if fault and not blamed else refusal.detail if refusal else None
        status = 409 if refusal else 400 if fault else 200
        return self.page(
            template, status, title=title, fields=fields, given=self.given, send=send, told=told,
            blamed=blamed, sentence=fault.detail if fault else "", **context,
        )  # fmt: skip

    async def once(self, work: Work) -> Any:
        """Do a change in one transaction, once for the form's key; a repetition returns None.

        A refusal rolls it back and is returned. Raises: what `work` does.
        """
        key = self.given.get(KEY) or None
        text = msgspec.json.encode([self.request.scope["path"], sorted(self.given.items())])
        secret = self.services.settings.secret.encode()
        fingerprint = hmac.digest(secret, text, "sha256")
        attempt = idempotency.Attempt(self.caller.project_id, key and f"form {key}", fingerprint)
        try:
            async with idempotency.once(self.services.database, attempt) as once:
                if once.stored is not None:
                    return None
                result = await work(once.conn)
                if isinstance(result, Refusal):
                    raise idempotency.Refused(result)
                once.keep(303, b"")
                return result
        except idempotency.Refused as refused:
            return refused.refusal

    async def act(self, work: Work, then: str, done: str) -> Response[bytes]:
        """Do a change and look at `then`, below the project; what is refused is shown."""
        result = await self.once(work)
        return self.refused(result) if isinstance(result, Refusal) else self.redirect(then, done)

    def redirect(self, then: str, done: str = "") -> Response[bytes]:
        """Look at an address below the project, which says what was done."""
        mark = "&" if "?" in then else "?"
        return pages.redirect(f"{self.root}{then}" + (f"{mark}done={quote(done)}" if done else ""))

    def refused(self, refusal: Refusal) -> Response[bytes]:
        """Answer that a change was not made, and why."""
        return self.page(
            "problem.html", 409, title="Not done", detail=refusal.detail, refusal=refusal.code
        )


async def begun(request: Req, project: str) -> Visit:
    """Return the visit to a project's page. Raises: LogInFirst; NotFound, also for others'."""
    session = await session_of(request)
    return Visit(request, session, session.membership(ids.parse_id("prj", project)))


async def changing(request: Req, project: str, *, is_put_away: bool = False) -> Visit:
    """Return the visit of a posted form, which `given` holds.

    `is_put_away`: also in a project that is archived. Raises: LogInFirst, NotFound; Forbidden for a
    role that may not change anything; InvalidCsrfToken for a form that is not of this session.
    """
    given = await posted(request)
    visit = await begun(request, project)
    sessions.require_writer(visit.member, is_put_away=is_put_away)
    visit.given = given
    return visit


async def own(request: Req) -> Visit:
    """Return the visit to a page of the person's own, in the project it names or their first.

    Raises: LogInFirst; NotFound for who is in no project.
    """
    session = await session_of(request)
    named = request.query_params.get("project")
    if named is not None:
        return Visit(request, session, session.membership(ids.parse_id("prj", named)))
    if not session.memberships:
        raise NotFound("You are in no project any more.")
    return Visit(request, session, session.memberships[0])


async def changing_own(request: Req) -> Visit:
    """Return the visit of a posted form about the person, which `given` holds; any role may.

    Raises: LogInFirst, NotFound, InvalidCsrfToken.
    """
    given = await posted(request)
    visit = await own(request)
    visit.given = given
    return visit


async def posted(request: Req) -> dict[str, str]:
    """Read a form of the session's own pages. Raises: LogInFirst, InvalidCsrfToken, Invalid."""
    auth.check_same_site(request)
    given = await forms.received(request)
    check_csrf(request, given)
    given.pop(CSRF, None)
    return given


def check_csrf(request: Req, given: forms.Given) -> None:
    """Let only forms of the session's own pages pass. Raises: LogInFirst, InvalidCsrfToken."""
    token = auth.session_token(request)
    if token is None:
        raise LogInFirst("/dashboard")
    services: Services = request.app.state.services
    sessions.check_csrf(token, given.get(CSRF, ""), secret=services.settings.secret)


async def session_of(request: Req) -> Session:
    """Return who is logged in. Raises: LogInFirst, Unavailable."""
    services: Services = request.app.state.services
    token = auth.session_token(request) or ""
    try:
        return await sessions.find(services.database, token, secret=services.settings.secret)
    except Unauthenticated:
        query = request.scope.get("query_string", b"").decode("latin-1")
        is_page = request.method == "GET"
        back = request.scope["path"] + (f"?{query}" if query else "") if is_page else "/dashboard"
        raise LogInFirst(back) from None


def csrf_of(request: Req) -> str:
    """Return what the forms of a page send along."""
    services: Services = request.app.state.services
    token = auth.session_token(request) or ""
    return sessions.csrf_token(token, secret=services.settings.secret)


def root_of(member: Membership) -> str:
    """Return the address of a project's pages."""
    return f"/dashboard/{ids.format_id('prj', member.project_id)}"


def projects_of(session: Session) -> list[Project]:
    """Return the projects to choose from."""
    return [
        Project(ids.format_id("prj", one.project_id), one.name, one.role)
        for one in session.memberships
    ]


def theme_of(request: Req) -> str:
    """Return the chosen theme, empty for the system's."""
    chosen = request.cookies.get(THEME_COOKIE, "")
    return chosen if chosen in THEMES else ""
