"""A person's own page: the second factor, the password, and where they are logged in."""

from typing import Any, Final

from litestar import Request, get, post
from litestar.response import Response

from api import auth, metrics
from api.dashboard import forms, pages, qr_codes, visits
from api.dashboard.forms import Field
from api.dashboard.visits import Visit
from core import credentials, sessions
from core.credentials import FirstCode, PasswordChange, Proof
from core.errors import Fault

Req = Request[Any, Any, Any]

_PROOF: Final = (
    Field("password", "Your password", "password", required=True, autocomplete="current-password"),
)
_CODE: Final = (
    Field(
        "code", "The six digits that the app shows", required=True, autocomplete="one-time-code"
    ),
)  # fmt: skip
_PASSWORD: Final = (
    Field(
        "current_password", "Your password now", "password", required=True,
        autocomplete="current-password",
    ),
    Field(
        "password", "New password", "password", required=True, autocomplete="new-password",
        hint="At least 10 characters.",
    ),
)  # fmt: skip


@get("/dashboard/account", operation_id="dashboard.account")
async def page(request: Req) -> Response[bytes]:
    """Show the visitor's own page."""
    return await _shown(await visits.own(request))


async def _shown(visit: Visit, fault: Fault | None = None, at: str = "") -> Response[bytes]:
    """Answer the page; `at`: which of its forms the fault is of."""
    logged_in = await sessions.listed(visit.services.database, visit.session)
    return visit.page(
        "account.html", 400 if fault else 200, title="Your account", me=visit.session,
        told=fault.detail if fault else None, at=at, logged_in=logged_in, proof=_PROOF,
        password=_PASSWORD,
    )  # fmt: skip


@post("/dashboard/account/second-factor", operation_id="dashboard.account.begin")
async def begin(request: Req) -> Response[bytes]:
    """Show what an app is told, once; it counts when its first code was typed."""
    visit = await visits.changing_own(request)
    try:
        made = await credentials.begin_second_factor(
            visit.services.database, visit.services.settings, visit.session,
            forms.read(Proof, _PROOF, visit.given, "UTC"), auth.visitor_of(request),
        )  # fmt: skip
    except Fault as fault:
        return await _shown(visit, fault, "factor")
    return visit.page(
        "second_factor.html", title="Second factor", made=made, told=None, fields=_CODE,
        drawing=qr_codes.path_of(made.uri),
    )  # fmt: skip


@post("/dashboard/account/second-factor/confirm", operation_id="dashboard.account.confirm")
async def confirm(request: Req) -> Response[bytes]:
    """Make the second factor count, and show the recovery codes, once."""
    visit = await visits.changing_own(request)
    try:
        codes = await credentials.confirm_second_factor(
            visit.services.database, visit.services.settings, visit.session,
            forms.read(FirstCode, _CODE, visit.given, "UTC"), auth.visitor_of(request),
        )  # fmt: skip
    except Fault as fault:
        return visit.page(
            "second_factor.html", 400, title="Second factor", made=None, told=fault.detail,
            fields=_CODE, drawing=None,
        )  # fmt: skip
    metrics.count("person.second_factor")
    return visit.page("recovery_codes.html", title="Recovery codes", codes=codes.recovery_codes)


@post("/dashboard/account/second-factor/remove", operation_id="dashboard.account.remove")
async def remove(request: Req) -> Response[bytes]:
    """Take the second factor away."""
    visit = await visits.changing_own(request)
    try:
        await credentials.remove_second_factor(
            visit.services.database, visit.session,
            forms.read(Proof, _PROOF, visit.given, "UTC"), auth.visitor_of(request),
        )  # fmt: skip
    except Fault as fault:
        return await _shown(visit, fault, "factor")
    return _back("second-factor-off")


@post("/dashboard/account/password", operation_id="dashboard.account.password")
async def password(request: Req) -> Response[bytes]:
    """Set another password; the other sessions end."""
    visit = await visits.changing_own(request)
    try:
        await credentials.change_password(
            visit.services.database, visit.session,
            forms.read(PasswordChange, _PASSWORD, visit.given, "UTC"), auth.visitor_of(request),
        )  # fmt: skip
    except Fault as fault:
        return await _shown(visit, fault, "password")
    return _back("password")


@post("/dashboard/account/sessions/{session:str}/end", operation_id="dashboard.account.end")
async def end(request: Req, session: str) -> Response[bytes]:
    """Log out at another place."""
    visit = await visits.changing_own(request)
    await sessions.end(visit.services.database, visit.session, session)
    return _back("session-ended")


def _back(done: str) -> Response[bytes]:
    return pages.redirect(f"/dashboard/account?done={done}")


ROUTES: Final = [page, begin, confirm, remove, password, end]
