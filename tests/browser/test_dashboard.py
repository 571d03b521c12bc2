"""The dashboard in a real browser: what people do, what they see, and what everybody can use."""

import json
import re
import subprocess

import pytest
from playwright.sync_api import Browser, Page, expect

from bench.product import Product
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
@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 375)])
def test_everybody_can_use_every_page(
    chromium: Browser, product: Product, pages: dict[str, str], scheme: str, width: int
) -> None:
    context = chromium.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if scheme == "dark" else "light",
        # The checker is put in by the test, which the pages' own policy would not let in.
        bypass_csp=True,
    )
    page = context.new_page()
    found: dict[str, object] = {}
    page.goto(f"{product.url}/dashboard/sign-up")
    found["sign-up"] = checked(page)
    root = tour.log_in(page, product)
    for name, address in pages.items():
        page.goto(tour.at(root, address))
        found[name] = checked(page)
    context.close()
    assert {name: worst for name, worst in found.items() if worst} == {}


def checked(page: Page) -> list[str]:
    """Return what hinders somebody: serious findings, and what is wider than the window."""
    page.add_script_tag(path=str(AXE))
    findings = page.evaluate(
        "axe.run({resultTypes: ['violations'], preload: false}).then((told) => told.violations)"
    )
    worst = [
        f"{one['id']}: {one['nodes'][0]['html'][:200]}"
        for one in findings
        if one["impact"] in ("serious", "critical")
    ]
    wider = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    return worst + ([f"{wider} px wider than the window"] if wider > 0 else [])
