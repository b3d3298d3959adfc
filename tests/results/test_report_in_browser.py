"""A report as a browser shows it: every chart is drawn, nothing is fetched, and who does not see it can read it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from reports import SERVER, SITES, made_up, made_up_rows

from gsae_ray.results.report import write

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium")
EVIL = "<img src=x onerror=document.body.dataset.evil=1>"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed; .ci/run installs it"),
]


class Shown(NamedTuple):
    """A page, and what it said and asked for."""

    page: Page
    said: list[str]
    fetched: list[str]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four kinds at two learning rates and two seeds, with references, failures and names that want to be HTML."""
    kinds, name = ["gated", "standard", "topk", "jumprelu"], EVIL + "{kind}-l{sparsity:g}-{site}-lr{lr:g}-s{seed}"
    rows = made_up_rows(kinds, rates=[1e-3, 3e-3], seeds=2, references=3, name=name)
    out = tmp_path_factory.mktemp("report") / "report.html"
    write(made_up(rows, failures=[(EVIL, f"loss is NaN {EVIL}")]), out)
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def show(browser: Browser, report: Path, width: int = 1400, scheme: Any = "light", **options: Any) -> Shown:
    """Opens a report from disk, and waits for its charts."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
    page.set_default_timeout(60_000)
    shown = Shown(page, [], [])
    page.on("console", lambda message: shown.said.append(message.text))
    page.on("pageerror", lambda error: shown.said.append(str(error)))
    page.on("request", lambda request: shown.fetched.append(request.url))
    page.goto(report.as_uri())
    if options.get("java_script_enabled", True):
        page.wait_for_selector("body[data-drawn]")
    return shown


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_a_report_is_drawn_without_errors_network_or_barriers(
    browser: Browser, report: Path, width: int, scheme: str
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page, said, fetched = show(browser, report, width, scheme)
    assert said == []
    assert [url for url in fetched if not url.startswith("data:")] == [report.as_uri()]
    assert page.locator("figure:visible svg.marks").count() == page.locator("figure:visible").count() >= 14
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing but tables scrolls sideways"
    found = Axe().run(page)
    assert found.response["violations"] == [], found.generate_report()
    paper, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    assert page.evaluate("getComputedStyle(document.querySelector('svg .role-axis-label text')).fill") == ink
    page.close()


def test_a_point_tells_what_it_is_as_text_and_leads_to_its_run(browser: Browser, report: Path) -> None:
    page, said, _ = show(browser, report)
    point = page.locator("#frontier-0 .mark-symbol path").first
    point.hover(force=True)
    tooltip = page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    told = tooltip.inner_text()
    assert EVIL in told and "loss recovered" in told and "sparsity" in told and "[" in told
    assert page.evaluate("document.body.dataset.evil") is None and page.locator("img").count() == 0
    with page.expect_popup() as opened:  # nothing listens there
        point.click(force=True)
    assert opened.value.url.startswith(SERVER) or opened.value.url.startswith("chrome-error:")
    assert said == []
    page.close()


def test_another_site_is_chosen(browser: Browser, report: Path) -> None:
    page, said, _ = show(browser, report)
    before = page.locator("#quality-gamma svg").inner_html()
    page.locator("#site").select_option(SITES[1])
    page.wait_for_function(
        "before => ![undefined, before].includes(document.querySelector('#quality-gamma svg')?.innerHTML)", arg=before
    )
    assert said == []
    page.close()


def test_without_javascript_the_answer_and_the_tables_are_there(browser: Browser, report: Path) -> None:
    page = show(browser, report, java_script_enabled=False).page
    assert "the active features of standard" in page.locator("p.answer").first.inner_text()
    assert page.locator("table").first.locator("tbody tr").count() == 51
    page.close()
