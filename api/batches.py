"""POST /v1/vouchers/bulk, and /v1/batches. Codes come as JSON, NDJSON or CSV, by Accept."""

from typing import Any, Final, Literal

import msgspec
from litestar import Request, get, post
from litestar.response import Response

from api import answers, auth, bodies, docs, idempotency, metrics, pagination
from api.docs import shape
from api.lifespan import Services
from core import batches
from core.api_keys import Caller
from core.batches import Batch, NewBatch

Req = Request[Any, Any, Any]


class Made(msgspec.Struct, frozen=True):
    """A batch that is whole, with its codes."""

    batch_id: str
    count: int
    codes: list[str]


def _written(request: Req, made: Made, status: int) -> Response[bytes]:
    """Write codes as the caller accepts them: JSON unless NDJSON or CSV is asked for."""
    accepted = request.headers.get("accept", "")
    if "application/x-ndjson" in accepted:
        encode = msgspec.json.Encoder().encode_lines
        text, media_type = encode([{"code": code} for code in made.codes]), "application/x-ndjson"
    elif "text/csv" in accepted:
        # A code has no line break; commas and quotes are all that CSV must be told of.
        cells = (f'"{code.replace(chr(34), chr(34) * 2)}"' for code in made.codes)
        text, media_type = "\r\n".join(("code", *cells, "")).encode(), "text/csv"
    else:
        text, media_type = msgspec.json.encode(made), "application/json"
    headers = {"X-Batch-Id": made.batch_id}
    return Response(text, status_code=status, media_type=media_type, headers=headers)


@post(
    "/v1/vouchers/bulk",
    operation_id="vouchers.bulk",
    opt=shape(
        body=NewBatch,
        answer=Made,
        status=201,
        gives=(docs.JSON, docs.CSV, docs.LINES),
        also={202: Batch},
    ),
)
async def create(request: Req) -> Response[bytes]:
    """Create up to 50,000 vouchers, all or none; more as a job: 202 and its batch."""
    caller = await auth.secret_caller(request)
    raw, new = await bodies.received(request, NewBatch)
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            batch = await batches.create(work.conn, caller, new)
            work.answer(201 if batch.status == "done" else 202, batch)
            metrics.count("voucher.created", batch.made)
    answer = work.response()
    if answer.status_code != 201:
        return answer
    made = msgspec.json.decode(answer.content, type=Batch)
    return await _codes(request, caller, made.id, None, 201)


@get(
    "/v1/batches",
    operation_id="batches.list",
    opt=shape(answer=pagination.Listed[Batch]),
)
async def page(request: Req) -> Response[bytes]:
    """List batches, newest first."""
    caller = await auth.secret_caller(request)
    asked = pagination.asked(request, "bat")
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        rows = await batches.page(conn, caller, after=asked.after, limit=asked.limit + 1)
    return answers.ok(pagination.listed(rows, asked))


@get("/v1/batches/{id:str}", operation_id="batches.get", opt=shape(answer=Batch))
async def show(request: Req, id: str) -> Response[bytes]:
    """Return a batch: how many of its vouchers are made."""
    caller = await auth.secret_caller(request)
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        return answers.ok(await batches.get(conn, caller, id))


@get(
    "/v1/batches/{id:str}/codes",
    operation_id="batches.codes",
    opt=shape(answer=Made, query=("starting_after",), gives=(docs.JSON, docs.CSV, docs.LINES)),
)
async def codes(request: Req, id: str) -> Response[bytes]:
    """Return up to 50,000 codes of a batch, those after `starting_after`, a code of it."""
    caller = await auth.secret_caller(request)
    given = pagination.parameters(request, "starting_after")
    return await _codes(request, caller, id, given.get("starting_after"), 200)


async def _codes(
    request: Req, caller: Caller, public_id: str, after: str | None, status: int
) -> Response[bytes]:
    services: Services = request.app.state.services
    async with services.database.transaction(caller.project_id, reads_only=True) as conn:
        found = await batches.codes_of(conn, caller, public_id, after=after)
    return _written(request, Made(public_id, len(found), found), status)


@post(
    "/v1/batches/{id:str}/cancel",
    operation_id="batches.cancel",
    status_code=200,
    opt=shape(answer=Batch),
)
async def cancel(request: Req, id: str) -> Response[bytes]:
    """Stop making a batch; what was made stays."""
    return await _switch(request, id, "cancelled")


@post(
    "/v1/batches/{id:str}/resume",
    operation_id="batches.resume",
    status_code=200,
    opt=shape(answer=Batch),
)
async def resume(request: Req, id: str) -> Response[bytes]:
    """Let a cancelled batch go on."""
    return await _switch(request, id, "running")


async def _switch(
    request: Req, public_id: str, status: Literal["running", "cancelled"]
) -> Response[bytes]:
    caller = await auth.secret_caller(request)
    await bodies.received_nothing(request)
    async with idempotency.write(request, caller) as work:
        if not work.is_done:
            work.answer(200, await batches.switch(work.conn, caller, public_id, status=status))
    return work.response()


ROUTES: Final = [create, page, show, codes, cancel, resume]
