"""Where requests come from, behind proxies, and what is counted for whom."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import msgspec
import pytest

from api.peers import PEER, Peers
from core import lookups
from core.settings import Settings
from tests.api.conftest import PROXY, Api, Project


class Headers:
    """Headers as the server gives them."""

    def __init__(self, *pairs: tuple[str, str]) -> None:
        self._pairs = pairs

    def get(self, name: str) -> str | None:
        return next(iter(self.get_all(name)), None)

    def get_all(self, name: str) -> list[str]:
        return [value for key, value in self._pairs if key == name and value.isascii()]

    def __contains__(self, name: str) -> bool:
        return any(key == name for key, _ in self._pairs)


@pytest.mark.parametrize(
    ("peer", "told", "address"),
    [
        ("198.51.100.1:4711", [("x-forwarded-for", "203.0.113.7")], "198.51.100.1"),
        ("10.0.0.1:4711", [], "10.0.0.1"),
        ("10.0.0.1:4711", [("x-forwarded-for", "203.0.113.7")], "203.0.113.7"),
        ("10.0.0.1:4711", [("x-forwarded-for", "6.6.6.6, 203.0.113.7, 10.0.0.2")], "203.0.113.7"),
        ("10.0.0.1:4711", [("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "203.0.113.7:80")],
         "203.0.113.7"),
        ("10.0.0.1:4711", [("x-forwarded-for", "203.0.113.7"), ("forwarded", "for=6.6.6.6")],
         "203.0.113.7"),
        ("10.0.0.1:4711", [("x-forwarded-for", "6.6.6.6, nonsense")], "10.0.0.1"),
        ("10.0.0.1:4711", [("x-forwarded-for", "é, 203.0.113.7"), ("forwarded", "for=6.6.6.6")],
         "10.0.0.1"),
        ("10.0.0.1:4711", [("x-forwarded-for", "10.0.0.3, 10.0.0.2")], "10.0.0.3"),
        ("[::1]:4711", [("forwarded", 'for=6.6.6.6, For="[2001:db8::1]:99";proto=https')],
         "2001:db8::1"),
        ("[::1]:4711", [("forwarded", "proto=https")], "::1"),
        ("[::ffff:10.0.0.1]:4711", [("forwarded", "for=203.0.113.7")], "203.0.113.7"),
        ("", [("x-forwarded-for", "203.0.113.7")], ""),
    ],
)  # fmt: skip
def test_a_proxy_is_believed_where_it_is_trusted_and_nobody_else(
    settings: Settings, peer: str, told: list[tuple[str, str]], address: str
) -> None:
    trusting = msgspec.structs.replace(settings, trusted_proxies="10.0.0.0/8, ::1")
    assert Peers(trusting).of(Headers((PEER, peer), *told)) == address
    assert Peers(settings).of(Headers((PEER, "10.0.0.1:1"), *told)) == "10.0.0.1"


@pytest.fixture
def behind_the_proxy(api: Api) -> Iterator[Callable[[str], httpx.Client]]:
    """Open clients with a key whose requests come from the trusted proxy."""
    opened = []

    def open_one(key: str, **options: Any) -> httpx.Client:
        transport = httpx.HTTPTransport(local_address=PROXY)
        client = httpx.Client(
            base_url=api.base_url, headers={"Authorization": f"Bearer {key}"}, transport=transport
        )
        opened.append(client)
        return client

    yield open_one
    for client in opened:
        client.close()


def test_the_audit_log_has_the_address_that_the_proxy_saw(
    behind_the_proxy: Callable[[str], httpx.Client], client: httpx.Client, project: Project
) -> None:
    forged = {"X-Forwarded-For": "6.6.6.6, 203.0.113.7"}
    by_proxy = behind_the_proxy(project.secret_key)
    for asker, address in ((by_proxy, "203.0.113.7"), (client, "127.0.0.1")):
        key = asker.post("/v1/api-keys", json={"type": "SECRET"}, headers=forged).json()["id"]
        [entry] = client.get("/v1/audit-log", params={"target": key}).json()["data"]
        assert entry["address"] == address


def test_what_cannot_be_read_of_a_proxy_leaves_no_room_for_a_forgery(
    behind_the_proxy: Callable[[str], httpx.Client], client: httpx.Client, project: Project
) -> None:
    # A proxy adds whom it saw to the line that it was sent.
    forged = {"X-Forwarded-For": b"\xe9, 203.0.113.7", "Forwarded": b"for=6.6.6.6"}
    made = behind_the_proxy(project.secret_key).post(
        "/v1/api-keys", json={"type": "SECRET"}, headers=forged
    )
    [entry] = client.get("/v1/audit-log", params={"target": made.json()["id"]}).json()["data"]
    assert entry["address"] == PROXY


def test_who_guesses_codes_from_a_browser_learns_nothing_more_and_others_go_on(
    api: Api,
    behind_the_proxy: Callable[[str], httpx.Client],
    make_project: Callable[..., Project],
) -> None:
    project = make_project()
    with api.client(project.secret_key) as shop:
        shop.post("/v1/vouchers", json={"code": "RIGHT", "discount_value": 5})
    browser = behind_the_proxy(project.publishable_key)

    def validate(code: str, address: str) -> int:
        return browser.post(
            f"/v1/vouchers/{code}/validate", json={}, headers={"X-Forwarded-For": address}
        ).status_code

    # A minute that ends in between would begin the count again.
    api.rows("select pg_sleep(greatest(0, extract(second from clock_timestamp()) - 50) * 1.05)")
    told = [validate(f"GUESS{n}", "203.0.113.7") for n in range(23)]
    assert told == [404] * lookups.ADDRESS_FAILURES_MAX + [429] * 3
    assert validate("RIGHT", "203.0.113.7") == 429
    assert validate("RIGHT", "203.0.113.8") == 200
    # A host has all of its network, and what is beside it is somebody else's.
    assert {validate(f"GUESS{n}", f"2001:db8::{n}") for n in range(20)} == {404}
    assert validate("RIGHT", "2001:db8::ffff") == 429
    assert validate("RIGHT", "2001:db8:0:1::1") == 200


def test_a_shops_server_is_refused_for_the_customer_who_guesses_alone(
    api: Api, make_project: Callable[..., Project]
) -> None:
    with api.client(make_project().secret_key) as shop:
        shop.post("/v1/vouchers", json={"code": "RIGHT", "discount_value": 5})

        def validate(code: str, customer: str) -> int:
            return shop.post(
                f"/v1/vouchers/{code}/validate", json={"customer_id": customer}
            ).status_code

        # A minute that ends in between would begin the count again.
        api.rows("select pg_sleep(greatest(0, extract(second from clock_timestamp()) - 50) * 1.05)")
        assert {validate(f"GUESS{n}", "mallory") for n in range(20)} == {404}
        assert validate("RIGHT", "mallory") == 429
        assert validate("RIGHT", "anna") == 200
        assert shop.post("/v1/vouchers/RIGHT/validate", json={}).status_code == 200
    [[scopes]] = api.rows("select string_agg(scope, ' ') from vf.failed_lookups")
    assert "mallory" not in scopes
