"""Pages around the work: first steps, projects, settings, billing, a person's own page."""

import base64
import csv
import re
import secrets
import shlex
import time
from collections.abc import Iterator
from html import unescape

import httpx
import msgspec
import pytest

from api.dashboard.routes import ROUTER
from core import db, deliveries
from core.rules import one_time_codes
from tests.api.conftest import Api
from tests.api.test_dashboard import HOSTILE, PASSWORD, Visitor, visiting
from tests.api.test_events import as_worker


@pytest.fixture(scope="module")
def anna(api: Api) -> Iterator[Visitor]:
    yield from visiting(api)


@pytest.fixture
def ben(api: Api) -> Iterator[Visitor]:
    yield from visiting(api)


def code_of(secret: str) -> str:
    padded = secret + "=" * (-len(secret) % 8)
    return one_time_codes.code_at(base64.b32decode(padded), int(time.time()) // 30)


def publish(api: Api) -> None:
    """Publish what waits, as the worker does, and write down who is to be told."""

    async def work(database: db.Database) -> None:
        while await deliveries.publish(database):
            pass

    as_worker(api, work)


def own(visitor: Visitor, address: str, **given: str) -> httpx.Response:
    return visitor.http.post(address, data={"csrf": visitor.csrf, **given})


def test_the_first_steps_end_with_a_key_a_voucher_and_a_line_that_works(
    ben: Visitor, api: Api
) -> None:
    given = {"code": "IT’S 20%", "discount_value": "20", "key": f"evt_{secrets.token_hex(13)}"}
    wrong = ben.post("/first-steps", **{**given, "discount_value": "200"})
    assert wrong.status_code == 400
    assert api.rows("select 1 from vf.api_keys where name = 'first steps'") == []
    made = ben.post("/first-steps", **{**given, "code": "IT-20"})
    line = re.search(r'<pre id="try-it"[^>]*>(.*?)</pre>', made.text, re.S)
    assert made.status_code == 200 and line is not None
    parts = shlex.split(unescape(line[1]).replace("\\\n", " "))
    assert parts[:2] == ["curl", "-sS"] and parts[2].endswith("/v1/vouchers/IT-20/redeem")
    voucher = re.search(r'href="[^"]*/vouchers/(vch_\w+)"', made.text)
    assert voucher is not None
    assert "Waiting for the first" in ben.get(f"/first-steps/{voucher[1]}/used").text
    headers = dict(text.split(": ") for text in (parts[4], parts[6]))
    done = httpx.post(parts[2], headers=headers, content=parts[8])
    assert done.status_code == 200 and done.json()["discount_applied"] == 18.0
    assert "€18.00 off €89.99" in ben.get(f"/first-steps/{voucher[1]}/used").text
    # A double click makes neither again, and nobody sees the key again.
    again = ben.post("/first-steps", **{**given, "code": "IT-20"})
    assert again.status_code == 303
    assert "vf_sk_" not in ben.get("/first-steps").text


def test_a_plan_is_changed_for_what_was_shown_before(ben: Visitor) -> None:
    page = ben.get("/billing/plan?plan=growth")
    told = re.search(r"becomes <b>€([\d.]+)</b>", page.text)
    assert page.status_code == 200 and told is not None
    assert ben.made("/billing/plan", plan="growth") == "/billing"
    after = ben.get("/billing").text
    assert "of 50,000 included" in after
    month = re.search(r"/billing/invoices/(\d{4}-\d\d)", after)
    assert month is not None
    invoice = ben.get(f"/billing/invoices/{month[1]}").text
    assert f"<b>€{told[1]}</b>" in invoice and "Growth plan, " in invoice
    lines = ben.get(f"/billing/invoices/{month[1]}/lines.csv")
    assert lines.headers["content-disposition"] == 'attachment; filename="invoice.csv"'
    assert lines.text.splitlines()[-1].endswith(f",{told[1]}")
    assert ben.get("/billing/plan?plan=gold").status_code == 400


def test_another_project_needs_a_plan_with_room_and_has_a_wall(ben: Visitor) -> None:
    given = {"name": HOSTILE[:100], "currency": "USD", "time_zone": "America/New_York"}
    refused = own(ben, "/dashboard/projects/new", **given)
    assert refused.status_code == 402 or refused.status_code == 400
    assert "room for no more projects" in refused.text
    assert ben.made("/billing/plan", plan="starter") == "/billing"
    made = own(ben, "/dashboard/projects/new", **given)
    assert made.status_code == 303
    other = made.headers["location"].removesuffix("/first-steps")
    assert other != ben.root and ben.http.get(other).status_code == 200
    listed = ben.http.get("/dashboard/projects").text
    assert f'href="{other}"' in listed and "<script>alert" not in listed
    # From a list of one project to the same list of another.
    assert f'href="{other}/vouchers"' in ben.get("/vouchers").text
    voucher = ben.made("/vouchers/new", code="MINE", discount_type="PERCENT", discount_value="5")
    assert ben.http.get(other + voucher).status_code == 404
    # The plan that has no room for both is not offered as done.
    page = ben.get("/billing/plan?plan=free").text
    assert "has room for 1 projects, and this account has 2" in page
    assert "Change to Free</button>" not in page


def test_settings_are_those_of_the_project_and_deleting_asks_for_its_name(
    ben: Visitor, api: Api
) -> None:
    given = {
        "name": "Cups", "currency": "EUR", "time_zone": "Asia/Tokyo",
        "rollback_window_minutes": "45", "mail_at_percent": "90, 50",
    }  # fmt: skip
    assert ben.made("/settings", **given) == "/settings"
    page = ben.get("/settings").text
    for value in ("Cups", "Asia/Tokyo", "45", "50, 90"):
        assert f'value="{value}"' in page
    wrong = ben.post("/settings", **{**given, "time_zone": "Asia/Atlantis", "name": "Plates"})
    assert wrong.status_code == 400
    assert 'value="Asia/Atlantis"' in wrong.text and 'value="Plates"' in wrong.text
    assert 'id="f-time_zone-wrong"' in wrong.text

    assert ben.made("/settings/archive") == "/settings"
    assert "This project is archived" in ben.get("").text
    assert ben.post("/vouchers/new", code="LATE").status_code == 403
    assert "New voucher" not in ben.get("/vouchers").text
    assert ben.made("/settings/restore") == "/settings"
    status = "select status from vf.projects where name = 'Cups'"
    refused = ben.post("/settings/delete", confirm="cups")
    assert refused.status_code == 400 and "Nothing was deleted" in refused.text
    assert api.rows(status)[0]["status"] == "active"
    gone = ben.post("/settings/delete", confirm="Cups")
    assert gone.headers["location"] == "/dashboard/projects?done=deleting"
    left = api.rows(status)
    assert left == [] or left[0]["status"] == "deleting"


def test_a_second_factor_is_set_up_by_its_picture_or_its_text(ben: Visitor, api: Api) -> None:
    refused = own(ben, "/dashboard/account/second-factor", password="not this one")
    assert refused.status_code == 400 and "factor-secret" not in refused.text
    shown = own(ben, "/dashboard/account/second-factor", password=PASSWORD)
    secret = re.search(r'id="factor-secret">([A-Z2-7]{32})<', shown.text)
    assert secret is not None and '<svg class="qr"' in shown.text
    wrong = own(ben, "/dashboard/account/second-factor/confirm", code="000000")
    assert wrong.status_code == 400 and secret[1] not in wrong.text
    done = own(ben, "/dashboard/account/second-factor/confirm", code=code_of(secret[1]))
    codes = re.search(r'<pre id="recovery"[^>]*>(.*?)</pre>', done.text, re.S)
    assert done.status_code == 200 and codes is not None and len(codes[1].split()) == 10
    assert '<span class="badge good">On</span>' in ben.http.get("/dashboard/account").text
    with httpx.Client(base_url=api.base_url) as browser:
        given = {"email": ben.email, "password": PASSWORD}
        assert browser.post("/dashboard/log-in", data=given).status_code == 400
        given["code"] = codes[1].split()[0]
        assert browser.post("/dashboard/log-in", data=given).status_code == 303
        assert browser.post("/dashboard/log-in", data=given).status_code == 400
    off = own(ben, "/dashboard/account/second-factor/remove", password=PASSWORD)
    assert off.headers["location"] == "/dashboard/account?done=second-factor-off"


def test_another_password_ends_the_sessions_elsewhere(ben: Visitor, api: Api) -> None:
    with httpx.Client(base_url=api.base_url) as browser:
        given = {"email": ben.email, "password": PASSWORD}
        assert browser.post("/dashboard/log-in", data=given).status_code == 303
        assert ben.http.get("/dashboard/account").text.count("Log out there") == 1
        new = {"current_password": PASSWORD, "password": "another long password"}
        answer = own(ben, "/dashboard/account/password", **new)
        assert answer.headers["location"] == "/dashboard/account?done=password"
        assert browser.get(ben.root).status_code == 303
        assert ben.http.get(ben.root).status_code == 200


def test_own_pages_take_no_form_of_elsewhere(anna: Visitor, api: Api) -> None:
    paths = [
        path for route in ROUTER.routes for path in [route.path]
        if "POST" in route.methods
        and path.startswith(("/dashboard/account", "/dashboard/projects"))
    ]  # fmt: skip
    assert len(paths) >= 6
    before = api.row_counts()
    for path in paths:
        address = path.replace("{session:str}", "x")
        for token in ("", "0" * 64):
            answer = anna.http.post(address, data={"csrf": token, "password": PASSWORD})
            assert answer.status_code == 403, address
    assert api.row_counts() == before


def test_an_event_is_shown_as_the_api_tells_it_with_who_was_told(anna: Visitor, api: Api) -> None:
    made = anna.post("/developers", type="SECRET", name="reader")
    key = re.search(r'id="new-key-text">(vf_sk_\w+)<', made.text)
    assert key is not None
    hook = anna.post("/webhooks", url="https://shop.example/told", events="voucher.created")
    assert hook.status_code == 201
    anna.made("/vouchers/new", code="TOLD", discount_type="PERCENT", discount_value="5")
    with httpx.Client(
        base_url=anna.http.base_url, headers={"Authorization": f"Bearer {key[1]}"}
    ) as client:
        publish(api)
        told = client.get("/v1/events?type=voucher.created").json()["data"]
        event = next(one for one in told if one["data"]["code"] == "TOLD")
    page = anna.get(f"/events/{event['id']}").text
    text = re.search(r'<pre id="event-text"[^>]*>(.*?)</pre>', page, re.S)
    assert text is not None and msgspec.json.decode(unescape(text[1])) == event
    assert page.count("https://shop.example/told</a>") == 1
    of_kind = anna.get("/events?type=voucher.created").text
    assert event["id"] in of_kind and "webhook." not in anna.get("/events?type=campaign.ended").text
    assert anna.get("/events?type=nothing.known").status_code == 400


def test_a_segment_is_a_list_that_is_changed_or_a_rule_in_words(anna: Visitor) -> None:
    listed = anna.made(
        "/segments/new", name=HOSTILE, kind="static", customer_ids=f"cust_1, cust_2\n{HOSTILE}"
    )
    page = anna.get(listed).text
    assert "3 in all" in page and "&lt;script&gt;" in page and "<script>alert" not in page
    anna.made(f"{listed}/members", add="cust_9", remove="cust_1,cust_2")
    page = anna.get(listed).text
    assert "2 in all" in page and "cust_9" in page
    table = re.search(rf'href="{anna.root}(/tables/members.csv[^"]+)"', page)
    assert table is not None
    (head,), *members = csv.reader(anna.get(table[1]).text.splitlines())
    assert (head, sorted(members)) == ("customer_id", [[HOSTILE], ["cust_9"]])
    rule = anna.made(
        "/segments/new", name="Regulars", kind="rule", match="all",
        **{
            "rule-0-fact": "customer.redemptions", "rule-0-is": "at_least", "rule-0-value": "3",
        },
    )  # fmt: skip
    assert "the customer’s redemptions so far is at least 3" in anna.get(rule).text
    edited = {"name": "Regulars", "match": "all", "rule-0-fact": "customer.redemptions"}
    edited |= {"rule-0-is": "at_least", "rule-0-value": "5"}
    assert anna.made(f"{rule}/edit", **edited) == rule
    assert "is at least 5" in anna.get(rule).text
    nobody = anna.post("/segments/new", name="Empty rule", kind="rule")
    assert nobody.status_code == 400
    assert "Empty rule" in nobody.text and "Empty rule" not in anna.get("/segments").text


def test_a_report_has_the_days_that_were_asked_for(anna: Visitor) -> None:
    page = anna.get("/reports")
    assert page.status_code == 200 and page.text.count('value="ndjson"') == 5
    anna.made("/vouchers/new", code="REPORTED", discount_type="PERCENT", discount_value="5")
    answer = anna.get("/reports/vouchers?from=2020-01-01&to=2090-01-01&format=csv")
    assert answer.headers["content-type"].startswith("text/csv")
    assert ",REPORTED,active,PERCENT,5" in answer.text
    lines = anna.get("/reports/vouchers?from=&to=&format=ndjson").text.splitlines()
    assert "REPORTED" in [msgspec.json.decode(line)["code"] for line in lines]
    assert anna.get("/reports/vouchers?from=2020-01-01&to=2020-01-02").text.count("\n") == 1
    assert anna.get("/reports/vouchers?from=yesterday").status_code == 400
    assert anna.get("/reports/nothing").status_code == 404
