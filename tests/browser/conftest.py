"""Fixtures of the browser's tests: the whole product, and a Chromium that hides nothing.

product   session  a running `up` with one of everything in its demo project
pages     session  the addresses of its pages below the project, by name
chromium  module   the browser: its loop must be gone before other tests run theirs
desk      test     a page whose errors, questions and requests elsewhere fail the test
"""

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from bench.product import Product
from tests.browser import chromium as of_machine
from tests.browser import tour
from tests.e2e.sales import running

# Answers come within a second; a machine that runs other tests beside gets the twentyfold.
ANSWER_MS_MAX = 20_000
expect.set_options(timeout=ANSWER_MS_MAX)


@pytest.fixture(scope="session")
def product() -> Iterator[Product]:
    with running() as product:
        yield product


@pytest.fixture(scope="session")
def pages(product: Product) -> dict[str, str]:
    return tour.fill(product)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with of_machine.running() as browser:
        yield browser


@pytest.fixture
def desk(chromium: Browser, product: Product) -> Iterator[Page]:
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(ANSWER_MS_MAX)
    wrong: list[str] = []
    # A violated policy is an error of the console, too.
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    home = urlsplit(product.url).netloc
    page.on(
        "request",
        lambda asked: None if urlsplit(asked.url).netloc == home else wrong.append(asked.url),
    )
    yield page
    context.close()
    # The browser says so of every page that is meant to be missing.
    assert [text for text in wrong if "status of 404" not in text] == []
