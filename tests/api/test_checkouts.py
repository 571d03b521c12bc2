"""Several codes on one order: all or none, in their own order, or the best deal among them."""

import random
from typing import Any

import httpx
import pytest

from tests.api.conftest import Api

ORDER: dict[str, Any] = {
    "items": [
        {"product_id": "shirt", "quantity": 2, "unit_price": 25.00},
        {"product_id": "mug", "unit_price": 10.00},
    ],
    "shipping": 5.00,
}


def make(client: httpx.Client, **members: Any) -> str:
    answer = client.post("/v1/vouchers", json={"discount_value": 10, **members})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["code"])


def together(client: httpx.Client, codes: list[str], **members: Any) -> httpx.Response:
    return client.post("/v1/redemptions", json={"codes": codes, **members})


def test_codes_are_taken_off_one_after_another_whatever_order_they_come_in(
    client: httpx.Client,
) -> None:
    codes = [
        make(client, code="S-PERCENT"),
        make(client, code="S-AMOUNT", discount_type="AMOUNT", discount_value=5),
        make(client, code="S-MUG", discount_type="FREE_ITEM", discount_value=None,
             applies_to={"include": {"product_ids": ["mug"]}}),
        make(client, code="S-SHIP", discount_type="FREE_SHIPPING", discount_value=None),
        make(client, code="S-FIRST", discount_type="AMOUNT", discount_value=1,
             stacking={"priority": 5}),
    ]  # fmt: skip
    answers = []
    for _ in range(4):
        random.shuffle(codes)
        answer = together(client, codes, customer_id="anna", order=ORDER)
        assert answer.status_code == 200, answer.text
        answers.append(answer.json())
    told = answers[0]
    assert [one["code"] for one in told["redemptions"]] == [
        "S-FIRST", "S-MUG", "S-PERCENT", "S-AMOUNT", "S-SHIP",
    ]  # fmt: skip
    # 1.00; the mug less its part of it, 9.83; a tenth of the shirts' 49.17; 5.00; 5.00.
    assert [one["discount_applied"] for one in told["redemptions"]] == [1, 9.83, 4.92, 5, 5]
    assert told["discount_applied"] == 25.75
    assert told["order"]["total"] == 39.25
    assert told["order"]["items_discount"] == 20.75 and told["order"]["shipping_discount"] == 5
    assert all(one["order"] == told["order"] for one in answers)
    assert told["left_out"] == []


def test_where_the_seventeenth_of_thirty_is_refused_nothing_is_taken_and_it_is_named(
    api: Api, client: httpx.Client
) -> None:
    codes = [make(client, code=f"T{n:02}", max_redemptions=1, discount_value=1,
                  budgets=[{"of": "discount", "max": 5}]) for n in range(1, 31)]  # fmt: skip
    assert client.post("/v1/vouchers/T17/redeem", json={"order_value": 10}).status_code == 200
    before = api.row_counts()
    refused = together(client, codes, order_value=100)
    assert refused.status_code == 409
    problem = refused.json()
    assert (problem["code"], problem["voucher"], problem["place"]) == ("limit_reached", "T17", 17)
    assert api.row_counts() == before
    sql = (
        "select count(*) from vf.budgets b join vf.vouchers v on v.id = b.scope_id "
        "where v.code = any ($1) and b.used > 10"
    )
    assert api.rows(sql, codes)[0][0] == 0
    left = [code for code in codes if code != "T17"]
    told = together(client, left, order_value=100)
    assert told.status_code == 200 and len(told.json()["redemptions"]) == 29
    assert api.row_counts()["redemptions"] == before["redemptions"] + 29


def test_one_limit_of_a_campaign_is_shared_by_the_codes_of_one_order(client: httpx.Client) -> None:
    rules = {"discount_value": 10, "max_redemptions": 3}
    campaign = client.post("/v1/campaigns", json={"name": "c", "rules": rules}).json()["id"]
    codes = [make(client, discount_value=None, campaign_id=campaign) for _ in range(4)]
    refused = together(client, codes, order_value=10).json()
    assert (refused["code"], refused["place"]) == (
        "limit_reached", 1 + codes.index(sorted(codes)[3]),
    )  # fmt: skip
    assert client.get(f"/v1/campaigns/{campaign}").json()["redeemed_count"] == 0
    assert together(client, codes[:3], order_value=10).status_code == 200


def test_codes_that_do_not_go_together_say_which_and_why(client: httpx.Client) -> None:
    plain = make(client)
    alone = make(client, stacking={"exclusive": True})
    spring = [make(client, stacking={"group": "spring"}) for _ in range(2)]

    refused = together(client, [plain, alone], order_value=10).json()
    assert (refused["code"], refused["voucher"], refused["place"]) == ("not_combinable", alone, 2)
    assert refused["because"]["rule"] == "stacking.exclusive"
    refused = together(client, [spring[0], plain, spring[1]], order_value=10).json()
    assert (refused["code"], refused["place"]) == ("not_combinable", 3)
    assert refused["because"]["group"] == "spring"
    assert together(client, [alone], order_value=10).status_code == 200
    assert together(client, [plain, spring[0]], order_value=10).status_code == 200


def test_the_best_deal_is_redeemed_and_the_rest_is_told_why_not(client: httpx.Client) -> None:
    codes = [
        make(client, code="B-10"),
        make(client, code="B-30-ALONE", discount_value=30, stacking={"exclusive": True}),
        make(client, code="B-15-G", discount_value=15, stacking={"group": "g"}),
        make(client, code="B-25-G", discount_value=25, stacking={"group": "g"}),
        make(client, code="B-NEVER", conditions={"fact": "order.value", "is": "above",
                                                 "value": 1000}),
    ]  # fmt: skip
    told = together(client, codes, mode="best_deal", order_value=100).json()
    # A tenth and then a quarter of the rest, 32.50, beats 30.00.
    assert told["discount_applied"] == 32.50
    assert [one["code"] for one in told["redemptions"]] == ["B-10", "B-25-G"]
    assert {one["code"]: one["reason"] for one in told["left_out"]} == {
        "B-30-ALONE": "not_combinable", "B-15-G": "not_combinable", "B-NEVER": "not_eligible",
    }  # fmt: skip
    assert client.get("/v1/vouchers/B-30-ALONE").json()["redeemed_count"] == 0


def test_an_order_of_codes_is_redeemed_once_for_its_key(api: Api, client: httpx.Client) -> None:
    codes = [make(client), make(client)]
    asked = {"json": {"codes": codes, "order_value": 10}, "headers": {"Idempotency-Key": "o-1"}}
    first = client.post("/v1/redemptions", **asked)
    before = api.row_counts()
    assert client.post("/v1/redemptions", **asked).json() == first.json()
    assert api.row_counts() == before


@pytest.mark.parametrize(
    ("members", "status", "field"),
    [
        ({"codes": []}, 400, "codes"),
        ({"codes": [f"A{n}" for n in range(31)]}, 400, "codes"),
        ({"codes": ["A", "a "]}, 400, "codes"),
        ({"codes": ["NOT-THERE"]}, 404, "codes[0]"),
        ({"codes": ["A"], "hold_id": "hld_1"}, 400, "hold_id"),
        ({"codes": ["A"], "mode": "some"}, 400, "mode"),
    ],
)
def test_a_malformed_order_of_codes_is_told_which_member(
    client: httpx.Client, members: dict[str, Any], status: int, field: str
) -> None:
    refused = client.post("/v1/redemptions", json={"order_value": 10, **members})
    assert (refused.status_code, refused.json()["field"]) == (status, field)


def gift_card(client: httpx.Client, amount: float, **members: Any) -> dict[str, Any]:
    answer = client.post("/v1/gift-cards", json={"amount": amount, **members})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def balance(client: httpx.Client, card: dict[str, Any]) -> Any:
    return client.get(f"/v1/gift-cards/{card['id']}").json()["balance"]


def roll_back(client: httpx.Client, redemption: dict[str, Any]) -> None:
    path = f"/v1/redemptions/{redemption['redemption_id']}/rollback"
    answer = client.post(path, json={"reason": "cancelled"})
    assert answer.status_code == 200, answer.text


def test_gift_cards_pay_what_codes_leave_and_a_rollback_refunds_them(client: httpx.Client) -> None:
    codes = [make(client, code="G-TENTH"), make(client, code="G-FIVE", discount_type="AMOUNT",
                                                discount_value=5)]  # fmt: skip
    small, large = gift_card(client, 20), gift_card(client, 100)
    paying = [{"code": small["code"]}, {"id": large["id"]}]
    asked = {"json": {"codes": codes, "order": ORDER, "order_id": "77", "gift_cards": paying},
             "headers": {"Idempotency-Key": "paid-1"}}  # fmt: skip
    told = client.post("/v1/redemptions", **asked)
    assert told.status_code == 200, told.text
    done = told.json()
    # 65.00 with shipping, less 6.00 and 5.00.
    assert done["discount_applied"] == 11.00 and done["left_to_pay"] == 0.00
    assert [(one["amount"], one["balance"], one["order_id"]) for one in done["gift_cards"]] == [
        (20.00, 0.00, "77"), (34.00, 66.00, "77"),
    ]  # fmt: skip
    again = client.post("/v1/redemptions", **asked)
    assert again.json() == done and balance(client, large) == 66.00
    roll_back(client, done["redemptions"][0])
    # One of the codes still stands, so the order does.
    assert (balance(client, small), balance(client, large)) == (0.00, 66.00)
    roll_back(client, done["redemptions"][1])
    assert (balance(client, small), balance(client, large)) == (20.00, 100.00)
    seen = client.get(f"/v1/gift-cards/{large['id']}/transactions").json()["data"]
    assert [one["type"] for one in seen] == ["refund", "spend", "issue"]
    assert seen[0]["refund_of"] == seen[1]["transaction_id"]
    assert seen[0]["reason"] == "cancelled"


def test_a_card_that_cannot_pay_takes_the_codes_back_with_it(
    api: Api, client: httpx.Client
) -> None:
    code = make(client, code="G-ONCE", max_redemptions=1)
    card, other = gift_card(client, 20), gift_card(client, 20, currency="USD")
    before = api.row_counts()
    for paying, status, reason in (
        ([{"id": card["id"], "amount": 20.01}], 409, "insufficient_balance"),
        ([{"id": card["id"], "amount": 5}, {"id": other["id"]}], 409, "currency_mismatch"),
        ([{"id": card["id"], "amount": 45.01}], 400, "invalid"),
        ([{"id": card["id"]}, {"code": card["code"]}], 400, "invalid"),
        ([{"amount": 5}], 400, "invalid"),
        ([{"id": "gft_nothing"}], 404, "not_found"),
    ):
        refused = together(client, [code], order_value=50, gift_cards=paying)
        assert (refused.status_code, refused.json()["code"]) == (status, reason), refused.text
        if status == 409:
            assert refused.json()["place"] == len(paying)
    assert api.row_counts() == before
    assert balance(client, card) == 20.00
    unknown = together(client, [code], order_value=50, gift_cards=[{"code": "NOT-A-CARD"}])
    assert (unknown.status_code, unknown.json()["field"]) == (404, "gift_cards[0]")
    paid = together(client, [code], order_value=50, gift_cards=[{"code": card["code"]}]).json()
    assert (paid["gift_cards"][0]["amount"], paid["gift_cards"][0]["is_partial"]) == (20.00, True)
    assert paid["left_to_pay"] == 25.00


def test_a_rollback_refunds_only_what_was_not_refunded_by_hand(client: httpx.Client) -> None:
    code = make(client, code="G-HAND")
    card = gift_card(client, 100)
    done = together(client, [code], order_value=50, gift_cards=[{"id": card["id"]}]).json()
    [paid] = done["gift_cards"]
    by_hand = {"amount": 15, "transaction_id": paid["transaction_id"]}
    assert client.post(f"/v1/gift-cards/{card['id']}/refund", json=by_hand).status_code == 200
    assert client.post(f"/v1/gift-cards/{card['id']}/disable").status_code == 200
    roll_back(client, done["redemptions"][0])
    assert balance(client, card) == 100.00
