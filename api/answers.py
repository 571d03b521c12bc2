"""Answers that are not kept under an idempotency key: reads, and refusals of the desk."""

from typing import Any

import msgspec
from litestar import Request
from litestar.response import Response

from api.lifespan import Services
from core.errors import Refusal


def ok(value: Any) -> Response[bytes]:
    """Answer 200 with a struct or a dict as JSON; amounts keep their decimals."""
    return Response(msgspec.json.encode(value), media_type="application/json")


def refused(request: "Request[Any, Any, Any]", refusal: Refusal) -> Response[bytes]:
    """Answer a refusal as its problem."""
    services: Services = request.app.state.services
    answer = services.problems.of_refusal(refusal, request.scope["state"]["request_id"])
    headers = {name.decode(): text.decode() for name, text in answer.headers}
    media_type = headers.pop("content-type")
    return Response(answer.body, status_code=answer.status, media_type=media_type, headers=headers)
