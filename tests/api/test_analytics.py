"""Figures over HTTP: at every moment what the ledger says, however far the worker is."""

import uuid
from collections.abc import Callable

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
