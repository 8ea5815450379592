"""The page of the spot check in a real browser: by keys, by touch, without scripts, by day and by night."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from local.evaluation.pairs import Pair
from local.evaluation.spotcheck.server import ReviewServer
from local.evaluation.votes import VoteFile, draw
from tests.services.browser import Looked

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HTML = "<script>document.title = 'taken over'</script><img src=https://example.org/x.png onerror=alert(1)></p>"
LONG = "averyveryverylongwordwithoutanyplacetobreakit" * 8
SYSTEM = {"role": "system", "content": "You are a help desk. " + HTML}
PAIRS = [
    Pair(row, (SYSTEM, {"role": "user", "content": f"Question {row}\n\nIt smokes."}), LONG, f"was {row} {LONG}", HTML)
    for row in range(1, 7)
]
LOOKS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "color_scheme": "light", "is_mobile": True, "has_touch": True},
}


@pytest.fixture
def votes(tmp_path: Path) -> VoteFile:
    return VoteFile(tmp_path / "votes.jsonl", draw(PAIRS, 4, 3), 3)


@pytest.fixture
def server(votes: VoteFile) -> Iterator[ReviewServer]:
    with ReviewServer(votes) as server:
        yield server


def at(page: Page, title: str) -> None:
    page.get_by_role("heading", name=title, exact=True).wait_for()


@pytest.mark.parametrize("look", LOOKS)
def test_it_is_silent_whole_and_accessible(browser: Browser, server: ReviewServer, look: str) -> None:
    # Its policy would keep axe out as well.
    context = browser.new_context(bypass_csp=True, **LOOKS[look])
    looked = Looked(context, server.url)
    for title, key in (("Pair 1 of 4", "ArrowLeft"), ("Pair 2 of 4", "=")):
        at(looked.page, title)
        assert looked.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert looked.violations() == []
        looked.page.keyboard.press(key)
    at(looked.page, "Pair 3 of 4")
    assert looked.page.title() == "Pair 3 of 4"
    assert HTML in looked.page.locator("main").inner_text()
    assert all(url.startswith(server.url) for url in looked.requests)
    assert looked.messages == []
    context.close()


def test_keys_vote_and_undo(browser: Browser, server: ReviewServer, votes: VoteFile) -> None:
    context = browser.new_context(**LOOKS["desktop"])
    looked = Looked(context, server.url)
    page, (first, second, third, fourth) = looked.page, votes.sample
    for key, title in (
        ("x", "Pair 1 of 4"),
        ("Control+ArrowLeft", "Pair 1 of 4"),
        ("u", "Pair 1 of 4"),
        ("ArrowLeft", "Pair 2 of 4"),
        ("ArrowRight", "Pair 3 of 4"),
        ("u", "Pair 2 of 4"),
        ("s", "Pair 3 of 4"),
        ("=", "Pair 4 of 4"),
        ("ArrowRight", "All pairs are done"),
    ):
        page.keyboard.press(key)
        at(page, title)
    assert votes.votes == {
        first.pair.sha256: first.left,
        second.pair.sha256: "skip",
        third.pair.sha256: "tie",
        fourth.pair.sha256: fourth.right,
    }
    page.get_by_role("button", name="Finish").click()
    at(page, "Thank you")
    assert server.wait(5)
    assert looked.messages == []
    context.close()


@pytest.mark.parametrize("look", ["desktop", "phone"])
def test_buttons_vote_without_scripts(browser: Browser, server: ReviewServer, votes: VoteFile, look: str) -> None:
    context = browser.new_context(java_script_enabled=False, **LOOKS[look])
    page = context.new_page()
    page.goto(server.url)
    page.get_by_role("button", name="B is better").click()
    at(page, "Pair 2 of 4")
    page.get_by_role("button", name="Undo the last").click()
    at(page, "Pair 1 of 4")
    page.get_by_role("button", name="No difference").click()
    at(page, "Pair 2 of 4")
    assert list(votes.votes.values()) == ["tie"]
    # Closed, and opened again: it goes on where it was.
    page.close()
    page = context.new_page()
    page.goto(server.url)
    at(page, "Pair 2 of 4")
    context.close()


def test_the_keyboard_alone_reaches_every_button(browser: Browser, server: ReviewServer) -> None:
    context = browser.new_context(**LOOKS["desktop"])
    page = context.new_page()
    page.goto(server.url)
    names = []
    for _ in range(8):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.textContent.trim()"))
    for name in ("A is better", "No difference", "B is better", "Skip"):
        assert any(name in reached for reached in names)
    context.close()


def test_another_site_can_not_vote(browser: Browser, server: ReviewServer, votes: VoteFile) -> None:
    """A page of another origin that knows even the address with its token sends the form; the server refuses."""
    assert votes.current is not None
    context = browser.new_context()
    page = context.new_page()
    form = (
        f"<form method=post action='{server.url}vote'><input name=pair value={votes.current.pair.sha256}>"
        "<button name=choice value=left>win</button></form>"
    )
    page.set_content(form)
    with page.expect_response(lambda response: response.url.endswith("/vote")) as sent:
        page.get_by_role("button").click()
    assert sent.value.status == 403
    assert not votes.votes
    context.close()
