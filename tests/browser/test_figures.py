"""Charts and pages that are watched, in a real browser."""

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
    # The tour redeemed twelve times by code and twenty times in a sale, all of it today.
    expect(said).to_contain_text("Redemptions 32 redemptions")
    desk.keyboard.press("ArrowLeft")
    expect(said).to_contain_text("Redemptions 0 redemptions")
    desk.get_by_text("The same as a table").nth(1).click()
    newest = desk.locator("#chart-redemptions tbody tr").first
    expect(newest.locator("td").last).to_have_text("32")
    assert "chart of redemptions" in str(place.get_attribute("aria-label"))


def test_charts_follow_from_light_to_dark(
    desk: Page, product: Product, pages: dict[str, str]
) -> None:
    desk.goto(tour.log_in(desk, product))
    canvas = desk.locator("[data-charts=chart-redemptions] canvas")
    light = canvas.evaluate("(one) => one.toDataURL()")
    desk.emulate_media(color_scheme="dark")
    expect(desk.locator("body")).to_have_css("background-color", "rgb(18, 22, 20)")
    desk.wait_for_timeout(100)
    assert canvas.evaluate("(one) => one.toDataURL()") != light


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
