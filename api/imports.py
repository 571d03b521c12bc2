"""POST /v1/vouchers/import: JSON, or a CSV table."""

import hashlib
from typing import Any, Final

import msgspec
from litestar import Request, post
from litestar.response import Response

from api import auth, bodies, docs, idempotency, metrics
from api.docs import shape
from core import imports
from core.imports import Imported, NewImport

Req = Request[Any, Any, Any]
# Some 5,000 vouchers; a list of names is looked at exactly, which takes a second a 10 MB.
JSON_BYTES_MAX: Final = 1_048_576
# What Voucherify lets out at once.
TABLE_BYTES_MAX: Final = 10_485_760


@post(
    "/v1/vouchers/import",
    operation_id="vouchers.import",
    status_code=200,
    opt=shape(body=NewImport, answer=Imported, takes=(docs.JSON, docs.CSV)),
)
async def create(request: Req) -> Response[bytes]:
    """Import vouchers from JSON or, as text/csv, from a table; each refused line is told."""
    caller = await auth.secret_caller(request)
    if request.headers.get("content-type", "").startswith("text/csv"):
        table = await bodies.receive_body(request.receive, bytes_max=TABLE_BYTES_MAX)
        raw = msgspec.json.encode(hashlib.sha256(table).hexdigest())
        lines = imports.read_table(table)
    else:
        raw, new = await bodies.received(request, NewImport, bytes_max=JSON_BYTES_MAX)
        lines = imports.listed(new)
    async with idempotency.write(request, caller, raw) as work:
        if not work.is_done:
            done = await imports.store(work.conn, caller, lines)
            work.answer(200, done)
            metrics.count("voucher.created", done.imported)
    return work.response()


ROUTES: Final = [create]
