"""A headless Chromium, Debian's, driven by Playwright; what it asks for and complains of is recorded."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

PATIENCE = 300  # seconds: the machine may be busy
GO = """state => new Promise(done => {
  if (location.hash.slice(1) === state) return done();
  addEventListener("hashchange", () => setTimeout(done), { once: true });
  location.hash = state;
})"""
ARGUMENTS = ("--no-sandbox", "--disable-dev-shm-usage")


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; the test is skipped where there is none, except in CI, which installs it."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        missing = "no Chromium here: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


@dataclass
class Watched:
    """A page with what it asked for and complained of."""

    page: Any
    requests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def at(self, state: str) -> None:
        """Go to an address of the same page, as a link does."""
        self.page.evaluate(GO, state)

    def drawn(self) -> None:
        """Wait until the charts are drawn."""
        self.until("document.body.dataset.drawn")

    def until(self, condition: str) -> None:
        """Wait until an expression holds; Playwright's own way to wait is forbidden by the page's policy."""
        deadline = time.monotonic() + PATIENCE
        while not self.page.evaluate(condition):
            assert time.monotonic() < deadline, condition
            self.page.wait_for_timeout(50)

    def rows(self, selector: str = "th[scope=row]") -> list[str]:
        """The texts of the visible rows of the leaderboard."""
        return self.page.locator(f"#table tbody tr:not([hidden]) {selector}").all_inner_texts()


def opened(browser: Any, address: str, **options: Any) -> Watched:
    """Open an address in a page of its own."""
    context = browser.new_context(**options)
    watched = Watched(context.new_page())
    watched.page.on("request", lambda request: watched.requests.append(request.url))
    watched.page.on("console", lambda message: watched.problems.append(message.text))
    watched.page.on("pageerror", lambda error: watched.problems.append(str(error)))
    watched.page.goto(address)
    watched.drawn()
    return watched
