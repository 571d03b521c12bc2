"""Every malformed request is a 4xx problem that names the field; nothing is stored or logged."""

import re
import socket
import time
from collections.abc import Callable

import httpx
import msgspec
import pytest

from tests.api.conftest import Api, Project

PROBLEM_MEMBERS = {"type", "title", "status", "detail", "code", "request_id", "doc_url"}
DEEP = 5_000
TEN_MB = 10_000_000


class Route(msgspec.Struct, frozen=True):
    """A mutating address, a body it takes, and members to spoil."""

    method: str
    path: str
    good: bytes
    text: str | None = None
    count: str | None = None
    amount: str | None = None
    date: str | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


ROUTES = [
    Route("POST", "/v1/vouchers", b'{"discount_type":"AMOUNT","discount_value":5}',
          "code", "max_redemptions", "discount_value", "expires_at"),
    Route("PATCH", "/v1/vouchers/BAD", b'{"metadata":{"a":1}}', date="expires_at"),
    Route("POST", "/v1/vouchers/BAD/validate", b'{"order_value":5}', "customer_id",
          None, "order_value"),
    Route("POST", "/v1/vouchers/BAD/redeem", b'{"order_value":5}', "customer_id",
          None, "order_value"),
    Route("POST", "/v1/campaigns", b'{"name":"C","rules":{"discount_value":5}}', "name"),
    Route("PATCH", "/v1/campaigns/{campaign}", b'{"name":"C"}', "name"),
    Route("POST", "/v1/gift-cards", b'{"amount":5}', "customer_id", None, "amount", "expires_at"),
    Route("POST", "/v1/referral-programs",
          b'{"name":"R","referrer_reward":{"type":"gift_card","amount":5}}', "name",
          "attribution_window_days", "min_order_value"),
    Route("POST", "/v1/referrals/attribute", b'{"code":"BADREFERRAL","customer_id":"x"}',
          "customer_id"),
    Route("POST", "/v1/api-keys", b'{"type":"SECRET"}', "name"),
    Route("POST", "/v1/flash-sales",
          b'{"name":"F","code":"BADSALE","discount_value":5,"stock":10}',
          "code", "stock", "discount_value", "starts_at"),
]  # fmt: skip
routes = pytest.mark.parametrize("route", ROUTES, ids=str)


@pytest.fixture(scope="module")
def campaign(client: httpx.Client) -> str:
    client.post("/v1/vouchers", json={"code": "BAD", "discount_value": 5})
    return client.post("/v1/campaigns", json={"name": "Bad"}).json()["id"]


@pytest.fixture
def refused(api: Api, client: httpx.Client, campaign: str) -> Callable[..., httpx.Response]:
    """Send a spoilt body and hold the answer to the promise of this file's title."""

    def send(
        route: Route, body: bytes, status: int = 400, field: str | None = None
    ) -> httpx.Response:
        before = api.row_counts()
        logged = api.log_size()
        answer = client.request(
            route.method, route.path.replace("{campaign}", campaign), content=body,
            headers={"Content-Type": "application/json"},
        )  # fmt: skip
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem.keys() >= PROBLEM_MEMBERS
        assert problem["status"] == status
        assert problem["request_id"] == answer.headers["x-request-id"]
        assert problem.get("field") == field, problem
        assert api.row_counts() == before
        assert [e for e in api.log_since(logged) if e["level"] in ("warning", "error")] == []
        return answer

    return send


def spoilt(route: Route, member: str, value: bytes) -> bytes:
    """Return the route's good body with a member added or replaced, as raw text."""
    body = {name: bytes(raw) for name, raw in parts(route.good).items()}
    body[member] = value
    return b"{" + b",".join(b'"%s":%s' % (n.encode(), v) for n, v in body.items()) + b"}"


def parts(raw: bytes) -> dict[str, msgspec.Raw]:
    return msgspec.json.decode(raw, type=dict[str, msgspec.Raw])


@routes
@pytest.mark.parametrize(
    "body", [b"", b" ", b"null", b"[]", b'"text"', b"5", b"{", b'{"a"', b"\xff\xfe{}"]
)
def test_what_is_no_object_is_refused(
    refused: Callable[..., httpx.Response], route: Route, body: bytes
) -> None:
    refused(route, body)


@routes
def test_what_follows_the_object_is_refused(
    refused: Callable[..., httpx.Response], route: Route
) -> None:
    refused(route, route.good + b" {}")


@routes
def test_an_unknown_member_is_named(refused: Callable[..., httpx.Response], route: Route) -> None:
    refused(route, spoilt(route, "is_admin", b"true"), field="is_admin")


@routes
def test_a_member_that_is_given_twice_is_named(
    refused: Callable[..., httpx.Response], route: Route
) -> None:
    name, value = next(iter(parts(route.good).items()))
    doubled = route.good[:-1] + b',"%s":%s}' % (name.encode(), bytes(value))
    refused(route, doubled, field=name)


@routes
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_five_thousand_levels_are_refused(
    refused: Callable[..., httpx.Response], route: Route, opening: bytes
) -> None:
    refused(route, opening * DEEP)
    refused(route, spoilt(route, "metadata", opening * DEEP))


@routes
def test_ten_megabytes_are_refused(refused: Callable[..., httpx.Response], route: Route) -> None:
    refused(route, b'{"metadata":"' + b"x" * TEN_MB + b'"}', status=413)


def test_ten_megabytes_without_a_length_are_refused(client: httpx.Client) -> None:
    answer = client.post("/v1/vouchers", content=(b" " * 100_000 for _ in range(100)))

    assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")


@pytest.mark.parametrize("route", [r for r in ROUTES if r.text], ids=str)
@pytest.mark.parametrize(
    "value",
    [b"5", b"true", b"[]", b"{}", b'"\\u0000"', b'"a\\u0000b"', b'"\\ud800"', b'"\\udc00\\ud800"',
     b'"a\\u001fb"', b'""', b'"' + b"A" * 5_000 + b'"'],
)  # fmt: skip
def test_texts_that_are_none_are_named(
    refused: Callable[..., httpx.Response], route: Route, value: bytes
) -> None:
    assert route.text is not None
    refused(route, spoilt(route, route.text, value), field=route.text)


def test_a_code_of_200_characters_is_refused_or_not_there(
    refused: Callable[..., httpx.Response], client: httpx.Client
) -> None:
    long = "A" * 200
    refused(ROUTES[0], spoilt(ROUTES[0], "code", b'"%s"' % long.encode()), field="code")
    for method, path in [("GET", ""), ("PATCH", ""), ("POST", "/validate"), ("POST", "/redeem")]:
        answer = client.request(method, f"/v1/vouchers/{long}{path}", content=b"{}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), method + path


@pytest.mark.parametrize("code", ["ﬁ", "ıstanbul", "Å", "A\u200bB", "K\u212a", "a/b", "   "])
def test_a_code_beyond_plain_ascii_is_refused(
    refused: Callable[..., httpx.Response], code: str
) -> None:
    refused(ROUTES[0], spoilt(ROUTES[0], "code", msgspec.json.encode(code)), field="code")


@pytest.mark.parametrize("route", [r for r in ROUTES if r.count], ids=str)
@pytest.mark.parametrize(
    "value", [b"0", b"-1", b"1.5", b"1e3", b'"1"', b"true", b"9" * 30, b"9" * 5_000, b"1e400"]
)
def test_counts_that_are_none_are_named(
    refused: Callable[..., httpx.Response], route: Route, value: bytes
) -> None:
    assert route.count is not None
    refused(route, spoilt(route, route.count, value), field=route.count)


@pytest.mark.parametrize("route", [r for r in ROUTES if r.amount], ids=str)
@pytest.mark.parametrize(
    "value",
    [b"-1", b"-0.01", b"1.234", b"1e400", b"1e-400", b"9" * 5_000, b'"5"', b"true", b"[5]", b"NaN",
     b"Infinity", b"-Infinity", b"10000000000000.01"],
)  # fmt: skip
def test_amounts_that_are_none_are_named(
    refused: Callable[..., httpx.Response], route: Route, value: bytes
) -> None:
    assert route.amount is not None
    refused(route, spoilt(route, route.amount, value), field=route.amount)


def test_a_third_decimal_is_refused_with_the_reason(
    refused: Callable[..., httpx.Response],
) -> None:
    answer = refused(ROUTES[2], b'{"order_value":89.999}', field="order_value")

    assert answer.json()["detail"] == "order_value has 3 decimals; EUR takes 2"


@pytest.mark.parametrize("route", [r for r in ROUTES if r.date], ids=str)
@pytest.mark.parametrize(
    "value",
    [b"5", b'"soon"', b'"2030-01-01"', b'"2030-01-01T00:00:00"', b'"2030-02-30T00:00:00Z"',
     b'"0001-01-01T00:00:00+14:00"', b'"9999-12-31T23:59:59-14:00"'],
)  # fmt: skip
def test_dates_that_are_none_are_named(
    refused: Callable[..., httpx.Response], route: Route, value: bytes
) -> None:
    assert route.date is not None
    refused(route, spoilt(route, route.date, value), field=route.date)


@pytest.mark.parametrize(
    ("route", "body", "field"),
    [
        (
            ROUTES[0],
            b'{"discount_value":5,"starts_at":"2030-01-02T00:00:00Z",'
            b'"expires_at":"2030-01-01T00:00:00Z"}',
            "expires_at",
        ),
        (
            ROUTES[1],
            b'{"starts_at":"2030-01-01T00:00:00Z","expires_at":"2030-01-01T00:00:00Z"}',
            "expires_at",
        ),
        (
            ROUTES[4],
            b'{"name":"C","rules":{"starts_at":"2030-01-02T00:00:00Z",'
            b'"expires_at":"2030-01-01T00:00:00Z"}}',
            "rules.expires_at",
        ),
    ],
)
def test_dates_out_of_order_are_refused(
    refused: Callable[..., httpx.Response], route: Route, body: bytes, field: str
) -> None:
    refused(route, body, field=field)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"discount_type":"PERCENT"}', "discount_value"),
        (b"{}", "discount_value"),
        (b'{"discount_value":100.01}', "discount_value"),
        (b'{"discount_value":0}', "discount_value"),
        (b'{"discount_value":0.001}', "discount_value"),
        (b'{"discount_type":"AMOUNT","discount_value":0}', "discount_value"),
        (b'{"discount_type":"percent","discount_value":5}', "discount_type"),
        (b'{"discount_value":5,"metadata":{"a":[1]}}', "metadata"),
        (b'{"discount_value":5,"metadata":{"a":{"b":1}}}', "metadata"),
        (b'{"discount_value":5,"metadata":{"":1}}', "metadata"),
        (b'{"discount_value":5,"metadata":{"a":1,"a":2}}', "metadata.a"),
        (b'{"discount_value":5,"metadata":{"a":"\\u0000"}}', "metadata.a"),
        (b'{"discount_value":5,"metadata":{"a":1e400}}', "metadata"),
        (b'{"discount_value":5,"metadata":{"a":99999999999999999999}}', "metadata.a"),
        (b'{"discount_value":5,"metadata":{"%s":1}}' % (b"k" * 41), "metadata"),
        (b'{"discount_value":5,"metadata":{"a":"%s"}}' % (b"v" * 501), "metadata.a"),
        (
            b'{"discount_value":5,"metadata":%s}'
            % msgspec.json.encode({str(n): n for n in range(51)}),
            "metadata",
        ),
    ],
)
def test_a_voucher_of_nonsense_is_refused(
    refused: Callable[..., httpx.Response], body: bytes, field: str
) -> None:
    refused(ROUTES[0], body, field=field)


def test_a_campaigns_rules_are_named_by_their_path(
    refused: Callable[..., httpx.Response],
) -> None:
    for rules, field in [
        (b'{"discount_value":-5}', "rules.discount_value"),
        (b'{"max_redemptions":0}', "rules.max_redemptions"),
        (b'{"colour":1}', "rules.colour"),
        (b'{"discount_type":"X","discount_value":1}', "rules.discount_type"),
    ]:
        refused(ROUTES[4], b'{"name":"C","rules":%s}' % rules, field=field)


@pytest.mark.parametrize("media_type", ["text/plain", "application/xml", "multipart/form-data"])
def test_what_says_it_is_not_json_is_refused(client: httpx.Client, media_type: str) -> None:
    answer = client.post(
        "/v1/vouchers", content=b'{"discount_value":5}', headers={"Content-Type": media_type}
    )

    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


def test_a_curl_line_without_a_media_type_works(client: httpx.Client) -> None:
    request = client.build_request("POST", "/v1/vouchers", content=b'{"discount_value":5}')
    request.headers.pop("content-type", None)

    assert client.send(request).status_code == 201


@routes
def test_without_a_key_nothing_is_read(api: Api, campaign: str, route: Route) -> None:
    before = api.row_counts()
    path = route.path.replace("{campaign}", campaign)
    for headers in ({}, {"Authorization": "Bearer vf_sk_x"}):
        answer = httpx.request(
            route.method, api.base_url + path, content=route.good, headers=headers
        )
        assert answer.status_code == 401
        assert re.fullmatch("missing_key|malformed_key", answer.json()["code"])
    assert api.row_counts() == before


@pytest.mark.parametrize("route", [r for r in ROUTES if "BAD" in r.path or "{" in r.path], ids=str)
def test_another_projects_objects_are_not_there(
    stranger: httpx.Client, api: Api, project: Project, campaign: str, route: Route
) -> None:
    before = api.row_counts()

    answer = stranger.request(
        route.method, route.path.replace("{campaign}", campaign), content=route.good
    )

    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert api.row_counts() == before


def test_unknown_addresses_and_methods_are_problems(client: httpx.Client) -> None:
    missing = client.get("/v1/nothing")
    wrong = client.put("/v1/vouchers", content=b"{}")

    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")
    for answer in (missing, wrong):
        assert answer.headers["content-type"] == "application/problem+json"


def test_odd_spellings_of_an_address_are_never_a_fault(client: httpx.Client) -> None:
    for path in ["/v1/vouchers/%00", "/v1/vouchers/%FF", "/v1/vouchers/%2e%2e", "//v1//vouchers",
                 "/v1/vouchers/%2F/redeem", "/v1/vouchers//redeem", "/v1/campaigns/cmp_" + "Z" * 26,
                 "/v1/api-keys/%F0%9F%8E%81", "/v1/flash-sales/%00/claim"]:  # fmt: skip
        for method in ("GET", "POST"):
            answer = client.request(method, path, content=b"{}")
            assert answer.status_code in (400, 404, 405), (method, path, answer.text)


@pytest.mark.parametrize("path", ["/v1/vouchers", "/v1/vouchers/BAD/redeem"])
def test_a_client_that_hangs_up_half_way_leaves_nothing(
    api: Api, client: httpx.Client, project: Project, campaign: str, path: str
) -> None:
    client.get("/healthz")
    before, logged = api.row_counts(), api.log_size()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {project.secret_key}\r\n"
        'Content-Length: 100\r\n\r\n{"discount_value":5'
    )

    url = httpx.URL(api.base_url)
    for _ in range(5):
        with socket.create_connection((url.host, url.port or 80)) as connection:
            connection.sendall(head.encode())
            time.sleep(0.02)

    assert client.get("/healthz").status_code == 200
    time.sleep(0.1)
    assert api.row_counts() == before
    assert [e for e in api.log_since(logged) if e["level"] in ("warning", "error")] == []


def test_a_body_in_pieces_without_a_length_is_taken(client: httpx.Client, campaign: str) -> None:
    for path in ("/v1/vouchers/BAD/validate", "/v1/vouchers/BAD/redeem"):
        answer = client.post(path, content=(piece for piece in [b'{"order_', b'value":5}']))
        assert answer.status_code == 200, answer.text
