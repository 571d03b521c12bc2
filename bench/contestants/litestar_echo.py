"""The yardstick: a raw ASGI handler of Litestar that decodes a JSON body and encodes it again."""

from typing import Any

import msgspec
from litestar import Litestar, asgi

from bench.contestants import PATH

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


# Without a copy of the scope for each request, which Litestar makes unless it is told.
@asgi(PATH, copy_scope=False)
async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer the body."""
    message = await receive()
    raw = message["body"]
    while message.get("more_body", False):
        message = await receive()
        raw += message["body"]
    body = _encode(_decode(raw))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


app = Litestar([echo], openapi_config=None, logging_config=None)
