"""What most services are: a typed Litestar handler, a struct in and a struct out."""

import msgspec
from litestar import Litestar, post
from litestar.params import JSONBody

from bench.contestants import PATH


class Claim(msgspec.Struct):
    """The body of a claim."""

    customer_id: str
    order_value: float


@post(PATH, status_code=200)
async def echo(data: JSONBody[Claim]) -> Claim:
    """Answer the body."""
    return data


app = Litestar([echo], openapi_config=None, logging_config=None)
