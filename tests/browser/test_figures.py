"""Charts and pages that are watched, in a real browser."""

import time

from playwright.sync_api import Page, expect

from bench.product import Product
from tests.browser import tour


def test_a_chart_can_be_read_by_keys_and_says_what_its_table_says(
    desk: Page, product: Product, pages: dict[str, str]
) -> None:
    desk.goto(tour.log_in(desk, product))
    place = desk.locator("[data-charts=chart-redemptions]")
    expect(place.locator("canvas")).to_be_visible()
    place.focus()
    desk.keyboard.press("End")
    said = place.locator("output")
    # The tour redeemed twelve times by code and twenty times in a sale at least, all of it today.
    newest = desk.locator("#chart-redemptions tbody tr").first.locator("td").last
    today = int(newest.text_content() or 0)
    assert today >= 32
    expect(said).to_contain_text(f"Redemptions {today} redemptions")
    desk.keyboard.press("ArrowLeft")
    expect(said).to_contain_text("Redemptions 0 redemptions")
    desk.get_by_text("The same as a table").nth(1).click()
    expect(newest).to_have_text(str(today))
    expect(newest).to_be_visible()
    assert "chart of redemptions" in str(place.get_attribute("aria-label"))


def test_charts_follow_from_light_to_dark(
    desk: Page, product: Product, pages: dict[str, str]
) -> None:
    desk.goto(tour.log_in(desk, product))
    canvas = desk.locator("[data-charts=chart-redemptions] canvas")
    light = canvas.evaluate("(one) => one.toDataURL()")
    desk.emulate_media(color_scheme="dark")
    expect(desk.locator("body")).to_have_css("background-color", "rgb(18, 22, 20)")
    deadline_s = time.monotonic() + 10.0
    while canvas.evaluate("(one) => one.toDataURL()") == light:
        assert time.monotonic() < deadline_s, "the chart has stayed light"
        desk.wait_for_timeout(50)


def test_home_shows_redemptions_as_they_come_in(
    desk: Page, product: Product, pages: dict[str, str]
) -> None:
    desk.goto(tour.log_in(desk, product))
    today = desk.locator(".tile", has_text="Redemptions today").locator("dd").first
    before = int(today.inner_text())
    body = {"customer_id": "just-now", "order_value": 50}
    product.must("POST", "/v1/vouchers/SAVE20/redeem", body)
    expect(desk.get_by_role("row", name="just-now")).to_be_visible(timeout=10_000)
    expect(today).to_have_text(str(before + 1))
    # What came in its stead has its chart again.
    expect(desk.locator("[data-charts=chart-today] canvas")).to_be_visible()


def test_the_editor_says_what_a_cart_would_get_and_makes_nothing(
    desk: Page, product: Product, pages: dict[str, str]
) -> None:
    root = tour.log_in(desk, product)
    before = product.must("GET", "/v1/campaigns")
    desk.goto(f"{root}/campaigns/new")
    told = desk.locator("#preview")
    # A form that is not whole yet says what it lacks.
    expect(told).to_contain_text("With a value above")
    desk.get_by_label("Value", exact=False).first.fill("20")
    expect(told).to_contain_text("This cart gets €12.00 off.")
    desk.get_by_label("Rule 1: what").select_option("order.value")
    desk.get_by_label("Rule 1: value").fill("50")
    expect(told).to_contain_text(
        "This cart gets €12.00 off because the order’s value is at least 50.00."
    )
    desk.get_by_label("An item costs").fill("20")
    expect(told).to_contain_text(
        "This cart gets nothing: the order’s value is at least 50.00 does not hold: it is 40.00"
    )
    assert product.must("GET", "/v1/campaigns") == before


def test_days_and_hours_are_of_the_campaigns_own_clock(
    desk: Page, product: Product, pages: dict[str, str]
) -> None:
    root = tour.log_in(desk, product)
    desk.goto(f"{root}/campaigns/new")
    desk.get_by_label("Name").fill("Late shift")
    desk.get_by_label("Value", exact=False).first.fill("5")
    desk.get_by_label("Time zone").fill("Asia/Tokyo")
    desk.locator("[name='rules.starts_at']").fill("2030-01-01T09:00")
    desk.get_by_label("Saturday").check()
    desk.get_by_label("Sunday").check()
    desk.get_by_label("From").fill("22:00")
    desk.get_by_role("button", name="Create").click()
    expect(desk.locator(".sentence").first).to_have_text(
        "5 % off for every order on Saturday and Sunday from 22:00 to 24:00 (Asia/Tokyo)."
    )
    made = product.must("GET", "/v1/campaigns?limit=1")["data"][0]
    assert made["rules"]["starts_at"].startswith("2030-01-01T00:00:00")
    desk.get_by_role("link", name="Edit").click()
    expect(desk.get_by_label("Saturday")).to_be_checked()
    expect(desk.locator("[name='rules.starts_at']")).to_have_value("2030-01-01T09:00")
    desk.get_by_label("Saturday").uncheck()
    desk.get_by_role("button", name="Save").click()
    expect(desk.locator(".sentence").first).to_contain_text("on Sunday from 22:00")


def test_a_budget_that_the_form_made_is_changed_by_the_form(
    desk: Page, product: Product, pages: dict[str, str]
) -> None:
    root = tour.log_in(desk, product)
    desk.goto(root + pages["campaign-edit"])
    desk.get_by_label("Budget of discount").fill("1500")
    desk.get_by_role("button", name="Save").click()
    expect(desk.get_by_text("Discount: €0.00 of €1,500.00")).to_be_visible()
