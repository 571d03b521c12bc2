"""/v1/api-keys"""

from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from litestar import Request, delete, get, post
from litestar.response import Response

from api import answers, auth, bodies, idempotency, metrics, pagination
from api.docs import shape
from api.lifespan import Services
from core import api_keys, ids
from core.api_keys import ApiKey, Kind

Req = Request[Any, Any, Any]


class NewKey(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a key is made from."""

    type: Kind
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=100)] | None = None


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key as the API shows it: masked, except in the answer that created it."""

    id: str
    key: str
    type: Kind
    name: str | None
    status: str
    created_at: datetime
    revoked_at: datetime | None


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
        status="active" if key.revoked_at is None else "revoked",
        created_at=key.created_at,
        revoked_at=key.revoked_at,
    )


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
                work.conn, caller, new.type, new.name, secret=services.settings.secret,
                origin=request.scope["state"]["request_id"],
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


@delete(
    "/v1/api-keys/{id:str}",
    operation_id="api_keys.revoke",
    status_code=200,
    opt=shape(answer=Key),
)
async def revoke(request: Req, id: str) -> Response[bytes]:
    """Revoke a key; it stops working everywhere within a second."""
    caller = await auth.secret_caller(request)
    origin = request.scope["state"]["request_id"]
    async with idempotency.write(request, caller) as work:
        if not work.is_done:
            work.answer(200, shown(await api_keys.revoke(work.conn, caller, id, origin=origin)))
            metrics.count("api_key.revoked")
    return work.response()


ROUTES: Final = [page, create, show, revoke]
