"""A part of a discount is given back to the cent, and never more than there was."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from core import ids
from tests.api.conftest import Api


def redeemed(client: httpx.Client, **members: Any) -> dict[str, Any]:
    made = client.post("/v1/vouchers", json={"discount_value": 20, **members}).json()
    told = client.post(
        f"/v1/vouchers/{made['code']}/redeem", json={"order_value": 50, "customer_id": "anna"}
    )
    assert told.status_code == 200, told.text
    return told.json()


def give_back(client: httpx.Client, told: dict[str, Any], **members: Any) -> httpx.Response:
    return client.post(f"/v1/redemptions/{told['redemption_id']}/rollback", json=members)


def test_parts_go_back_to_the_budget_and_the_rest_with_the_whole(
    api: Api, client: httpx.Client
) -> None:
    told = redeemed(client, max_redemptions=1, budgets=[
        {"of": "discount", "max": 10}, {"of": "order_value", "max": 50}])  # fmt: skip
    used = (
        "select array_agg(used order by label) from vf.budgets where scope_id = "
        "(select voucher_id from vf.redemptions order by redeemed_at desc limit 1)"
    )
    assert api.rows(used)[0][0] == [1000, 5000]
    part = give_back(client, told, amount=2.5, reason="one shirt came back").json()
    assert (part["status"], part["discount_applied"], part["rolled_back_amount"]) == (
        "redeemed", 10.00, 2.50,
    )  # fmt: skip
    assert api.rows(used)[0][0] == [750, 5000]
    assert client.get(f"/v1/vouchers/{told['code']}").json()["remaining"] == 0
    more = give_back(client, told, amount=7.51)
    assert (more.status_code, more.json()["field"]) == (400, "amount")
    whole = give_back(client, told).json()
    assert (whole["status"], whole["rolled_back_amount"]) == ("rolled_back", 2.50)
    assert api.rows(used)[0][0] == [0, 0]
    assert give_back(client, told, amount=1).json()["code"] == "already_rolled_back"
    assert client.get(f"/v1/vouchers/{told['code']}").json()["remaining"] == 1


def test_parts_that_come_at_once_never_exceed_the_whole(api: Api, client: httpx.Client) -> None:
    told = redeemed(client, budgets=[{"of": "discount", "max": 10}])
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: give_back(client, told, amount=3), range(16)))
    assert Counter(answer.status_code for answer in answers) == {200: 3, 400: 13}
    shown = client.get(f"/v1/redemptions/{told['redemption_id']}").json()
    assert shown["rolled_back_amount"] == 9.00
    [[used]] = api.rows(
        "select b.used from vf.budgets b join vf.redemptions r on r.voucher_id = b.scope_id "
        "where r.id = $1", ids.parse_id("rdm", told["redemption_id"]),
    )  # fmt: skip
    assert used == 100


@pytest.mark.parametrize("amount", [0, -1, 0.001, "1"])
def test_an_amount_that_is_none_is_refused(client: httpx.Client, amount: Any) -> None:
    told = redeemed(client)
    refused = give_back(client, told, amount=amount)
    assert (refused.status_code, refused.json()["field"]) == (400, "amount")
    assert "rolled_back_amount" not in client.get(f"/v1/redemptions/{told['redemption_id']}").json()
