"""The dashboard in a real browser: what people do, what they see, and what everybody can use."""

import base64
import json
import re
import subprocess
import time

import pytest
from playwright.sync_api import Browser, Page, expect

from bench.product import Product
from core.rules import one_time_codes
from tests.browser import tour
from tests.browser.chromium import AXE


def test_from_the_sign_up_to_the_first_redemption(desk: Page, product: Product) -> None:
    desk.goto(f"{product.url}/dashboard/sign-up")
    desk.get_by_label("E-mail").fill("anna@example.com")
    desk.get_by_label("Password").fill("a long enough password")
    desk.get_by_label("Your shop’s name").fill("Mugs and more")
    desk.get_by_role("button", name="Sign up").click()
    expect(desk.get_by_role("heading", name="First steps")).to_be_visible()
    desk.get_by_label("A code").fill("FIRST")
    desk.get_by_role("button", name="Make both").click()
    key = desk.locator("#new-key-text").inner_text()
    assert re.fullmatch(r"vf_sk_\w{49}", key)
    desk.context.grant_permissions(["clipboard-read", "clipboard-write"])
    desk.get_by_role("button", name="Copy the line").click()
    expect(desk.get_by_role("button", name="Copied")).to_be_visible()
    line = desk.evaluate("navigator.clipboard.readText()")
    done = subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, timeout=20, check=True
    )
    assert json.loads(done.stdout)["discount_applied"] == 18.0
    # The page has waited for it.
    expect(desk.get_by_role("status")).to_have_text("It works: €18.00 off €89.99 for cust_1.")
    desk.get_by_role("link", name="Go to Home").click()
    home = desk.url
    desk.goto(f"{home}/first-steps")
    expect(desk.locator("#new-key-text")).to_have_count(0)
    desk.goto(home)
    today = desk.locator(".tile", has_text="Redemptions today").locator("dd").first
    expect(today).to_have_text("1")
    expect(desk.locator(".tile", has_text="Discount given today")).to_contain_text("€18.00")
    expect(desk.get_by_role("row", name="FIRST")).to_contain_text("cust_1")


def test_a_campaign_with_rules_is_made_by_keyboard_alone(desk: Page, product: Product) -> None:
    root = tour.log_in(desk, product)
    desk.goto(f"{root}/campaigns")
    desk.get_by_role("link", name="New campaign").first.focus()
    desk.keyboard.press("Enter")
    desk.wait_for_url("**/campaigns/new")
    # Letters choose in a list, as they do for whoever cannot point.
    answers = {
        "name": "By hand",
        "rules.discount_value": "25",
        "rule-0-fact": "the order",
        "rule-0-value": "40",
        "rule-1-fact": "the customer being new",
        "rule-1-value": "yes",
        "rule-2-fact": "the day of the week",
        "rule-2-is": "is one of",
        "rule-2-value": "sat, sun",
    }
    for _ in range(80):
        desk.keyboard.press("Tab")
        at = desk.evaluate("document.activeElement.name || document.activeElement.textContent")
        if at in answers:
            desk.keyboard.type(answers.pop(at))
        if at == "Create":
            break
    assert answers == {}
    desk.keyboard.press("Enter")
    expect(desk.get_by_role("heading", name="By hand")).to_be_visible()
    expect(desk.locator(".sentence")).to_have_text(
        "25 % off where the order’s value is at least 40.00 and the customer being new is yes "
        "and the day of the week is one of sat, sun."
    )


def test_a_campaign_with_three_rules_is_made_by_mouse(desk: Page, product: Product) -> None:
    root = tour.log_in(desk, product)
    desk.goto(root)
    desk.get_by_role("navigation").get_by_role("link", name="Campaigns").click()
    desk.get_by_role("link", name="New campaign").first.click()
    desk.locator("[name='name']").click()
    desk.keyboard.insert_text("By mouse")
    desk.locator("[name='rules.discount_value']").click()
    desk.keyboard.insert_text("10")
    rules = [("order.value", "above", "20"), ("items.tag", "contains_any", "cups, plates"),
             ("time.hour", "at_most", "22")]  # fmt: skip
    for place, (fact, how, value) in enumerate(rules):
        desk.locator(f"[name='rule-{place}-fact']").select_option(fact)
        desk.locator(f"[name='rule-{place}-is']").select_option(how)
        desk.locator(f"[name='rule-{place}-value']").click()
        desk.keyboard.insert_text(value)
    desk.get_by_role("button", name="Create").click()
    expect(desk.get_by_role("heading", name="By mouse")).to_be_visible()
    made = product.must("GET", f"/v1/campaigns/{desk.url.rpartition('/')[2].partition('?')[0]}")
    assert made["rules"]["conditions"] == {
        "all": [
            {"fact": "order.value", "is": "above", "value": 20.0},
            {"fact": "items.tag", "is": "contains_any", "value": ["cups", "plates"]},
            {"fact": "time.hour", "is": "at_most", "value": 22},
        ]
    }


def test_keys_lead_everywhere_and_leave_who_types_alone(desk: Page, product: Product) -> None:
    root = tour.log_in(desk, product)
    desk.keyboard.press("g")
    desk.keyboard.press("v")
    desk.wait_for_url(f"{root}/vouchers")
    desk.keyboard.press("/")
    desk.keyboard.type("n?g")
    expect(desk.get_by_label("Find a code")).to_have_value("n?g")
    expect(desk.locator("#shortcuts")).to_be_hidden()
    desk.keyboard.press("Tab")
    desk.keyboard.press("?")
    expect(desk.locator("#shortcuts")).to_be_visible()
    expect(desk.get_by_role("button", name="Close")).to_be_focused()
    assert serious(desk) == []
    desk.keyboard.press("Escape")
    expect(desk.locator("#shortcuts")).to_be_hidden()
    desk.keyboard.press("n")
    desk.wait_for_url(f"{root}/vouchers/new")


def test_chosen_vouchers_are_disabled_after_a_word_and_enabled_by_undo(
    desk: Page, product: Product
) -> None:
    for n in range(2):
        product.must("POST", "/v1/vouchers", {**tour.TERMS, "code": f"PICK-{n}"})
    root = tour.log_in(desk, product)
    desk.goto(f"{root}/vouchers")
    desk.get_by_label("Choose PICK-0").check()
    desk.get_by_label("Choose PICK-1").check()
    desk.get_by_role("button", name="Disable…").click()
    expect(desk.locator(".sentence")).to_contain_text("Nobody can redeem these 2 vouchers")
    assert checked(desk) == []
    assert product.must("GET", "/v1/vouchers/PICK-0")["status"] == "active"
    desk.get_by_role("button", name="Disable 2 vouchers").click()
    expect(desk.get_by_role("status")).to_contain_text("Disabled 2 of 2 vouchers.")
    assert checked(desk) == []
    assert product.must("GET", "/v1/vouchers/PICK-0")["status"] == "disabled"
    desk.get_by_role("button", name="Undo").click()
    expect(desk.get_by_role("status")).to_contain_text("Enabled 2 of 2 vouchers.")
    assert product.must("GET", "/v1/vouchers/PICK-1")["status"] == "active"


def test_a_second_factor_is_set_up_in_the_browser(desk: Page, product: Product) -> None:
    desk.goto(f"{product.url}/dashboard/sign-up")
    desk.get_by_label("E-mail").fill("carla@example.com")
    desk.get_by_label("Password").fill("a long enough password")
    desk.get_by_label("Your shop’s name").fill("Carla’s")
    desk.get_by_role("button", name="Sign up").click()
    desk.get_by_role("link", name="carla@example.com").first.click()
    desk.get_by_label("Your password", exact=True).fill("a long enough password")
    desk.get_by_role("button", name="Set it up").click()
    expect(desk.get_by_role("img", name="QR code")).to_be_visible()
    assert checked(desk) == []
    secret = base64.b32decode(desk.locator("#factor-secret").inner_text())
    code = one_time_codes.code_at(secret, int(time.time()) // one_time_codes.STEP_S)
    desk.get_by_label("The six digits").fill(code)
    desk.get_by_role("button", name="Turn it on").click()
    expect(desk.get_by_role("heading", name="Recovery codes")).to_be_visible()
    assert checked(desk) == []
    assert len(desk.locator("#recovery").inner_text().split()) == 10


def test_what_cannot_be_undone_is_asked_first(
    desk: Page, product: Product, pages: dict[str, str]
) -> None:
    root = tour.log_in(desk, product)
    desk.goto(root + pages["voucher"])
    asked: list[str] = []

    def refuse(question: object) -> None:
        asked.append(question.message)  # type: ignore[attr-defined]
        question.dismiss()  # type: ignore[attr-defined]

    desk.once("dialog", refuse)
    desk.get_by_role("button", name="Disable").click()
    assert len(asked) == 1 and "SAVE20" in asked[0]
    assert product.must("GET", "/v1/vouchers/SAVE20")["status"] == "active"


def test_no_page_runs_what_somebody_typed(
    desk: Page, product: Product, pages: dict[str, str]
) -> None:
    root = tour.log_in(desk, product)
    ran: list[str] = []
    desk.on("dialog", lambda dialog: ran.append(dialog.message))
    for name in ("voucher", "card", "customers", "customer", "home"):
        desk.goto(root + pages[name])
        assert desk.locator("img").count() == 0, name
    desk.goto(root + pages["customer"])
    expect(desk.get_by_role("heading", level=1)).to_have_text(tour.HOSTILE)
    assert ran == []


# Each page is looked through: 20 s on two idle cores, several times that on busy ones.
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("scheme", "width"), [pytest.param("light", 1440, marks=pytest.mark.long), ("dark", 375)]
)
def test_everybody_can_use_every_page(
    chromium: Browser, product: Product, pages: dict[str, str], scheme: str, width: int
) -> None:
    context = chromium.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    # As part of each page, which is quicker than sending it there.
    context.add_init_script(path=AXE)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda one: said.append(one.text) if one.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(f"ran: {dialog.message}"))
    found: dict[str, object] = {}
    page.goto(f"{product.url}/dashboard/sign-up")
    found["sign-up"] = checked(page)
    root = tour.log_in(page, product)
    for name, address in pages.items():
        page.goto(tour.at(root, address))
        found[name] = checked(page)
    context.close()
    assert {name: worst for name, worst in found.items() if worst} == {}
    # A violated policy is an error of the console, too; two pages are meant to be missing.
    assert [text for text in said if "status of 404" not in text] == []


# Whatever can be clicked can be reached and pressed by keyboard, in the order of the page.
UNREACHED = """[...document.querySelectorAll("a[href], button, input, select, textarea, summary")]
    .filter((one) => one.checkVisibility() && one.type !== "hidden" && !one.disabled)
    .filter((one) => {
        one.focus({preventScroll: true});
        return document.activeElement !== one || one.tabIndex !== 0;
    })
    .map((one) => one.outerHTML.slice(0, 120))"""


# What is only moderate or minor is not asked for. A finding is told by its text, not its place.
RUN = """axe.run({
    resultTypes: ['violations'], preload: false, selectors: false,
    rules: Object.fromEntries(axe._audit.rules
        .filter((rule) => rule.impact === 'moderate' || rule.impact === 'minor')
        .map((rule) => [rule.id, {enabled: false}])),
}).then((told) => told.violations)"""


def serious(page: Page) -> list[str]:
    """Return what the checker finds serious or critical."""
    # Evaluated and not loaded, which the pages' own policy would not let in.
    if page.evaluate("typeof axe === 'undefined'"):
        page.evaluate(AXE.read_text() + "\n;0")
    findings = page.evaluate(RUN)
    return [
        f"{one['id']}: {one['nodes'][0]['html'][:200]}"
        for one in findings
        if one["impact"] in ("serious", "critical")
    ]


def checked(page: Page) -> list[str]:
    """Return what hinders somebody: serious findings, what no key reaches, what is too wide."""
    worst = serious(page)
    worst += [f"no key reaches {one}" for one in page.evaluate(UNREACHED)]
    wider = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    return worst + ([f"{wider} px wider than the window"] if wider > 0 else [])
