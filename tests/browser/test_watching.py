"""What takes a while, seen from the page that watches it: a sale under a crowd, many codes."""

import csv
import json
import re
import time
from collections.abc import Callable, Iterator

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


ROWS = "(table) => [...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent))"
# What a look by the second shows late on a machine that has much else to do.
SEEN_S_MAX = 30.0


def left_and_sold(page: Page) -> tuple[int, int]:
    """Read both at once: the page may be drawn, or loaded, anew between two questions."""
    text = page.locator("#figures").inner_text()
    found = re.search(r"Left\s+([\d,]+)\s.*?Sold\s+([\d,]+)\s", text, re.DOTALL | re.IGNORECASE)
    assert found is not None, text
    left, sold = (int(number.replace(",", "")) for number in found.groups())
    return left, sold


def rates(page: Page) -> tuple[int, int]:
    """Return the most that was sold, and refused, a second, as the table of looks has it."""
    looks = [row[3:5] for row in page.locator("#stock-rows").evaluate(ROWS) if "–" not in row[3:5]]
    wins, refused = zip(*looks, strict=True) if looks else (("0",), ("0",))
    most = [max(int(text.replace(",", "")) for text in column) for column in (wins, refused)]
    return most[0], most[1]


def until(is_so: Callable[[], bool], page: Page, said: str) -> None:
    """Wait for what the page shows a moment later."""
    deadline_s = time.monotonic() + SEEN_S_MAX
    while not is_so():
        assert time.monotonic() < deadline_s, said
        page.wait_for_timeout(100)


@pytest.mark.timeout(300)
def test_a_sale_is_watched_while_twenty_thousand_claims_run(desk: Page, product: Product) -> None:
    root = tour.log_in(desk, product)
    desk.goto(f"{root}/flash-sales/new")
    desk.get_by_label("Name").fill("Watched")
    desk.get_by_label("Stock").fill(str(STOCK))
    desk.get_by_label("Value", exact=False).first.fill("50")
    desk.get_by_role("button", name="Create").click()
    ready = desk.locator(".card", has_text="Before it opens")

    def is_ready() -> bool:
        said = ready.locator(".badge").inner_text()
        if said != "Ready":
            desk.reload()
        return said == "Ready"

    until(is_ready, desk, "the sale is not ready")
    expect(ready.locator("li.good")).to_have_count(6)
    desk.get_by_role("button", name="Open now").click()
    expect(desk.locator("#left")).to_have_text(f"{STOCK:,}")
    sale_id = re.search(r"fls_\w+", desk.url)
    assert sale_id is not None
    path = f"/v1/flash-sales/{sale_id[0]}/claim"

    seen = [left_and_sold(desk)]
    with crowd(product, path, "WATCHED", "--requests", str(CLAIMS), "--seed", "7") as client:
        while seen[-1][0]:
            desk.wait_for_timeout(150)
            seen.append(left_and_sold(desk))
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
    until(lambda: all(rates(desk)), desk, f"the table of looks has no rates: {rates(desk)}")

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
