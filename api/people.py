"""/v1/auth"""

from datetime import datetime
from typing import Any, Final

import msgspec
from litestar import Request, delete, get, post
from litestar.response import Response

from api import answers, auth, bodies, metrics
from api.docs import shape
from api.lifespan import Services
from core import ids, members, people, sessions
from core.people import LogIn, SignUp
from core.sessions import Role, Session

Req = Request[Any, Any, Any]


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """A project of a person, and what they may do there."""

    id: str
    name: str
    currency: str
    time_zone: str
    status: str
    role: Role


class Me(msgspec.Struct, frozen=True, kw_only=True):
    """Who is logged in. Every write of theirs carries the `X-CSRF-Token`."""

    id: str
    email: str
    name: str | None
    is_email_confirmed: bool
    has_second_factor: bool
    projects: list[Membership]
    csrf_token: str
    logged_in_at: datetime
    expires_at: datetime


class LoggedIn(msgspec.Struct, frozen=True, kw_only=True):
    """A place where a person is logged in."""

    id: str
    is_this_one: bool
    address: str
    agent: str | None
    logged_in_at: datetime
    seen_at: datetime
    expires_at: datetime


class Sessions(msgspec.Struct, frozen=True, kw_only=True):
    """Where a person is logged in, newest first."""

    data: list[LoggedIn]


class Token(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the mail of an invitation holds."""

    token: people.Token


class LoggedOut(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a session."""

    status: str = "logged_out"


def shown(services: Services, token: str, session: Session) -> Me:
    """Write who is logged in as the API shows it."""
    return Me(
        id=ids.format_id("usr", session.user_id),
        email=session.email,
        name=session.name,
        is_email_confirmed=session.is_email_confirmed,
        has_second_factor=session.has_second_factor,
        projects=[
            Membership(
                id=ids.format_id("prj", one.project_id), name=one.name, currency=one.currency,
                time_zone=one.time_zone, status=one.status, role=one.role,
            )
            for one in session.memberships
        ],
        csrf_token=sessions.csrf_token(token, secret=services.settings.secret),
        logged_in_at=session.created_at,
        expires_at=session.expires_at,
    )  # fmt: skip


def _welcomed(services: Services, status: int, token: str, session: Session) -> Response[bytes]:
    return Response(
        msgspec.json.encode(shown(services, token, session)),
        status_code=status,
        media_type="application/json",
        headers={"Set-Cookie": auth.cookie(services, token)},
    )


@post(
    "/v1/auth/sign-up",
    operation_id="auth.sign_up",
    opt=shape(body=SignUp, answer=Me, status=201, asker="anybody"),
)
async def sign_up(request: Req) -> Response[bytes]:
    """Make an account with a first project, and log in."""
    auth.check_same_site(request)
    _, new = await bodies.received(request, SignUp)
    services: Services = request.app.state.services
    token, session = await people.sign_up(
        services.database, services.settings, new, auth.visitor_of(request)
    )
    auth.ask_for_confirmation(services, session)
    metrics.count("person.signed_up")
    return _welcomed(services, 201, token, session)


@post(
    "/v1/auth/log-in", operation_id="auth.log_in", status_code=200,
    opt=shape(body=LogIn, answer=Me, asker="anybody"),
)  # fmt: skip
async def log_in(request: Req) -> Response[bytes]:
    """Log in; the answer sets the session's cookie."""
    auth.check_same_site(request)
    _, given = await bodies.received(request, LogIn)
    services: Services = request.app.state.services
    token, session = await people.log_in(
        services.database, services.settings, given, auth.visitor_of(request)
    )
    metrics.count("person.logged_in")
    return _welcomed(services, 200, token, session)


@post(
    "/v1/auth/log-out", operation_id="auth.log_out", status_code=200,
    opt=shape(answer=LoggedOut, asker="person"),
)  # fmt: skip
async def log_out(request: Req) -> Response[bytes]:
    """End the session; its cookie is worth nothing from now on."""
    await bodies.received_nothing(request)
    services: Services = request.app.state.services
    await sessions.end(services.database, await auth.session_of(request))
    answer = answers.ok(LoggedOut())
    answer.headers["Set-Cookie"] = auth.cookie(services, None)
    return answer


@get("/v1/auth/me", operation_id="auth.me", opt=shape(answer=Me, asker="person"))
async def me(request: Req) -> Response[bytes]:
    """Return who is logged in, and their projects."""
    return await _me(request)


async def _me(request: Req) -> Response[bytes]:
    session = await auth.session_of(request)
    token = auth.session_token(request)
    assert token is not None
    return answers.ok(shown(request.app.state.services, token, session))


@get(
    "/v1/auth/sessions", operation_id="auth.sessions",
    opt=shape(answer=Sessions, asker="person"),
)  # fmt: skip
async def logged_in(request: Req) -> Response[bytes]:
    """Return where this person is logged in."""
    session = await auth.session_of(request)
    services: Services = request.app.state.services
    found = await sessions.listed(services.database, session)
    return answers.ok(Sessions(data=[_place(one, session) for one in found]))


def _place(one: sessions.LoggedIn, session: Session) -> LoggedIn:
    return LoggedIn(
        id=ids.format_id("ses", one.id), is_this_one=one.id == session.id, address=one.address,
        agent=one.agent, logged_in_at=one.created_at, seen_at=one.seen_at,
        expires_at=one.expires_at,
    )  # fmt: skip


@delete(
    "/v1/auth/sessions/{id:str}", operation_id="auth.end_session", status_code=200,
    opt=shape(answer=LoggedOut, asker="person"),
)  # fmt: skip
async def end_session(request: Req, id: str) -> Response[bytes]:
    """Log this person out somewhere."""
    session = await auth.session_of(request)
    await bodies.received_nothing(request)
    await sessions.end(request.app.state.services.database, session, id)
    return answers.ok(LoggedOut())


@post(
    "/v1/auth/invitations/accept", operation_id="auth.accept_invitation", status_code=200,
    opt=shape(body=Token, answer=Me, asker="person"),
)  # fmt: skip
async def accept(request: Req) -> Response[bytes]:
    """Join the project of an invitation, as who is logged in."""
    session = await auth.session_of(request)
    _, given = await bodies.received(request, Token)
    services: Services = request.app.state.services
    invited = await members.invited(services.database, services.settings, given.token)
    async with services.database.transaction(invited.project_id) as conn:
        await members.accept(conn, session.user_id, invited)
    return await _me(request)


ROUTES: Final = [sign_up, log_in, log_out, me, logged_in, end_session, accept]
