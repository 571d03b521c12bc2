"""Fraud: rules that are set and tried, alerts that are decided once, and blocks that hold."""

import asyncio
import time
from typing import Any

import httpx
import pytest

from core import db, deliveries, detections, ids
from tests.api.conftest import Api


def post(client: httpx.Client, path: str, expected: int = 200, **body: Any) -> dict[str, Any]:
    answer = client.post(path, json=body)
    assert answer.status_code == expected, answer.text
    return dict(answer.json())


def look(api: Api) -> None:
    """Do what the worker does: publish what happened, and have the rules look at all of it."""

    async def run() -> None:
        database = await db.Database.open(api.settings.database_dsn("worker"), size_max=2)
        while await deliveries.publish(database):
            pass
        found = detections.Detections(database)
        while await found.look():
            pass
        while await deliveries.publish(database):
            pass
        await database.close()

    asyncio.run(run())


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is refused while a test waits for the rules, so that events need not wait either."""
    monkeypatch.setattr(detections, "HOLD", detections.HOLD * 0)


@pytest.fixture(scope="module")
def code(client: httpx.Client) -> str:
    made = post(client, "/v1/vouchers", 201, code="SAVE10", discount_value=10)
    return str(made["code"])


def redeem(client: httpx.Client, code: str, expected: int = 200, **body: Any) -> dict[str, Any]:
    return post(client, f"/v1/vouchers/{code}/redeem", expected, order_value=50, **body)


def alerts(client: httpx.Client, **query: str) -> list[dict[str, Any]]:
    answer = client.get("/v1/fraud/alerts", params=query)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["data"])


def test_rules_are_shown_as_they_come_and_changed_one_by_one(client: httpx.Client) -> None:
    shown = client.get("/v1/fraud/rules").json()["rules"]
    assert len(shown) == 12 and all(rule["is_default"] for rule in shown.values())
    change = {"customer_velocity": {"threshold": 5, "action": "review"}}
    changed = client.put("/v1/fraud/rules", json={"rules": change}).json()["rules"]
    assert (changed["customer_velocity"]["threshold"], changed["customer_velocity"]["action"]) == (
        5, "review",
    )  # fmt: skip
    assert changed["customer_velocity"]["window_s"] == shown["customer_velocity"]["window_s"]
    assert changed["code_guessing"] == shown["code_guessing"]
    for wrong in (
        {"no_such_rule": {}},
        {"unusual_discount": {"window_s": 600}},
        {"customer_velocity": {"threshold": 0}},
        {"customer_velocity": {"window_s": 90_000}},
        {"customer_velocity": {"action": "shrug"}},
    ):
        refused = client.put("/v1/fraud/rules", json={"rules": wrong})
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid"), wrong
    back = client.put("/v1/fraud/rules", json={"rules": {}}).json()["rules"]
    assert back == shown
    log = client.get("/v1/audit-log", params={"action": "fraud_rules.changed"}).json()["data"]
    assert [entry["after"] for entry in log][1] == {
        "customer_velocity": changed["customer_velocity"]
    }


def test_a_customer_who_redeems_too_fast_is_told_of_once_and_decided_once(
    api: Api, client: httpx.Client, code: str
) -> None:
    hook = post(client, "/v1/webhooks", 201, url="https://hooks.example/x", events=["fraud.alert"])
    made = [redeem(client, code, customer_id="fast")["redemption_id"] for _ in range(9)]
    look(api)
    look(api)
    [alert] = alerts(client, subject="fast")
    assert (alert["rule"], alert["status"], alert["action"]) == (
        "customer_velocity", "open", "alert",
    )  # fmt: skip
    assert alert["subject"] == {"kind": "customer", "id": "fast", "name": None}
    assert alert["reasons"][0]["observed"] == 8 and alert["score"] >= 50
    assert set(alert["redemption_ids"]) <= set(made)
    told = client.get("/v1/events", params={"type": "fraud.alert"}).json()["data"]
    assert [event["subject"] for event in told] == [alert["id"]]
    assert told[0]["data"]["subject"] == alert["subject"]
    sent = client.get(f"/v1/webhooks/{hook['id']}/deliveries").json()["data"]
    assert [delivery["event_type"] for delivery in sent] == ["fraud.alert"]
    path = f"/v1/fraud/alerts/{alert['id']}"
    assert client.post(f"{path}/acknowledge").json()["status"] == "acknowledged"
    confirmed = post(client, f"{path}/confirm", note="a bot", block=True)
    assert (confirmed["status"], confirmed["is_blocked"], confirmed["note"]) == (
        "confirmed", True, "a bot",
    )  # fmt: skip
    assert post(client, f"{path}/confirm")["decided_at"] == confirmed["decided_at"]
    assert post(client, f"{path}/dismiss", 409)["code"] == "ended"
    assert redeem(client, code, 409, customer_id="fast")["code"] == "blocked"
    log = client.get("/v1/audit-log", params={"target": alert["id"]}).json()["data"]
    assert [entry["action"] for entry in log] == [
        "fraud_alert.confirmed", "fraud_alert.acknowledged",
    ]  # fmt: skip
    assert "fast" not in str(log)


def test_what_is_blocked_is_refused_by_every_door_until_it_is_taken_off(
    api: Api, client: httpx.Client, stranger: httpx.Client
) -> None:
    post(client, "/v1/vouchers", 201, code="DOORS", discount_value=10)
    under = post(client, "/v1/campaigns", 201, name="C", rules={"discount_value": 5})["id"]
    post(client, "/v1/vouchers", 201, code="LIMITED", campaign_id=under)
    context = {"address": "203.0.113.9", "device": "phone-1"}
    places = {
        "customer": ("eve", {"customer_id": "eve"}),
        "address": ("203.0.113.9", {"context": {"address": "203.0.113.9"}}),
        "device": ("phone-1", {"customer_id": "x", "context": context}),
        "code": ("doors", {"customer_id": "y"}),
    }
    for kind, (value, body) in places.items():
        redeem(client, "DOORS", **body)
        block = post(client, "/v1/fraud/blocks", 201, kind=kind, value=value)
        assert post(client, "/v1/fraud/blocks", 409, kind=kind, value=value)["code"] == (
            "already_exists"
        )
        refused = redeem(client, "DOORS", 409, **body)
        assert refused["code"] == "blocked"
        hold = client.post("/v1/holds", json={"code": "DOORS", "order_value": 50, **body})
        assert (hold.status_code, hold.json()["code"]) == (409, "blocked")
        order = {"codes": ["DOORS"], "order_value": 50, **body}
        together = client.post("/v1/redemptions", json=order)
        assert (together.status_code, together.json()["code"]) == (409, "blocked")
        if kind != "code":
            assert redeem(client, "LIMITED", 409, **body)["code"] == "blocked"
        redeem(client, "LIMITED", customer_id="somebody-else")
        assert stranger.get(f"/v1/fraud/blocks/{block['id']}").status_code == 404
        assert block in client.get("/v1/fraud/blocks", params={"kind": kind}).json()["data"]
        assert client.delete(f"/v1/fraud/blocks/{block['id']}").status_code == 200
        redeem(client, "DOORS", **body)
    stored = str(api.rows("select t::text from vf.blocks t"))
    stored += str(api.rows("select metadata::text from vf.redemptions where metadata is not null"))
    assert "203.0.113.9" not in stored and "phone-1" not in stored and "_address" in stored


def test_a_blocked_customer_still_gets_the_answer_of_before(client: httpx.Client) -> None:
    post(client, "/v1/vouchers", 201, code="BEFORE", discount_value=10)
    key = {"Idempotency-Key": "before-the-block"}
    body = {"customer_id": "late", "order_value": 50}
    won = client.post("/v1/vouchers/BEFORE/redeem", json=body, headers=key).json()
    post(client, "/v1/fraud/blocks", 201, kind="customer", value="late", expires_in_s=600)
    again = client.post("/v1/vouchers/BEFORE/redeem", json=body, headers=key)
    assert (again.status_code, again.json()["redemption_id"]) == (200, won["redemption_id"])
    assert redeem(client, "BEFORE", 409, customer_id="late")["code"] == "blocked"


def test_the_context_is_shown_nowhere_and_a_retry_may_come_from_elsewhere(
    client: httpx.Client, browser: httpx.Client
) -> None:
    post(client, "/v1/vouchers", 201, code="CONTEXT", discount_value=10)
    key = {"Idempotency-Key": "from-two-places"}
    body = {"customer_id": "c", "order_value": 50, "metadata": {"a": 1}}
    told = [
        client.post(
            "/v1/vouchers/CONTEXT/redeem", headers=key,
            json={**body, "context": {"address": address, "device": "d"}},
        ).json()
        for address in ("2001:db8::1", "198.51.100.7")
    ]  # fmt: skip
    assert told[0]["redemption_id"] == told[1]["redemption_id"]
    assert told[0]["metadata"] == {"a": 1}
    read = client.get(f"/v1/redemptions/{told[0]['redemption_id']}").json()
    assert read["metadata"] == {"a": 1} and "context" not in read
    for wrong in ({"address": "nowhere"}, {"address": ""}, {"place": "x"}, {"device": "d" * 201}):
        refused = redeem(client, "CONTEXT", 400, customer_id="c", context=wrong)
        assert refused["code"] == "invalid"
    refused = redeem(client, "CONTEXT", 400, customer_id="c", metadata={"_address": "x"})
    assert refused["field"] == "metadata"


def test_codes_that_are_guessed_are_found_and_blocked_where_the_rule_says_so(
    api: Api, client: httpx.Client, code: str
) -> None:
    rules = {"code_guessing": {"threshold": 5, "action": "block", "block_for_s": 3_600}}
    assert client.put("/v1/fraud/rules", json={"rules": rules}).status_code == 200
    context = {"device": "guesser"}
    for number in range(6):
        redeem(client, f"GUESS{number}", 404, customer_id=None, context=context)
    for _ in range(100):
        if api.rows("select 1 from vf.fraud_signals where reason = 'not_found' offset 5"):
            break
        time.sleep(0.05)
    look(api)
    [alert] = alerts(client, rule="code_guessing")
    assert alert["subject"]["kind"] == "device" and alert["is_blocked"]
    assert redeem(client, code, 409, customer_id="g", context=context)["code"] == "blocked"
    assert post(client, f"/v1/fraud/alerts/{alert['id']}/dismiss")["is_blocked"] is False
    redeem(client, code, customer_id="g", context=context)
    assert client.put("/v1/fraud/rules", json={"rules": {}}).status_code == 200


def test_a_browser_that_tries_codes_is_known_by_where_it_asks_from(
    api: Api, client: httpx.Client, browser: httpx.Client
) -> None:
    for number in range(13):
        asked = browser.post(f"/v1/vouchers/TRY{number}/validate", json={"order_value": 5})
        assert asked.status_code in (200, 404, 429), asked.text
    query = "select 1 from vf.fraud_signals where address is not null and device is null offset 12"
    for _ in range(100):
        if api.rows(query):
            break
        time.sleep(0.05)
    look(api)
    [alert] = alerts(client, kind="address")
    assert (alert["rule"], alert["status"]) == ("code_guessing", "open")
    assert alert["subject"]["id"] not in ("127.0.0.1", "")


def test_a_trial_says_what_rules_would_have_found_and_changes_nothing(
    api: Api, client: httpx.Client
) -> None:
    before = api.row_counts()
    rules = {"customer_velocity": {"threshold": 3}}
    tried = post(client, "/v1/fraud/rules/dry-run", rules=rules)
    assert tried["is_complete"] and tried["facts"] > 20
    assert tried["by_rule"]["customer_velocity"] >= 1
    fast = [one for one in tried["shown"] if one["subject"]["id"] == "fast"]
    assert fast[0]["reasons"][0]["expected"] == 3
    assert api.row_counts() == before
    for wrong in (
        {"from": "2030-01-01T00:00:00Z"},
        {"from": "2020-01-01T00:00:00Z"},
        {"to": "yesterday"},
    ):
        answer = client.post("/v1/fraud/rules/dry-run", json={"rules": {}, **wrong})
        assert answer.status_code == 400, wrong


def test_the_report_counts_what_the_list_shows(api: Api, client: httpx.Client) -> None:
    told = client.get("/v1/analytics/fraud").json()
    listed = alerts(client, limit="100")
    assert told["alerts"] == len(listed) == sum(told["by_rule"].values())
    assert told["undecided"] == sum(one["status"] in ("open", "acknowledged") for one in listed)
    assert sum(day["alerts"] for day in told["days"]) == told["alerts"]
    assert told["blocks"] == {"customer": 2, "code": 0, "address": 0, "device": 0}
    assert "fast" in {one["subject"]["id"] for one in told["top_subjects"]}
    assert told["discount_at_risk"] > 0
    assert client.get("/v1/analytics/fraud?from=2030-02-01&to=2030-01-01").status_code == 400


def test_an_erased_customer_is_in_no_alert_block_or_signal(
    api: Api, client: httpx.Client, code: str
) -> None:
    name = f"erased-{ids.new()}"
    for _ in range(9):
        redeem(client, code, customer_id=name, context={"device": name[:20]})
    redeem(client, "NOSUCHCODE", 404, customer_id=name)
    look(api)
    [alert] = alerts(client, subject=name, rule="customer_velocity")
    post(client, f"/v1/fraud/alerts/{alert['id']}/confirm", block=True)
    for _ in range(100):
        if api.rows("select 1 from vf.fraud_signals where customer_id = $1", name):
            break
        time.sleep(0.05)
    done = post(client, f"/v1/customers/{name}/erase")
    for table in ("fraud_alerts", "blocks", "fraud_signals", "redemptions", "events", "audit_log"):
        assert not api.rows(f"select 1 from vf.{table} t where t::text like $1", f"%{name}%"), table
    shown = client.get(f"/v1/fraud/alerts/{alert['id']}").json()
    assert shown["subject"]["id"] == done["pseudonym"]
