"""A shop's page on another origin asks the API from a real browser, also at the hot addresses."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from bench.product import Product

ASK = """
async ([url, key, body, more]) => {
  try {
    const answer = await fetch(url, {
      method: "POST", body: JSON.stringify(body),
      headers: {"Authorization": `Bearer ${key}`, "Content-Type": "application/json", ...more},
    })
    return [answer.status, await answer.json(), answer.headers.get("x-request-id")]
  } catch (error) {
    return [0, {"message": error.message}, null]
  }
}
"""


class Shop(BaseHTTPRequestHandler):
    """An empty page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>A shop</title>")

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def shop(chromium: Browser) -> Iterator[Page]:
    """A page of a shop, which is on another origin than the API."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Shop)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{server.server_port}/")
    yield page
    context.close()
    server.shutdown()
    server.server_close()


def key_for(product: Product, *origins: str) -> str:
    made = product.must("POST", "/v1/api-keys", {"type": "PUBLISHABLE", "origins": list(origins)})
    return str(made["key"])


def test_a_page_of_another_origin_claims_validates_and_is_refused_in_words(
    shop: Page, product: Product
) -> None:
    origin = shop.evaluate("location.origin")
    sale = product.open_sale(
        name="Drop", code="ORIGINDROP", discount_value=50, stock=2, publishable_claims=True
    )
    claim = f"{product.url}/v1/flash-sales/{sale['id']}/claim"
    ours, others = key_for(product, origin), key_for(product, "https://other.example")

    # Sent with a key of one's own, so that the browser asks before, at the hot address.
    won = shop.evaluate(ASK, [claim, ours, {"order_value": 10}, {"Idempotency-Key": "one"}])
    again = shop.evaluate(ASK, [claim, ours, {"order_value": 10}, {"Idempotency-Key": "one"}])
    assert (won[0], won[1]["status"], won[1]["discount_applied"]) == (200, "redeemed", 5)
    assert won[2], "the page may read the request's id"
    assert again[1]["redemption_id"] == won[1]["redemption_id"]

    refused = shop.evaluate(ASK, [claim, others, {"order_value": 10}, {}])
    assert (refused[0], refused[1]["code"]) == (403, "origin_not_allowed")
    unknown = shop.evaluate(ASK, [claim, "vf_pk_nonsense", {"order_value": 10}, {}])
    assert (unknown[0], unknown[1]["code"]) == (401, "malformed_key")
    redeem = f"{product.url}/v1/vouchers/ORIGINDROP/redeem"
    forbidden = shop.evaluate(ASK, [redeem, ours, {"order_value": 10}, {}])
    assert (forbidden[0], forbidden[1]["code"]) == (403, "forbidden")
    validate = f"{product.url}/v1/vouchers/ORIGINDROP/validate"
    asked = shop.evaluate(ASK, [validate, ours, {"order_value": 10}, {}])
    assert (asked[0], asked[1]["valid"]) == (200, True)
    # A header that no page needs is not let through: the browser does not even send the request.
    hindered = shop.evaluate(ASK, [claim, ours, {"order_value": 10}, {"X-CSRF-Token": "x"}])
    assert hindered[0] == 0
    assert product.must("GET", f"/v1/flash-sales/{sale['id']}")["claimed"] == 1


def test_what_belongs_to_the_desk_is_not_lent_to_pages_of_other_origins(
    shop: Page, product: Product
) -> None:
    read = "async url => { try { return (await fetch(url)).status } catch { return 0 } }"
    assert shop.evaluate(read, f"{product.url}/dashboard/log-in") == 0
    # The API has no cookie for such a page: asked with what the browser has, it knows nobody.
    with_cookies = (
        "async url => { try { return (await fetch(url, {credentials: 'include'})).status } "
        "catch { return 0 } }"
    )
    assert shop.evaluate(with_cookies, f"{product.url}/v1/auth/me") == 0
