"""Richer vouchers over HTTP: discounts on items, rules, schedules, budgets, and orders by line."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.api.conftest import Api, Project

ORDER: dict[str, Any] = {
    "items": [
        {"product_id": "shirt", "tags": ["clothes"], "quantity": 3, "unit_price": 10.00},
        {"sku": "mug-1", "unit_price": 3.33},
    ],
    "shipping": 5.00,
}


def make(client: httpx.Client, **members: Any) -> str:
    answer = client.post("/v1/vouchers", json=members)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["code"])


def redeem(client: httpx.Client, code: str, **members: Any) -> httpx.Response:
    key = members.pop("key", None)
    headers = {"Idempotency-Key": key} if key else {}
    return client.post(f"/v1/vouchers/{code}/redeem", json=members, headers=headers)


def test_an_order_is_answered_line_by_line_and_the_same_when_read_back(
    client: httpx.Client,
) -> None:
    code = make(
        client, discount_type="PERCENT", discount_value=20, max_discount=100,
        applies_to={"target": "order", "exclude": {"product_ids": ["gift"]}},
    )  # fmt: skip
    asked = {"customer_id": "anna", "order_id": "o-1", "order": ORDER, "key": "k-1"}
    answer = redeem(client, code, **asked)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["discount_applied"] == 6.67
    assert told["order_value"] == 33.33
    assert told["order"] == {
        "items": [
            {"product_id": "shirt", "sku": None, "quantity": 3, "unit_price": 10.00,
             "value": 30.00, "discount": 6.00, "total": 24.00},
            {"product_id": None, "sku": "mug-1", "quantity": 1, "unit_price": 3.33,
             "value": 3.33, "discount": 0.67, "total": 2.66},
        ],
        "value": 33.33,
        "shipping": 5.00,
        "items_discount": 6.67,
        "shipping_discount": 0.00,
        "total": 31.66,
    }  # fmt: skip
    assert '"discount_applied":6.67' in answer.text and '"shipping_discount":0.00' in answer.text
    assert redeem(client, code, **asked).json() == told
    assert client.get(f"/v1/redemptions/{told['redemption_id']}").json() == told
    other = {**asked, "order": {**ORDER, "shipping": 6}}
    assert redeem(client, code, **other).status_code == 422
    assert client.get(f"/v1/vouchers/{code}").json()["redeemed_count"] == 1


def test_a_plain_voucher_takes_an_order_too_and_a_sum_means_the_same(client: httpx.Client) -> None:
    code = make(client, discount_value=20)
    by_order = redeem(client, code, order={"items": [{"unit_price": 89.99}]}).json()
    by_value = redeem(client, code, order_value=89.99).json()

    assert by_order["discount_applied"] == by_value["discount_applied"] == 18.00
    assert by_order["order"]["total"] == 71.99
    assert "order" not in by_value
    both = redeem(client, code, order={"items": [{"unit_price": 1}]}, order_value=1)
    assert (both.status_code, both.json()["field"]) == (400, "order_value")


@pytest.mark.parametrize(
    ("members", "discount"),
    [
        ({"discount_type": "FIXED", "discount_value": 10}, 23.33),
        ({"discount_type": "FREE_SHIPPING"}, 5.00),
        ({"discount_type": "FREE_SHIPPING", "max_discount": 3}, 3.00),
        ({"discount_type": "FREE_ITEM", "applies_to": {"include": {"skus": ["mug-1"]}}}, 3.33),
        ({"discount_value": 50, "applies_to": {"target": "items", "choose": "most_expensive"}},
         5.00),
        ({"discount_type": "AMOUNT", "discount_value": 4,
          "applies_to": {"target": "items", "include": {"tags": ["clothes"]},
                         "max_quantity": 2}}, 8.00),
    ],
)  # fmt: skip
def test_each_kind_is_made_shown_validated_and_redeemed_alike(
    client: httpx.Client, members: dict[str, Any], discount: float
) -> None:
    code = make(client, **members)

    shown = client.get(f"/v1/vouchers/{code}").json()
    assert shown["discount_type"] == members.get("discount_type", "PERCENT")
    assert shown["discount_value"] == members.get("discount_value")
    verdict = client.post(f"/v1/vouchers/{code}/validate", json={"order": ORDER}).json()
    assert (verdict["valid"], verdict["discount_applied"]) == (True, discount)
    told = redeem(client, code, order=ORDER).json()
    assert told["discount_applied"] == discount
    assert told["order"] == verdict["order"]


def test_what_needs_items_says_so_and_what_finds_none_refuses(client: httpx.Client) -> None:
    code = make(client, discount_value=10,
                applies_to={"include": {"product_ids": ["hat"], "tags": ["hats"]}})  # fmt: skip

    missing = redeem(client, code, order_value=10)
    assert (missing.status_code, missing.json()["field"]) == (400, "order")
    refused = redeem(client, code, order=ORDER)
    assert refused.status_code == 409
    problem = refused.json()
    assert problem["code"] == "not_eligible"
    wanted = {"product_ids": ["hat"], "tags": ["hats"]}
    assert problem["because"] == {"rule": "applies_to", "wanted": wanted}
    dollars = redeem(client, code, order={**ORDER, "currency": "USD"})
    assert dollars.json()["code"] == "currency_mismatch"
    assert client.get(f"/v1/vouchers/{code}").json()["redeemed_count"] == 0


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"discount_type": "FREE_ITEM"}, "applies_to.include"),
        ({"discount_type": "FREE_SHIPPING", "discount_value": 1}, "discount_value"),
        ({"discount_type": "FREE_SHIPPING", "applies_to": {}}, "applies_to"),
        ({"discount_type": "FIXED"}, "discount_value"),
        ({"discount_type": "FIXED", "discount_value": 0}, "discount_value"),
        ({"discount_value": 5, "max_discount": 0}, "max_discount"),
        ({"discount_value": 5, "applies_to": {"choose": "cheapest"}}, "applies_to"),
        ({"discount_value": 5, "applies_to": {"include": {}}}, "applies_to.include"),
        ({"discount_value": 5, "applies_to": {"max_quantity": 0, "target": "items"}},
         "applies_to.max_quantity"),
        ({"discount_value": 5, "conditions": {"all": [{"not": {}}]}}, "conditions.all[0].not"),
        ({"discount_value": 5, "schedule": {"weekdays": ["funday"]}}, "schedule.weekdays[0]"),
        ({"discount_value": 5, "schedule": {"hours": [{"from": "9", "to": "17:00"}]}},
         "schedule.hours[0].from"),
        ({"discount_value": 5, "time_zone": "Mars/Olympus"}, "time_zone"),
        ({"discount_value": 5, "budgets": [{"of": "discount", "max": 0}]}, "budgets[0].max"),
        ({"discount_value": 5, "budgets": [{"of": "redemptions", "max": 1.5}]}, "budgets[0].max"),
        ({"discount_value": 5, "budgets": [{"of": "discount", "max": 1}] * 2}, "budgets[1]"),
        ({"discount_value": 5, "budgets": [{"of": "discount", "max": 1}] * 11}, "budgets"),
        ({"discount_value": 5, "expires_after_days": 0}, "expires_after_days"),
        ({"discount_value": 5, "metadata": {"a": "x" * 1_000_000}}, None),
        ({"discount_value": 5, "conditions": {"any": [{"expression": "true"}] * 10_000}}, None),
    ],
)  # fmt: skip
def test_a_promotion_that_makes_no_sense_is_refused_by_its_member_and_not_stored(
    api: Api, client: httpx.Client, members: dict[str, Any], field: str | None
) -> None:
    before = api.row_counts()
    answer = client.post("/v1/vouchers", json=members)

    assert answer.status_code == (400 if field else 413), answer.text
    assert answer.json().get("field") == field
    assert api.row_counts() == before


def test_rules_refuse_with_the_fact_the_campaign_s_words_and_nothing_taken(
    client: httpx.Client,
) -> None:
    rules = {
        "discount_value": 10,
        "conditions": {"all": [
            {"fact": "order.value", "is": "at_least", "value": 50, "message": "From 50 euros on."},
            {"fact": "metadata.channel", "is": "one_of", "value": ["web", "app"]},
            {"expression": "customer.id.startsWith('vip-')"},
        ]},
    }  # fmt: skip
    campaign = client.post("/v1/campaigns", json={"name": "VIP", "rules": rules}).json()
    assert campaign["rules"]["conditions"] == rules["conditions"]
    code = make(client, campaign_id=campaign["id"])

    def asked(**members: Any) -> httpx.Response:
        return redeem(client, code, **{"customer_id": "vip-1", "order_value": 60,
                                       "metadata": {"channel": "web"}, **members})  # fmt: skip

    refused = asked(order_value=49.99).json()
    assert refused["code"] == "not_eligible"
    assert refused["detail"] == "From 50 euros on."
    assert refused["because"] == {
        "of": "campaign", "rule": "conditions.all[0]", "fact": "order.value", "is": "at_least",
        "seen": 49.99, "wanted": 50.00, "message": "From 50 euros on.",
    }  # fmt: skip
    assert asked(metadata={"channel": "tv"}).json()["because"]["seen"] == "tv"
    assert asked(customer_id="bob").json()["because"]["seen"] is False
    verdict = client.post(f"/v1/vouchers/{code}/validate", json={"order_value": 49.99}).json()
    assert (verdict["valid"], verdict["code"]) == (False, "not_eligible")
    assert verdict["because"] == refused["because"]
    assert client.get(f"/v1/campaigns/{campaign['id']}").json()["redeemed_count"] == 0
    told = asked()
    assert told.status_code == 200 and told.json()["discount_applied"] == 6.00


def test_a_first_order_is_first_once_and_a_retry_of_it_stays_redeemed(client: httpx.Client) -> None:
    code = make(client, discount_value=10,
                conditions={"fact": "customer.is_new", "is": "equals", "value": True})  # fmt: skip

    first = redeem(client, code, customer_id="eve", order_value=10, key="first")
    assert first.status_code == 200
    again = redeem(client, code, customer_id="eve", order_value=10)
    assert (again.status_code, again.json()["code"]) == (409, "not_eligible")
    assert redeem(client, code, customer_id="eve", order_value=10, key="first").json() == (
        first.json()
    )
    other = redeem(client, code, customer_id="eve", order_value=11, key="first")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    nobody = redeem(client, code, order_value=10)
    assert nobody.json()["because"]["seen"] is None


def test_a_schedule_goes_by_the_clock_of_its_place(client: httpx.Client) -> None:
    today = datetime.now(UTC)
    days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    # Kiritimati is 14 hours ahead, Pago Pago 11 behind: never the same weekday.
    ahead = days[(today + timedelta(hours=14)).weekday()]
    on = make(client, discount_value=10, time_zone="Pacific/Kiritimati",
              schedule={"weekdays": [ahead]})  # fmt: skip
    off = make(client, discount_value=10, time_zone="Pacific/Pago_Pago",
               schedule={"weekdays": [ahead]})  # fmt: skip

    assert redeem(client, on, order_value=10).status_code == 200
    refused = redeem(client, off, order_value=10).json()
    assert (refused["code"], refused["because"]["rule"]) == ("not_eligible", "schedule")
    assert refused["because"]["wanted"] == {"weekdays": [ahead]}


def test_days_after_issue_are_counted_where_the_code_is_issued(client: httpx.Client) -> None:
    rules = {"discount_value": 10, "expires_after_days": 30}
    campaign = client.post("/v1/campaigns", json={"name": "Monthly", "rules": rules}).json()
    assert campaign["rules"]["expires_after_days"] == 30
    for members in ({"discount_value": 5, "expires_after_days": 30},
                    {"campaign_id": campaign["id"]}):  # fmt: skip
        code = make(client, **members)
        shown = client.get(f"/v1/vouchers/{code}").json()
        expires_at = datetime.fromisoformat(shown["expires_at"])
        assert abs(expires_at - datetime.now(UTC) - timedelta(days=30)) < timedelta(minutes=1)


def test_a_budget_is_spent_to_the_cent_told_once_and_given_back(
    api: Api, client: httpx.Client
) -> None:
    rules = {
        "discount_type": "AMOUNT",
        "discount_value": 4,
        "budgets": [
            {"of": "redemptions", "per": "customer", "period": "day", "max": 2},
            {"of": "discount", "max": 10},
        ],
    }
    campaign = client.post("/v1/campaigns", json={"name": "Ten euros", "rules": rules}).json()
    assert campaign["rules"]["budgets"][1] == {
        "of": "discount", "per": None, "period": None, "max": 10.00,
    }  # fmt: skip
    code = make(client, campaign_id=campaign["id"])

    def reached() -> int:
        sql = "select count(*) from vf.outbox where event = 'campaign.budget_reached'"
        return int(api.rows(sql)[0][0])

    told = [redeem(client, code, customer_id="anna", order_value=4) for _ in range(3)]
    assert [answer.status_code for answer in told] == [200, 200, 409]
    assert told[2].json()["code"] == "customer_limit_reached"
    assert told[2].json()["because"]["budget"] == "redemptions/customer/day"
    before = reached()
    for _ in range(2):
        refused = redeem(client, code, customer_id="bob", order_value=4).json()
        assert refused["code"] == "budget_reached"
        assert refused["because"] == {
            "rule": "budgets", "budget": "discount", "period": None,
            "seen": 8.00, "taken": 4.00, "wanted": 10.00,
        }  # fmt: skip
    assert reached() == before + 1
    verdict = client.post(f"/v1/vouchers/{code}/validate",
                          json={"customer_id": "bob", "order_value": 4}).json()  # fmt: skip
    assert (verdict["valid"], verdict["code"]) == (False, "budget_reached")
    # What still fits is redeemed: two euros of the budget are left.
    assert redeem(client, code, customer_id="bob", order_value=2).json()["discount_applied"] == 2
    assert redeem(client, code, customer_id="carl", order_value=0.01).status_code == 409
    back = client.post(f"/v1/redemptions/{told[0].json()['redemption_id']}/rollback", json={})
    assert back.status_code == 200
    assert redeem(client, code, customer_id="carl", order_value=4).status_code == 200
    nobody = redeem(client, code, order_value=1)
    assert (nobody.status_code, nobody.json()["field"]) == (400, "customer_id")


def test_a_flash_sale_takes_no_richer_voucher_and_no_order(client: httpx.Client) -> None:
    code = make(client, discount_value=10, schedule={"weekdays": ["mon"]})
    for durability in ("fast", "strict"):
        sale = {"name": "s", "voucher": code, "stock": 1, "durability": durability}
        refused = client.post("/v1/flash-sales", json=sale)
        assert (refused.status_code, refused.json()["code"]) == (409, "not_eligible")
        assert refused.json()["because"]["rule"] == "voucher.promotion"


@pytest.mark.parametrize(
    ("currency", "price", "discount", "parts"),
    [
        ("JPY", 501, 200, [100, 100]),
        ("KWD", 0.501, 0.2, [0.1, 0.1]),
        ("EUR", 0.25, 0.1, [0.05] * 2),
    ],
)
def test_money_is_split_in_the_currency_s_own_units(
    api: Api, make_project: Callable[..., Project],
    currency: str, price: float, discount: float, parts: list[float],
) -> None:  # fmt: skip
    with api.client(make_project(currency).secret_key) as client:
        code = make(client, discount_value=20)
        told = redeem(client, code, order={"items": [{"unit_price": price}] * 2}).json()
        assert told["discount_applied"] == discount
        assert [item["discount"] for item in told["order"]["items"]] == parts
