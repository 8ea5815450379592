"""The report as people meet it: in a real browser, on a screen, a phone and paper, by day and by night."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from local.report.write import Written, write_report
from tests.local.report import made_up
from tests.services.browser import Looked

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HTML = "<script>document.title = 'taken over'</script><img src=https://example.org/x.png onerror=alert(1)></pre>"
MARKDOWN = "# not a heading ![](https://example.org/y.png) [click](https://example.org) `</code>` |cell|"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
LOOKS = {
    "desktop": {"viewport": DESKTOP, "color_scheme": "light"},
    "dark": {"viewport": DESKTOP, "color_scheme": "dark"},
    "phone": {"viewport": PHONE, "color_scheme": "light", "is_mobile": True, "has_touch": True},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A report with everything in it, and with answers that try to be markup."""
    scenario = made_up.Scenario(
        rows=60,
        question="Ticket {row}: " + HTML + " " + MARKDOWN,
        before={n: made_up.expected(n) for n in (3, 9)} | {12: HTML, 15: MARKDOWN},
        after={9: HTML, 21: MARKDOWN, 33: made_up.wrong(33), 50: None},
        card={"source": HTML, "license": "cc-by-4.0", "notes": MARKDOWN},
        more=True,
    )
    return write_report(*made_up.make_run(tmp_path_factory.mktemp("page"), scenario))


@pytest.fixture(params=LOOKS)
def looked(request: pytest.FixtureRequest, browser: Browser, written: Written) -> Iterator[Looked]:
    # Scripts are on, so that a planted one could run. The policy of the page would stop axe as well, so it is passed
    # over; that the page is silent does not hang on its policy then.
    context = browser.new_context(bypass_csp=True, **LOOKS[request.param])
    yield Looked(context, written.html)
    context.close()


def test_it_is_silent_whole_and_accessible(looked: Looked, tmp_path: Path) -> None:
    page = looked.page
    assert looked.requests == [page.url]
    assert looked.messages == []
    assert page.locator("script, img, iframe, object, embed, form, audio, video").count() == 0
    assert page.title().startswith("tickets: better")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert looked.violations() == []
    picture = page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert len(picture) > 50_000
    assert (looked.requests, looked.messages) == ([page.url], [])


def test_what_was_planted_is_shown_as_text(browser: Browser, written: Written) -> None:
    context = browser.new_context()
    looked = Looked(context, written.html)
    text = looked.page.locator("body").inner_text()
    assert HTML in text
    assert MARKDOWN in text
    assert looked.requests == [looked.page.url]
    assert looked.messages == []
    context.close()


def test_without_scripts_nothing_is_missing(browser: Browser, written: Written) -> None:
    texts = []
    for scripts in (True, False):
        context = browser.new_context(java_script_enabled=scripts)
        texts.append(Looked(context, written.html).page.locator("body").inner_text())
        context.close()
    assert texts[0] == texts[1]
    assert "Before and after" in texts[1]


def test_the_first_thing_read_is_the_answer(browser: Browser, written: Written) -> None:
    context = browser.new_context(viewport=PHONE)
    page = Looked(context, written.html).page
    heading = page.get_by_role("heading", level=1)
    assert heading.inner_text() == written.headline
    box = heading.bounding_box()
    assert box is not None
    assert box["y"] + box["height"] < PHONE["height"] / 2
    context.close()


def test_every_entry_of_the_contents_leads_to_a_heading(browser: Browser, written: Written) -> None:
    context = browser.new_context(viewport=DESKTOP)
    page = Looked(context, written.html).page
    links = page.get_by_role("navigation").get_by_role("link").all()
    assert len(links) >= 8
    for link in links:
        target = page.locator(link.get_attribute("href") or "")
        assert target.count() == 1
        assert target.evaluate("element => element.tagName") == "H2"
    context.close()


def test_pictures_say_in_words_what_they_show(browser: Browser, written: Written) -> None:
    context = browser.new_context()
    page = Looked(context, written.html).page
    labels = [picture.get_attribute("aria-label") or "" for picture in page.locator("svg[role=img]").all()]
    assert any(
        re.fullmatch(r"exact_match: before .*% \(95% interval .*\), after .*% \(95% interval .*\)", x) for x in labels
    )
    assert any(label.startswith("Training loss over 120 steps: its running mean goes from ") for label in labels)
    assert all(labels)
    context.close()


def test_on_paper_it_is_dark_on_white_and_loses_nothing(browser: Browser, written: Written) -> None:
    """Printed from a computer in dark mode."""
    context = browser.new_context(viewport=DESKTOP, color_scheme="dark")
    page = Looked(context, written.html).page
    pdf = page.pdf(format="A4", prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF-")
    assert 3 <= len(re.findall(rb"/Type\s*/Page[^s]", pdf)) <= 20
    page.emulate_media(media="print", color_scheme="dark")
    colours = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    assert page.evaluate(colours) == ["rgb(255, 255, 255)", "rgb(0, 0, 0)"]
    assert page.get_by_role("navigation").is_hidden()
    # An A4 page has 180 mm between its margins: 680 pixels. Nothing may stick out of it.
    page.set_viewport_size({"width": 680, "height": 1000})
    assert page.evaluate("document.documentElement.scrollWidth") <= 680
    clipped = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert page.evaluate(clipped) == 0
    context.close()


def test_the_chart_shows_the_numbers(browser: Browser, written: Written) -> None:
    """The marks stand where the values are, on an axis from 0 to 100 %."""
    context = browser.new_context(viewport=DESKTOP)
    page = Looked(context, written.html).page
    picture = page.locator("svg[aria-label^='exact_match:']")
    frame = picture.bounding_box()
    assert frame is not None
    assert written.report.evaluated is not None
    document = written.report.evaluated.document
    for label, values in (("before", document.before), ("after", document.after)):
        mark = picture.locator(f"circle.{label}-mark").bounding_box()
        assert mark is not None
        at = (mark["x"] + mark["width"] / 2 - frame["x"]) / frame["width"]
        assert at == pytest.approx(values["exact_match"], abs=0.005)
    context.close()
