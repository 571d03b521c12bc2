"""Refusals that need a hand behind the API to come about; the others are tested beside what works.

`test_every_code_is_met_by_a_test` holds the list of codes to the tests.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import redis

from core.errors import CODES
from tests.api.conftest import Api

TESTS = Path(__file__).parents[1]


def made_sale(client: httpx.Client, durability: str) -> str:
    sale = client.post(
        "/v1/flash-sales",
        json={"name": "s", "discount_value": 5, "stock": 3, "durability": durability},
    )
    assert sale.status_code == 201, sale.text
    return str(sale.json()["id"])


def refused(answer: httpx.Response, code: str) -> dict[str, Any]:
    told: dict[str, Any] = answer.json()
    assert (answer.status_code, told["code"]) == (409, code), answer.text
    return told


def test_a_sale_that_is_not_open_is_not_paused_and_one_that_is_over_stays_so(
    client: httpx.Client,
) -> None:
    sale = made_sale(client, "strict")
    assert "scheduled" in refused(
        client.post(f"/v1/flash-sales/{sale}/pause"), "sale_not_open"
    )["detail"]  # fmt: skip
    for step in ("open", "close"):
        assert client.post(f"/v1/flash-sales/{sale}/{step}").status_code == 200

    for step, code in (("pause", "sale_not_open"), ("open", "sale_over")):
        refused(client.post(f"/v1/flash-sales/{sale}/{step}"), code)
    assert client.get(f"/v1/flash-sales/{sale}").json()["status"] in ("closed", "settled")


def test_a_number_that_is_not_written_off_is_not_released(client: httpx.Client) -> None:
    sale = made_sale(client, "fast")
    assert client.post(f"/v1/flash-sales/{sale}/open").status_code == 200
    claim = {"customer_id": "c", "order_value": 10}
    assert client.post(f"/v1/flash-sales/{sale}/claim", json=claim).json()["seq"] == 1

    told = refused(
        client.post(f"/v1/flash-sales/{sale}/release", json={"numbers": [3, 1]}), "not_written_off"
    )

    assert told["numbers"] == [1, 3]
    assert client.get(f"/v1/flash-sales/{sale}").json()["remaining"] == 2
    listed = client.get(f"/v1/flash-sales/{sale}/written-off?limit=5&starting_after=1")
    assert listed.json() == {"data": [], "has_more": False}
    for body in ({"numbers": []}, {"numbers": [0]}, {"numbers": [1.5]}, {"number": [1]}):
        answer = client.post(f"/v1/flash-sales/{sale}/release", json=body)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid"), body
    assert client.get(f"/v1/flash-sales/{sale}/written-off?starting_after=x").status_code == 400


@contextmanager
def without_fsync(api: Api) -> Iterator[None]:
    with redis.Redis.from_url(api.settings.redis_url) as server:
        server.config_set("appendfsync", "everysec")
        try:
            yield
        finally:
            server.config_set("appendfsync", "always")


def test_a_fast_sale_is_not_armed_on_a_redis_that_may_forget(
    api: Api, client: httpx.Client
) -> None:
    sale = made_sale(client, "fast")
    before = api.row_counts()

    with without_fsync(api):
        told = refused(client.post(f"/v1/flash-sales/{sale}/open"), "cannot_arm")

    assert any("appendfsync" in fault for fault in told["because"]["faults"])
    assert client.get(f"/v1/flash-sales/{sale}").json()["status"] == "scheduled"
    assert api.row_counts() == before


def test_an_old_redemption_is_not_rolled_back(api: Api, client: httpx.Client) -> None:
    code = client.post("/v1/vouchers", json={"discount_value": 5}).json()["code"]
    told = client.post(f"/v1/vouchers/{code}/redeem", json={"order_value": 10}).json()
    api.rows(
        "UPDATE vf.redemptions SET redeemed_at = redeemed_at - interval '31 minutes' "
        "WHERE voucher_id = (SELECT id FROM vf.vouchers WHERE code = $1)",
        code,
    )

    address = f"/v1/redemptions/{told['redemption_id']}"
    refused(client.post(f"{address}/rollback"), "rollback_window_passed")
    assert client.get(address).json()["status"] == "redeemed"
    assert client.get(f"/v1/vouchers/{code}").json()["redeemed_count"] == 1


def test_what_breaks_here_is_told_without_its_inside(api: Api, client: httpx.Client) -> None:
    code = client.post("/v1/vouchers", json={"discount_value": 5}).json()["code"]
    told = client.post(f"/v1/vouchers/{code}/redeem", json={"order_value": 10}).json()
    size = api.log_size()
    api.rows("ALTER FUNCTION vf.roll_back RENAME TO roll_back_elsewhere")
    try:
        answer = client.post(f"/v1/redemptions/{told['redemption_id']}/rollback")
    finally:
        api.rows("ALTER FUNCTION vf.roll_back_elsewhere RENAME TO roll_back")

    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (500, "internal")
    assert "roll_back" not in answer.text and "SQL" not in answer.text
    logged = [line for line in api.log_since(size) if line.get("level") == "error"]
    assert [line["request_id"] for line in logged] == [problem["request_id"]]


def test_every_code_is_met_by_a_test() -> None:
    written = "".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    missing = [code for code in CODES if not re.search(rf"[\"'#]{code}[\"']", written)]
    assert missing == []
