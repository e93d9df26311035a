"""A headless Chromium of this machine, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
_WAIT_MS = 20_000
# Read here: every test has an environment and a folder of its own.
_FOLDER = os.environ.get("MLFLOW_CKPT_SCREENSHOTS")
_PICTURES = Path(_FOLDER).absolute() if _FOLDER else None
# What the UI of MLflow 3.17 remembers in a browser: its assistant need not open by itself.
_REMEMBERED = {
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.assistant.panelOpen_v1": "false",
}


def chromium() -> str:
    """Its path.

    Raises:
        pytest.skip.Exception: If this machine has none.
    """
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs Chromium, such as Debian's package chromium")
    return found


class Browsed:
    """A page, the addresses outside of this machine that it has asked for, and its errors.

    Playwright holds an event loop while it is open, so that one is open at a time.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.strangers: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self._look(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, url: str, *, width: int, height: int) -> Page:
        """Go to an address, also where only what is behind its `#` differs."""
        self.page.goto("about:blank")
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.goto(url)
        return self.page

    def _look(self, url: str) -> None:
        if not url.startswith(("http://127.0.0.1:", "data:", "blob:", "file:", "about:")):
            self.strangers.append(url)

    def picture(self, name: str) -> None:
        """Take a screenshot, into the folder that `MLFLOW_CKPT_SCREENSHOTS` names, if it does."""
        if _PICTURES is not None:
            self.page.screenshot(path=_PICTURES / f"{name}.png", animations="disabled")


@contextmanager
def browsing() -> Iterator[Browsed]:
    """Open a page in a browser of its own."""
    expect.set_options(timeout=_WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        try:
            page = browser.new_page()
            page.set_default_timeout(_WAIT_MS)
            for key, value in _REMEMBERED.items():
                # A file has no storage.
                page.add_init_script(
                    f"try {{ localStorage.setItem({key!r}, {value!r}) }} catch {{}}"
                )
            yield Browsed(page)
        finally:
            browser.close()
