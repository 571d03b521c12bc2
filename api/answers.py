"""Answers that are not kept: reads."""

from typing import Any

import msgspec
from litestar.response import Response


def ok(value: Any) -> Response[bytes]:
    """Answer 200 with a struct or a dict as JSON; amounts keep their decimals."""
    return Response(msgspec.json.encode(value), media_type="application/json")
