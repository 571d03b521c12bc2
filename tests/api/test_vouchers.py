"""Vouchers over HTTP: made, read, listed, edited, switched and validated."""

import re
from collections.abc import Callable

import httpx
import pytest

from tests.api.conftest import Api, Project

ID = re.compile(r"vch_[0-7][0-9A-HJKMNP-TV-Z]{25}")


def test_the_published_request_gets_the_published_answer(client: httpx.Client) -> None:
    answer = client.post(
        "/v1/vouchers", content='{"code":"SAVE20","discount_type":"PERCENT","discount_value":20}'
    )

    assert answer.status_code == 201
    assert answer.headers["content-type"] == "application/json"
    voucher = answer.json()
    assert ID.fullmatch(voucher.pop("id"))
    assert voucher.pop("created_at").endswith("Z")
    assert voucher.pop("updated_at").endswith("Z")
    assert voucher == {
        "code": "SAVE20",
        "status": "active",
        "discount_type": "PERCENT",
        "discount_value": 20,
        "campaign_id": None,
        "max_redemptions": None,
        "per_customer_limit": None,
        "redeemed_count": 0,
        "remaining": None,
        "min_order_value": None,
        "starts_at": None,
        "expires_at": None,
        "metadata": {},
    }


def test_percent_is_what_a_discount_is_when_nothing_is_said(client: httpx.Client) -> None:
    voucher = client.post("/v1/vouchers", json={"discount_value": 12.5}).json()

    assert voucher["discount_type"] == "PERCENT"
    assert voucher["discount_value"] == 12.5


def test_a_code_is_drawn_where_none_is_given(client: httpx.Client) -> None:
    codes = {
        client.post("/v1/vouchers", json={"discount_value": 5}).json()["code"] for _ in range(5)
    }

    assert len(codes) == 5
    assert all(re.fullmatch("[2-9A-HJKMNP-TV-Z]{12}", code) for code in codes)


@pytest.mark.parametrize(
    ("currency", "sent", "shown"),
    [("EUR", "5", "5.00"), ("EUR", "5.50", "5.50"), ("JPY", "500", "500"), ("KWD", "1.5", "1.500")],
)
def test_amounts_are_json_numbers_with_the_decimals_of_the_currency(
    api: Api, make_project: Callable[..., Project], currency: str, sent: str, shown: str
) -> None:
    with api.client(make_project(currency).secret_key) as client:
        body = f'{{"discount_type":"AMOUNT","discount_value":{sent},"min_order_value":{sent}}}'
        answer = client.post("/v1/vouchers", content=body)

    assert answer.status_code == 201
    assert f'"discount_value":{shown},' in answer.text
    assert f'"min_order_value":{shown},' in answer.text


def test_a_code_is_taken_whatever_its_case(client: httpx.Client, api: Api) -> None:
    assert client.post("/v1/vouchers", json={"code": "Once", "discount_value": 1}).is_success
    before = api.row_counts()

    answer = client.post("/v1/vouchers", json={"code": " oNCE ", "discount_value": 1})

    assert (answer.status_code, answer.json()["code"]) == (409, "already_exists")
    assert answer.json()["field"] == "code"
    assert api.row_counts() == before


def test_two_projects_may_have_one_code(client: httpx.Client, stranger: httpx.Client) -> None:
    body = {"code": "SHARED", "discount_value": 1}

    mine = client.post("/v1/vouchers", json=body).json()
    theirs = stranger.post("/v1/vouchers", json=body).json()

    assert mine["id"] != theirs["id"]
    assert client.get("/v1/vouchers/shared").json()["id"] == mine["id"]
    assert stranger.get("/v1/vouchers/shared").json()["id"] == theirs["id"]


def test_a_voucher_is_read_by_code_in_any_case_and_by_id(client: httpx.Client) -> None:
    made = client.post("/v1/vouchers", json={"code": "Read-Me", "discount_value": 1}).json()

    assert client.get("/v1/vouchers/rEAD-mE").json() == made
    assert client.get(f"/v1/vouchers/{made['id']}").json() == made
    assert client.get(f"/v1/vouchers/{made['id'].lower()}").json() == made
    assert client.get("/v1/vouchers/ReadMe").status_code == 404


def test_another_projects_voucher_is_not_there(
    client: httpx.Client, stranger: httpx.Client
) -> None:
    made = client.post("/v1/vouchers", json={"code": "MINE", "discount_value": 1}).json()

    for method, path, body in [
        ("GET", f"/v1/vouchers/{made['id']}", None),
        ("GET", "/v1/vouchers/MINE", None),
        ("PATCH", f"/v1/vouchers/{made['id']}", {"metadata": {"stolen": True}}),
        ("POST", "/v1/vouchers/MINE/disable", None),
        ("POST", "/v1/vouchers/MINE/validate", {}),
    ]:
        answer = stranger.request(method, path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert client.get("/v1/vouchers/MINE").json() == made
    assert "MINE" not in stranger.get("/v1/vouchers").text


def test_lists_go_on_below_the_last_object_and_miss_nothing(
    api: Api, make_project: Callable[..., Project]
) -> None:
    with api.client(make_project().secret_key) as client:
        made = [
            client.post("/v1/vouchers", json={"discount_value": 1}).json()["id"] for _ in range(5)
        ]
        pages = []
        cursor = ""
        while True:
            page = client.get(f"/v1/vouchers?limit=2{cursor}").json()
            pages.append([voucher["id"] for voucher in page["data"]])
            if not page["has_more"]:
                break
            cursor = f"&starting_after={pages[-1][-1]}"

    newest_first = made[::-1]
    assert pages == [newest_first[:2], newest_first[2:4], newest_first[4:]]


def test_lists_are_filtered_by_campaign_and_shown_status(
    api: Api, make_project: Callable[..., Project]
) -> None:
    with api.client(make_project().secret_key) as client:
        campaign = client.post(
            "/v1/campaigns", json={"name": "C", "rules": {"discount_value": 1}}
        ).json()
        for code, more in [
            ("LIVE", {}),
            ("OFF", {}),
            ("OVER", {"expires_at": "2020-01-01T00:00:00Z"}),
            ("IN", {"campaign_id": campaign["id"]}),
        ]:
            client.post("/v1/vouchers", json={"code": code, "discount_value": 1, **more})
        client.post("/v1/vouchers/OFF/disable")

        def listed(query: str) -> list[str]:
            return [v["code"] for v in client.get(f"/v1/vouchers?{query}").json()["data"]]

        assert listed("status=active") == ["IN", "LIVE"]
        assert listed("status=disabled") == ["OFF"]
        assert listed("status=expired") == ["OVER"]
        assert listed(f"campaign_id={campaign['id']}") == ["IN"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=ten", "limit"),
        ("limit=%D9%A3", "limit"),
        ("limit=1&limit=2", "limit"),
        ("starting_after=SAVE20", "starting_after"),
        ("status=gone", "status"),
        ("colour=red", "colour"),
        ("campaign_id=%00", "campaign_id"),
    ],
)
def test_a_wrong_query_is_refused_by_name(client: httpx.Client, query: str, field: str) -> None:
    answer = client.get(f"/v1/vouchers?{query}")

    assert (answer.status_code, answer.json()["field"]) == (400, field)


def test_dates_and_metadata_can_be_changed_and_cleared(client: httpx.Client, api: Api) -> None:
    client.post("/v1/vouchers", json={"code": "EDIT", "discount_value": 1, "metadata": {"a": 1}})

    later = client.patch(
        "/v1/vouchers/EDIT",
        json={"expires_at": "2031-01-01T02:00:00+02:00", "metadata": {"b": "x"}},
    ).json()
    cleared = client.patch("/v1/vouchers/EDIT", json={"expires_at": None}).json()

    assert (later["expires_at"], later["metadata"]) == ("2031-01-01T00:00:00Z", {"b": "x"})
    assert (cleared["expires_at"], cleared["metadata"]) == (None, {"b": "x"})
    versions = api.rows("select terms_version from vf.vouchers where code = 'EDIT'")
    assert [row[0] for row in versions] == [3]


def test_what_cannot_be_changed_is_refused_by_name(client: httpx.Client) -> None:
    client.post("/v1/vouchers", json={"code": "FIXED", "discount_value": 1})

    answer = client.patch("/v1/vouchers/FIXED", json={"discount_value": 99})

    assert (answer.status_code, answer.json()["field"]) == (400, "discount_value")
    assert client.get("/v1/vouchers/FIXED").json()["discount_value"] == 1


def test_dates_stay_in_order_when_one_is_changed(client: httpx.Client) -> None:
    client.post(
        "/v1/vouchers",
        json={"code": "ORDER", "discount_value": 1, "starts_at": "2030-01-01T00:00:00Z"},
    )

    answer = client.patch("/v1/vouchers/ORDER", json={"expires_at": "2029-01-01T00:00:00Z"})

    assert (answer.status_code, answer.json()["field"]) == (400, "expires_at")
    assert client.get("/v1/vouchers/ORDER").json()["expires_at"] is None


def test_a_disabled_voucher_can_be_enabled_again(client: httpx.Client) -> None:
    client.post("/v1/vouchers", json={"code": "SWITCH", "discount_value": 1})

    for _ in range(2):
        assert client.post("/v1/vouchers/SWITCH/disable").json()["status"] == "disabled"
    assert client.post("/v1/vouchers/SWITCH/validate", json={}).json()["code"] == "voucher_inactive"
    assert client.post("/v1/vouchers/SWITCH/enable").json()["status"] == "active"
    assert client.post("/v1/vouchers/SWITCH/validate", json={}).json()["valid"] is True


def test_validate_says_what_a_redemption_would_take_off_and_consumes_nothing(
    client: httpx.Client, api: Api
) -> None:
    client.post(
        "/v1/vouchers", json={"code": "WOULD", "discount_value": 20, "max_redemptions": 500}
    )
    before = api.row_counts()

    answer = client.post("/v1/vouchers/would/validate", content='{"order_value":89.99}')

    assert answer.status_code == 200
    assert '"discount_applied":18.00' in answer.text
    assert answer.json() == {
        "valid": True,
        "code": "WOULD",
        "voucher": "WOULD",
        "discount_applied": 18.0,
        "remaining": 500,
        "detail": None,
        "because": None,
    }
    assert api.row_counts() == before
    assert client.get("/v1/vouchers/WOULD").json()["remaining"] == 500


@pytest.mark.parametrize(
    ("terms", "question", "code", "because"),
    [
        (
            {"expires_at": "2020-01-01T00:00:00Z"},
            {},
            "voucher_expired",
            {"expires_at": "2020-01-01T00:00:00Z"},
        ),
        (
            {"starts_at": "2999-01-01T00:00:00Z"},
            {},
            "not_started",
            {"starts_at": "2999-01-01T00:00:00Z"},
        ),
        (
            {"min_order_value": 50},
            {"order_value": 49.99},
            "order_value_too_low",
            {"min_order_value": 50.0},
        ),
        ({"min_order_value": 50}, {}, "order_value_too_low", {"min_order_value": 50.0}),
    ],
)
def test_validate_says_why_not(
    client: httpx.Client, terms: dict, question: dict, code: str, because: dict
) -> None:
    voucher = client.post("/v1/vouchers", json={"discount_value": 10, **terms}).json()["code"]

    answer = client.post(f"/v1/vouchers/{voucher}/validate", json=question)

    assert answer.status_code == 200
    verdict = answer.json()
    assert (verdict["valid"], verdict["code"], verdict["voucher"]) == (False, code, voucher)
    assert verdict["because"] == because
    assert verdict["discount_applied"] == 0


def test_a_voucher_takes_its_campaigns_discount_and_limit(client: httpx.Client) -> None:
    campaign = client.post(
        "/v1/campaigns",
        json={"name": "Sale", "rules": {"discount_value": 20, "max_redemptions": 500}},
    ).json()

    voucher = client.post(
        "/v1/vouchers", json={"code": "CHILD", "campaign_id": campaign["id"]}
    ).json()
    own = client.post(
        "/v1/vouchers",
        json={"campaign_id": campaign["id"], "discount_value": 5, "max_redemptions": 3},
    ).json()

    assert (voucher["discount_value"], voucher["remaining"]) == (20, 500)
    assert (own["discount_value"], own["remaining"]) == (5, 3)


def test_a_browsers_key_may_validate_and_nothing_else(
    client: httpx.Client, browser: httpx.Client, api: Api
) -> None:
    client.post("/v1/vouchers", json={"code": "PUBLIC", "discount_value": 10})
    before = api.row_counts()

    assert browser.post("/v1/vouchers/PUBLIC/validate", json={}).json()["valid"] is True
    for method, path, body in [
        ("GET", "/v1/vouchers", None),
        ("GET", "/v1/vouchers/PUBLIC", None),
        ("POST", "/v1/vouchers", {"discount_value": 1}),
        ("PATCH", "/v1/vouchers/PUBLIC", {"metadata": {}}),
        ("POST", "/v1/vouchers/PUBLIC/disable", None),
        ("GET", "/v1/campaigns", None),
        ("GET", "/v1/api-keys", None),
        ("POST", "/v1/api-keys", {"type": "SECRET"}),
        ("GET", "/v1/analytics/overview", None),
    ]:
        answer = browser.request(method, path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), path
    assert api.row_counts() == before


def test_two_writers_of_one_code_leave_one_voucher(client: httpx.Client, api: Api) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def write(_: int) -> int:
        return client.post("/v1/vouchers", json={"code": "RACE", "discount_value": 1}).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(write, range(8)))

    assert statuses == [201] + [409] * 7
    assert len(api.rows("select 1 from vf.vouchers where code = 'RACE'")) == 1


@pytest.mark.parametrize(
    ("terms", "request_body", "code"),
    [
        ({}, {"order_value": 89.99}, None),
        ({"discount_type": "AMOUNT", "discount_value": 5}, {"order_value": 3}, None),
        ({"discount_type": "AMOUNT", "discount_value": 5}, {}, None),
        ({"min_order_value": 50}, {"order_value": 50}, None),
        ({"min_order_value": 50}, {"order_value": 49.99}, "order_value_too_low"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, {}, "voucher_expired"),
        ({"starts_at": "2999-01-01T00:00:00Z"}, {}, "not_started"),
        ({"max_redemptions": 1}, {"used": True}, "limit_reached"),
        ({"per_customer_limit": 1}, {"customer_id": "c", "used": True}, "customer_limit_reached"),
        ({"switch": "disable"}, {}, "voucher_inactive"),
        ({"campaign": "pause"}, {}, "paused"),
        ({"campaign": "pause", "switch": "disable"}, {}, "voucher_inactive"),
    ],
    ids=str,
)
def test_redeem_answers_what_validate_said(
    client: httpx.Client, terms: dict, request_body: dict, code: str | None
) -> None:
    terms, body = dict(terms), dict(request_body)
    switch, pause, is_used = (
        terms.pop("switch", None),
        terms.pop("campaign", None),
        body.pop("used", False),
    )
    if pause:
        campaign = client.post("/v1/campaigns", json={"name": "Pausing"}).json()["id"]
        terms["campaign_id"] = campaign
    voucher = client.post("/v1/vouchers", json={"discount_value": 20, **terms}).json()["code"]
    if is_used:
        assert client.post(f"/v1/vouchers/{voucher}/redeem", json=body).status_code == 200
    if switch:
        client.post(f"/v1/vouchers/{voucher}/{switch}")
    if pause:
        client.post(f"/v1/campaigns/{campaign}/pause")

    said = client.post(f"/v1/vouchers/{voucher}/validate", json=body).json()
    done = client.post(f"/v1/vouchers/{voucher}/redeem", json=body)

    if code is None:
        assert (said["valid"], done.status_code) == (True, 200), done.text
        assert said["discount_applied"] == done.json()["discount_applied"]
    else:
        assert (said["valid"], said["code"]) == (False, code)
        assert (done.status_code, done.json()["code"]) == (409, code)
