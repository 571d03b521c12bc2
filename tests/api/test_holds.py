"""A held use is nobody else's, counts against every limit, and comes back by itself."""

from typing import Any

import httpx
import pytest

from core import ids
from tests.api.conftest import Api

UNTIL_SWEPT = "update vf.holds set expires_at = clock_timestamp() - interval '1 second'"


def make(client: httpx.Client, **members: Any) -> str:
    answer = client.post("/v1/vouchers", json={"discount_value": 10, **members})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["code"])


def hold(client: httpx.Client, code: str, **members: Any) -> httpx.Response:
    return client.post("/v1/holds", json={"code": code, "order_value": 50, **members})


def redeem(client: httpx.Client, code: str, **members: Any) -> httpx.Response:
    return client.post(f"/v1/vouchers/{code}/redeem", json={"order_value": 50, **members})


def test_the_last_use_held_is_redeemed_by_who_holds_it_and_by_nobody_else(
    api: Api, client: httpx.Client
) -> None:
    code = make(client, max_redemptions=1)
    held = hold(client, code, customer_id="anna")
    assert held.status_code == 201, held.text
    told = held.json()
    assert (told["status"], told["discount_applied"]) == ("held", 5.00)
    shown = client.get(f"/v1/vouchers/{code}").json()
    assert (shown["redeemed_count"], shown["remaining"]) == (0, 0)
    assert redeem(client, code, customer_id="bob").json()["code"] == "limit_reached"
    assert hold(client, code).json()["code"] == "limit_reached"
    wrong = redeem(client, code, customer_id="bob", hold_id=told["id"])
    assert (wrong.status_code, wrong.json()["field"]) == (404, "hold_id")

    asked = {"json": {"order_value": 50, "customer_id": "anna", "hold_id": told["id"]},
             "headers": {"Idempotency-Key": "cart-1"}}  # fmt: skip
    done = client.post(f"/v1/vouchers/{code}/redeem", **asked)
    assert done.status_code == 200, done.text
    assert done.json()["redemption_id"] == told["redemption_id"]
    assert client.post(f"/v1/vouchers/{code}/redeem", **asked).json() == done.json()
    after = client.get(f"/v1/holds/{told['id']}").json()
    assert after["status"] == "redeemed" and after["ended_at"] is not None
    again = redeem(client, code, customer_id="anna", hold_id=told["id"])
    assert again.json()["code"] == "hold_expired"
    assert client.get(f"/v1/vouchers/{code}").json()["redeemed_count"] == 1


def test_a_hold_takes_of_customers_budgets_and_campaigns_and_gives_all_of_it_back(
    api: Api, client: httpx.Client
) -> None:
    rules = {"discount_value": 10, "max_redemptions": 1, "per_customer_limit": 1,
             "budgets": [{"of": "discount", "max": 5}]}  # fmt: skip
    campaign = client.post("/v1/campaigns", json={"name": "h", "rules": rules}).json()["id"]
    codes = [make(client, discount_value=None, campaign_id=campaign) for _ in range(2)]
    counts = "select used from vf.budgets order by scope_id desc limit 1"
    customers = (
        "select sum(live_count)::int from vf.customer_counts "
        "where scope_id = (select id from vf.campaigns where name = 'h')"
    )
    for ending in ("release", "expire"):
        held = hold(client, codes[0], customer_id="anna").json()
        assert held["status"] == "held"
        assert redeem(client, codes[1], customer_id="bob").status_code == 409
        assert api.rows(counts)[0][0] == 500
        if ending == "release":
            for _ in range(2):
                gone = client.post(f"/v1/holds/{held['id']}/release").json()
                assert gone["status"] == "released"
        else:
            api.rows(UNTIL_SWEPT + f" where id = '{_uuid(held['id'])}'")
            assert client.get(f"/v1/holds/{held['id']}").json()["status"] == "expired"
            # The same code's next use finds the place free before anybody swept.
            assert redeem(client, codes[0], customer_id="anna").status_code == 200
            row = client.get(f"/v1/redemptions?code={codes[0]}").json()["data"][0]
            back = f"/v1/redemptions/{row['redemption_id']}/rollback"
            assert client.post(back, json={}).status_code == 200
        assert api.rows(counts)[0][0] == 0
        assert api.rows(customers)[0][0] == 0
    assert client.get(f"/v1/campaigns/{campaign}").json()["redeemed_count"] == 0


def _uuid(public_id: str) -> str:
    found = ids.parse_id("hld", public_id)
    assert found is not None
    return str(found)


def test_a_live_hold_is_extended_and_a_dead_one_is_not(api: Api, client: httpx.Client) -> None:
    code = make(client)
    held = hold(client, code, ttl_s=60).json()
    longer = client.post(f"/v1/holds/{held['id']}/extend", json={"ttl_s": 600}).json()
    assert longer["expires_at"] > held["expires_at"]
    assert client.post(f"/v1/holds/{held['id']}/release").status_code == 200
    for verb in ("extend", "extend"):
        dead = client.post(f"/v1/holds/{held['id']}/{verb}")
        assert (dead.status_code, dead.json()["code"]) == (409, "hold_expired")


@pytest.mark.parametrize(
    ("members", "field"),
    [({"ttl_s": 0}, "ttl_s"), ({"ttl_s": 86_401}, "ttl_s"), ({"hold_id": "hld_x"}, "hold_id"),
     ({"code": "NOT-THERE"}, "code")],
)  # fmt: skip
def test_a_hold_that_makes_no_sense_is_refused(
    client: httpx.Client, members: dict[str, Any], field: str
) -> None:
    code = make(client)
    refused = hold(client, **{"code": code, **members})
    assert refused.status_code in (400, 404) and refused.json()["field"] == field
