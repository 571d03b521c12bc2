"""A real Chromium: the one that VAUCHFLOW_CHROMIUM names or PATH has, else what set-up unpacked."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from core.settings import PROJECT_ROOT

NAMES = ("chromium-headless-shell", "chromium", "google-chrome")
UNPACKED = PROJECT_ROOT / ".venv" / "chromium"
AXE = UNPACKED / "axe.min.js"
# Only pages of this product are opened; as root Chromium has no sandbox.
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]


def found() -> tuple[str, dict[str, str]]:
    """Return Chromium's path and what its environment must have."""
    named = os.environ.get("VAUCHFLOW_CHROMIUM")
    installed = named or next(filter(None, map(shutil.which, NAMES)), None)
    if installed:
        return installed, {}
    own = UNPACKED / "usr" / "lib" / "chromium" / "chromium-headless-shell"
    assert own.is_file(), "no Chromium: install one, name it in VAUCHFLOW_CHROMIUM, or make setup"
    below = {str(path.parent) for path in UNPACKED.rglob("*.so*")}
    return str(own), {"LD_LIBRARY_PATH": ":".join(sorted(below))}


@contextmanager
def running() -> Iterator[Browser]:
    path, more = found()
    assert Path(path).exists(), path
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=OPTIONS, env={**os.environ, **more}
        )
        try:
            yield browser
        finally:
            browser.close()
