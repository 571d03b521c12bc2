"""Who is calling, and whether they may: an API key, or the session of a person's cookie.

A session names its project by the header `VauchFlow-Project`. A browser sends cookies along with
whatever page asks, so a write with one needs the session's own `X-CSRF-Token`, too.

Every operation needs the scope of its noun, `vouchers:read` for GET and what changes nothing,
`vouchers:write` for the rest; a key without scopes has all of them.
"""

import contextlib
from typing import Any, Final

import msgspec
from litestar import Request
from litestar.handlers import BaseRouteHandler

from api import idempotency
from api.lifespan import Services
from core import confirmations, ids, projects, sessions
from core.api_keys import Caller
from core.errors import (
    Forbidden,
    Invalid,
    InvalidCsrfToken,
    MissingScope,
    NotFound,
    OriginNotAllowed,
    PlanLimit,
    Unauthenticated,
    Unavailable,
)
from core.lookups import Asker
from core.sessions import Role, Session, Visitor
from core.usage import Ticket

# A key has 55 characters; a header far longer is not one and is not looked at.
_HEADER_LENGTH_MAX: Final = 512
# With this prefix a browser keeps a cookie to this very host, and to https.
_COOKIE: Final = "vauchflow_session"
_COOKIE_OF_HTTPS: Final = "__Host-vauchflow_session"
# A browser sends what several sites on one host have set; the largest jars have 8 kB.
_COOKIES_LENGTH_MAX: Final = 16_384

PROJECT: Final = "VauchFlow-Project"
CSRF: Final = "X-CSRF-Token"

# What is asked by POST and changes nothing.
_READS: Final = frozenset(
    {"vouchers.validate", "validations.create", "qualifications.create", "gift_cards.lookup"}
)
# Redeeming is one thing, whichever address it goes to.
REDEEM_SCOPE: Final = "redemptions:write"
_REDEEMS: Final = frozenset({"vouchers.redeem", "flash_sales.claim", "vouchers.rollback"})
# What shows the way on when a plan has come to its end.
_ALWAYS: Final = frozenset({"usage", "billing"})


def scope_of(operation_id: str, method: str) -> str:
    """Return the scope that an operation needs."""
    if operation_id in _REDEEMS:
        return REDEEM_SCOPE
    is_read = method in ("GET", "HEAD") or operation_id in _READS
    return f"{operation_id.partition('.')[0]}:{'read' if is_read else 'write'}"


def token_of(authorization: bytes | None) -> bytes:
    """Return the key from a header's value. Raises: Unauthenticated."""
    if not authorization:
        raise Unauthenticated(
            "Send your API key in the header Authorization: Bearer vf_sk_…", code="missing_key"
        )
    if authorization[:7].lower() != b"bearer " or len(authorization) > _HEADER_LENGTH_MAX:
        raise Unauthenticated(
            "The header Authorization must read: Bearer vf_sk_…", code="malformed_key"
        )
    return authorization[7:].strip()


async def caller_of(services: Services, authorization: bytes | None) -> Caller:
    """Return who calls. Cost: one dict look-up for a key this process knows.

    Raises: Unauthenticated, Unavailable.
    """
    token = token_of(authorization)
    return services.keys.peek(token) or await services.keys.resolve(token)


def require_secret(caller: Caller) -> Caller:
    """Let only server-side keys and people pass. Raises: Forbidden."""
    if not caller.is_secret:
        raise Forbidden("This needs a secret key (vf_sk_…); yours is for browsers.")
    return caller


def require_scope(caller: Caller, scope: str) -> Caller:
    """Let only keys with a scope pass. Raises: MissingScope."""
    if not caller.may(scope):
        raise MissingScope(scope)
    return caller


def require_origin(caller: Caller, origin: bytes | None) -> Caller:
    """Let a browser's key pass on the pages it was made for. Raises: OriginNotAllowed."""
    if caller.origins and (origin or b"").decode("latin-1") not in caller.origins:
        raise OriginNotAllowed
    return caller


async def any_caller(request: Request[Any, Any, Any]) -> Caller:
    """Return who calls, also with a browser's key or a person's session.

    Raises: Unauthenticated, RateLimited, PlanLimit, Forbidden, MissingScope, OriginNotAllowed,
    InvalidCsrfToken, Invalid, NotFound, Unavailable.
    """
    services: Services = request.app.state.services
    if _is_person(request):
        return await _person(request)
    caller = await caller_of(services, _header(request, b"authorization"))
    route: BaseRouteHandler = request.route_handler
    operation = str(getattr(route, "operation_id", ""))
    stops = operation.partition(".")[0] not in _ALWAYS
    try:
        ticket = await services.let_in(caller, stops=stops)
    except PlanLimit:
        if not await idempotency.is_replay(request, caller):
            raise
        ticket = Ticket(caller, False)
    request.scope["state"]["ticket"] = ticket
    if caller.scopes is not None:
        require_scope(caller, scope_of(operation, request.method))
    return require_origin(caller, _header(request, b"origin")) if caller.origins else caller


async def secret_caller(request: Request[Any, Any, Any]) -> Caller:
    """Return who calls with a server-side key or a session. Raises: as `any_caller`, Forbidden."""
    return require_secret(await any_caller(request))


async def session_of(request: Request[Any, Any, Any]) -> Session:
    """Return the session of the request's cookie; a write shows that it comes from its own pages.

    Raises: Unauthenticated, InvalidCsrfToken, Unavailable.
    """
    services: Services = request.app.state.services
    token = session_token(request)
    if token is None:
        raise Unauthenticated("Nobody is logged in here.", code="invalid_session")
    secret = services.settings.secret
    session = await sessions.find(services.database, token, secret=secret)
    if request.method != "GET":
        check_same_site(request)
        given = _header(request, CSRF.lower().encode()) or b""
        sessions.check_csrf(token, given.decode("latin-1"), secret=secret)
    return session


class Place(msgspec.Struct, frozen=True):
    """A project, who asks of it, and what they are in it; a key has no role."""

    caller: Caller
    role: Role | None


async def places(request: Request[Any, Any, Any]) -> list[Place]:
    """Return the projects of who asks, by id: a person's, or a key's one. Raises: as `place`."""
    if _is_person(request):
        session = await session_of(request)
        return [Place(session.caller(one.project_id), one.role) for one in session.memberships]
    return [Place(await secret_caller(request), None)]


async def place(
    request: Request[Any, Any, Any], public_id: str, *, is_put_away: bool = False
) -> Place:
    """Return who asks of a project that is named in the address.

    `is_put_away`: a write that an archived project takes, too.
    Raises: NotFound, also for a project of others; else as `secret_caller`.
    """
    project_id = ids.parse_id("prj", public_id)
    if not _is_person(request):
        caller = await secret_caller(request)
        if caller.project_id != project_id:
            raise NotFound(projects.NO_PROJECT)
        return Place(caller, None)
    session = await session_of(request)
    membership = session.membership(project_id)
    if request.method != "GET":
        sessions.require_writer(membership, is_put_away=is_put_away)
    return Place(session.caller(project_id), membership.role)


def _is_person(request: Request[Any, Any, Any]) -> bool:
    return _header(request, b"authorization") is None and session_token(request) is not None


async def _person(request: Request[Any, Any, Any]) -> Caller:
    session = await session_of(request)
    named = _header(request, PROJECT.lower().encode())
    if named is not None:
        project_id = ids.parse_id("prj", named.decode("latin-1"))
    elif len(session.memberships) == 1:
        project_id = session.memberships[0].project_id
    else:
        raise Invalid(f"Say which project in the header {PROJECT}: prj_…", field=PROJECT)
    if request.method != "GET":
        sessions.require_writer(session.membership(project_id))
    return session.caller(project_id)


def asker_of(request: Request[Any, Any, Any], caller: Caller, customer: str | None = None) -> Asker:
    """Return who looks a code up, from where and for which customer."""
    client = request.scope["client"]
    return Asker(caller, client[0] if client else "", customer)


def ask_for_confirmation(services: Services, session: Session) -> None:
    """Mail who has just signed up; where too many mails wait, they ask for it themselves."""
    with contextlib.suppress(Unavailable):
        services.mailer.send(
            confirmations.mail(
                services.settings, session.user_id, session.email, session.created_at
            )
        )


def visitor_of(request: Request[Any, Any, Any]) -> Visitor:
    """Return what there is to know of whoever asks, logged in or not."""
    client = request.scope["client"]
    agent = _header(request, b"user-agent")
    printable = agent and "".join(filter(str.isprintable, agent.decode("latin-1")))
    return Visitor(client[0] if client else "", printable or None, session_token(request))


def session_token(request: Request[Any, Any, Any]) -> str | None:
    """Return what the session's cookie holds, None without one."""
    services: Services = request.app.state.services
    name = cookie_name(services.settings.base_url)
    for key, value in request.scope["headers"]:
        if key == b"cookie" and len(value) <= _COOKIES_LENGTH_MAX:
            for pair in value.decode("latin-1").split(";"):
                found, _, text = pair.strip().partition("=")
                if found == name:
                    return text
    return None


def check_same_site(request: Request[Any, Any, Any]) -> None:
    """Refuse what another site's page sends; programs that are no browser say nothing of it.

    Raises: InvalidCsrfToken.
    """
    if _header(request, b"sec-fetch-site") not in (None, b"same-origin", b"none"):
        raise InvalidCsrfToken("This may only be asked by a page of this very host.")


def cookie_name(base_url: str) -> str:
    """Return the cookie's name, which says to a browser that it is for https where it is."""
    return _COOKIE_OF_HTTPS if _is_https(base_url) else _COOKIE


def cookie(services: Services, token: str | None) -> str:
    """Return the value of `Set-Cookie` for a session; None takes it away."""
    age_s = int(sessions.LIFE.total_seconds()) if token else 0
    base_url = services.settings.base_url
    secure = "; Secure" if _is_https(base_url) else ""
    return (
        f"{cookie_name(base_url)}={token or ''}; Path=/; Max-Age={age_s}; HttpOnly; "
        f"SameSite=Lax{secure}"
    )


def _is_https(base_url: str) -> bool:
    return base_url.startswith("https://")


def _header(request: Request[Any, Any, Any], name: bytes) -> bytes | None:
    return next((v for k, v in request.scope["headers"] if k == name), None)
