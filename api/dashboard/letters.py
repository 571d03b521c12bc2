"""What mails lead to: a new password, and a place in somebody's project."""

from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

from litestar import Request, get, post
from litestar.response import Response

from api import auth
from api.dashboard import entry, forms, pages, visits
from api.dashboard.forms import Field
from api.lifespan import Services
from core import confirmations, credentials, members, people
from core.confirmations import Confirmation
from core.credentials import ForgottenPassword, NewPassword
from core.errors import Fault
from core.people import SignUp

Req = Request[Any, Any, Any]

_FORGOTTEN: Final = (Field("email", "E-mail", "email", required=True, autocomplete="username"),)
_PASSWORD: Final = Field(
    "password", "New password", "password", required=True, autocomplete="new-password",
    hint="At least 10 characters.",
)  # fmt: skip
_TOKEN: Final = Field("token", "Token")
_LOG_IN: Final = ("Remembered it?", "/dashboard/log-in", "Log in")


@get("/dashboard/forgotten", operation_id="dashboard.forgotten_page")
async def forgotten_page(request: Req) -> Response[bytes]:
    """Show the form for a forgotten password."""
    return entry.shown(request, {}, None, "Forgotten password", _FORGOTTEN, _LOG_IN)


@post("/dashboard/forgotten", operation_id="dashboard.forgotten")
async def forgotten(request: Req) -> Response[bytes]:
    """Send the mail; the answer is the same to somebody who has no account."""
    auth.check_same_site(request)
    given = await forms.received(request)
    services: Services = request.app.state.services
    try:
        asked = forms.read(ForgottenPassword, _FORGOTTEN, given, "UTC")
        mail = await credentials.forget(
            services.database, services.settings, asked, auth.visitor_of(request)
        )
    except Fault as fault:
        return entry.shown(request, given, fault, "Forgotten password", _FORGOTTEN, _LOG_IN)
    if mail is not None:
        services.mailer.send(mail)
    note = "If somebody has an account with this e-mail, a link is on its way to them."
    return entry.shown(request, {}, None, "Forgotten password", (), _LOG_IN, note=note)


def _reset_page(request: Req, token: str, fault: Fault | None = None) -> Response[bytes]:
    return entry.shown(
        request, {}, fault, "New password", (_PASSWORD,), _LOG_IN, hidden={"token": token}
    )


@get("/dashboard/password-reset", operation_id="dashboard.reset_page")
async def reset_page(request: Req) -> Response[bytes]:
    """Show the form that the mail's link leads to."""
    return _reset_page(request, request.query_params.get("token", ""))


@post("/dashboard/password-reset", operation_id="dashboard.reset")
async def reset(request: Req) -> Response[bytes]:
    """Set the new password, once; every session ends."""
    auth.check_same_site(request)
    given = await forms.received(request)
    services: Services = request.app.state.services
    try:
        asked = forms.read(NewPassword, (_PASSWORD, _TOKEN), given, "UTC")
        await credentials.reset(services.database, services.settings, asked)
    except Fault as fault:
        return _reset_page(request, given.get("token", ""), fault)
    return pages.redirect("/dashboard/log-in")


@get("/dashboard/invitation", operation_id="dashboard.invitation_page")
async def invitation_page(request: Req) -> Response[bytes]:
    """Show what somebody is asked to join, to who is logged in and who is not."""
    return await _invitation_page(request, request.query_params.get("token", ""), {})


async def _invitation_page(
    request: Req, token: str, given: forms.Given, fault: Fault | None = None
) -> Response[bytes]:
    services: Services = request.app.state.services
    asked = await members.invited(services.database, services.settings, token)
    hidden = {"token": token}
    fields: tuple[Field, ...] = ()
    back = quote(f"/dashboard/invitation?token={token}")
    other = ("Have an account?", f"/dashboard/log-in?back={back}", "Log in first")
    try:
        session = await visits.session_of(request)
        hidden["csrf"] = visits.csrf_of(request)
        other = (f"You are {session.email}.", "/dashboard", "Not now")
    except visits.LogInFirst:
        email = Field("email", "E-mail", "email", value=asked.email, required=True)
        fields = (email, _PASSWORD)
    return entry.shown(
        request, given, fault, f"Join {asked.project_name}", fields, other, hidden=hidden,
        note=f"You are asked to come as {asked.role}.",
    )  # fmt: skip


@post("/dashboard/invitation", operation_id="dashboard.invitation")
async def invitation(request: Req) -> Response[bytes]:
    """Join: with the account of who is logged in, or a new one."""
    auth.check_same_site(request)
    given = await forms.received(request)
    try:
        headers = await _joined(request, given)
    except Fault as fault:
        return await _invitation_page(request, given.get("token", ""), given, fault)
    return pages.redirect("/dashboard", headers)


async def _joined(request: Req, given: forms.Given) -> dict[str, str]:
    """Make the visitor a member; return the headers that log a new one in."""
    services: Services = request.app.state.services
    token = given.get("token", "")
    try:
        session = await visits.session_of(request)
    except visits.LogInFirst:
        fields = (Field("email", "E-mail"), _PASSWORD)
        new = forms.read(SignUp, fields, given, "UTC", {"invitation": token})
        made, session = await people.sign_up(
            services.database, services.settings, new, auth.visitor_of(request)
        )
        auth.ask_for_confirmation(services, session)
        return {"Set-Cookie": auth.cookie(services, made)}
    visits.check_csrf(request, given)
    asked = await members.invited(services.database, services.settings, token)
    async with services.database.transaction(asked.project_id) as conn:
        await members.accept(conn, session.user_id, asked)
    return {}


def _confirm_page(request: Req, token: str, fault: Fault | None = None) -> Response[bytes]:
    return entry.shown(
        request, {}, fault, "Confirm your e-mail", (), ("", "/dashboard", "Not now"),
        hidden={"token": token}, note="Then we know that our mails reach you.",
    )  # fmt: skip


@get("/dashboard/confirm-email", operation_id="dashboard.confirm_page")
async def confirm_page(request: Req) -> Response[bytes]:
    """Show the button that the mail's link leads to: looking alone confirms nothing."""
    return _confirm_page(request, request.query_params.get("token", ""))


@post("/dashboard/confirm-email", operation_id="dashboard.confirm")
async def confirm(request: Req) -> Response[bytes]:
    """Write down that the e-mail is theirs, whoever is logged in."""
    auth.check_same_site(request)
    given = await forms.received(request)
    services: Services = request.app.state.services
    try:
        asked = forms.read(Confirmation, (_TOKEN,), given, "UTC")
        await confirmations.confirm(services.database, services.settings, asked, datetime.now(UTC))
    except Fault as fault:
        return _confirm_page(request, given.get("token", ""), fault)
    return pages.redirect("/dashboard")


ROUTES: Final = [
    forgotten_page, forgotten, reset_page, reset, invitation_page, invitation,
    confirm_page, confirm,
]  # fmt: skip
