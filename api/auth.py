"""Who is calling: the API key of the `Authorization` header."""

from typing import Any, Final

from litestar import Request

from api.lifespan import Services
from core.api_keys import Caller
from core.errors import Forbidden, Unauthenticated

# A key has 55 characters; a header far longer is not one and is not looked at.
_HEADER_LENGTH_MAX: Final = 512


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
    """Let only server-side keys pass. Raises: Forbidden."""
    if not caller.is_secret:
        raise Forbidden("This needs a secret key (vf_sk_…); yours is for browsers.")
    return caller


async def any_caller(request: Request[Any, Any, Any]) -> Caller:
    """Return who calls, also with a browser's key. Raises: Unauthenticated, Unavailable."""
    services: Services = request.app.state.services
    header = next((v for k, v in request.scope["headers"] if k == b"authorization"), None)
    return await caller_of(services, header)


async def secret_caller(request: Request[Any, Any, Any]) -> Caller:
    """Return who calls with a secret key. Raises: Forbidden, Unauthenticated, Unavailable."""
    return require_secret(await any_caller(request))
