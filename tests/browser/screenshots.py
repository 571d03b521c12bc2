"""`make screenshots`: every page, light and dark, narrow and wide, to be looked at."""

import sys
from typing import Literal

from core.settings import PROJECT_ROOT
from tests.browser import chromium, tour
from tests.e2e.sales import running

FOLDER = PROJECT_ROOT / ".screenshots"
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
WIDTHS = (375, 1440)
# A watched sale has drawn its first seconds by then.
WATCHED_MS = 3_500


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with running() as product, chromium.running() as browser:
        pages = tour.fill(product)
        for scheme in SCHEMES:
            for width in WIDTHS:
                context = browser.new_context(
                    viewport={"width": width, "height": 900}, color_scheme=scheme
                )
                page = context.new_page()
                for name in ("log-in", "sign-up"):
                    page.goto(f"{product.url}/dashboard/{name}")
                    page.screenshot(path=FOLDER / f"{name}-{scheme}-{width}.png", full_page=True)
                root = tour.log_in(page, product)
                for name, address in pages.items():
                    page.goto(tour.at(root, address))
                    page.wait_for_timeout(WATCHED_MS if name == "sale" else 0)
                    page.screenshot(path=FOLDER / f"{name}-{scheme}-{width}.png", full_page=True)
                context.close()
    sys.stdout.write(f"{len(list(FOLDER.glob('*.png')))} pictures in {FOLDER}\n")


if __name__ == "__main__":
    main()
