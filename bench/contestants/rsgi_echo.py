"""The least Python there can be around a JSON body: granian's RSGI, decode, encode."""

from typing import Any

import msgspec

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_HEADERS = [("content-type", "application/json")]


async def app(scope: Any, protocol: Any) -> None:
    """Answer the body."""
    protocol.response_bytes(200, _HEADERS, _encode(_decode(await protocol())))
