"""Campaigns over HTTP."""

import re
from collections.abc import Callable

import httpx

from tests.api.conftest import Api, Project

PUBLISHED = {
    "name": "Summer Sale",
    "type": "DISCOUNT",
    "rules": {"discount_value": 20, "max_redemptions": 500},
}


def test_the_published_request_makes_a_campaign(client: httpx.Client) -> None:
    answer = client.post("/v1/campaigns", json=PUBLISHED)

    assert answer.status_code == 201
    campaign = answer.json()
    assert re.fullmatch(r"cmp_[0-7][0-9A-HJKMNP-TV-Z]{25}", campaign.pop("id"))
    assert campaign.pop("created_at").endswith("Z")
    assert campaign.pop("updated_at").endswith("Z")
    assert campaign == {
        "name": "Summer Sale",
        "type": "DISCOUNT",
        "status": "active",
        "rules": {
            "discount_type": "PERCENT",
            "discount_value": 20,
            "max_redemptions": 500,
            "per_customer_limit": None,
            "starts_at": None,
            "expires_at": None,
            "min_order_value": None,
        },
        "redeemed_count": 0,
        "remaining": 500,
        "metadata": {},
    }


def test_a_campaign_is_read_back_and_listed(api: Api, make_project: Callable[..., Project]) -> None:
    with api.client(make_project().secret_key) as client:
        made = [client.post("/v1/campaigns", json=PUBLISHED).json() for _ in range(3)]

        assert client.get(f"/v1/campaigns/{made[0]['id']}").json() == made[0]
        first = client.get("/v1/campaigns?limit=2").json()
        second = client.get(f"/v1/campaigns?limit=2&starting_after={first['data'][-1]['id']}")
    assert first == {"data": [made[2], made[1]], "has_more": True}
    assert second.json() == {"data": [made[0]], "has_more": False}


def test_a_paused_campaign_pauses_its_vouchers_until_it_is_resumed(client: httpx.Client) -> None:
    campaign = client.post("/v1/campaigns", json=PUBLISHED).json()
    client.post("/v1/vouchers", json={"code": "PAUSED", "campaign_id": campaign["id"]})
    path = f"/v1/campaigns/{campaign['id']}"

    for _ in range(2):
        assert client.post(f"{path}/pause").json()["status"] == "paused"
    verdict = client.post("/v1/vouchers/PAUSED/validate", json={}).json()
    assert (verdict["valid"], verdict["code"]) == (False, "paused")
    assert client.post(f"{path}/resume").json()["status"] == "active"
    assert client.post("/v1/vouchers/PAUSED/validate", json={}).json()["valid"] is True


def test_name_dates_and_metadata_can_be_changed_and_a_customers_limit_cannot(
    client: httpx.Client, api: Api
) -> None:
    path = f"/v1/campaigns/{client.post('/v1/campaigns', json=PUBLISHED).json()['id']}"

    changed = client.patch(
        path,
        json={
            "name": "Autumn",
            "rules": {"expires_at": "2031-01-01T00:00:00Z"},
            "metadata": {"season": 4},
        },
    ).json()
    refused = client.patch(path, json={"rules": {"per_customer_limit": 1}})
    disordered = client.patch(path, json={"rules": {"starts_at": "2032-01-01T00:00:00Z"}})

    assert (changed["name"], changed["metadata"]) == ("Autumn", {"season": 4})
    assert changed["rules"]["expires_at"] == "2031-01-01T00:00:00Z"
    assert (refused.status_code, refused.json()["field"]) == (400, "rules.per_customer_limit")
    assert (disordered.status_code, disordered.json()["field"]) == (400, "rules.expires_at")
    after = client.get(path).json()
    assert changed.pop("effect") == {
        "codes": 0, "at_once": ["expires_at"], "later_codes_only": [], "own_discount": 0,
    }  # fmt: skip
    assert {**after, "updated_at": ""} == {**changed, "updated_at": ""}


def test_an_expired_campaign_is_shown_as_ended(client: httpx.Client) -> None:
    body = {"name": "Old", "rules": {"discount_value": 1, "expires_at": "2020-01-01T00:00:00Z"}}

    campaign = client.post("/v1/campaigns", json=body).json()

    assert campaign["status"] == "ended"
    ended = client.get("/v1/campaigns?status=ended").json()["data"]
    assert [c["id"] for c in ended] == [campaign["id"]]


def test_a_voucher_needs_a_discount_from_somewhere(client: httpx.Client) -> None:
    bare = client.post("/v1/campaigns", json={"name": "Bare"}).json()

    refused = client.post("/v1/vouchers", json={"campaign_id": bare["id"]})
    made = client.post("/v1/vouchers", json={"campaign_id": bare["id"], "discount_value": 5})

    assert (refused.status_code, refused.json()["field"]) == (400, "discount_value")
    assert made.status_code == 201


def test_another_projects_campaign_is_not_there(
    client: httpx.Client, stranger: httpx.Client
) -> None:
    campaign = client.post("/v1/campaigns", json=PUBLISHED).json()
    path = f"/v1/campaigns/{campaign['id']}"

    for method, address, body in [
        ("GET", path, None),
        ("PATCH", path, {"name": "Stolen"}),
        ("POST", f"{path}/pause", None),
        ("POST", "/v1/vouchers", {"campaign_id": campaign["id"], "discount_value": 1}),
        ("GET", f"/v1/vouchers?campaign_id={campaign['id']}", None),
    ]:
        answer = stranger.request(method, address, json=body)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), address
    assert client.get(path).json() == campaign
