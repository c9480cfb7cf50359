"""A real Chromium for tests of pages: playwright's own, or one that the system has."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@contextmanager
def real_browser() -> Generator[Any]:
    """A headless browser; skips the test, with the reason, where there is none."""
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    own = next(filter(None, map(shutil.which, NAMES)), None)
    with sync.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=own, args=["--no-sandbox"])
        except sync.Error as error:
            pytest.skip(f"no Chromium starts here: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


class Watched:
    """A page, and what it asked for and complained about."""

    def __init__(self, browser: Any, **context: Any) -> None:
        self.page = browser.new_context(**context).new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on(
            "console",
            lambda line: (
                self.errors.append(line.text) if line.type in ("error", "warning") else None
            ),
        )
        self.page.on("request", lambda request: self.requests.append(request.url))

    def open(self, url: str) -> Any:
        """Go there and wait for its script."""
        self.page.goto(url)
        self.page.wait_for_selector("body[data-ready=yes]", timeout=60_000)
        return self.page

    @property
    def outside(self) -> list[str]:
        """Requests beyond files, loopback and the page's own data."""
        inside = ("file:", "data:", "blob:", "http://127.0.0.1:")
        return [url for url in self.requests if not url.startswith(inside)]
