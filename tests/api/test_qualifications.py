"""What would work, for many codes at once and for a customer's cart; nothing is consumed."""

from typing import Any

import httpx
import pytest

from tests.api.conftest import Api


def voucher(client: httpx.Client, **members: Any) -> str:
    made = client.post("/v1/vouchers", json={"discount_value": 10, **members})
    assert made.status_code == 201, made.text
    return made.json()["code"]


def test_the_best_deal_comes_first_and_the_rest_has_reasons(client: httpx.Client, api: Api) -> None:
    ten = voucher(client, holder="qia")
    thirty = voucher(client, holder="qia", discount_value=30)
    five = voucher(client, holder="qia", discount_type="AMOUNT", discount_value=5)
    large = voucher(client, holder="qia", discount_value=50, min_order_value=100)
    off = voucher(client, holder="qia")
    client.post(f"/v1/vouchers/{off}/disable")
    used = voucher(client, holder="qia", max_redemptions=1)
    client.post(f"/v1/vouchers/{used}/redeem", json={"customer_id": "qia", "order_value": 1})
    theirs = voucher(client, holder="other", discount_value=90)
    sent = voucher(client, discount_value=20)
    before = api.row_counts()
    body = {"customer_id": "qia", "order_value": 60, "codes": [sent.lower(), sent, "NO-SUCH"]}
    told = client.post("/v1/qualifications", json=body).json()
    assert [(one["voucher"], one["discount_applied"]) for one in told["data"]] == [
        (thirty, 18), (sent, 12), (ten, 6), (five, 5),
    ]  # fmt: skip
    reasons = {one["voucher"]: one["code"] for one in told["rest"]}
    assert reasons == {
        large: "order_value_too_low", off: "voucher_inactive", used: "limit_reached",
        "NO-SUCH": "not_found",
    }  # fmt: skip
    assert theirs not in reasons
    assert api.row_counts() == before
    for one in told["data"]:
        won = client.post(
            f"/v1/vouchers/{one['voucher']}/redeem", json={"customer_id": "qia", "order_value": 60}
        ).json()
        assert won["discount_applied"] == one["discount_applied"], "the promise is kept"


@pytest.mark.parametrize("path", ["/v1/qualifications", "/v1/validations"])
@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"order_value": 10.005}, "order_value"),
        ({"order_value": 10, "order": {"items": [{"quantity": 1, "unit_price": 9}]}},
         "order_value"),
        ({"order": {"items": [{"product_id": "a", "quantity": 1, "unit_price": -1}]}},
         "order.items[0].unit_price"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_cart_is_no_fault_of_a_code(
    client: httpx.Client, path: str, members: dict[str, Any], field: str
) -> None:
    body = {"customer_id": "wro", "codes": [voucher(client)], **members}
    refused = client.post(path, json=body)
    assert (refused.status_code, refused.json()["field"]) == (400, field)


def test_a_cart_with_items_is_shown_line_by_line(client: httpx.Client) -> None:
    shoes = voucher(
        client, holder="lil", discount_value=50,
        applies_to={"target": "items", "include": {"tags": ["shoes"]}},
    )  # fmt: skip
    items = [
        {"product_id": "a", "tags": ["shoes"], "quantity": 1, "unit_price": 40},
        {"product_id": "b", "quantity": 2, "unit_price": 10},
    ]
    body = {"customer_id": "lil", "order": {"items": items}}
    [best] = client.post("/v1/qualifications", json=body).json()["data"]
    assert (best["voucher"], best["discount_applied"]) == (shoes, 20)
    assert [line["discount"] for line in best["order"]["items"]] == [20, 0]


def test_many_codes_are_judged_each_for_itself_and_nothing_is_taken(
    client: httpx.Client, api: Api
) -> None:
    good = voucher(client, max_redemptions=1)
    limited = voucher(client, budgets=[{"of": "redemptions", "per": "customer", "max": 1}])
    before = api.row_counts()
    body = {"codes": [good, "NOPE", good, limited], "order_value": 20, "customer_id": "m"}
    told = client.post("/v1/validations", json=body).json()["data"]
    assert [(one["valid"], one["code"]) for one in told] == [
        (True, good), (False, "not_found"), (True, good), (True, limited),
    ]  # fmt: skip
    assert api.row_counts() == before
    assert client.get(f"/v1/vouchers/{good}").json()["redeemed_count"] == 0


def test_what_a_question_tells_of_its_customer_is_kept_only_for_a_secret_key(
    client: httpx.Client, browser: httpx.Client
) -> None:
    gold = {"fact": "customer.attributes.tier", "is": "equals", "value": "gold"}
    code = voucher(client, conditions=gold)
    body = {"customer_id": "nea", "order_value": 20, "customer": {"attributes": {"tier": "gold"}}}
    path = f"/v1/vouchers/{code}/validate"
    refused = browser.post(path, json=body)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert client.get("/v1/customers/nea").status_code == 404
    assert client.post(path, json=body).json()["valid"] is True
    del body["customer"]
    assert browser.post(path, json=body).json()["valid"] is True
    nobody = {"order_value": 20, "customer": {"name": "N"}}
    lacking = client.post(path, json=nobody)
    assert (lacking.status_code, lacking.json()["field"]) == (400, "customer_id")


def test_a_wallet_is_its_customers_vouchers_newest_first(
    client: httpx.Client, stranger: httpx.Client
) -> None:
    codes = [voucher(client, holder="wal") for _ in range(3)]
    told = client.get("/v1/customers/wal/wallet", params={"limit": 2}).json()
    assert [one["code"] for one in told["data"]] == codes[:0:-1]
    assert (told["has_more"], told["data"][0]["holder"]) == (True, "wal")
    last = told["data"][-1]["id"]
    rest = client.get("/v1/customers/wal/wallet", params={"starting_after": last}).json()
    assert [one["code"] for one in rest["data"]] == codes[:1]
    assert stranger.get("/v1/customers/wal/wallet").json()["data"] == []


def test_a_fast_sale_asks_redis_alone_and_does_not_take_a_customer(client: httpx.Client) -> None:
    sale = client.post(
        "/v1/flash-sales", json={"name": "F", "code": "FASTC", "discount_value": 5, "stock": 5}
    ).json()
    assert client.post(f"/v1/flash-sales/{sale['id']}/open").status_code == 200
    body = {"customer_id": "fay", "order_value": 20, "customer": {"name": "Fay"}}
    refused = client.post("/v1/vouchers/FASTC/redeem", json=body)
    assert (refused.status_code, refused.json()["field"]) == (400, "customer")
    assert client.get("/v1/customers/fay").status_code == 404
    client.post(f"/v1/flash-sales/{sale['id']}/close")
