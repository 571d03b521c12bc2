"""The way in and out: log in, sign up, choose a project, choose light or dark."""

from typing import Any, Final
from urllib.parse import quote

from litestar import Request, get, post
from litestar.response import Response

from api import auth
from api.dashboard import forms, pages, visits
from api.dashboard.forms import Field
from api.lifespan import Services
from core import people, sessions
from core.errors import Fault
from core.people import LogIn, SignUp

Req = Request[Any, Any, Any]

_EMAIL: Final = Field("email", "E-mail", "email", required=True, autocomplete="username")
_LOG_IN: Final = (
    _EMAIL,
    Field("password", "Password", "password", required=True, autocomplete="current-password"),
    Field(
        "code",
        "Code of your second factor",
        hint="If you have set one up: from the app, or a recovery code.",
        autocomplete="one-time-code",
    ),
)
_SIGN_UP: Final = (
    _EMAIL,
    Field(
        "password", "Password", "password", required=True, autocomplete="new-password",
        hint="At least 10 characters.",
    ),
    Field("project_name", "Your shop’s name", required=True),
    Field(
        "currency", "Currency", required=True, value="EUR", hint="Three letters, such as EUR."
    ),
    Field(
        "time_zone", "Time zone", required=True, value="Europe/Berlin",
        hint="Such as Europe/Berlin; schedules and “today” go by it.",
    ),
)  # fmt: skip
_YEAR_S: Final = 31_536_000


def _here(back: str) -> str:
    """Return an address of the dashboard, whatever was asked for."""
    is_ours = back.startswith("/dashboard") and "//" not in back and "\\" not in back
    return back if is_ours and back.isprintable() else "/dashboard"


def to_log_in(back: str) -> Response[bytes]:
    """Send somebody to the log-in, and back afterwards."""
    return pages.redirect(f"/dashboard/log-in?back={quote(_here(back))}")


def _log_in_page(request: Req, given: forms.Given, fault: Fault | None = None) -> Response[bytes]:
    return shown(
        request, given, fault, "Log in", _LOG_IN, ("New here?", "/dashboard/sign-up", "Sign up"),
        has_forgotten=True,
    )  # fmt: skip


def _sign_up_page(request: Req, given: forms.Given, fault: Fault | None = None) -> Response[bytes]:
    other = ("Have an account?", "/dashboard/log-in", "Log in")
    return shown(request, given, fault, "Sign up", _SIGN_UP, other)


def shown(
    request: Req,
    given: forms.Given,
    fault: Fault | None,
    title: str,
    fields: tuple[Field, ...],
    other: tuple[str, str, str],
    *,
    hidden: dict[str, str] | None = None,
    note: str | None = None,
    has_forgotten: bool = False,
) -> Response[bytes]:
    """Answer a page for who is not logged in; its form goes to its own address.

    `other` is where else to go: a question, an address, its name.
    """
    text = pages.render(
        "log_in.html", theme=visits.theme_of(request), title=title, path=request.scope["path"],
        fields=fields, given=given, other=other, told=fault.detail if fault else None,
        back=_here(given.get("back", "") or request.query_params.get("back", "")),
        hidden=hidden or {}, note=note, has_forgotten=has_forgotten,
    )  # fmt: skip
    return pages.answer(text, 400 if fault else 200)


@get("/dashboard/log-in", operation_id="dashboard.log_in_page")
async def log_in_page(request: Req) -> Response[bytes]:
    """Show the log-in."""
    return _log_in_page(request, {})


@post("/dashboard/log-in", operation_id="dashboard.log_in")
async def log_in(request: Req) -> Response[bytes]:
    """Log in and go where the visitor wanted to."""
    auth.check_same_site(request)
    given = await forms.received(request)
    services: Services = request.app.state.services
    try:
        asked = forms.read(LogIn, _LOG_IN, given, "UTC")
        token, _ = await people.log_in(
            services.database, services.settings, asked, auth.visitor_of(request)
        )
    except Fault as fault:
        return _log_in_page(request, given, fault)
    return pages.redirect(
        _here(given.get("back", "")), {"Set-Cookie": auth.cookie(services, token)}
    )


@get("/dashboard/sign-up", operation_id="dashboard.sign_up_page")
async def sign_up_page(request: Req) -> Response[bytes]:
    """Show the form for a new account."""
    return _sign_up_page(request, {})


@post("/dashboard/sign-up", operation_id="dashboard.sign_up")
async def sign_up(request: Req) -> Response[bytes]:
    """Make an account with its first project, and show the first steps."""
    auth.check_same_site(request)
    given = await forms.received(request)
    services: Services = request.app.state.services
    try:
        asked = forms.read(SignUp, _SIGN_UP, given, "UTC")
        token, session = await people.sign_up(
            services.database, services.settings, asked, auth.visitor_of(request)
        )
    except Fault as fault:
        return _sign_up_page(request, given, fault)
    auth.ask_for_confirmation(services, session)
    first = f"{visits.root_of(session.memberships[0])}/first-steps"
    return pages.redirect(first, {"Set-Cookie": auth.cookie(services, token)})


@post("/dashboard/log-out", operation_id="dashboard.log_out")
async def log_out(request: Req) -> Response[bytes]:
    """End the session."""
    await visits.posted(request)
    services: Services = request.app.state.services
    await sessions.end(services.database, await visits.session_of(request))
    return pages.redirect("/dashboard/log-in", {"Set-Cookie": auth.cookie(services, None)})


@get(["/", "/dashboard"], operation_id="dashboard.start")
async def start(request: Req) -> Response[bytes]:
    """Go to the first of the visitor's projects."""
    session = await visits.session_of(request)
    if not session.memberships:
        return pages.answer(
            pages.render(
                "alone.html", theme=visits.theme_of(request), title="No project",
                detail="You are not in any project any more.", code="not_found",
                request_id=request.scope["state"]["request_id"],
            )
        )  # fmt: skip
    return pages.redirect(visits.root_of(session.memberships[0]))


@post("/dashboard/theme", operation_id="dashboard.theme")
async def theme(request: Req) -> Response[bytes]:
    """Keep light, dark, or what the system says."""
    auth.check_same_site(request)
    given = await forms.received(request)
    chosen = given.get("theme", "")
    kept = chosen if chosen in visits.THEMES else ""
    cookie = f"{visits.THEME_COOKIE}={kept}; Path=/; Max-Age={_YEAR_S}; HttpOnly; SameSite=Lax"
    return pages.redirect(_here(given.get("back", "")), {"Set-Cookie": cookie})


ROUTES: Final = [log_in_page, log_in, sign_up_page, sign_up, log_out, start, theme]
