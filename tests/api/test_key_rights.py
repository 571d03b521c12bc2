"""What a key may do: scopes, an end, a successor; browsers' keys, their pages and their claims."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from core import api_keys, customer_tokens, ids
from tests.api.conftest import Api, Project

SHOP = "https://shop.example"


def key_of(client: httpx.Client, **body: Any) -> str:
    made = client.post("/v1/api-keys", json=body)
    assert made.status_code == 201, made.text
    return str(made.json()["key"])


@pytest.fixture(scope="module")
def reader(api: Api, client: httpx.Client) -> Iterator[httpx.Client]:
    with api.client(key_of(client, type="SECRET", scopes=["vouchers:read"])) as reader:
        yield reader


def test_a_scope_lets_one_thing_pass_and_the_missing_one_is_named(reader: httpx.Client) -> None:
    assert reader.get("/v1/vouchers").status_code == 200
    assert reader.post("/v1/vouchers/NONE/validate", json={}).status_code in (200, 404)

    for method, path, scope in [
        ("POST", "/v1/vouchers", "vouchers:write"),
        ("GET", "/v1/campaigns", "campaigns:read"),
        ("POST", "/v1/vouchers/NONE/redeem", "redemptions:write"),
        ("POST", f"/v1/flash-sales/{ids.format_id('fls', ids.new())}/claim", "redemptions:write"),
        ("GET", "/v1/api-keys", "api_keys:read"),
    ]:
        answer = reader.request(method, path, json={} if method == "POST" else None)
        assert (answer.status_code, answer.json()["code"]) == (403, "missing_scope"), path
        assert answer.json()["because"] == {"scope": scope}


def test_a_kind_of_scope_covers_all_nouns(api: Api, client: httpx.Client) -> None:
    with api.client(key_of(client, type="SECRET", scopes=["*:read"])) as reader:
        assert reader.get("/v1/vouchers").status_code == 200
        assert reader.get("/v1/campaigns").status_code == 200
        refused = reader.post("/v1/vouchers", json={"code": "NEVER"})
    assert refused.json()["because"] == {"scope": "vouchers:write"}
    assert client.get("/v1/vouchers/NEVER").status_code == 404


def test_an_unknown_scope_is_refused_and_the_known_ones_told(client: httpx.Client) -> None:
    answer = client.post("/v1/api-keys", json={"type": "SECRET", "scopes": ["voucher:read"]})

    assert (answer.status_code, answer.json()["field"]) == (400, "scopes")
    assert "vouchers:read" in answer.json()["detail"]


def test_a_key_with_scopes_hands_out_no_more_than_it_has(api: Api, client: httpx.Client) -> None:
    unscoped = client.post("/v1/api-keys", json={"type": "SECRET"}).json()["id"]
    with api.client(
        key_of(client, type="SECRET", scopes=["api_keys:write", "vouchers:read"])
    ) as maker:
        made = maker.post("/v1/api-keys", json={"type": "SECRET", "scopes": ["vouchers:read"]})
        more = maker.post("/v1/api-keys", json={"type": "SECRET", "scopes": ["vouchers:write"]})
        everything = maker.post("/v1/api-keys", json={"type": "SECRET"})
        taken = maker.post(f"/v1/api-keys/{unscoped}/rotate")

    assert made.status_code == 201
    assert (more.status_code, more.json()["because"]) == (403, {"scope": "vouchers:write"})
    assert (everything.status_code, everything.json()["code"]) == (403, "forbidden")
    assert (taken.status_code, taken.json()["code"]) == (403, "forbidden")
    assert client.get(f"/v1/api-keys/{unscoped}").json()["expires_at"] is None


def test_an_agents_key_has_scopes_and_an_end(api: Api, client: httpx.Client) -> None:
    made = client.post("/v1/api-keys", json={"type": "AGENT", "scopes": ["*:read"]}).json()

    assert made["key"].startswith("vf_ak_") and made["last4"] == made["key"][-4:]
    [[days]] = api.rows(
        "select extract(epoch from expires_at - created_at) / 86400 from vf.api_keys where id = $1",
        ids.parse_id("key", made["id"]),
    )
    assert round(float(days), 3) == 7
    with api.client(made["key"]) as agent:
        assert agent.get("/v1/vouchers").status_code == 200
    for body, field in [
        ({}, "scopes"),
        ({"scopes": ["*:read"], "expires_in_days": 91}, "expires_in_days"),
        ({"scopes": ["*:read"], "origins": [SHOP]}, "origins"),
    ]:
        refused = client.post("/v1/api-keys", json={"type": "AGENT", **body})
        assert (refused.status_code, refused.json()["field"]) == (400, field), body


def test_an_agent_cannot_prolong_itself(api: Api, client: httpx.Client) -> None:
    body = {"type": "AGENT", "scopes": ["*:read", "*:write"], "expires_in_days": 1}
    made = client.post("/v1/api-keys", json=body).json()

    with api.client(made["key"]) as agent:
        rotated = agent.post(f"/v1/api-keys/{made['id']}/rotate")
        another = agent.post("/v1/api-keys", json=body)

    assert (rotated.status_code, another.status_code) == (403, 403)


def test_an_expired_key_stops_everywhere_also_at_the_hot_doors(
    api: Api, client: httpx.Client
) -> None:
    made = client.post("/v1/api-keys", json={"type": "SECRET", "expires_in_days": 1}).json()
    client.post("/v1/vouchers", json={"code": "ENDS", "discount_value": 10})
    api.rows(
        "update vf.api_keys set expires_at = clock_timestamp() + interval '2.5 s' where id = $1",
        ids.parse_id("key", made["id"]),
    )
    with api.client(made["key"]) as ending:
        path, body = "/v1/vouchers/ENDS/redeem", {"order_value": 1}
        # The second teaches the compiled doors, the third is theirs.
        statuses = [ending.post(path, json=body).status_code for _ in range(4)]
        assert statuses == [200] * 4
        time.sleep(3.2)
        answer = ending.post(path, json=body)
        other = ending.get("/v1/vouchers")

    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_key")
    assert (other.status_code, other.json()["code"]) == (401, "invalid_key")
    shown = client.get(f"/v1/api-keys/{made['id']}").json()
    assert (shown["status"], shown["revoked_at"]) == ("expired", None)
    [[count]] = api.rows("select count(*) from vf.redemptions r join vf.vouchers v "
                         "on v.id = r.voucher_id where v.code = 'ENDS'")  # fmt: skip
    assert count == 4


def test_a_replaced_key_works_until_the_overlap_ends(api: Api, client: httpx.Client) -> None:
    old = client.post("/v1/api-keys", json={"type": "SECRET", "scopes": ["*:read"]}).json()
    with api.client(old["key"]) as before:
        assert before.get("/v1/vouchers").status_code == 200

        new = client.post(f"/v1/api-keys/{old['id']}/rotate", json={"overlap_s": 2}).json()
        assert before.get("/v1/vouchers").status_code == 200
        with api.client(new["key"]) as after:
            assert after.get("/v1/vouchers").status_code == 200
            assert after.post("/v1/vouchers", json={}).status_code == 403
            time.sleep(2.7)
            assert before.get("/v1/vouchers").status_code == 401
            assert after.get("/v1/vouchers").status_code == 200

    assert client.get(f"/v1/api-keys/{old['id']}").json()["rotated_to"] == new["id"]
    again = client.post(f"/v1/api-keys/{old['id']}/rotate")
    assert (again.status_code, again.json()["code"]) == (409, "already_exists")


def test_a_keys_last_use_is_shown(api: Api, client: httpx.Client) -> None:
    made = client.post("/v1/api-keys", json={"type": "SECRET"}).json()
    assert client.get(f"/v1/api-keys/{made['id']}").json()["last_used_at"] is None

    with api.client(made["key"]) as used:
        used.get("/v1/vouchers")
    deadline_s = time.monotonic() + api_keys.TOUCH_INTERVAL_S + 3
    while client.get(f"/v1/api-keys/{made['id']}").json()["last_used_at"] is None:
        assert time.monotonic() < deadline_s
        time.sleep(0.2)


def test_a_browsers_key_does_what_browsers_do_and_nothing_else(browser: httpx.Client) -> None:
    assert browser.post("/v1/vouchers/NONE/validate", json={}).status_code in (200, 404)
    for method, path in [
        ("GET", "/v1/vouchers"),
        ("POST", "/v1/vouchers"),
        ("POST", "/v1/vouchers/X/redeem"),
        ("GET", "/v1/api-keys"),
        ("GET", "/v1/flash-sales"),
        ("GET", "/v1/redemptions"),
    ]:
        answer = browser.request(method, path, json={} if method == "POST" else None)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), path


def test_a_browsers_key_works_on_its_pages_alone(api: Api, client: httpx.Client) -> None:
    key = key_of(client, type="PUBLISHABLE", origins=[SHOP])

    def ask(origin: str | None) -> httpx.Response:
        with api.client(key) as page:
            return page.post(
                "/v1/vouchers/NONE/validate", json={}, headers={"Origin": origin} if origin else {}
            )

    assert ask(SHOP).status_code in (200, 404)
    for origin in ("https://evil.example", f"{SHOP}.evil.example", "null", None):
        answer = ask(origin)
        assert (answer.status_code, answer.json()["code"]) == (403, "origin_not_allowed"), origin
    refused = client.post(
        "/v1/api-keys", json={"type": "PUBLISHABLE", "origins": ["https://shop.example/path"]}
    )
    assert (refused.status_code, refused.json()["field"]) == (400, "origins")


@pytest.mark.parametrize(
    "path", ["/v1/vouchers/A/validate", "/v1/vouchers/A/redeem", "/v1/flash-sales/fls_1/claim"]
)
def test_a_page_of_another_origin_may_ask_and_read(
    api: Api, browser: httpx.Client, path: str
) -> None:
    headers = {
        "Origin": SHOP,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,idempotency-key",
    }
    before = httpx.options(f"{api.base_url}{path}", headers=headers)
    answer = browser.post(path, json={}, headers={"Origin": SHOP})

    assert before.status_code == 204
    assert before.headers["access-control-allow-origin"] == "*"
    assert "POST" in before.headers["access-control-allow-methods"]
    assert before.headers["access-control-allow-headers"].startswith("authorization, content-type")
    assert "access-control-allow-credentials" not in before.headers
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "retry-after" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in browser.post(path, json={}).headers


def open_sale(client: httpx.Client, code: str, **terms: Any) -> str:
    body = {"name": code, "code": code, "discount_value": 50, "stock": 10, **terms}
    made = client.post("/v1/flash-sales", json=body)
    assert made.status_code == 201, made.text
    sale_id = str(made.json()["id"])
    assert client.post(f"/v1/flash-sales/{sale_id}/open").status_code == 200
    return sale_id


def test_a_browser_claims_only_where_the_sale_lets_it(
    client: httpx.Client, browser: httpx.Client
) -> None:
    closed = open_sale(client, "SERVERS", durability="strict")
    opened = open_sale(client, "ANYONE", durability="strict", publishable_claims=True)

    refused = browser.post(f"/v1/flash-sales/{closed}/claim", json={"customer_id": "c"})
    won = browser.post(f"/v1/flash-sales/{opened}/claim", json={"customer_id": "c"})

    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert (won.status_code, won.json()["remaining"]) == (200, 9)
    assert browser.get(f"/v1/flash-sales/{opened}").json()["claimed"] == 1
    assert client.get(f"/v1/flash-sales/{closed}").json()["claimed"] == 0
    assert browser.post("/v1/vouchers/ANYONE/redeem", json={}).status_code == 403


@pytest.mark.parametrize("durability", ["strict", "fast"])
def test_a_browser_claims_for_nobody_but_whom_the_shop_signed(
    api: Api, client: httpx.Client, browser: httpx.Client, durability: str, project: Project
) -> None:
    sale = open_sale(
        client, f"SIGNED{durability}", durability=durability, publishable_claims=True,
        per_customer_limit=1,
    )  # fmt: skip
    other = open_sale(client, f"OTHER{durability}", durability="strict")
    path = f"/v1/flash-sales/{sale}/claim"
    secret = client.post(f"/v1/flash-sales/{sale}/claim-secret").json()["secret"]
    other_secret = client.post(f"/v1/flash-sales/{other}/claim-secret").json()["secret"]
    sale_id, soon_s = ids.parse_id("fls", sale), int(time.time()) + 60
    other_id = ids.parse_id("fls", other)
    assert sale_id is not None and other_id is not None
    token = customer_tokens.sign(secret, sale_id, "ann", 1_999, soon_s)

    assert browser.post(f"/v1/flash-sales/{sale}/claim-secret").status_code == 403
    wrong = [
        ({"customer_id": "ann", "order_value": 19.99}, None),
        ({"customer_id": "bob", "order_value": 19.99}, token),
        ({"customer_id": "ann", "order_value": 20}, token),
        ({"customer_id": "ann", "order_value": 19.99}, token[:-1] + "0g"[token[-1] == "0"]),
        ({"customer_id": "ann", "order_value": 19.99},
         customer_tokens.sign(other_secret, sale_id, "ann", 1_999, soon_s)),
        ({"customer_id": "ann", "order_value": 19.99},
         customer_tokens.sign(secret, other_id, "ann", 1_999, soon_s)),
        ({"customer_id": "ann", "order_value": 19.99},
         customer_tokens.sign(secret, sale_id, "ann", 1_999, soon_s - 120)),
        ({"customer_id": "ann", "order_value": 19.99},
         customer_tokens.sign(secret, sale_id, "ann", 1_999, soon_s + 8 * 86_400)),
    ]  # fmt: skip
    for body, given in wrong:
        signed = {} if given is None else {"customer_token": given}
        answer = browser.post(path, json={**body, **signed})
        assert (answer.status_code, answer.json()["code"]) == (403, "invalid_customer_token"), body
    good = {"customer_id": "ann", "order_value": 19.99, "customer_token": token}
    won = browser.post(path, json=good)
    again = browser.post(path, json=good)

    assert (won.status_code, won.json()["remaining"]) == (200, 9)
    assert (again.status_code, again.json()["code"]) == (409, "customer_limit_reached")
    # To a browser the redemption that is in the way is not named; to the shop it is.
    assert "redemption_id" not in again.json()
    assert (
        client.post(path, json={"customer_id": "ann"}).json()["redemption_id"]
        == (won.json()["redemption_id"])
    )
