"""A study of 40 features by two raters in a browser, start to end; what it looks like, and who can use it."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from studies import couple_at, done, make_study, served

from gsae_ray.study.answers import raters
from gsae_ray.study.server import StudyServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium")
EVIL = "<img src=x onerror=document.body.dataset.evil=1>"
SCREENSHOTS = os.environ.get("GSAE_SCREENSHOTS")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed; .ci/run installs it"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StudyServer]:
    """Two sites with ten pairs each: 40 features for each rater."""
    make_study(tmp_path / "study.db", [couple_at(1), couple_at(2, "mlp_out")], pairs=10, raters=2)
    with served(tmp_path / "study.db") as server:
        yield server


def open_page(browser: Browser, server: StudyServer, rater: int, width: int = 1400, scheme: Any = "light") -> Page:
    """A rater's page in a browser of its own, as after closing the one before."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.on("pageerror", lambda error: pytest.fail(str(error)))
    page.goto(server.link(raters(server.path)[rater]))
    page.wait_for_selector("#work:visible, #finished:visible")
    return page


def progress(page: Page, told: str) -> None:
    page.wait_for_function("told => document.getElementById('progress').textContent === told", arg=told)


def rate_by_keys(page: Page, place: int, total: int = 40) -> None:
    progress(page, f"{place} of {total} ({place - 1} rated)")
    page.keyboard.type(f"numbers {place}")  # the text field has the focus
    page.keyboard.press("Enter")
    page.wait_for_selector("#rate:visible")
    page.keyboard.press("Enter")  # once too often, which is no answer
    page.keyboard.press("ymn"[place % 3])


def test_two_raters_rate_40_features_and_one_closes_the_browser_half_way(browser: Browser, server: StudyServer) -> None:
    first = open_page(browser, server, 0)
    for place in range(1, 18):
        rate_by_keys(first, place)
    progress(first, "18 of 40 (17 rated)")
    first.keyboard.type("half a word")
    first.keyboard.press("Enter")
    first.wait_for_selector("#rate:visible")
    first.context.close()

    second = open_page(browser, server, 1)
    for place in range(1, 41):
        rate_by_keys(second, place)
    second.wait_for_selector("#finished:visible")
    progress(second, "40 of 40 rated")
    assert done(server.path) == [17, 40]

    again = open_page(browser, server, 0)
    progress(again, "18 of 40 (17 rated)")
    assert again.inner_text("#told") == "half a word", "what was explained before the browser was closed is there"
    again.keyboard.press("b")
    progress(again, "17 of 40 (17 rated)")
    assert again.get_attribute('[aria-pressed="true"]', "data-label") == ["yes", "maybe", "no"][17 % 3]
    again.keyboard.press("y")
    progress(again, "18 of 40 (17 rated)")
    again.keyboard.press("m")
    for place in range(19, 41):
        rate_by_keys(again, place)
    again.wait_for_selector("#finished:visible")
    assert done(server.path) == [40, 40]
    with sqlite3.connect(server.path) as database:
        labels = "SELECT place, label FROM newest JOIN items ON id = item WHERE rater = ? ORDER BY place"
        for rater, changed in ((1, {17: 2, 18: 1}), (2, {})):
            expected = {place: changed.get(place, 2 - place % 3) for place in range(1, 41)}
            assert dict(database.execute(labels, (rater,)).fetchall()) == expected
        explained = database.execute("SELECT explanation FROM newest JOIN items ON id = item WHERE place = 30")
        assert set(explained.fetchall()) == {("numbers 30",)}
        seconds = [row[0] for row in database.execute("SELECT sum(seconds) FROM answers GROUP BY item")]
    assert all(0 < each < 60 for each in seconds)


def test_the_second_window_is_told_and_keeps_its_own_answer_until_it_is_decided(
    browser: Browser, server: StudyServer
) -> None:
    one, two = open_page(browser, server, 0), open_page(browser, server, 0)
    rate_by_keys(one, 1)
    progress(one, "2 of 40 (1 rated)")
    two.keyboard.type("of the second window")
    two.keyboard.press("Enter")
    two.wait_for_selector("#conflict:visible")
    assert two.inner_text("#there") == "Maybe: numbers 1" and two.inner_text("#here") == "of the second window"
    assert done(server.path) == [1, 0]
    shoot(two, "conflict")
    two.click("#replace")
    two.wait_for_selector("#rate:visible")
    assert two.inner_text("#told") == "of the second window"
    assert two.get_attribute('[aria-pressed="true"]', "data-label") == "maybe", "its rating still counts"
    two.keyboard.press("n")
    progress(two, "2 of 40 (1 rated)")
    one.keyboard.type("of the first window")
    one.keyboard.press("Enter")
    one.wait_for_selector("#rate:visible")
    two.keyboard.type("too late")
    two.keyboard.press("Enter")
    two.wait_for_selector("#conflict:visible")
    two.click("#keep")
    two.wait_for_selector("#rate:visible")
    assert two.inner_text("#told") == "of the first window"
    assert done(server.path) == [1, 0]


def test_an_answer_stays_on_the_page_while_the_server_is_away(browser: Browser, server: StudyServer) -> None:
    page = open_page(browser, server, 0)
    page.route("**/answer", lambda route: route.abort())
    page.keyboard.type("kept")
    page.keyboard.press("Enter")
    page.wait_for_selector("#again:visible")
    assert "is still on this page" in page.inner_text("#alert") and page.input_value("#explanation") == "kept"
    shoot(page, "away")
    page.unroute("**/answer")
    page.click("#again")
    page.wait_for_selector("#rate:visible")
    assert page.inner_text("#told") == "kept" and not page.is_visible("#alert")


def test_a_rating_that_is_saved_is_said_to_be_where_the_next_item_cannot_be_shown(
    browser: Browser, server: StudyServer
) -> None:
    page = open_page(browser, server, 0)
    page.keyboard.press("Enter")
    page.wait_for_selector("#rate:visible")
    page.route("**/item*", lambda route: route.abort())
    page.keyboard.press("y")
    page.wait_for_selector("#again:visible")
    told = page.inner_text("#alert")
    assert "Your rating is saved. The item cannot be shown yet." in told and "not saved" not in told
    assert done(server.path) == [1, 0]
    page.keyboard.press("n")  # on second thoughts: no conflict, since this window knows its own rating
    progress(page, "1 of 40 (1 rated)")
    page.wait_for_selector('[data-label="no"][aria-pressed="true"]')
    assert not page.is_visible("#conflict")
    page.wait_for_selector("#again:visible")
    page.unroute("**/item*")
    page.click("#again")
    progress(page, "2 of 40 (1 rated)")
    with sqlite3.connect(server.path) as database:
        assert database.execute("SELECT label FROM newest").fetchall() == [(0,)]


def test_the_first_item_that_cannot_be_shown_is_no_answer_that_was_not_saved(
    browser: Browser, server: StudyServer
) -> None:
    page = browser.new_context().new_page()
    page.route("**/item*", lambda route: route.abort())
    page.goto(server.link(raters(server.path)[0]))
    page.wait_for_selector("#again:visible")
    assert "The item cannot be shown yet." in page.inner_text("#alert") and "saved" not in page.inner_text("#alert")
    page.unroute("**/item*")
    page.click("#again")
    progress(page, "1 of 40 (0 rated)")


def test_an_answer_whose_reply_was_lost_is_not_that_of_another_window(browser: Browser, server: StudyServer) -> None:
    def lose(route: Any) -> None:
        route.fetch()
        route.abort()

    page = open_page(browser, server, 0)
    page.route("**/answer", lose)
    page.keyboard.type("first")
    page.keyboard.press("Enter")
    page.wait_for_selector("#again:visible")
    page.unroute("**/answer")
    page.fill("#explanation", "second")
    page.click("#again")
    page.wait_for_selector("#rate:visible")
    assert page.inner_text("#told") == "second"
    page.route("**/answer", lose)
    page.keyboard.press("y")
    page.wait_for_selector("#again:visible")
    page.unroute("**/answer")
    page.keyboard.press("m")
    progress(page, "2 of 40 (1 rated)")
    with sqlite3.connect(server.path) as database:
        assert database.execute("SELECT explanation, label FROM newest").fetchall() == [("second", 1)]
        (seconds,) = database.execute("SELECT sum(seconds) FROM answers").fetchone()
    assert 0 < seconds < 60


def test_what_was_typed_and_not_sent_is_there_when_its_item_is_shown_again(
    browser: Browser, server: StudyServer
) -> None:
    page = open_page(browser, server, 0)
    rate_by_keys(page, 1)
    progress(page, "2 of 40 (1 rated)")
    page.keyboard.type("half a thought")
    page.keyboard.press("Escape")
    page.keyboard.press("b")
    progress(page, "1 of 40 (1 rated)")
    assert page.is_visible("#rate") and page.inner_text("#told") == "numbers 1"
    page.keyboard.press("f")
    progress(page, "2 of 40 (1 rated)")
    assert page.input_value("#explanation") == "half a thought"
    page.route("**/answer", lambda route: route.abort())
    page.keyboard.type(", and more")
    page.keyboard.press("Enter")
    page.wait_for_selector("#again:visible")
    page.unroute("**/answer")
    page.click("#work .back")
    progress(page, "1 of 40 (1 rated)")
    page.keyboard.press("e")
    page.fill("#explanation", "changed")
    page.keyboard.press("Escape")
    page.keyboard.press("f")
    progress(page, "2 of 40 (1 rated)")
    assert page.input_value("#explanation") == "half a thought, and more"
    page.keyboard.press("Enter")
    page.wait_for_selector("#rate:visible")
    assert page.inner_text("#told") == "half a thought, and more"
    page.keyboard.press("b")
    progress(page, "1 of 40 (1 rated)")
    assert page.is_visible("#explain") and page.input_value("#explanation") == "changed"


def test_what_is_typed_before_the_next_item_is_there_is_kept_for_it(browser: Browser, server: StudyServer) -> None:
    def slow(route: Any) -> None:
        page.keyboard.type("half ")
        page.keyboard.press("Enter")
        route.continue_()

    page = open_page(browser, server, 0)
    page.keyboard.type("first")
    page.keyboard.press("Enter")
    page.wait_for_selector("#rate:visible")
    page.route("**/answer", slow)
    page.route("**/item*", slow)
    page.keyboard.press("y")
    progress(page, "2 of 40 (1 rated)")
    page.keyboard.type("typed")
    assert page.input_value("#explanation") == "half half typed"
    page.unroute("**/answer")
    page.unroute("**/item*")
    page.keyboard.press("Enter")
    page.wait_for_selector("#rate:visible")
    page.route("**/answer", lambda route: route.abort())
    page.keyboard.press("y")
    page.wait_for_selector("#again:visible")
    assert page.is_visible("#rate") and page.inner_text("#told") == "half half typed"
    with sqlite3.connect(server.path) as database:
        assert database.execute("SELECT explanation, label FROM newest").fetchall() == [
            ("first", 2),
            ("half half typed", None),
        ]


def test_time_counts_only_while_the_page_is_seen(browser: Browser, server: StudyServer) -> None:
    page = open_page(browser, server, 0)
    hide = "state => { Object.defineProperty(document, 'visibilityState', {value: state, configurable: true}); "
    hide += "document.dispatchEvent(new Event('visibilitychange')); }"
    page.evaluate(hide, "hidden")
    page.wait_for_timeout(1500)
    page.evaluate(hide, "visible")
    page.keyboard.press("Enter")
    page.wait_for_selector("#rate:visible")
    with sqlite3.connect(server.path) as database:
        ((seconds,),) = database.execute("SELECT seconds FROM answers").fetchall()
    assert 0 < seconds < 1.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_a_page_is_readable_by_all_and_fetches_nothing_from_elsewhere(
    browser: Browser, server: StudyServer, width: int, scheme: str
) -> None:
    page = open_page(browser, server, 0, width, scheme)
    fetched: list[str] = []
    page.on("request", lambda request: fetched.append(request.url))
    check(page, f"explain-{scheme}-{width}")
    assert page.locator("mark").count() > 30 and page.locator("mark.peak").count() == 10
    assert "<b>" in page.inner_text("#texts"), "texts are shown as they are"
    assert page.locator("#texts b").count() == 0
    page.keyboard.type(EVIL)
    page.keyboard.press("Enter")
    page.wait_for_selector("#rate:visible")
    assert page.inner_text("#told") == EVIL and page.locator("img").count() == 0
    assert page.evaluate("document.body.dataset.evil") is None
    check(page, f"rate-{scheme}-{width}")
    page.keyboard.press("y")
    progress(page, "2 of 40 (1 rated)")
    assert all(url.startswith(server.address) for url in fetched)
    refused = page.context.new_page()
    refused.goto(f"{server.address}/r/guessed/")
    check(refused, f"refused-{scheme}-{width}")


def test_the_end_is_readable_by_all(browser: Browser, tmp_path: Path) -> None:
    make_study(tmp_path / "study.db", [couple_at(1)], pairs=1, raters=1)
    with served(tmp_path / "study.db") as server:
        page = open_page(browser, server, 0, 390)
        for place in (1, 2):
            rate_by_keys(page, place, total=2)
        page.wait_for_selector("#finished:visible")
        check(page, "finished")
        page.keyboard.press("b")
        progress(page, "2 of 2 (2 rated)")
        page.keyboard.press("e")
        page.fill("#explanation", "not sent")
        page.keyboard.press("Escape")
        page.keyboard.press("f")
        page.wait_for_selector("#finished:visible")
        assert "What you typed at item 2 was not sent" in page.inner_text("#alert")
        page.close()


def check(page: Page, name: str) -> None:
    """No violation that axe-core finds, and nothing scrolls sideways."""
    from axe_playwright_python.sync_playwright import Axe

    shoot(page, name)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    found = Axe().run(page)
    assert found.response["violations"] == [], found.generate_report()


def shoot(page: Page, name: str) -> None:
    """Keeps a picture of the page, for people to look at, where GSAE_SCREENSHOTS names a folder."""
    if SCREENSHOTS:
        page.screenshot(path=Path(SCREENSHOTS) / f"study-{name}.png")
