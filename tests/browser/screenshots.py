"""`make screenshots`: every page, light and dark, narrow and wide, to be looked at."""

import itertools
import re
import shutil
import subprocess
import sys
from typing import Literal

from playwright.sync_api import Page

from bench.product import LAUNCHER, Product
from core.settings import PROJECT_ROOT
from tests.browser import chromium, tour
from tests.e2e.sales import running

FOLDER = PROJECT_ROOT / ".screenshots"
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
WIDTHS = (375, 1440)
# Charts are drawn after the page has loaded.
DRAWN_MS = 60
# A watched sale has drawn its first seconds by then.
WATCHED_MS = 3_500


# Pages of the believable year: each list, and the first thing in it.
LISTS = {
    "vouchers": "/vouchers", "campaigns": "/campaigns", "redemptions": "/redemptions",
    "sales": "/flash-sales", "cards": "/gift-cards", "customers": "/customers",
    "segments": "/segments", "referrals": "/referrals",
}  # fmt: skip
YEAR = {
    "home": "", "home-of-a-year": "?days=365", "liability": "/gift-cards/liability",
    "audit-log": "/audit-log", "review": "/referrals?status=rejected",
    "ended": "/campaigns?status=ended", "disabled": "/vouchers?status=disabled", **LISTS,
}  # fmt: skip
FIRST = "main table td a:not([class*=button])"


def fill_year(product: Product) -> str:
    """Write the believable year; returns its project's id."""
    told = subprocess.run(
        [LAUNCHER, "demo-data", "--data-dir", str(product.data_dir)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return re.findall(r"prj_\w+", told.stdout)[0]


def of_year(page: Page, root: str) -> dict[str, str]:
    """Return the year's pages below its project."""
    found = {f"year-{name}": address for name, address in YEAR.items()}
    for name, address in LISTS.items():
        page.goto(root + address)
        last = page.locator(FIRST).last if name in ("sales", "referrals") else None
        link = (last or page.locator(FIRST).first).get_attribute("href")
        assert link is not None, address
        found[f"year-{name}-one"] = link[link.index("/", len("/dashboard/")) :]
    return found


def draw(page: Page, name: str) -> None:
    """Keep a picture of the whole page, once what moves has drawn itself."""
    page.wait_for_timeout(WATCHED_MS if name.startswith(("sale-light", "sale-dark")) else DRAWN_MS)
    page.screenshot(path=FOLDER / f"{name}.png", full_page=True)


def main() -> None:
    """Draw everything."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    with running() as product, chromium.running() as browser:
        pages = tour.fill(product)
        year = fill_year(product)
        for scheme, width in itertools.product(SCHEMES, WIDTHS):
            context = browser.new_context(
                viewport={"width": width, "height": 900}, color_scheme=scheme
            )
            page = context.new_page()
            for name in ("log-in", "sign-up", "forgotten"):
                page.goto(f"{product.url}/dashboard/{name}")
                draw(page, f"{name}-{scheme}-{width}")
            root = tour.log_in(page, product)
            of_demo = {name: tour.at(root, address) for name, address in pages.items()}
            home = f"{product.url}/dashboard/{year}"
            below = {name: home + address for name, address in of_year(page, home).items()}
            for name, address in {**of_demo, **below}.items():
                page.goto(address)
                draw(page, f"{name}-{scheme}-{width}")
            context.close()
    sys.stdout.write(f"{len(list(FOLDER.glob('*.png')))} pictures in {FOLDER}\n")


if __name__ == "__main__":
    main()
