"""A real browser, Chromium, for what is to be looked at: driven by Playwright, without a window and off the network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.services.host import ENVIRONMENT, unavailable

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# As root it has no sandbox; the rest keeps it from asking its makers' hosts for anything.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


# Not for the whole session: while it lives, its event loop counts as the one that runs in this thread.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next((path for name in NAMES if (path := shutil.which(name, path=ENVIRONMENT.get("PATH")))), None)
    if found is None:
        unavailable("a browser (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=list(FLAGS), env=dict(ENVIRONMENT))
        yield chromium
        chromium.close()


class Looked:
    """A page that was opened, and all that it did which a silent, self-contained page does not do."""

    def __init__(self, context: BrowserContext, where: Path | str) -> None:
        self.context = context
        self.page: Page = context.new_page()
        self.requests: list[str] = []
        self.messages: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.goto(where if isinstance(where, str) else where.as_uri())

    def violations(self) -> list[dict[str, Any]]:
        """What axe-core finds against WCAG 2.2 AA and its own best practices, as rule, element and reason."""
        axe = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
        self.page.evaluate(axe)
        found = self.page.evaluate("axe.run({resultTypes: ['violations']})")
        return [
            {"rule": violation["id"], "element": node["html"][:160], "why": node["failureSummary"]}
            for violation in found["violations"]
            for node in violation["nodes"]
        ]
