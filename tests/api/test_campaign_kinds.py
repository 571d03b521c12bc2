"""How a campaign's codes come about, what becomes of a campaign, and that it is told once."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from core import campaigns, db, ids, publications
from tests.api.conftest import Api

RULES = {"discount_value": 20}


def make(client: httpx.Client, **members: Any) -> dict[str, Any]:
    made = client.post("/v1/campaigns", json={"name": "C", "rules": RULES, **members})
    assert made.status_code == 201, made.text
    return made.json()


def issue(client: httpx.Client, campaign: dict[str, Any], who: str | None) -> httpx.Response:
    body = {} if who is None else {"customer_id": who}
    return client.post(f"/v1/campaigns/{campaign['id']}/codes", json=body)


def redeem(client: httpx.Client, code: str, who: str = "c") -> httpx.Response:
    body = {"customer_id": who, "order_value": 50}
    return client.post(f"/v1/vouchers/{code}/redeem", json=body)


def events(api: Api, campaign: dict[str, Any]) -> list[str]:
    sql = "select event from vf.outbox where subject = $1 and event like 'campaign.%' order by at"
    return [row["event"] for row in api.rows(sql, ids.parse_id("cmp", campaign["id"]))]


def as_worker(api: Api, work: Any) -> None:
    async def run() -> None:
        database = await db.Database.open(api.settings.database_dsn("worker"), size_max=2)
        try:
            await work(database)
        finally:
            await database.close()

    asyncio.run(run())


@contextmanager
def held(api: Api, campaign: dict[str, Any]) -> Iterator[None]:
    """Hold a campaign's row as somebody does who is changing it, and let go at the end."""
    api.rows("begin")
    lock = "select 1 from vf.campaigns where id = $1 for no key update"
    try:
        api.rows(lock, ids.parse_id("cmp", campaign["id"]))
        yield
    finally:
        api.rows("commit")


def wait_for_waiters(api: Api, count: int) -> None:
    sql = (
        "select count(*) from pg_stat_activity "
        "where datname = current_database() and wait_event_type = 'Lock'"
    )
    deadline = time.monotonic() + 5
    waiting = 0
    while waiting < count and time.monotonic() < deadline:
        api.rows("select pg_stat_clear_snapshot()")
        waiting = api.rows(sql)[0][0]
        time.sleep(0.01)
    assert waiting == count


def test_a_standalone_code_is_there_with_its_campaign_and_is_unique(client: httpx.Client) -> None:
    made = make(client, kind="standalone", code="One-For-All")
    assert (made["kind"], made["code"]) == ("standalone", "One-For-All")
    assert redeem(client, "one-for-all").json()["discount_applied"] == 10
    assert client.get(f"/v1/campaigns/{made['id']}").json()["redeemed_count"] == 1
    body = {"name": "D", "rules": RULES, "kind": "standalone", "code": "ONE-FOR-ALL"}
    taken = client.post("/v1/campaigns", json=body)
    assert (taken.status_code, taken.json()["code"]) == (409, "already_exists")
    assert len(client.get("/v1/campaigns").json()["data"]) == 1, "nothing is half made"
    assert issue(client, made, "a").status_code == 400


def test_an_automatic_campaign_qualifies_without_a_code_and_is_redeemed_by_its_name(
    client: httpx.Client,
) -> None:
    rules = {**RULES, "conditions": {"fact": "order.value", "is": "at_least", "value": 40}}
    made = make(client, kind="automatic", rules=rules)
    asked = {"customer_id": "ada", "order_value": 50}
    told = client.post("/v1/qualifications", json=asked).json()
    assert made["code"] in [one["voucher"] for one in told["data"]]
    small = client.post("/v1/qualifications", json={**asked, "order_value": 39}).json()
    because = {one["voucher"]: one["because"] for one in small["rest"]}
    assert because[made["code"]]["seen"] == 39
    won = client.post("/v1/redemptions", json={**asked, "codes": [made["code"]]})
    assert won.json()["discount_applied"] == 10
    client.post(f"/v1/campaigns/{made['id']}/pause")
    paused = client.post("/v1/qualifications", json=asked).json()
    assert made["code"] not in str(paused)


def test_each_customer_gets_one_code_however_often_and_at_once_they_ask(
    client: httpx.Client, api: Api
) -> None:
    made = make(client, kind="join_once", issuing={"max_redemptions": 1})
    with ThreadPoolExecutor(16) as pool:
        told = list(pool.map(lambda n: issue(client, made, f"cus_{n % 4}"), range(64)))
    assert {answer.status_code for answer in told} == {200}
    codes = {(answer.json()["holder"], answer.json()["code"]) for answer in told}
    assert len(codes) == 4 and len({code for _, code in codes}) == 4
    sql = "select count(*) from vf.vouchers where campaign_id = $1"
    assert api.rows(sql, ids.parse_id("cmp", made["id"]))[0][0] == 4
    holder, code = min(codes)
    assert redeem(client, code, holder).status_code == 200
    assert redeem(client, code, holder).json()["code"] == "limit_reached"
    assert issue(client, made, holder).json()["code"] == code, "a used one is not replaced"
    wallet = client.get(f"/v1/customers/{holder}/wallet").json()["data"]
    assert [one["code"] for one in wallet] == [code]
    lacking = issue(client, made, None)
    assert (lacking.status_code, lacking.json()["field"]) == (400, "customer_id")


def test_a_pool_is_filled_drawn_from_and_filled_again(client: httpx.Client, api: Api) -> None:
    made = make(
        client, kind="auto_refill", rules={**RULES, "expires_after_days": 30},
        issuing={"pool_size": 20, "max_redemptions": 1, "code_config": {"prefix": "POOL-"}},
    )  # fmt: skip
    number = ids.parse_id("cmp", made["id"])
    count = "select count(*) from vf.vouchers where campaign_id = $1 and is_pooled"

    async def two_at_once(database: db.Database) -> None:
        await asyncio.gather(publications.fill(database), publications.fill(database))

    as_worker(api, two_at_once)
    assert api.rows(count, number)[0][0] == 20
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda n: issue(client, made, f"p{n}").json(), range(30)))
    assert len({one["code"] for one in told}) == 30
    assert all(one["code"].startswith("POOL-") and one["expires_at"] for one in told)
    assert {one["holder"] for one in told} == {f"p{n}" for n in range(30)}
    assert api.rows(count, number)[0][0] == 0
    as_worker(api, publications.fill)
    as_worker(api, publications.fill)
    assert api.rows(count, number)[0][0] == 20
    client.post(f"/v1/campaigns/{made['id']}/end")
    assert issue(client, made, "late").json()["code"] == "ended"


def test_a_drafts_codes_wait_for_it_and_every_step_is_told_once(
    client: httpx.Client, api: Api
) -> None:
    draft = make(client, kind="standalone", code="DRAFTED", status="draft")
    path = f"/v1/campaigns/{draft['id']}"
    assert draft["status"] == "draft"
    assert redeem(client, "DRAFTED").json()["code"] == "not_started"
    rich = {"code": "RICH", "campaign_id": draft["id"], "budgets": [{"of": "discount", "max": 9}]}
    client.post("/v1/vouchers", json=rich)
    assert redeem(client, "RICH").json()["code"] == "not_started"
    verdict = client.post("/v1/vouchers/DRAFTED/validate", json={}).json()
    assert (verdict["valid"], verdict["code"]) == (False, "not_started")
    assert client.post(f"{path}/pause").json()["code"] == "not_started"
    for _ in range(2):
        assert client.post(f"{path}/activate").json()["status"] == "active"
    assert redeem(client, "DRAFTED").status_code == 200
    for _ in range(2):
        client.post(f"{path}/pause")
    client.post(f"{path}/resume")
    for _ in range(2):
        assert client.post(f"{path}/end").json()["status"] == "ended"
    assert redeem(client, "DRAFTED").json()["code"] == "ended"
    assert client.post(f"{path}/resume").json()["code"] == "ended"
    as_worker(api, campaigns.keep_time)
    assert events(api, draft) == [
        "campaign.created", "campaign.started", "campaign.paused", "campaign.resumed",
        "campaign.ended",
    ]  # fmt: skip


def test_the_clock_tells_once_of_a_start_and_of_an_end(client: httpx.Client, api: Api) -> None:
    rules = {**RULES, "starts_at": "2080-01-01T00:00:00Z"}
    made = make(client, rules=rules)
    assert made["status"] == "scheduled"
    found = client.get("/v1/campaigns", params={"status": "scheduled"}).json()["data"]
    assert [one["id"] for one in found] == [made["id"]]
    as_worker(api, campaigns.keep_time)
    assert events(api, made) == ["campaign.created"]
    number = ids.parse_id("cmp", made["id"])
    begin = "update vf.campaigns set starts_at = now() - interval '1 second' where id = $1"
    api.rows(begin, number)
    for _ in range(2):
        as_worker(api, campaigns.keep_time)
    assert client.get(f"/v1/campaigns/{made['id']}").json()["status"] == "active"
    over = "update vf.campaigns set expires_at = clock_timestamp() where id = $1"
    api.rows(over, number)
    for _ in range(2):
        as_worker(api, campaigns.keep_time)
    assert events(api, made) == ["campaign.created", "campaign.started", "campaign.ended"]
    later = {"rules": {"expires_at": "2090-01-01T00:00:00Z"}}
    assert client.patch(f"/v1/campaigns/{made['id']}", json=later).json()["status"] == "active"
    api.rows(over, number)
    as_worker(api, campaigns.keep_time)
    assert events(api, made)[-2:] == ["campaign.edited", "campaign.ended"]


def test_a_change_of_rules_counts_for_codes_that_are_out_and_says_so(
    client: httpx.Client,
) -> None:
    made = make(client, rules={**RULES, "max_redemptions": 3})
    path = f"/v1/campaigns/{made['id']}"
    for code in ("EDIT-A", "EDIT-B"):
        client.post("/v1/vouchers", json={"code": code, "campaign_id": made["id"]})
    own = {"code": "EDIT-OWN", "campaign_id": made["id"], "discount_value": 50}
    client.post("/v1/vouchers", json=own)
    assert redeem(client, "EDIT-A").json()["discount_applied"] == 10
    few = {"fact": "order.value", "is": "at_most", "value": 100}
    change = {
        "discount_value": 30, "expires_after_days": 5, "conditions": few, "min_order_value": 40,
        "budgets": [{"of": "discount", "max": 40}],
    }  # fmt: skip
    told = client.patch(path, json={"rules": change}).json()
    assert told["effect"] == {
        "codes": 3, "own_discount": 1, "later_codes_only": ["expires_after_days"],
        "at_once": ["min_order_value", "discount_value", "conditions", "budgets"],
    }  # fmt: skip
    assert told["rules"]["conditions"] == few
    assert redeem(client, "EDIT-B").json()["discount_applied"] == 15
    assert redeem(client, "EDIT-OWN").json()["discount_applied"] == 25
    assert redeem(client, "EDIT-A").json()["code"] == "limit_reached"
    over = client.patch(path, json={"rules": {"max_redemptions": 2}})
    assert (over.status_code, over.json()["field"]) == (400, "rules.max_redemptions")
    plain = client.patch(path, json={"rules": {"conditions": None, "budgets": []}}).json()
    assert "conditions" not in plain["rules"] and plain["rules"]["discount_value"] == 30


def test_of_two_changes_at_once_neither_undoes_the_other(client: httpx.Client, api: Api) -> None:
    made = make(client)
    path = f"/v1/campaigns/{made['id']}"
    changes = ({"name": "Renamed"}, {"metadata": {"season": 4}}, {"rules": {"discount_value": 30}})
    with ThreadPoolExecutor(3) as pool:
        with held(api, made):
            told = [pool.submit(client.patch, path, json=change) for change in changes]
            wait_for_waiters(api, 3)
        assert [one.result().status_code for one in told] == [200] * 3
    after = client.get(path).json()
    assert (after["name"], after["metadata"]) == ("Renamed", {"season": 4})
    assert after["rules"]["discount_value"] == 30


def test_a_start_is_told_once_where_somebody_pauses_while_the_clock_tells_it(
    client: httpx.Client, api: Api
) -> None:
    made = make(client, rules={**RULES, "starts_at": "2080-01-01T00:00:00Z"})
    number = ids.parse_id("cmp", made["id"])
    api.rows("update vf.campaigns set starts_at = now() - interval '1 s' where id = $1", number)
    with ThreadPoolExecutor(1) as pool:
        with held(api, made):
            told = pool.submit(client.post, f"/v1/campaigns/{made['id']}/pause")
            wait_for_waiters(api, 1)
            api.rows("update vf.campaigns set started_at = now() where id = $1", number)
            api.rows(
                "insert into vf.outbox (project_id, event, subject) "
                "select project_id, 'campaign.started', id from vf.campaigns where id = $1", number,
            )  # fmt: skip
        assert told.result().json()["status"] == "paused"
    assert sorted(events(api, made)) == ["campaign.created", "campaign.paused", "campaign.started"]


def test_a_clone_is_a_draft_with_the_same_rules_and_nothing_used(client: httpx.Client) -> None:
    rules = {**RULES, "max_redemptions": 2, "budgets": [{"of": "discount", "max": 10}]}
    made = make(client, kind="standalone", code="FIRST", rules=rules)
    assert redeem(client, "FIRST").status_code == 200
    assert redeem(client, "FIRST").json()["code"] == "budget_reached"
    path = f"/v1/campaigns/{made['id']}/clone"
    copy = client.post(path, json={"name": "Again", "code": "SECOND"}).json()
    assert (copy["name"], copy["status"], copy["redeemed_count"]) == ("Again", "draft", 0)
    assert copy["rules"] == made["rules"]
    assert redeem(client, "SECOND").json()["code"] == "not_started"
    client.post(f"/v1/campaigns/{copy['id']}/activate")
    assert redeem(client, "SECOND").status_code == 200, "a budget of its own"
    other = client.post(path).json()
    assert other["name"] == "C (copy)" and other["code"] not in ("FIRST", "SECOND")


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"kind": "lottery"}, "kind"),
        ({"code": "X"}, "code"),
        ({"kind": "automatic", "code": "X"}, "code"),
        ({"kind": "standalone", "code": "a/b"}, "code"),
        ({"kind": "standalone", "rules": {}}, "rules.discount_value"),
        ({"kind": "standalone", "issuing": {}}, "issuing"),
        ({"kind": "auto_refill"}, "issuing.pool_size"),
        ({"kind": "join_once", "issuing": {"pool_size": 5}}, "issuing.pool_size"),
        ({"kind": "join_once", "issuing": {"code_config": {"length": 3}}}, "issuing.code_config"),
        ({"status": "paused"}, "status"),
    ],
)
def test_what_makes_no_campaign_is_named_and_nothing_is_stored(
    client: httpx.Client, api: Api, members: dict[str, Any], field: str
) -> None:
    before = api.row_counts()
    refused = client.post("/v1/campaigns", json={"name": "C", "rules": RULES, **members})
    assert (refused.status_code, refused.json()["field"]) == (400, field), refused.text
    assert api.row_counts() == before


def test_another_projects_campaign_issues_nothing(
    client: httpx.Client, stranger: httpx.Client
) -> None:
    made = make(client, kind="join_once")
    assert issue(stranger, made, "x").status_code == 404
    assert stranger.post(f"/v1/campaigns/{made['id']}/clone").status_code == 404
