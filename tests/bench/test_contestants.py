"""The contestants are served as the product is, and answer what they are asked."""

import ast
from pathlib import Path

import httpx
import pytest

import api.__main__ as product_main
import bench.contestants.__main__ as contestants_main
from bench.contestants import PATH, rsgi_echo, rsgi_empty
from bench.contestants.litestar_echo import app as litestar_echo
from bench.contestants.litestar_typed import app as litestar_typed

# Where the product listens, what it serves, and how it starts a dead worker again.
OF_ONE_OF_THEM = {
    "address", "port", "uds", "interface", "workers", "respawn_failed_workers", "respawn_interval",
    "workers_kill_timeout",
}  # fmt: skip

pytestmark = pytest.mark.anyio


def server_settings(module: object) -> dict[str, object]:
    """Return the keyword arguments of the one Granian(…) call of a module, as values."""
    path = getattr(module, "__file__", None)
    assert path is not None
    call = next(
        node
        for node in ast.walk(ast.parse(Path(path).read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Granian", "_Server")
    )
    names = {key: value for key, value in vars(module).items() if not key.startswith("__")}
    return {
        str(keyword.arg): eval(ast.unparse(keyword.value), {}, names)
        for keyword in call.keywords
        if keyword.arg not in OF_ONE_OF_THEM
    }


def test_contestants_are_served_with_the_products_settings() -> None:
    ours = server_settings(product_main)
    assert len(ours) >= 8
    assert server_settings(contestants_main) == ours


@pytest.mark.parametrize("app", [litestar_echo, litestar_typed], ids=["echo", "typed"])
async def test_an_echo_decodes_the_body_and_answers_it(app: object) -> None:
    transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://bench") as client:
        body = {"customer_id": "cus_1", "order_value": 89.99}
        answer = await client.post(PATH, json=body, headers={"Idempotency-Key": "1"})
        assert (answer.status_code, answer.json()) == (200, body)
        refused = await client.post(
            PATH, content=b"{", headers={"content-type": "application/json"}
        )
        assert refused.status_code >= 400


class Protocol:
    """A request with a body, and what was answered."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.answered: tuple[object, ...] = ()

    async def __call__(self) -> bytes:
        return self._body

    def response_bytes(self, *answer: object) -> None:
        self.answered = answer

    def response_empty(self, *answer: object) -> None:
        self.answered = answer


async def test_the_rsgi_contestants_answer_all_and_nothing() -> None:
    protocol = Protocol(b'{"customer_id": "cus_1", "order_value": 89.99}')
    await rsgi_echo.app(None, protocol)
    status, headers, body = protocol.answered
    assert (status, headers) == (200, [("content-type", "application/json")])
    assert body == b'{"customer_id":"cus_1","order_value":89.99}'
    await rsgi_empty.app(None, protocol)
    assert protocol.answered == (200, [])
