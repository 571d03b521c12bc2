"""What takes a while, seen from the page that watches it: a sale under a crowd, many codes."""

import csv
import json
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from bench.product import Product, crowd
from tests.browser import tour
from tests.e2e.sales import running

STOCK = 12_000
CLAIMS = 20_000
CODES = 50_000


@pytest.fixture(scope="module")
def product() -> Iterator[Product]:
    with running() as product:
        yield product


BOTH = "() => ['left', 'sold'].map((id) => document.getElementById(id).innerText)"


def number(page: Page, place: str) -> int:
    return int(page.locator(place).inner_text().replace(",", ""))


@pytest.mark.timeout(120)
def test_a_sale_is_watched_while_twenty_thousand_claims_run(desk: Page, product: Product) -> None:
    root = tour.log_in(desk, product)
    desk.goto(f"{root}/flash-sales/new")
    desk.get_by_label("Name").fill("Watched")
    desk.get_by_label("Stock").fill(str(STOCK))
    desk.get_by_label("Value", exact=False).first.fill("50")
    desk.get_by_role("button", name="Create").click()
    ready = desk.locator(".card", has_text="Before it opens")
    expect(ready.locator(".badge")).to_have_text("Ready")
    expect(ready.locator("li.good")).to_have_count(6)
    desk.get_by_role("button", name="Open now").click()
    expect(desk.locator("#left")).to_have_text(f"{STOCK:,}")
    sale_id = re.search(r"fls_\w+", desk.url)
    assert sale_id is not None
    path = f"/v1/flash-sales/{sale_id[0]}/claim"

    seen = []
    with crowd(product, path, "WATCHED", "--requests", str(CLAIMS), "--seed", "7") as client:
        while number(desk, "#left"):
            # Both at once: the page may be drawn anew between two questions.
            seen.append(tuple(int(text.replace(",", "")) for text in desk.evaluate(BOTH)))
            desk.wait_for_timeout(150)
        assert client.stdout is not None
        told = json.loads(client.stdout.read().splitlines()[-1])
    assert told["wins"] == STOCK and told["sold_out"] == CLAIMS - STOCK
    assert told["undecided"] == 0 and told["unexpected"] == []
    # Stock fell while it was watched, and what was left and sold were of one moment.
    assert all(left + sold == STOCK for left, sold in seen)
    assert sorted({left for left, _ in seen}, reverse=True) == list(
        dict.fromkeys(left for left, _ in seen)
    )
    expect(desk.locator(".badge", has_text="Sold out")).to_be_visible()
    expect(desk.locator("#rate-chart canvas")).to_be_visible()
    desk.get_by_text("The same as a table").click()
    rates = [
        [int(cell.replace(",", "")) for cell in row.locator("td").all_inner_texts()[3:5]]
        for row in desk.locator("#stock-rows tr").all()
        if "–" not in row.locator("td").all_inner_texts()[3:5]
    ]
    assert max(wins for wins, _ in rates) > 0 and max(refused for _, refused in rates) > 0

    desk.once("dialog", lambda question: question.accept())
    desk.get_by_role("button", name="Close").click()
    expect(desk.get_by_text("Its books, read row by row just now")).to_be_visible(timeout=20_000)
    settled = f"{STOCK:,} of {STOCK:,} units sold, {STOCK:,} of them in the ledger"
    expect(desk.locator(".sentence")).to_contain_text(settled)
    books = desk.locator(".card", has_text="Settlement").locator(".checks li")
    expect(books.nth(0)).to_contain_text(f"{STOCK:,} redemptions, {STOCK:,} counted")
    expect(books.nth(1)).to_contain_text(f"{STOCK:,} numbers, each given out once")
    assert books.count() == 4 and desk.locator(".checks li.bad").count() == 0
    status, proof = product.verify()
    assert status == 0, proof
    assert f"{STOCK:,} redemptions" in proof or f"{STOCK} redemptions" in proof


@pytest.mark.timeout(90)
def test_fifty_thousand_codes_are_made_and_downloaded(desk: Page, product: Product) -> None:
    root = tour.log_in(desk, product)
    desk.goto(f"{root}/batches/new")
    desk.get_by_label("How many", exact=True).fill(str(CODES))
    desk.get_by_label("Codes begin with").fill("BULK-")
    desk.get_by_label("Value", exact=False).first.fill("10")
    desk.get_by_role("button", name="Create").click()
    expect(desk.locator(".badge", has_text="Done")).to_be_visible(timeout=60_000)
    expect(desk.locator(".sentence")).to_have_text(f"{CODES:,} of {CODES:,} vouchers are made.")
    with desk.expect_download() as started:
        desk.get_by_role("link", name="Download codes").click()
    with open(started.value.path(), newline="") as file:
        (head,), *codes = csv.reader(file)
    assert head == "code" and len(codes) == CODES == len({code for (code,) in codes})
    assert all(code.startswith("BULK-") for (code,) in codes)
    # The last one is found and works.
    desk.goto(f"{root}/vouchers")
    desk.get_by_label("Find a code").fill(codes[-1][0])
    desk.keyboard.press("Enter")
    expect(desk.get_by_role("heading", level=1)).to_have_text(codes[-1][0])


def test_a_page_without_scripts_has_the_figures_of_a_sale(
    chromium: Browser, product: Product
) -> None:
    sale = product.open_sale(name="Plain", code="PLAIN", stock=5, discount_value=10)
    product.must("POST", f"/v1/flash-sales/{sale['id']}/claim", {"order_value": 20})
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    root = tour.log_in(page, product)
    page.goto(f"{root}/flash-sales/{sale['id']}")
    expect(page.locator("#left")).to_have_text("4")
    page.goto(root)
    expect(page.locator("#chart-redemptions tbody tr").first).to_contain_text("1")
    context.close()
