"""Health, metrics, request ids and headers."""

import re
import time

import httpx
import pytest

from tests.api.conftest import Api


def test_a_worker_says_that_it_lives_and_that_it_can_serve(api: Api) -> None:
    alive = httpx.get(f"{api.base_url}/healthz")
    ready = httpx.get(f"{api.base_url}/readyz")

    assert (alive.status_code, alive.json()) == (200, {"status": "ok"})
    assert ready.status_code == 200
    assert ready.json() == {
        "status": "ready",
        "postgres": "ok",
        "redis": "ok",
        "is_draining": False,
    }


def test_requests_are_counted_by_route_and_never_by_code(client: httpx.Client) -> None:
    client.get("/v1/vouchers/COUNTED")

    text = client.get("/metrics").text

    line = r'vauchflow_requests_total\{route="/v1/vouchers/\{code\}",status="404"\} [1-9]'
    assert re.search(line, text)
    assert 'vauchflow_request_seconds_bucket{le="0.005",route="/v1/vouchers/{code}"}' in text
    assert "COUNTED" not in text


@pytest.mark.parametrize("given", ["req-1", "a" * 128, "0123:a/b=c"])
def test_a_request_id_comes_back(client: httpx.Client, given: str) -> None:
    for path in ("/healthz", "/v1/vouchers/NOBODY", "/nowhere"):
        answer = client.get(path, headers={"X-Request-Id": given})
        assert answer.headers["x-request-id"] == given


@pytest.mark.parametrize("given", [None, "", "a" * 129, "two words", "<script>", "a\tb"])
def test_a_request_id_that_cannot_be_logged_is_replaced(
    client: httpx.Client, given: str | None
) -> None:
    headers = {} if given is None else {"X-Request-Id": given}

    answer = client.get("/v1/vouchers/NOBODY", headers=headers)

    assert re.fullmatch("[0-9A-Z]{26}", answer.headers["x-request-id"])
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_every_answer_is_strict(client: httpx.Client) -> None:
    client.post("/v1/vouchers", json={"code": "STRICT", "discount_value": 5})
    for answer in (
        client.get("/v1/vouchers"),
        client.get("/nowhere"),
        client.post("/v1/vouchers/STRICT/redeem", json={"order_value": 5}),
    ):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-request-id"]


def test_head_is_get_without_a_body(client: httpx.Client) -> None:
    got = client.get("/healthz")
    head = client.head("/healthz")

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == got.headers["content-length"]


def test_options_names_the_methods(client: httpx.Client) -> None:
    answer = client.options("/v1/vouchers")

    assert answer.status_code == 204
    assert {"GET", "POST"} <= set(answer.headers["allow"].replace(" ", "").split(","))


def test_a_wrong_method_names_the_right_ones(client: httpx.Client) -> None:
    answer = client.put("/v1/vouchers")

    assert answer.status_code == 405
    assert {"GET", "POST"} <= set(answer.headers["allow"].replace(" ", "").split(","))


def test_log_lines_carry_the_request_id_and_no_code(client: httpx.Client, api: Api) -> None:
    size = api.log_size()
    client.get("/v1/vouchers/HIDDENCODE", headers={"X-Request-Id": "find-me"})

    request = None
    deadline_s = time.monotonic() + 2.0
    while request is None and time.monotonic() < deadline_s:
        # The line is written once the answer is sent.
        lines = api.log_since(size)
        told = (line for line in lines if line.get("request_id") == "find-me")
        request = next((line for line in told if line["event"] == "request"), None)
    assert request is not None
    assert (request["route"], request["status"]) == ("/v1/vouchers/{code}", 404)
    assert "HIDDENCODE" not in str(lines)
