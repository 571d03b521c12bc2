"""Customers: known by the shop's id, exported whole, and forgotten for good."""

import csv
import io
import json
from typing import Any

import httpx

from tests.api.conftest import Api


def redeem(client: httpx.Client, customer: str, **members: Any) -> dict[str, Any]:
    code = client.post("/v1/vouchers", json={"discount_value": 10, **members}).json()["code"]
    told = client.post(
        f"/v1/vouchers/{code}/redeem",
        json={"customer_id": customer, "order_value": 20, "metadata": {"note": "=1+1"}},
    )
    assert told.status_code == 200, told.text
    return told.json()


def test_a_customer_is_registered_once_and_known_by_both_names(client: httpx.Client) -> None:
    given = {"customer_id": "anna", "name": "Anna", "attributes": {"tier": "gold"}}
    first = client.post("/v1/customers", json=given).json()
    again = client.post("/v1/customers", json={"customer_id": "anna", "email": "a@b.de"}).json()
    assert again["id"] == first["id"]
    assert (again["name"], again["email"], again["attributes"]) == (
        "Anna", "a@b.de", {"tier": "gold"},
    )  # fmt: skip
    redeem(client, "anna")
    for name in ("anna", first["id"]):
        shown = client.get(f"/v1/customers/{name}").json()
        assert (shown["customer_id"], shown["redemption_count"]) == ("anna", 1)
    change = {"email": None, "attributes": {}}
    changed = client.patch("/v1/customers/anna", json=change).json()
    assert (changed["name"], changed["email"], changed["attributes"]) == ("Anna", None, {})
    assert client.get("/v1/customers", params={"email": "A@b.de"}).json()["data"] == []
    assert client.get("/v1/customers").json()["data"][0]["customer_id"] == "anna"


def test_who_only_redeemed_is_known_and_a_stranger_is_not(
    client: httpx.Client, stranger: httpx.Client
) -> None:
    redeem(client, "bob")
    shown = client.get("/v1/customers/bob").json()
    assert (shown["id"], shown["redemption_count"]) == (None, 1)
    assert client.patch("/v1/customers/bob", json={"name": "B"}).status_code == 404
    assert client.get("/v1/customers/nobody").status_code == 404
    for verb, path in (("GET", "/bob"), ("GET", "/bob/export"), ("POST", "/bob/erase")):
        assert stranger.request(verb, f"/v1/customers{path}").status_code == 404


def test_an_export_is_everything_and_runs_nothing_in_a_spreadsheet(client: httpx.Client) -> None:
    client.post("/v1/customers", json={"customer_id": "carl", "name": "=HYPERLINK()"})
    told = [redeem(client, "carl") for _ in range(3)]
    own = client.post("/v1/vouchers", json={"discount_value": 5, "holder": "carl"}).json()
    listed = client.post("/v1/segments", json={"name": "L", "customer_ids": ["carl"]}).json()
    client.post("/v1/segments", json={"name": "Others", "customer_ids": ["not-carl"]})
    whole = client.get("/v1/customers/carl/export").json()
    assert ([one["code"] for one in whole["vouchers"]], whole["segments"]) == (
        [own["code"]], [listed["id"]],
    )  # fmt: skip
    assert whole["customer"]["name"] == "=HYPERLINK()"
    assert whole["redemptions"] == told[::-1]
    table = client.get("/v1/customers/carl/export", headers={"Accept": "text/csv"})
    lines = list(csv.DictReader(io.StringIO(table.text)))
    assert [line["redemption_id"] for line in lines] == [
        one["redemption_id"] for one in reversed(told)
    ]
    assert lines[0]["name"] == "'=HYPERLINK()"
    assert lines[0]["discount_applied"] == "2.00"
    assert json.loads(lines[0]["metadata"]) == {"note": "=1+1"}


def test_an_erased_person_is_nowhere_and_the_books_still_add_up(
    api: Api, client: httpx.Client
) -> None:
    name = "dora-very-unusual"
    client.post("/v1/customers", json={"customer_id": name, "email": "dora@unusual.example"},
                headers={"Idempotency-Key": "d-1"})  # fmt: skip
    budget = {"of": "redemptions", "per": "customer", "max": 5}
    redeem(client, name, per_customer_limit=2, budgets=[budget])
    redeem(client, name, per_customer_limit=2)
    joined = {"name": "J", "kind": "join_once", "rules": {"discount_value": 5}}
    campaign = client.post("/v1/campaigns", json=joined).json()["id"]
    issued = client.post(f"/v1/campaigns/{campaign}/codes", json={"customer_id": name})
    assert issued.json()["holder"] == name
    client.post("/v1/segments", json={"name": "S", "customer_ids": [name]})
    code = client.post("/v1/vouchers", json={"discount_value": 5, "max_redemptions": 1}).json()
    held = {"code": code["code"], "customer_id": name, "order_value": 5}
    assert (
        client.post("/v1/holds", json=held, headers={"Idempotency-Key": "d-2"}).status_code == 201
    )

    done = client.post(f"/v1/customers/{name}/erase").json()
    assert done["redemptions"] == 2
    assert client.get(f"/v1/customers/{name}").status_code == 404
    assert client.get(f"/v1/vouchers/{code['code']}").json()["remaining"] == 1
    tables = api.rows("select tablename from pg_tables where schemaname = 'vf'")
    for (table,) in tables:
        for needle in (name, "dora@unusual.example"):
            hex_ = needle.encode().hex()
            sql = f"select count(*) from vf.{table} t where t::text like $1 or t::text like $2"
            found = api.rows(sql, f"%{needle}%", f"%{hex_}%")[0][0]
            assert found == 0, (table, needle)
    listed = client.get("/v1/redemptions", params={"customer_id": done["pseudonym"]}).json()
    assert len(listed["data"]) == 2
    back = f"/v1/redemptions/{listed['data'][1]['redemption_id']}/rollback"
    assert client.post(back, json={}).status_code == 200
    assert api.rows("select sum(used)::int from vf.budgets where subject = $1",
                    done["pseudonym"])[0][0] == 0  # fmt: skip


def test_nobody_is_erased_while_redis_has_a_copy_of_the_name(
    api: Api, client: httpx.Client
) -> None:
    redeem(client, "eve")
    sale = client.post("/v1/flash-sales", json={
        "name": "s", "code": "EVE", "discount_value": 10, "stock": 2}).json()["id"]  # fmt: skip
    assert client.post(f"/v1/flash-sales/{sale}/open").status_code == 200
    refused = client.post("/v1/customers/eve/erase")
    assert (refused.status_code, refused.json()["code"]) == (409, "sale_live")
    assert client.get("/v1/customers/eve").json()["redemption_count"] == 1
