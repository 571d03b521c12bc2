"""The dashboard as a browser without scripts meets it: forms, redirects, roles, hostile text."""

import itertools
import re
import secrets
from collections.abc import Iterator
from html.parser import HTMLParser

import httpx
import msgspec
import pytest

from api.dashboard.routes import ROUTER
from tests.api.conftest import Api
from tests.api.test_members import mailed

PASSWORD = "a long enough password"
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
# Besides the page: style, three scripts, an icon.
PAGE_BYTES_MAX = 300_000
# Where nobody is logged in yet, or what is asked for is nobody's.
OPEN = ("/dashboard/log-in", "/dashboard/sign-up", "/dashboard/theme", "/dashboard/assets")
_numbers = itertools.count(1)


class Seen(HTMLParser):
    """What a page holds: forms' hidden members, links, files, and anything inline."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.files: set[str] = set()
        self.inline: list[str] = []
        self.scripts = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.inline += [f"{tag} {name}" for name in given if name == "style" or name[:2] == "on"]
        if tag == "style" or (tag == "script" and not given.get("src")):
            self.inline.append(tag)
        if tag == "a" and (given.get("href") or "").startswith("/dashboard"):
            self.links.add(str(given["href"]).partition("#")[0])
        if tag == "script":
            self.files.add(str(given["src"]))
        if tag == "link":
            self.files.add(str(given["href"]))


class Visitor:
    """A person with a browser that keeps cookies and runs no scripts."""

    def __init__(self, api: Api) -> None:
        self.http = httpx.Client(base_url=api.base_url, timeout=10.0)
        self.email = f"p{next(_numbers)}-{secrets.token_hex(4)}@example.com"
        answer = self.http.post(
            "/dashboard/sign-up",
            data={
                "email": self.email, "password": PASSWORD, "project_name": "Mugs",
                "currency": "EUR", "time_zone": "UTC",
            },
        )  # fmt: skip
        assert answer.status_code == 303, answer.text
        self.root = self.http.get("/dashboard").headers["location"]
        self.csrf = self.token_of(self.root)

    def token_of(self, address: str) -> str:
        found = re.search(r'name="csrf" value="(\w+)"', self.http.get(address).text)
        assert found is not None
        return found[1]

    def get(self, address: str) -> httpx.Response:
        return self.http.get(self.root + address)

    def post(self, address: str, **given: str) -> httpx.Response:
        return self.http.post(self.root + address, data={"csrf": self.csrf, **given})

    def made(self, address: str, **given: str) -> str:
        """Post a form that makes something, and return its address below the project."""
        answer = self.post(address, **given)
        assert answer.status_code == 303, answer.text
        return answer.headers["location"].removeprefix(self.root).partition("?")[0]


@pytest.fixture(scope="module")
def anna(api: Api) -> Iterator[Visitor]:
    yield from visiting(api)


@pytest.fixture
def ben(api: Api) -> Iterator[Visitor]:
    yield from visiting(api)


@pytest.fixture
def stranger(api: Api) -> Iterator[Visitor]:
    yield from visiting(api)


def visiting(api: Api) -> Iterator[Visitor]:
    visitor = Visitor(api)
    yield visitor
    visitor.http.close()


def filled(visitor: Visitor) -> dict[str, str]:
    """Make one of each thing with hostile text wherever text is taken; return their addresses."""
    terms = {"discount_type": "PERCENT", "discount_value": "20"}
    made = {
        "voucher": visitor.made("/vouchers/new", code=f"SAVE-{next(_numbers)}", **terms),
        "campaign": visitor.made(
            "/campaigns/new", name=HOSTILE[:200], kind="codes", status="active", match="all",
            **{
                "rules.discount_type": "PERCENT", "rules.discount_value": "15", "budget": "99.50",
                "rule-0-fact": "items.tag", "rule-0-is": "contains_any", "rule-0-value": HOSTILE,
            },
        ),
        "sale": visitor.made("/flash-sales/new", name=HOSTILE, stock="9", **terms),
        "batch": visitor.made("/batches/new", count="3", **terms),
        "customer": visitor.made("/customers/new", customer_id=HOSTILE, name=HOSTILE),
    }  # fmt: skip
    card = visitor.post(
        "/gift-cards/new", amount="50", source="sold", **{"recipient.name": HOSTILE}
    )
    found = re.search(r'href="[^"]*(/gift-cards/gft_\w+)"', card.text)
    assert card.status_code == 201 and found is not None
    visitor.made("/referrals/new", name=HOSTILE, conversion="first_order")
    hook = visitor.post("/webhooks", url="https://shop.example/x", description=HOSTILE)
    assert hook.status_code == 201 and "whsec_" in hook.text
    assert visitor.post("/developers", type="SECRET", name=HOSTILE[:100]).status_code == 201
    return {**made, "card": found[1]}


def crawl(visitor: Visitor) -> dict[str, httpx.Response]:
    """Return every page that links lead to from the first, by its address."""
    pages: dict[str, httpx.Response] = {}
    waiting = [visitor.root]
    while waiting:
        address = waiting.pop()
        # Months go on into the past.
        if address in pages or "liability?" in address:
            continue
        pages[address] = visitor.http.get(address)
        if "text/html" in pages[address].headers["content-type"]:
            waiting += sorted(Seen(pages[address].text).links - pages.keys())
    return pages


def link_mailed(api: Api, since: int, to: str, page: str) -> str:
    """Return the address in the last mail to somebody, below this host."""
    token = mailed(api, since, to)
    assert f"{api.base_url}/dashboard/{page}?token={token}" in " ".join(
        str(line.get("text")) for line in api.log_since(since)
    )
    return f"/dashboard/{page}?token={token}"


@pytest.fixture(scope="module")
def pages(anna: Visitor) -> dict[str, httpx.Response]:
    filled(anna)
    return crawl(anna)


def test_every_page_that_a_link_leads_to_is_there(pages: dict[str, httpx.Response]) -> None:
    assert len(pages) > 25
    assert {
        address: page.status_code for address, page in pages.items() if page.status_code != 200
    } == {}


def test_what_people_typed_is_text_on_every_page(pages: dict[str, httpx.Response]) -> None:
    documents = {a: p.text for a, p in pages.items() if "html" in p.headers["content-type"]}
    assert sum("&lt;script&gt;alert(1)" in text for text in documents.values()) >= 6
    assert [a for a, text in documents.items() if "<script>alert" in text or "<img" in text] == []


def test_nothing_on_a_page_is_inline_or_from_elsewhere(pages: dict[str, httpx.Response]) -> None:
    for address, page in pages.items():
        if "html" not in page.headers["content-type"]:
            continue
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy, address
        seen = Seen(page.text)
        assert seen.inline == [], address
        assert all(file.startswith("/dashboard/assets/") for file in seen.files), address


def test_a_page_with_all_it_loads_is_light(anna: Visitor, pages: dict[str, httpx.Response]) -> None:
    sizes = {}
    for file in Seen(pages[anna.root].text).files:
        answer = anna.http.get(file)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
        sizes[file] = len(answer.content)
    documents = [p for p in pages.values() if "html" in p.headers["content-type"]]
    assert max(len(p.content) for p in documents) + sum(sizes.values()) < PAGE_BYTES_MAX


def test_who_is_not_logged_in_sees_the_log_in_and_then_the_page(anna: Visitor, api: Api) -> None:
    address = f"{anna.root}/redemptions?status=redeemed"
    with httpx.Client(base_url=api.base_url) as browser:
        sent = browser.get(address)
        assert sent.status_code == 303
        assert sent.headers["location"].startswith("/dashboard/log-in?back=")
        back = re.search(r'name="back" value="([^"]*)"', browser.get(sent.headers["location"]).text)
        assert back is not None
        given = {"email": anna.email, "password": PASSWORD, "back": back[1].replace("&amp;", "&")}
        assert browser.post("/dashboard/log-in", data=given).headers["location"] == address
        assert browser.get(address).status_code == 200


@pytest.mark.parametrize(
    "back", ["https://evil.example/", "//evil.example", "/dashboard//evil", "/\\evil"]
)
def test_the_log_in_leads_nowhere_else(anna: Visitor, api: Api, back: str) -> None:
    given = {"email": anna.email, "password": PASSWORD, "back": back}
    with httpx.Client(base_url=api.base_url) as browser:
        assert browser.post("/dashboard/log-in", data=given).headers["location"] == "/dashboard"


def test_a_wrong_password_is_told_and_opens_nothing(anna: Visitor, api: Api) -> None:
    with httpx.Client(base_url=api.base_url) as browser:
        answer = browser.post("/dashboard/log-in", data={"email": anna.email, "password": "wrong"})
        assert answer.status_code == 400
        assert "do not belong together" in answer.text
        assert "set-cookie" not in answer.headers


def changes(visitor: Visitor) -> list[str]:
    """Return every address that takes a form of a project, with something in each hole."""
    paths = {
        path for route in ROUTER.routes for path in [route.path]
        if "POST" in route.methods and path.startswith("/dashboard/{project:str}")
    }  # fmt: skip
    assert len(paths) > 30
    holes = {"project": visitor.root.rpartition("/")[2]}
    return sorted(
        re.sub(r"\{(\w+):\w+\}", lambda hole: holes.get(hole[1], "x"), path) for path in paths
    )


def test_a_form_of_no_page_of_the_session_changes_nothing(anna: Visitor, api: Api) -> None:
    before = api.row_counts()
    for address in changes(anna):
        for token in ("", "0" * 64):
            assert anna.http.post(address, data={"csrf": token}).status_code == 403, address
    # What another site's page sends along, the token guessed or not.
    elsewhere = {"Sec-Fetch-Site": "cross-site"}
    answer = anna.http.post(
        f"{anna.root}/developers", data={"csrf": anna.csrf, "type": "SECRET"}, headers=elsewhere
    )
    assert answer.status_code == 403
    assert api.row_counts() == before


def test_an_analyst_sees_everything_and_changes_nothing(
    api: Api, anna: Visitor, ben: Visitor
) -> None:
    made = filled(ben)
    api.rows(
        "insert into vf.memberships (project_id, user_id, role) select m.project_id, o.id, 'owner' "
        "from vf.memberships m join vf.users u on u.id = m.user_id, vf.users o "
        "where u.email = $1 and o.email = $2",
        ben.email,
        anna.email,
    )
    api.rows(
        "update vf.memberships m set role = 'analyst' from vf.users u "
        "where u.id = m.user_id and u.email = $1",
        ben.email,
    )
    ben.csrf = ben.token_of(ben.root)
    before = api.row_counts()
    for address in changes(ben):
        answer = ben.http.post(address, data={"csrf": ben.csrf})
        assert answer.status_code == 403, address
        assert "change nothing" in answer.text
    assert ben.post(f"{made['voucher']}/disable").status_code == 403
    assert api.row_counts() == before
    seen = ben.get(made["voucher"])
    assert seen.status_code == 200
    assert "disable" not in seen.text and "New voucher" not in ben.get("/vouchers").text


def test_anothers_project_is_not_there(
    anna: Visitor, pages: dict[str, httpx.Response], stranger: Visitor
) -> None:
    # What is below no project is everybody's own.
    pages = {address: page for address, page in pages.items() if address.startswith(anna.root)}
    assert len(pages) > 25
    for address in pages:
        assert stranger.http.get(address).status_code == 404, address
    for address in changes(anna):
        assert stranger.http.post(address, data={"csrf": stranger.csrf}).status_code == 404, address
    for address in pages:
        # The other's objects below one's own project.
        own = address.replace(anna.root, stranger.root)
        if re.search(r"/\w{3}_[0-9A-Z]{26}", own.removeprefix(stranger.root)) and "?" not in own:
            assert stranger.http.get(own).status_code == 404, own


def test_a_form_that_is_sent_twice_makes_one(anna: Visitor, api: Api) -> None:
    given = {"amount": "12", "source": "sold", "key": f"evt_{secrets.token_hex(13)}"}
    assert anna.post("/gift-cards/new", **given).status_code == 201
    before = api.row_counts()
    again = anna.post("/gift-cards/new", **given)
    assert again.status_code == 303
    assert api.row_counts() == before


def test_a_form_says_what_is_wrong_and_keeps_what_was_typed(anna: Visitor) -> None:
    answer = anna.post(
        "/vouchers/new", code="KEEP-ME", discount_type="PERCENT", discount_value="12.345"
    )
    assert answer.status_code == 400
    assert 'value="KEEP-ME"' in answer.text and 'value="12.345"' in answer.text
    wrong = re.search(r'id="f-discount_value-wrong">([^<]*)<', answer.text)
    assert wrong is not None and "decimals" in wrong[1]


def test_the_figures_are_those_of_the_api(anna: Visitor, api: Api) -> None:
    made = anna.post("/developers", type="SECRET", name="till")
    key = re.search(r'id="new-key-text">(vf_sk_\w+)<', made.text)
    assert key is not None
    voucher = anna.made(
        "/vouchers/new",
        code="FIGURES",
        discount_type="PERCENT",
        discount_value="20",
        max_redemptions="5",
    )
    with api.client(key[1]) as client:
        redeemed = client.post(
            "/v1/vouchers/FIGURES/redeem", json={"customer_id": "cust_1", "order_value": 1089.99}
        )
        assert redeemed.status_code == 200
        overview = msgspec.json.decode(client.get("/v1/analytics/overview").content)
    home = anna.get("").text
    assert f"<dd>{overview['redemptions_today']:,}</dd>" in home
    assert f"<dd>€{overview['discounts_today']:,.2f}</dd>" in home
    page = anna.get(voucher).text
    assert "€1,089.99" in page and "€218.00" in page and "of 5" in page
    back = anna.made(
        f"/redemptions/{redeemed.json()['redemption_id']}/roll-back", reason="by mistake"
    )
    assert "Rolled back" in anna.get(back).text and "by mistake" in anna.get(back).text


def test_an_edit_changes_what_was_changed_and_no_more(anna: Visitor) -> None:
    campaign = anna.made(
        "/campaigns/new", name="Spring", kind="codes", status="active", match="any", budget="500",
        **{
            "rules.discount_type": "PERCENT", "rules.discount_value": "15",
            "rules.max_redemptions": "9",
            "rule-0-fact": "order.value", "rule-0-is": "at_least", "rule-0-value": "50",
            "rule-1-fact": "time.weekday", "rule-1-is": "one_of", "rule-1-value": "sat, sun",
        },
    )  # fmt: skip
    told = "where the order’s value is at least 50.00 or the day of the week is one of sat, sun"
    assert told in anna.get(campaign).text
    form = anna.get(f"{campaign}/edit").text
    given = dict(re.findall(r'<input id="[^"]*" name="([^"]*)" value="([^"]*)"', form))
    given |= dict(re.findall(r'<input name="(rule-[^"]*)" value="([^"]*)"', form))
    for name, options in re.findall(r'<select[^>]* name="([^"]*)"[^>]*>(.*?)</select>', form, re.S):
        chosen = re.search(r'value="([^"]*)" selected', options)
        given[name] = chosen[1] if chosen else ""
    assert anna.made(f"{campaign}/edit", **{**given, "rules.discount_value": "25"}) == campaign
    page = anna.get(campaign).text
    assert "<b>25 % off</b>" in page and told in page and "€500.00" in page and "of 9" in page


def test_who_is_invited_comes_by_the_link_of_the_mail_and_as_what_was_said(
    anna: Visitor, api: Api
) -> None:
    email = f"carla-{secrets.token_hex(4)}@example.com"
    since = api.log_size()
    assert anna.post("/team", email=email, role="analyst").status_code == 303
    assert email in anna.get("/team").text
    link = link_mailed(api, since, email, "invitation")
    with httpx.Client(base_url=api.base_url) as browser:
        page = browser.get(link)
        assert page.status_code == 200 and "Join Mugs" in page.text
        token = link.partition("token=")[2]
        given = {"token": token, "email": email, "password": PASSWORD}
        assert browser.post("/dashboard/invitation", data=given).status_code == 303
        assert browser.get("/dashboard").headers["location"] == anna.root
        assert browser.get(f"{anna.root}/team").text.count(email) >= 1
        assert "Send the invitation" not in browser.get(f"{anna.root}/team").text
        # A mail is good for one person, once.
        assert browser.get(link).status_code == 404


def test_a_forgotten_password_is_set_anew_by_the_link_of_the_mail(api: Api, ben: Visitor) -> None:
    with httpx.Client(base_url=api.base_url) as browser:
        since = api.log_size()
        answer = browser.post("/dashboard/forgotten", data={"email": ben.email})
        nobody = browser.post("/dashboard/forgotten", data={"email": "nobody@example.com"})
        assert answer.status_code == 200 and answer.text == nobody.text
        link = link_mailed(api, since, ben.email, "password-reset")
        assert browser.get(link).status_code == 200
        given = {"token": link.partition("token=")[2], "password": "another long password"}
        assert browser.post("/dashboard/password-reset", data=given).status_code == 303
        assert browser.post("/dashboard/password-reset", data=given).status_code == 400
        # Every session has ended; the old password opens nothing.
        assert ben.http.get(ben.root).status_code == 303
        old = {"email": ben.email, "password": PASSWORD}
        assert browser.post("/dashboard/log-in", data=old).status_code == 400
        new = {"email": ben.email, "password": "another long password"}
        assert browser.post("/dashboard/log-in", data=new).status_code == 303
