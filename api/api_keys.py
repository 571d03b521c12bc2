"""/v1/api-keys"""

import re
from datetime import datetime, timedelta
from typing import Annotated, Any, Final

import msgspec
from litestar import Request, delete, get, post
from litestar.response import Response

from api import answers, auth, bodies, idempotency, metrics, pagination
from api.docs import shape
from api.lifespan import Services
from core import api_keys, ids
from core.api_keys import OVERLAP_S, ApiKey, Kind
from core.errors import Invalid
from core.rules import rates
from core.rules.rates import Rate

Req = Request[Any, Any, Any]

SCOPES_MAX: Final = 100
# A shop has some domains, each perhaps twice.
ORIGINS_MAX: Final = 50
# Ten years: a key that lives longer may as well have no end.
DAYS_MAX: Final = 3_650
# A month: who needs longer to replace a key has forgotten it.
OVERLAP_S_MAX: Final = 30 * 86_400
# As browsers write it: no path, no default port, lower case.
_ORIGIN: Final = re.compile(r"https?://[a-z0-9.\-\[\]:]{1,253}\Z", re.ASCII)

Scope = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Origin = Annotated[str, msgspec.Meta(min_length=1, max_length=253)]


class RateLimit(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How often a key may ask: `limit` requests in `window_s`, `burst` of them at once (all)."""

    limit: rates.Limit
    window_s: rates.Window
    burst: rates.Limit | None = None


class NewKey(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a key is made from.

    `scopes`: such as `vouchers:read` or `*:read`; left out, everything (an agent must name them).
    `origins`: the pages a publishable key works on, such as `https://shop.example`; none: any.
    `expires_in_days`: left out, never; an agent's ends after 7 days, and after 90 at most.
    `rate_limit`: the key's own, beside the plan's.
    """

    type: Kind
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=100)] | None = None
    scopes: Annotated[list[Scope], msgspec.Meta(min_length=1, max_length=SCOPES_MAX)] | None = None
    origins: Annotated[list[Origin], msgspec.Meta(max_length=ORIGINS_MAX)] = []
    expires_in_days: Annotated[int, msgspec.Meta(ge=1, le=DAYS_MAX)] | None = None
    rate_limit: RateLimit | None = None


class Rotation(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How a key is replaced: for `overlap_s` both work."""

    overlap_s: Annotated[int, msgspec.Meta(ge=0, le=OVERLAP_S_MAX)] = OVERLAP_S


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key as the API shows it: masked, except in the answer that created it."""

    id: str
    key: str
    type: Kind
    name: str | None
    last4: str
    status: str
    scopes: list[str] | None
    origins: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    rotated_to: str | None
    rate_limit: Rate | None


class Keys(msgspec.Struct, frozen=True, kw_only=True):
    """The calling key, which a person who is logged in does not have, and the list of all."""

    key: str | None
    type: Kind | None
    id: str | None
    data: list[Key]
    has_more: bool


def shown(key: ApiKey, token: str | None = None) -> Key:
    """Write a key as the API shows it, with its full text where that is given."""
    return Key(
        id=ids.format_id("key", key.id),
        key=token or key.hint,
        type=key.kind,
        name=key.name,
        last4=key.hint[-4:],
        status=key.status,
        scopes=key.scopes,
        origins=key.origins,
        created_at=key.created_at,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        last_used_at=key.last_used_at,
        rotated_to=ids.format_id("key", key.rotated_to) if key.rotated_to else None,
        rate_limit=key.rate_limit,
    )


def checked(request: Req, new: NewKey) -> api_keys.NewKey:
    """Hold scopes against those there are, and origins against how browsers write them."""
    there_are: frozenset[str] = request.app.state.scopes
    for scope in new.scopes or []:
        if scope not in there_are:
            raise Invalid(
                f"There is no scope {scope}; there are: {', '.join(sorted(there_are))}",
                field="scopes",
            )
    for origin in new.origins:
        if not _ORIGIN.match(origin):
            raise Invalid(
                "An origin reads like https://shop.example: lower case, no path", field="origins"
            )
    days = new.expires_in_days
    return api_keys.NewKey(
        kind=new.type, name=new.name, scopes=new.scopes and sorted(set(new.scopes)),
        origins=sorted(set(new.origins)), lifetime=timedelta(days=days) if days else None,
        rate_limit=_rate_of(new.rate_limit),
    )  # fmt: skip


def _rate_of(given: RateLimit | None) -> Rate | None:
    if given is None:
        return None
    burst = given.limit if given.burst is None else given.burst
    if burst > given.limit:
        raise Invalid("burst is at most limit", field="rate_limit.burst")
    return Rate(limit=given.limit, window_s=given.window_s, burst=burst)


@get("/v1/api-keys", operation_id="api_keys.list", opt=shape(answer=Keys))
async def page(request: Req) -> Response[bytes]:
    """Return the calling key, masked, and the list of the project's keys, newest first."""
    caller = await auth.secret_caller(request)
    asked = pagination.asked(request, "key")
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        own = None
        if caller.key_id is not None:
            own = shown(await api_keys.get(conn, caller, caller.actor))
        rows = await api_keys.page(conn, caller, after=asked.after, limit=asked.limit + 1)
    listed = pagination.listed([shown(row) for row in rows], asked)
    key, kind, key_id = (own.key, own.type, own.id) if own else (None, None, None)
    return answers.ok(
        Keys(key=key, type=kind, id=key_id, data=listed.data, has_more=listed.has_more)
    )


@post(
    "/v1/api-keys", operation_id="api_keys.create", opt=shape(body=NewKey, answer=Key, status=201)
)
async def create(request: Req) -> Response[bytes]:
    """Create a key. Its full text is in this answer and nowhere else."""
    caller = await auth.secret_caller(request)
    raw, new = await bodies.received(request, NewKey)
    services: Services = request.app.state.services
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            key, token = await api_keys.create(
                work.conn, caller, checked(request, new), secret=services.settings.secret,
            )  # fmt: skip
            work.answer(201, shown(key, token), kept=shown(key))
            metrics.count("api_key.created")
    return work.response()


@get("/v1/api-keys/{id:str}", operation_id="api_keys.get", opt=shape(answer=Key))
async def show(request: Req, id: str) -> Response[bytes]:
    """Return a key, masked."""
    caller = await auth.secret_caller(request)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        return answers.ok(shown(await api_keys.get(conn, caller, id)))


@post(
    "/v1/api-keys/{id:str}/rotate",
    operation_id="api_keys.rotate",
    opt=shape(body=Rotation, answer=Key, status=201),
)
async def rotate(request: Req, id: str) -> Response[bytes]:
    """Replace a key: a new one with the same rights, and for a while both work."""
    caller = await auth.secret_caller(request)
    raw, asked = await bodies.received(request, Rotation, is_optional=True)
    services: Services = request.app.state.services
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            key, token = await api_keys.rotate(
                work.conn, caller, id, timedelta(seconds=asked.overlap_s),
                secret=services.settings.secret,
            )  # fmt: skip
            work.answer(201, shown(key, token), kept=shown(key))
            metrics.count("api_key.rotated")
    return work.response()


@delete(
    "/v1/api-keys/{id:str}",
    operation_id="api_keys.revoke",
    status_code=200,
    opt=shape(answer=Key),
)
async def revoke(request: Req, id: str) -> Response[bytes]:
    """Revoke a key; it stops working everywhere within a second."""
    caller = await auth.secret_caller(request)
    await bodies.received_nothing(request)
    async with idempotency.write(request, caller) as work:
        if not work.is_done:
            work.answer(200, shown(await api_keys.revoke(work.conn, caller, id)))
            metrics.count("api_key.revoked")
    return work.response()


ROUTES: Final = [page, create, show, rotate, revoke]
