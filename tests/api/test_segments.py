"""Groups of customers: lists and rules, counted at once, never in a circle."""

import itertools
import threading
from typing import Any

import httpx
import pytest

from core import segments
from tests.api.conftest import Api

UNKNOWN = "seg_" + "0" * 26


def make(client: httpx.Client, name: str, **members: Any) -> str:
    made = client.post("/v1/segments", json={"name": name, **members})
    assert made.status_code == 201, made.text
    return made.json()["id"]


def any_of(*ids: str) -> dict[str, Any]:
    return {"fact": "customer.segments", "is": "contains_any", "value": list(ids)}


def attribute(name: str, value: Any) -> dict[str, Any]:
    return {"fact": f"customer.attributes.{name}", "is": "equals", "value": value}


def voucher(client: httpx.Client, conditions: dict[str, Any]) -> str:
    body = {"discount_value": 10, "conditions": conditions}
    made = client.post("/v1/vouchers", json=body)
    assert made.status_code == 201, made.text
    return made.json()["code"]


def redeem(client: httpx.Client, code: str, who: str, **members: Any) -> httpx.Response:
    body = {"customer_id": who, "order_value": 50, **members}
    return client.post(f"/v1/vouchers/{code}/redeem", json=body)


def test_a_list_lets_in_who_is_on_it_and_only_while_they_are(client: httpx.Client) -> None:
    vip = make(client, "VIP", customer_ids=["ann", "bob", "ann"])
    code = voucher(client, any_of(vip))
    assert redeem(client, code, "ann").status_code == 200
    refused = redeem(client, code, "eve").json()
    assert refused["code"] == "not_eligible"
    assert refused["because"]["seen"] == []
    assert refused["because"]["wanted"] == [vip]
    body = {"add": ["eve"], "remove": ["ann"]}
    changed = client.post(f"/v1/segments/{vip}/members", json=body).json()
    assert (changed["type"], changed["member_count"]) == ("static", 2)
    assert redeem(client, code, "eve").status_code == 200
    assert redeem(client, code, "ann").json()["code"] == "not_eligible"
    assert client.get(f"/v1/segments/{vip}/members").json() == {
        "data": ["bob", "eve"], "has_more": False,
    }  # fmt: skip


def test_a_rule_is_asked_anew_by_every_request(client: httpx.Client) -> None:
    gold = make(client, "Gold", rule=attribute("tier", "gold"))
    code = voucher(client, any_of(gold))
    assert redeem(client, code, "gus").json()["code"] == "not_eligible"
    told = redeem(client, code, "gus", customer={"attributes": {"tier": "gold"}})
    assert told.status_code == 200, "what a call says of its customer counts in that very call"
    assert client.get("/v1/customers/gus").json()["attributes"] == {"tier": "gold"}
    assert client.get("/v1/customers/gus/segments").json() == {"segments": [gold]}
    changed = client.patch(f"/v1/segments/{gold}", json={"rule": attribute("tier", "platinum")})
    assert changed.json()["rule"] == attribute("tier", "platinum")
    assert redeem(client, code, "gus").json()["code"] == "not_eligible"
    assert client.get("/v1/customers/gus/segments").json() == {"segments": []}


def test_segments_of_segments_and_of_redemptions(client: httpx.Client) -> None:
    loyal = make(
        client, "Loyal", rule={"fact": "customer.redemptions", "is": "at_least", "value": 2}
    )
    staff = make(client, "Staff", customer_ids=["sam"])
    buyers = make(client, "Buyers", rule={"all": [any_of(loyal), {"not": any_of(staff)}]})
    code = voucher(client, any_of(buyers))
    other = client.post("/v1/vouchers", json={"discount_value": 5}).json()["code"]
    for _ in range(2):
        assert redeem(client, code, "lou").json()["code"] == "not_eligible"
        redeem(client, other, "lou")
        redeem(client, other, "sam")
    assert redeem(client, code, "lou").status_code == 200
    assert redeem(client, code, "sam").json()["code"] == "not_eligible"


def test_a_circle_is_refused_where_it_would_be_closed_and_nothing_is_stored(
    client: httpx.Client, api: Api
) -> None:
    first = make(client, "First", rule=attribute("a", 1))
    second = make(client, "Second", rule=any_of(first))
    third = make(client, "Third", rule={"any": [any_of(second), attribute("c", 3)]})
    before = api.row_counts()
    refused = client.patch(f"/v1/segments/{first}", json={"rule": {"not": any_of(third)}})
    assert (refused.status_code, refused.json()["field"]) == (400, "rule")
    assert f"{first} → {third} → {second} → {first}" in refused.json()["detail"]
    itself = client.patch(f"/v1/segments/{third}", json={"rule": any_of(third)})
    assert f"{third} → {third}" in itself.json()["detail"]
    assert client.get(f"/v1/segments/{first}").json()["rule"] == attribute("a", 1)
    assert api.row_counts() == before


def test_two_changes_at_once_do_not_make_a_circle_together(client: httpx.Client) -> None:
    for turn in range(5):
        left = make(client, f"Left {turn}", rule=attribute("a", 1))
        right = make(client, f"Right {turn}", rule=attribute("a", 1))
        told: list[int] = []

        def change(
            one: str, other: str, told: list[int] = told, client: httpx.Client = client
        ) -> None:
            answer = client.patch(f"/v1/segments/{one}", json={"rule": any_of(other)})
            told.append(answer.status_code)

        threads = [
            threading.Thread(target=change, args=pair) for pair in ((left, right), (right, left))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(told) == [200, 400]


def test_a_chain_is_refused_where_its_first_would_lead_to_too_many(client: httpx.Client) -> None:
    chain = [
        make(client, f"Link {n}", rule=attribute("a", 1)) for n in range(segments.REACHED_MAX + 1)
    ]
    told = [
        client.patch(f"/v1/segments/{one}", json={"rule": any_of(below)})
        for one, below in itertools.pairwise(chain)
    ]
    assert {answer.status_code for answer in told[:-1]} == {200}
    assert (told[-1].status_code, told[-1].json()["field"]) == (400, "rule")
    assert f"{chain[0]} leads to more than 50 segments" in told[-1].json()["detail"]
    assert client.get(f"/v1/segments/{chain[-2]}").json()["rule"] == attribute("a", 1)
    body = {"customer_id": "end", "attributes": {"a": 1}}
    assert client.post("/v1/customers", json=body).status_code == 200
    mine = client.get("/v1/customers/end/segments").json()["segments"]
    assert {*chain} <= {*mine}, "through all of it"


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/segments", {"name": "X", "rule": any_of(UNKNOWN)}, "rule"),
        ("/v1/segments", {"name": "X", "rule": any_of("seg_1")}, "rule"),
        ("/v1/segments", {"name": "X", "rule": attribute("a", 1), "customer_ids": []},
         "customer_ids"),
        ("/v1/segments", {"name": "X", "rule": {"fact": "order.value", "is": "above", "value": 1}},
         "rule"),
        ("/v1/segments", {"name": "X", "rule": {"expression": "metadata.a == 1"}}, "rule"),
        ("/v1/segments", {"name": "X", "customer_ids": [""]}, "customer_ids[0]"),
        ("/v1/vouchers", {"discount_value": 5, "conditions": any_of(UNKNOWN)}, "conditions"),
        ("/v1/vouchers/bulk", {"discount_value": 5, "count": 2, "conditions": any_of(UNKNOWN)},
         "conditions"),
        ("/v1/campaigns", {"name": "X", "rules": {"conditions": any_of(UNKNOWN)}},
         "rules.conditions"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_when_it_is_made(
    client: httpx.Client, api: Api, path: str, body: dict[str, Any], field: str
) -> None:
    before = api.row_counts()
    refused = client.post(path, json=body)
    assert (refused.status_code, refused.json().get("field")) == (400, field), refused.text
    assert api.row_counts() == before


def test_another_projects_segment_is_none(client: httpx.Client, stranger: httpx.Client) -> None:
    mine = make(client, "Mine", customer_ids=["a"])
    for verb, path in (("GET", ""), ("GET", "/members"), ("PATCH", "")):
        body = {"json": {"name": "Theirs"}} if verb == "PATCH" else {}
        assert stranger.request(verb, f"/v1/segments/{mine}{path}", **body).status_code == 404
    refused = stranger.post("/v1/segments", json={"name": "M", "rule": any_of(mine)})
    assert refused.status_code == 400
    taken = client.post("/v1/segments", json={"name": "Mine"})
    assert (taken.status_code, taken.json()["code"]) == (409, "already_exists")
    assert client.get("/v1/segments").json()["data"][0]["id"] == mine


def test_who_is_erased_is_on_no_list(client: httpx.Client) -> None:
    friends = make(client, "Friends", customer_ids=["zoe"])
    held = client.post("/v1/vouchers", json={"discount_value": 5, "holder": "zoe"}).json()
    assert client.post("/v1/customers", json={"customer_id": "zoe"}).status_code == 200
    erased = client.post("/v1/customers/zoe/erase").json()
    assert client.get(f"/v1/segments/{friends}").json()["member_count"] == 0
    kept = client.get(f"/v1/vouchers/{held['code']}").json()["holder"]
    assert kept == erased["pseudonym"]
