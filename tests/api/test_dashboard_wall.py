"""Generated over all pages and forms: two projects never mix, an analyst is offered nothing to
change, hostile text in any field is text, and a list's table has all its rows.
"""

import csv
import io
import itertools
import json
import re
import secrets
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest

from api.dashboard.routes import ROUTER
from core import db, deliveries, ids
from tests.api.conftest import Api
from tests.api.test_dashboard import HOSTILE, Visitor, crawl, filled, visiting
from tests.api.test_events import as_worker

# What is named after these is no object of a project: months, and kinds of tables and rules.
NO_OBJECTS = {"invoices", "tables", "reports", "rules"}
TABLES_OF_ONE = {"gift-cards": "entries", "webhooks": "deliveries", "segments": "members"}
# A visit that would end what the others need.
LAST = ("/log-out", "/erase", "/remove", "/revoke", "/end", "/archive", "/delete", "/confirm",
        "/account/password", "/cancel", "/role", "/close")  # fmt: skip
PLAUSIBLE = {
    "name": "N", "code": "", "email": "x@example.com", "discount_value": "5", "amount": "5",
    "count": "2", "stock": "5", "url": "https://shop.example/y", "rules.discount_value": "5",
    "rule-0-fact": "items.tag", "rule-0-is": "contains_any", "rule-0-value": "x",
    "customer_id": "cust_7", "value": "v", "threshold": "7", "referrer_reward.amount": "5",
}  # fmt: skip
_numbers = itertools.count(1)


def publish(api: Api) -> None:
    async def work(database: db.Database) -> None:
        while await deliveries.publish(database):
            pass

    as_worker(api, work)


@pytest.fixture(scope="module")
def anna(api: Api) -> Iterator[Visitor]:
    for visitor in visiting(api):
        everything(visitor, api)
        yield visitor


@pytest.fixture(scope="module")
def stranger(api: Api) -> Iterator[Visitor]:
    yield from visiting(api)


@pytest.fixture(scope="module")
def pages(anna: Visitor) -> dict[str, httpx.Response]:
    return crawl(anna)


def everything(visitor: Visitor, api: Api) -> None:
    """Make one of each thing that a page or a form of the dashboard can name."""
    filled(visitor)
    made = visitor.post("/developers", type="SECRET", name="hands")
    key = re.search(r'id="new-key-text">(vf_sk_\w+)<', made.text)
    assert key is not None
    with api.client(key[1]) as client:

        def must(path: str, body: dict[str, Any]) -> Any:
            answer = client.post(path, json=body)
            assert answer.status_code < 300, answer.text
            return answer.json()

        must("/v1/vouchers", {"code": "WALL", "discount_value": 5})
        must("/v1/vouchers/WALL/redeem", {"customer_id": "cust_1", "order_value": 10})
        program = must(
            "/v1/referral-programs",
            {"name": "P", "referrer_reward": {"type": "gift_card", "amount": 10}},
        )
        code = must(f"/v1/referral-programs/{program['id']}/codes", {"customer_id": "cust_1"})
        must("/v1/referrals/attribute", {"code": code["code"], "customer_id": "cust_2"})
        must("/v1/segments", {"name": "S", "customer_ids": ["cust_1"]})
    invited = f"{secrets.token_hex(4)}@example.com"
    assert visitor.post("/team", email=invited, role="analyst").status_code == 303
    assert visitor.post("/fraud/blocks", kind="customer", value="cust_8").status_code == 303
    suspect(visitor, api)
    publish(api)


def suspect(visitor: Visitor, api: Api) -> None:
    """Write down an alert, as the rules would, of hostile names."""
    reason = {
        "rule": "customer_velocity", "detail": HOSTILE, "observed": 12, "expected": 6,
        "window_s": 3600,
    }  # fmt: skip
    api.rows(
        "insert into vf.fraud_alerts (project_id, id, rule, subject_kind, subject, window_at, at, "
        "score, observed, expected, reasons, action) select m.project_id, $3, 'customer_velocity', "
        "'customer', 'cust_1', now(), now(), 75, 12, 6, $2::text::jsonb, 'review' "
        "from vf.memberships m join vf.users u on u.id = m.user_id where u.email = $1",
        visitor.email,
        json.dumps([reason]),
        ids.new(),
    )


def templates(method: str) -> list[str]:
    return sorted(
        path for route in ROUTER.routes for path in [route.path]
        if method in route.methods and path.startswith("/dashboard/{project:str}")
    )  # fmt: skip


def objects(pages: dict[str, httpx.Response]) -> dict[str, str]:
    """Return an id for each noun that comes before one in an address, in links and forms."""
    found: dict[str, str] = {}
    for page in pages.values():
        for noun, public_id in re.findall(r"/([a-z-]+)/([a-z]{3}_[0-9A-Z]{26})\b", page.text):
            if noun != "dashboard":
                found.setdefault(noun, public_id)
    found["first-steps"] = found["vouchers"]
    return found


def with_objects(template: str, root: str, found: dict[str, str]) -> str:
    below = template.removeprefix("/dashboard/{project:str}")
    for noun in re.findall(r"/([a-z-]+)/\{\w+:str\}", below):
        below = re.sub(rf"/{noun}/\{{\w+:str\}}", f"/{noun}/{found[noun]}", below)
    return root + below


def holed(method: str) -> list[str]:
    found = [path for path in templates(method) if path.count("{") > 1]
    return [path for path in found if not NO_OBJECTS & set(re.findall(r"/([a-z-]+)/\{", path))]


def test_no_page_of_a_project_knows_an_object_of_another(
    anna: Visitor, stranger: Visitor, pages: dict[str, httpx.Response]
) -> None:
    found = objects(pages)
    asked = holed("GET")
    assert len(asked) > 15
    for template in asked:
        mine = anna.http.get(with_objects(template, anna.root, found))
        assert mine.status_code == 200, template
        # The other's own project with these ids, and this project itself.
        for root in (stranger.root, anna.root):
            answer = stranger.http.get(with_objects(template, root, found))
            assert answer.status_code == 404, (template, root)
    for name in ("person", "erase"):
        assert anna.get(f"/customers/{name}?id=cust_1").status_code == 200
        assert stranger.get(f"/customers/{name}?id=cust_1").status_code == 404
    for noun, table in TABLES_OF_ONE.items():
        address = f"/tables/{table}.csv?of={found[noun]}"
        assert anna.get(address).status_code == 200
        assert stranger.get(address).status_code == 404
    chosen = f"/vouchers/bulk?do=disable&id={found['vouchers']}"
    assert anna.get(chosen).status_code == 200 and stranger.get(chosen).status_code == 404


def test_no_form_of_a_project_changes_an_object_of_another(
    api: Api, stranger: Visitor, pages: dict[str, httpx.Response]
) -> None:
    found = objects(pages)
    asked = holed("POST")
    assert len(asked) > 20
    before = api.row_counts()
    given = {**PLAUSIBLE, "role": "owner", "reason": "x", "add": "cust_9"}
    for template in asked:
        answer = stranger.http.post(
            with_objects(template, stranger.root, found), data={"csrf": stranger.csrf, **given}
        )
        assert answer.status_code == 404, template
    for deed in ("disable", "enable", "extend", "restore"):
        answer = stranger.post("/vouchers/bulk", do=deed, ids=found["vouchers"])
        assert answer.status_code == 404
    erased = stranger.post("/customers/erase", id="cust_1", confirm="cust_1")
    assert erased.status_code == 404
    assert api.row_counts() == before


class Forms(HTMLParser):
    """The forms of a page that change something: where they go, and what they send."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str], list[str]]] = []
        self._inside = False
        self._select = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self._inside = given.get("method") == "post"
            if self._inside:
                self.found.append((given["action"], {}, []))
        elif self._inside and given.get("name"):
            _, sent, texts = self.found[-1]
            sent[given["name"]] = given.get("value", "")
            is_text = given.get("type", "text") in ("text", "email", "password")
            if tag == "textarea" or (tag == "input" and is_text):
                texts.append(given["name"])
            self._select = given["name"] if tag == "select" else ""
        elif self._inside and tag == "option" and self._select:
            sent = self.found[-1][1]
            if "selected" in given or not sent[self._select]:
                sent[self._select] = given.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "form"


def kind_of(action: str) -> str:
    return re.sub(r"[a-z]{3}_[0-9A-Z]{26}", "*", action)


def test_an_analyst_is_offered_nothing_that_changes_the_project(
    api: Api, anna: Visitor, pages: dict[str, httpx.Response], stranger: Visitor
) -> None:
    api.rows(
        "insert into vf.memberships (project_id, user_id, role) select m.project_id, o.id, "
        "'analyst' from vf.memberships m join vf.users u on u.id = m.user_id, vf.users o "
        "where u.email = $1 and o.email = $2",
        anna.email,
        stranger.email,
    )
    try:
        for address in pages:
            if not address.startswith(anna.root):
                continue
            page = stranger.http.get(address)
            is_form = address.partition("?")[0].endswith(("/new", "/edit"))
            # Who was only referred has no page, for anybody.
            assert page.status_code == (403 if is_form else pages[address].status_code), address
            offered = {kind_of(action) for action, _, _ in Forms(page.text).found}
            assert offered <= {"/dashboard/theme", "/dashboard/log-out"}, address
    finally:
        api.rows(
            "delete from vf.memberships m using vf.users u where u.id = m.user_id "
            "and u.email = $1 and m.role = 'analyst'",
            stranger.email,
        )


def test_hostile_text_in_any_field_of_any_form_is_text_on_every_page(api: Api) -> None:
    for visitor in visiting(api):
        everything(visitor, api)
        forms = {
            kind_of(action): (action, sent, texts)
            for page in crawl(visitor).values()
            for action, sent, texts in Forms(page.text).found
            if texts and not action.endswith(LAST)
        }
        assert len(forms) >= 15
        stored = tried = 0
        for action, sent, texts in forms.values():
            usual = {name: PLAUSIBLE.get(name, text) or text for name, text in sent.items()}
            for field in texts:
                given = {**usual, "csrf": visitor.csrf, "key": f"k{next(_numbers)}"}
                answer = visitor.http.post(action, data={**given, field: HOSTILE[:100]})
                assert answer.status_code < 500, (action, field)
                assert "<script>alert" not in answer.text and "<img" not in answer.text, action
                tried += 1
                stored += answer.status_code < 400
        assert tried >= 60 and stored >= 15, (tried, stored)
        shown = crawl(visitor)
        documents = {a: p.text for a, p in shown.items() if "html" in p.headers["content-type"]}
        hostile = [a for a, text in documents.items() if "<script>alert" in text or "<img" in text]
        assert hostile == []
        # A project's own name is on each of its pages.
        escaped = [a for a, text in documents.items() if "&lt;script&gt;alert(1)" in text]
        assert len(escaped) == len([a for a in documents if a.startswith("/dashboard")])


def test_a_table_has_every_row_of_its_list_and_nothing_that_runs(
    anna: Visitor, pages: dict[str, httpx.Response]
) -> None:
    linked = {a for a in pages if "/tables/" in a}
    assert len({a.partition("?")[0].rpartition("/")[2] for a in linked}) >= 11
    for code in ("=1+1", "@x"):
        answer = anna.post("/customers/new", customer_id=code, name=code)
        assert answer.status_code == 303, answer.text
    text = anna.get("/tables/customers.csv").text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert {"'=1+1", "'@x"} <= {row["customer_id"] for row in rows}
    assert all(not cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row.values())
    made = {f"many-{n}" for n in range(30)}
    for name in made:
        anna.made("/customers/new", customer_id=name)
    rows = list(csv.DictReader(io.StringIO(anna.get("/tables/customers.csv").text)))
    assert made <= {row["customer_id"] for row in rows}
    redeemed = list(csv.DictReader(io.StringIO(anna.get("/tables/redemptions.csv").text)))
    assert [(row["code"], row["discount_applied"]) for row in redeemed] == [("WALL", "0.50")]
    none = anna.get("/tables/redemptions.csv?status=rolled_back").text
    assert none.count("\n") == 1
    assert anna.get("/tables/nothing.csv").status_code == 404


def test_many_vouchers_are_changed_at_once_as_was_said_and_taken_back(
    anna: Visitor, api: Api
) -> None:
    terms = {"discount_type": "PERCENT", "discount_value": "5"}
    made = [anna.made("/vouchers/new", code=f"BULK-{n}", **terms) for n in range(3)]
    ids = [address.rpartition("/")[2] for address in made]
    assert anna.made(f"{made[2]}/disable") == made[2]
    page = anna.get(f"/vouchers/bulk?do=disable&id={ids[0]}&id={ids[1]}&id={ids[2]}").text
    assert "Disable 3 vouchers</button>" in page and all(f"BULK-{n}" in page for n in range(3))
    key = f"evt_{secrets.token_hex(13)}"
    done = anna.post("/vouchers/bulk", do="disable", ids=",".join(ids), key=key)
    assert done.status_code == 200 and "Disabled 2 of 3 vouchers" in done.text
    back = re.search(r'name="ids" value="([^"]+)"', done.text)
    assert back is not None and back[1].split(",") == ids[:2]
    assert anna.post("/vouchers/bulk", do="disable", ids=",".join(ids), key=key).status_code == 303
    undone = anna.post("/vouchers/bulk", do="enable", ids=back[1])
    assert "Enabled 2 of 2 vouchers" in undone.text
    states = [re.search(r'badge \w+">(\w+)<', anna.get(address).text) for address in made]
    assert [state and state[1] for state in states] == ["Active", "Active", "Disabled"]

    ended = anna.post(
        "/vouchers/bulk", do="extend", ids=",".join(ids), expires_at="2030-05-06T07:08"
    )
    assert "Changed the end of 3 of 3" in ended.text and "6 May 2030, 07:08" in ended.text
    back = re.search(r'name="ids" value="([^"]+)"', ended.text)
    assert back is not None
    restored = anna.post("/vouchers/bulk", do="restore", ids=back[1])
    assert "Restored the end of 3 of 3" in restored.text
    assert "2030" not in anna.get(made[0]).text
    # One that cannot be changed keeps all as they are.
    anna.made(f"{made[1]}/dates", starts_at="2031-01-01T00:00", expires_at="")
    before = api.row_counts()
    refused = anna.post(
        "/vouchers/bulk", do="extend", ids=",".join(ids), expires_at="2030-05-06T07:08"
    )
    assert refused.status_code == 400 and "Nothing was changed" in refused.text
    assert api.row_counts() == before and "2030" not in anna.get(made[0]).text
    many = ",".join(["vch_01HX0000000000000000000000"[:30]] * 2 + [f"x{n}" for n in range(101)])
    assert anna.post("/vouchers/bulk", do="enable", ids=many).status_code == 400


def test_a_person_is_erased_by_who_types_their_id(anna: Visitor) -> None:
    anna.made("/customers/new", customer_id="gone soon", name="Gone Soon")
    page = anna.get("/customers/erase?id=gone%20soon")
    assert page.status_code == 200 and "Nobody can bring it back" in page.text
    wrong = anna.post("/customers/erase", id="gone soon", confirm="gone")
    assert wrong.status_code == 400 and "Nobody was erased" in wrong.text
    assert anna.get("/customers/person?id=gone%20soon").status_code == 200
    assert anna.made("/customers/erase", id="gone soon", confirm="gone soon") == "/customers"
    assert anna.get("/customers/person?id=gone%20soon").status_code == 404


def test_what_was_switched_is_taken_back_where_it_is_said(anna: Visitor) -> None:
    voucher = anna.made("/vouchers/new", discount_type="PERCENT", discount_value="5")
    said = anna.post(f"{voucher}/disable")
    page = anna.http.get(said.headers["location"]).text
    undo = re.search(rf'action="({anna.root}{voucher}/enable)" *>', page)
    assert undo is not None and ">Undo</button>" in page
    assert anna.http.post(undo[1], data={"csrf": anna.csrf}).status_code == 303
    assert ">Active<" in anna.get(voucher).text


def test_an_alert_is_decided_where_its_reasons_are(anna: Visitor, api: Api) -> None:
    # Of another moment than the one that is there.
    suspect(anna, api)
    page = anna.get("/fraud")
    alert = re.search(r"/fraud/alerts/(fra_\w{26})", page.text)
    assert alert is not None and "&lt;script&gt;" in page.text and "<script>alert" not in page.text
    here = f"/fraud/alerts/{alert[1]}"
    shown = anna.get(here).text
    assert "score 75 of 100" in shown and "block this customer" in shown
    assert anna.made(f"{here}/acknowledge", note="asked the shop") == here
    assert "asked the shop" in anna.get(here).text
    assert anna.made(f"{here}/block") == here
    shown = anna.get(here).text
    assert ">Confirmed<" in shown and ">Blocked<" in shown and "What now?" not in shown
    again = anna.post(f"{here}/dismiss")
    assert again.status_code == 409 and "decided before" in again.text
    blocked = anna.get("/fraud/blocks").text
    lift = re.search(
        rf'{alert[1]}".*?action="{anna.root}(/fraud/blocks/blk_\w+/lift)"', blocked, re.S
    )
    assert lift is not None and "cust_1" in blocked
    assert anna.made(lift[1]) == "/fraud/blocks"
    assert anna.made("/fraud/rules/code_guessing", enabled="", action="block", threshold="9")
    rules = anna.get("/fraud/rules").text
    assert anna.made(
        "/fraud/rules/customer_velocity", enabled="on", action="review", threshold="77"
    )
    # The rule before stays as it was set.
    rules = anna.get("/fraud/rules").text
    assert 'name="threshold" value="9"' in rules and 'name="threshold" value="77"' in rules
    assert rules.count(">Changed</span>") == 2
    wrong = anna.post("/fraud/rules/customer_velocity", enabled="on", threshold="0")
    assert wrong.status_code == 400 and 'role="alert"' in wrong.text
