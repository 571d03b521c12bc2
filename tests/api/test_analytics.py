"""Figures over HTTP: at every moment what the ledger says, however far the worker is."""

import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.api.conftest import Api, Project


def record(api: Api, project: Project, code: str, *, ago: str, status: str = "redeemed") -> None:
    """Write a redemption into the ledger, some time ago."""
    api.rows(
        """
        with v as (
            update vf.vouchers set direct_count = direct_count + ($4 = 'redeemed')::int,
                   next_number = next_number + 1
             where project_id = $1 and code = $2
            returning id, next_number - 1 as seq)
        , told as (
        insert into vf.outbox (project_id, event, subject, data)
        select $1, 'voucher.redeemed', v.id, jsonb_build_object('first', v.seq, 'count', 1) from v)
        , stored as (
        insert into vf.redemptions (project_id, lease_id, seq, id, voucher_id, idempotency_key,
               fingerprint, order_value_minor, discount_minor, redeemed_at, status, rolled_back_at)
        select $1, v.id, v.seq, gen_random_uuid(), v.id, gen_random_uuid()::text, '', 1000, 150,
               now() - $3::text::interval, $4, case when $4 = 'rolled_back' then now() end
          from v
        returning id)
        insert into vf.outbox (project_id, event, subject)
        select $1, 'redemption.rolled_back', s.id from stored s where $4 = 'rolled_back'
        """,
        uuid.UUID(project.id), code, ago, status,
    )  # fmt: skip


def test_an_empty_project_has_empty_figures(api: Api, make_project: Callable[..., Project]) -> None:
    with api.client(make_project("JPY").secret_key) as client:
        answer = client.get("/v1/analytics/overview")

    assert answer.status_code == 200
    assert answer.json() == {
        "active_campaigns": 0,
        "active_vouchers": 0,
        "disabled_vouchers": 0,
        "expired_vouchers": 0,
        "redemptions_today": 0,
        "discounts_today": 0,
        "redemptions_total": 0,
        "top_code": None,
        "flash_sales": {"open": 0, "scheduled": 0, "wins": 0},
        "currency": "JPY",
        "time_zone": "UTC",
    }


def test_live_redemptions_of_today_are_counted(
    api: Api, make_project: Callable[..., Project]
) -> None:
    project = make_project()
    with api.client(project.secret_key) as client:
        for name in ("A", "B", "C"):
            client.post("/v1/campaigns", json={"name": name})
        paused = client.get("/v1/campaigns?limit=1").json()["data"][0]["id"]
        client.post(f"/v1/campaigns/{paused}/pause")
        for code in ("LESS", "SAVE20", "YESTERDAY"):
            client.post("/v1/vouchers", json={"code": code, "discount_value": 15})
        record(api, project, "LESS", ago="0 s")
        record(api, project, "SAVE20", ago="0 s")
        record(api, project, "SAVE20", ago="0 s")
        record(api, project, "SAVE20", ago="0 s", status="rolled_back")
        for _ in range(5):
            record(api, project, "YESTERDAY", ago="25 hours")

        answer = client.get("/v1/analytics/overview")

    figures = answer.json()
    assert figures["active_campaigns"] == 2
    assert figures["active_vouchers"] == 3
    assert figures["redemptions_today"] == 3
    assert '"discounts_today":4.50' in answer.text
    assert figures["redemptions_total"] == 8
    assert figures["top_code"] == "SAVE20"


def test_without_redemptions_today_the_top_code_is_the_best_ever(
    api: Api, make_project: Callable[..., Project]
) -> None:
    project = make_project()
    with api.client(project.secret_key) as client:
        for code in ("GOOD", "BEST"):
            client.post("/v1/vouchers", json={"code": code, "discount_value": 15})
        record(api, project, "GOOD", ago="48 hours")
        for _ in range(2):
            record(api, project, "BEST", ago="48 hours")

        assert client.get("/v1/analytics/overview").json()["top_code"] == "BEST"


def test_another_projects_redemptions_are_counted_nowhere(
    api: Api, project: Project, client: httpx.Client, stranger: httpx.Client
) -> None:
    client.post("/v1/vouchers", json={"code": "OURS", "discount_value": 15})
    record(api, project, "OURS", ago="0 s")

    figures = stranger.get("/v1/analytics/overview").json()

    assert (figures["redemptions_today"], figures["top_code"]) == (0, None)


@pytest.mark.parametrize("durability", ["strict", "fast"])
def test_a_flash_sale_counts_what_it_sold_and_not_what_it_holds(
    api: Api, make_project: Callable[..., Project], durability: str
) -> None:
    with api.client(make_project().secret_key) as client:
        sale = client.post(
            "/v1/flash-sales",
            json={"name": "Drop", "code": "DROP", "discount_value": 50, "stock": 100,
                  "durability": durability},
        ).json()  # fmt: skip
        opened = client.post(f"/v1/flash-sales/{sale['id']}/open")
        assert opened.status_code == 200, opened.text
        figures = client.get("/v1/analytics/overview").json()
        assert figures["flash_sales"] == {"open": 1, "scheduled": 0, "wins": 0}
        assert (figures["redemptions_total"], figures["top_code"]) == (0, None)

        voucher = client.get("/v1/vouchers/DROP").json()
        verdict = client.post("/v1/vouchers/DROP/validate", json={"order_value": 10}).json()

        assert (voucher["redeemed_count"], voucher["status"]) == (0, "active")
        assert (verdict["valid"], verdict["remaining"]) == (True, 100)
        frozen = client.patch("/v1/vouchers/DROP", json={"expires_at": "2031-01-01T00:00:00Z"})
        assert (frozen.status_code, frozen.json()["code"]) == (409, "voucher_in_sale")


def test_before_its_sale_a_code_of_a_sale_is_not_valid(
    api: Api, make_project: Callable[..., Project]
) -> None:
    with api.client(make_project().secret_key) as client:
        client.post(
            "/v1/flash-sales",
            json={"name": "Later", "code": "LATER", "discount_value": 50, "stock": 5,
                  "starts_at": "2031-01-01T00:00:00Z", "durability": "strict"},
        )  # fmt: skip

        verdict = client.post("/v1/vouchers/LATER/validate", json={}).json()

    assert (verdict["valid"], verdict["code"]) == (False, "not_started")


def attempts_of(client: httpx.Client, until: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Read what was tried, when the process has written it down: within seconds."""
    deadline_s = time.monotonic() + 10
    while True:
        answer = client.get("/v1/analytics/attempts")
        assert answer.status_code == 200, answer.text
        if until(answer.json()) or time.monotonic() > deadline_s:
            return dict(answer.json())
        time.sleep(0.1)


def post(client: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    return dict(client.post(path, json=body).json())


def test_what_was_refused_is_counted_by_reason_whichever_door_it_came_to(
    api: Api, make_project: Callable[..., Project]
) -> None:
    with api.client(make_project().secret_key) as client:
        post(client, "/v1/vouchers", code="TWO", discount_value=10, max_redemptions=2)
        post(client, "/v1/vouchers", code="OFF", discount_value=10)
        client.post("/v1/vouchers/OFF/disable")
        for n in range(30):
            post(client, "/v1/vouchers/TWO/redeem", customer_id=f"c{n}", order_value=10)
        for _ in range(3):
            post(client, "/v1/vouchers/OFF/redeem", order_value=10)
        post(client, "/v1/redemptions", codes=["OFF"], order_value=10)
        post(client, "/v1/vouchers/OFF/validate", order_value=10)
        post(client, "/v1/vouchers", code="GOOD", discount_value=10)
        post(client, "/v1/vouchers/GOOD/validate", order_value=10)
        post(client, "/v1/validations", codes=["GOOD", "TWO", "NONE"], order_value=10)
        told = attempts_of(client, lambda told: told["validations"]["attempts"] == 5)

    assert told["redemptions"] == {
        "attempts": 34, "succeeded": 2, "refused": 32, "rate": 0.0588,
        "refusals": [
            {"code": "limit_reached", "count": 28}, {"code": "voucher_inactive", "count": 4},
        ],
    }  # fmt: skip
    assert told["validations"] == {
        "attempts": 5, "succeeded": 2, "refused": 3, "rate": 0.4,
        "refusals": [
            {"code": "limit_reached", "count": 1}, {"code": "not_found", "count": 1},
            {"code": "voucher_inactive", "count": 1},
        ],
    }  # fmt: skip
    nothing = {"attempts": 0, "succeeded": 0, "refused": 0, "rate": None, "refusals": []}
    assert told["previous"] == {"redemptions": nothing, "validations": nothing}


def test_the_compiled_doors_refusals_are_counted_too(
    api: Api, make_project: Callable[..., Project]
) -> None:
    with api.client(make_project().secret_key) as client:
        sale = post(
            client, "/v1/flash-sales", name="S", code="SOLD", discount_type="PERCENT",
            discount_value=10, stock=5,
        )  # fmt: skip
        client.post(f"/v1/flash-sales/{sale['id']}/open")
        answers = [
            client.post(f"/v1/flash-sales/{sale['id']}/claim", json={"customer_id": f"c{n}"})
            for n in range(60)
        ]
        won = len([one for one in answers if one.status_code == 200])
        codes = {one.json()["code"] for one in answers if one.status_code == 409}
        told = attempts_of(client, lambda told: told["redemptions"]["refused"] == 55)
    assert (won, codes) == (5, {"sold_out"})
    assert told["redemptions"]["refusals"] == [{"code": "sold_out", "count": 55}]


def test_the_most_redeemed_come_first_at_every_moment(
    api: Api, make_project: Callable[..., Project]
) -> None:
    with api.client(make_project().secret_key) as client:
        campaign = post(client, "/v1/campaigns", name="Best", rules={"discount_value": 10})["id"]
        for code, times in (("A", 1), ("B", 3), ("C", 2)):
            of = {"campaign_id": campaign} if code == "B" else {"discount_value": 50}
            post(client, "/v1/vouchers", code=code, **of)
            for _ in range(times):
                post(client, f"/v1/vouchers/{code}/redeem", order_value=10)
        back = client.get("/v1/redemptions", params={"code": "C", "limit": 1}).json()["data"][0]
        post(client, f"/v1/redemptions/{back['redemption_id']}/rollback")
        top = client.get("/v1/analytics/top", params={"limit": "2"}).json()
        assert [(one["name"], one["redemptions"]) for one in top["data"]] == [
            ("B", 3), (max("A", "C"), 1),
        ]  # fmt: skip
        assert (top["data"][0]["discount"], top["data"][0]["order_value"]) == (3, 30)
        top = client.get("/v1/analytics/top", params={"of": "campaigns"}).json()
        assert [(one["id"], one["name"], one["redemptions"]) for one in top["data"]] == [
            (campaign, "Best", 3)
        ]
        assert client.get("/v1/analytics/top", params={"of": "flash_sales"}).json()["data"] == []
        for query, field in (
            ({"of": "x"}, "of"),
            ({"from": "2020-01-01"}, "from"),
            ({"limit": "0"}, "limit"),
        ):
            refused = client.get("/v1/analytics/top", params=query)
            assert (refused.status_code, refused.json()["field"]) == (400, field)


def test_a_budget_burns_down_and_lasts_as_long_as_the_last_week_says(
    api: Api, make_project: Callable[..., Project]
) -> None:
    project = make_project()
    with api.client(project.secret_key) as client:
        rules = {
            "discount_value": 15,
            "budgets": [
                {"of": "discount", "max": 100},
                {"of": "redemptions", "max": 50, "period": "month"},
            ],
        }  # fmt: skip
        campaign = post(client, "/v1/campaigns", name="B", rules=rules)["id"]
        path = f"/v1/analytics/campaigns/{campaign}"
        first = client.get(path).json()["budgets"]
        assert [(one["budget"], one["left"], one["lasts_until"]) for one in first] == [
            ("discount", 100, None), ("redemptions/month", 50, None),
        ]  # fmt: skip
        post(client, "/v1/vouchers", code="BURN", campaign_id=campaign)
        for _ in range(4):
            post(client, "/v1/vouchers/BURN/redeem", order_value=93.33)
        discount, redeemed = client.get(path).json()["budgets"]
    assert (discount["used"], discount["max"], discount["left"]) == (56, 100, 44)
    assert discount["used_per_day"] == 8
    lasts = datetime.fromisoformat(discount["lasts_until"]) - datetime.now(UTC)
    assert timedelta(days=5.4) < lasts < timedelta(days=5.6), "44 at 8 a day"
    assert (redeemed["used"], redeemed["left"], redeemed["used_per_day"]) == (4, 46, 0.57)
    assert redeemed["period"] == f"{datetime.now(UTC):%Y-%m}"
