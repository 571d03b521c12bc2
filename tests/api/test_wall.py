"""Every route against every credential: who may not gets the same plain no, and nothing changes.

The routes come from the application: one that is added tomorrow is asked tomorrow.
"""

import re
import time
from typing import Any, Final, NamedTuple

import httpx
import pytest

from api import docs
from api.app import ROUTES
from api.auth import scope_of
from core import api_keys, ids
from tests.api.conftest import Api, Project

# Nouns of people: a key has no say in them, and some are for whoever has no session yet.
OF_PEOPLE: Final = frozenset({"auth", "projects", "members", "invitations"})
WITHIN_S: Final = 1.0


class Route(NamedTuple):
    method: str
    path: str
    operation: str
    for_browsers: bool

    @property
    def names(self) -> list[str]:
        return re.findall(r"\{(\w+)", self.path)

    def at(self, value: str) -> str:
        return re.sub(r"\{[^}]+\}", value, self.path)


def all_routes() -> list[Route]:
    found = [Route(h.method, h.path, h.operation_id, h.shape.for_browsers) for h in docs.HOT]
    for handler in ROUTES:
        if "shape" in handler.opt:
            found += [
                Route(method, path, str(handler.operation_id), handler.opt["shape"].for_browsers)
                for path in handler.paths
                for method in sorted(handler.http_methods - {"OPTIONS", "HEAD"})
            ]
    return [route for route in found if route.operation.partition(".")[0] not in OF_PEOPLE]


ALL: Final = all_routes()


def ask(client: httpx.Client, route: Route, value: str) -> httpx.Response:
    body = {} if route.method in ("POST", "PATCH", "PUT") else None
    return client.request(route.method, route.at(value), json=body)


def told(answer: httpx.Response) -> tuple[int, dict[str, Any], set[str]]:
    """Return all that an answer says, but for what names the request itself."""
    body = {key: value for key, value in answer.json().items() if key != "request_id"}
    return answer.status_code, body, set(answer.headers) - {"x-request-id"}


def test_there_are_routes_to_ask() -> None:
    assert len(ALL) > 90
    assert len({(route.method, route.path) for route in ALL}) == len(ALL)


def test_no_route_answers_without_a_key_that_works(api: Api, client: httpx.Client) -> None:
    revoked, expired = (
        client.post("/v1/api-keys", json={"type": "SECRET"}).json() for _ in range(2)
    )
    client.delete(f"/v1/api-keys/{revoked['id']}")
    api.rows(
        "update vf.api_keys set expires_at = now() where id = $1",
        ids.parse_id("key", expired["id"]),
    )
    typed = client.headers["Authorization"].removeprefix("Bearer ")
    wrong = {
        None: "missing_key",
        "nonsense": "malformed_key",
        typed[:20] + ("a" if typed[20] != "a" else "b") + typed[21:]: "malformed_key",
        api_keys.generate("SECRET"): "invalid_key",
        api_keys.generate("AGENT"): "invalid_key",
        revoked["key"]: "invalid_key",
        expired["key"]: "invalid_key",
    }
    time.sleep(WITHIN_S)
    before = api.row_counts()
    for key, code in wrong.items():
        with api.client(key) as nobody:
            for route in ALL:
                answer = ask(nobody, route, "x")
                assert (answer.status_code, answer.json()["code"]) == (401, code), (route, key)
    assert api.row_counts() == before


def test_a_key_without_the_scope_is_told_which_and_nothing_happens(
    api: Api, client: httpx.Client
) -> None:
    narrow = client.post("/v1/api-keys", json={"type": "SECRET", "scopes": ["usage:read"]}).json()
    before = api.row_counts()
    asked = 0
    with api.client(narrow["key"]) as other:
        for route in ALL:
            scope = scope_of(route.operation, route.method)
            if scope == "usage:read":
                continue
            answer = ask(other, route, "x")
            assert (answer.status_code, answer.json()["code"]) == (403, "missing_scope"), route
            assert answer.json()["because"] == {"scope": scope}, route
            asked += 1
    assert asked >= len(ALL) - 2
    after = api.row_counts()
    # What is counted of the calls is all that is new.
    assert {k: v for k, v in after.items() if k != "usage_hours"} == {
        k: v for k, v in before.items() if k != "usage_hours"
    }


def test_a_browsers_key_reaches_what_is_for_browsers_alone(
    browser: httpx.Client, project: Project
) -> None:
    open_to_it = set()
    for route in ALL:
        answer = ask(browser, route, "x")
        if answer.status_code == 403 and answer.json()["code"] == "forbidden":
            assert not route.for_browsers, route
        else:
            open_to_it.add(route.operation)
    assert open_to_it == {route.operation for route in ALL if route.for_browsers}
    assert open_to_it == {
        "vouchers.validate", "gift_cards.lookup", "flash_sales.get", "flash_sales.claim",
    }  # fmt: skip


@pytest.fixture(scope="module")
def objects(client: httpx.Client) -> dict[str, str]:
    """Return the name of something of each kind in this file's project."""

    def made(path: str, body: dict[str, Any], name: str = "id") -> str:
        answer = client.post(path, json=body)
        assert answer.status_code in (200, 201), (path, answer.text)
        return str(answer.json()[name])

    code = made("/v1/vouchers", {"code": "MINE", "discount_value": 5}, "code")
    return {
        "vouchers": code,
        "redemptions": made(f"/v1/vouchers/{code}/redeem", {"order_value": 10}, "redemption_id"),
        "campaigns": made(
            "/v1/campaigns", {"name": "c", "type": "DISCOUNT", "rules": {"discount_value": 5}}
        ),
        "customers": made("/v1/customers", {"customer_id": "mine"}, "customer_id"),
        "segments": made("/v1/segments", {"name": "s", "customer_ids": ["mine"]}),
        "flash-sales": made(
            "/v1/flash-sales", {"name": "f", "code": "SALE", "discount_value": 5, "stock": 1}
        ),
        "gift-cards": made("/v1/gift-cards", {"amount": 10}),
        "api-keys": made("/v1/api-keys", {"type": "SECRET"}),
    }


def test_what_is_anothers_is_answered_as_what_nobody_has(
    client: httpx.Client, stranger: httpx.Client, objects: dict[str, str]
) -> None:
    compared = 0
    for route in ALL:
        if len(route.names) != 1:
            continue
        noun = route.path.split("/")[2]
        for kind, value in objects.items():
            prefix, _, _ = value.partition("_")
            unknown = (
                ids.format_id(prefix, ids.new()) if value.startswith(f"{prefix}_") else "NOBODYS"
            )
            theirs, nobodys = ask(stranger, route, value), ask(stranger, route, unknown)
            assert told(theirs) == told(nobodys), (route, kind)
            # A customer's id is each shop's own: both may have one of that name.
            if kind == noun != "customers":
                assert theirs.status_code >= 400, route
            compared += 1
    assert compared > 300
    assert client.get("/v1/vouchers/MINE").json()["status"] == "active"
    assert client.get("/v1/vouchers/SALE").status_code == 200
