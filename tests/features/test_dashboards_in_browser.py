"""Dashboards as a browser shows them from disk: search, order, keys, links, and who can read them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pytest
from dashboards import FEATURES, GATED, made_up, storage_of

from gsae_ray.config.trial import TrialSpec
from gsae_ray.feature_tables import FeatureTables
from gsae_ray.feature_tables.schema import TOKENS
from gsae_ray.features.chosen import choose_saes
from gsae_ray.features.page import one_file
from gsae_ray.features.write import write_dashboards

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium")
EVIL = "<img src=x onerror=document.body.dataset.evil=1>"
SCREENSHOTS = os.environ.get("GSAE_SCREENSHOTS")
TRIAL, OTHER = GATED[0].name, GATED[1].name

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed; .ci/run installs it"),
]


class Shown(NamedTuple):
    """A page, what it said, and what it asked for."""

    page: Page
    said: list[str]
    fetched: list[str]


def odd(trial: TrialSpec, number: int) -> FeatureTables:
    """Tables whose texts want to be HTML and scripts; one is rare: that of id 15."""
    made = made_up(trial, number)
    texts = {0: EVIL, 1: "</script>", 2: "🙂", 15: " zebra"}
    words = [texts.get(token, text) for token, text in made.texts().items()]
    return FeatureTables(
        made.about, made.features, made.contexts, pa.table({"token": range(len(words)), "text": words}, schema=TOKENS)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dashboards")
    storage = storage_of(root / "runs", tables=odd)
    write_dashboards(choose_saes("small", storage=storage), root / "features")
    return root / "features"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def show(browser: Browser, file: Path, at: str = "", width: int = 1400, scheme: Any = "light") -> Shown:
    """Opens a page from disk, and waits for its feature."""
    shown = opened(browser, file, at, width, scheme)
    if file.parent.name != "features":
        shown.page.wait_for_selector("body[data-feature]")
    return shown


def opened(browser: Browser, file: Path, at: str = "", width: int = 1400, scheme: Any = "light") -> Shown:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(30_000)
    shown = Shown(page, [], [])
    page.on("console", lambda message: shown.said.append(message.text))
    page.on("pageerror", lambda error: shown.said.append(str(error)))
    page.on("request", lambda request: shown.fetched.append(request.url))
    page.goto(file.as_uri() + at)
    return shown


def told(page: Page) -> str:
    """The feature that is shown."""
    return page.inner_text("#title")


def listed(page: Page) -> list[int]:
    return [int(text) for text in page.locator("#rows th").all_inner_texts()]


def pictured(page: Page, name: str) -> None:
    if SCREENSHOTS:
        page.screenshot(path=f"{SCREENSHOTS}/{name}.png", full_page=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_pages_are_shown_without_errors_network_or_barriers(
    browser: Browser, folder: Path, width: int, scheme: str
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    for name, file, at in (
        ("sae", folder / TRIAL / "index.html", "#feature=30"),
        ("dead", folder / TRIAL / "index.html", "#feature=2"),
        ("index", folder / "index.html", ""),
    ):
        page, said, fetched = show(browser, file, at, width, scheme)
        pictured(page, f"features-{name}-{width}-{scheme}")
        assert said == []
        assert all(url.startswith((folder.as_uri(), "data:")) for url in fetched)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
            "nothing but tables scrolls sideways"
        )
        found = Axe().run(page)
        assert found.response["violations"] == [], found.generate_report()
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
        page.close()


def test_a_shard_is_loaded_when_one_of_its_features_is_looked_at(browser: Browser, folder: Path) -> None:
    page, said, fetched = show(browser, folder / TRIAL / "index.html")
    data = [url.rpartition("/")[2] for url in fetched if "/data/" in url]
    assert sorted(data) == ["features_0.js", "list.js", "tokens.js"]
    page.goto((folder / TRIAL / "index.html").as_uri() + "#feature=299")
    page.wait_for_selector("body[data-feature='299']")
    assert fetched[-1].endswith("features_1.js") and said == []
    page.close()


def test_a_feature_is_shown_as_its_tables_have_it(browser: Browser, folder: Path) -> None:
    page, said, _ = show(browser, folder / TRIAL / "index.html", "#feature=30")
    tables = odd(GATED[0], 0)
    words = tables.texts()
    rows = [row for row in tables.contexts.to_pylist() if row["feature"] == 30]
    pieces = page.locator(".pieces .text")
    assert pieces.count() == len(rows) == 6
    for number, row in enumerate(rows):
        text = "".join(words[token] for token in row["tokens"]).replace("\n", "↵\n")
        assert pieces.nth(number).evaluate("node => node.textContent") == text
        marks = pieces.nth(number).locator("mark")
        assert marks.count() == sum(value > 0 for value in row["activations"])
        assert marks.locator("xpath=self::*[@class='peak']").count() == 1
    peak = page.locator(".pieces mark.peak").first
    assert (
        peak.get_attribute("title") == "9.5" and float(peak.evaluate("m => m.style.getPropertyValue('--shade')")) == 1
    )
    assert page.locator("img").count() == 0 and page.evaluate("document.body.dataset.evil") is None
    feature = tables.features.slice(30, 1).to_pylist()[0]
    assert f"{feature['fired']:,} rows" in page.inner_text(".facts")
    bars = len(tables.about["histogram_edges"]) - 1, len(tables.about["position_edges"]) - 1
    assert tuple(page.locator("#shown figure").nth(n).locator("svg rect").count() for n in range(2)) == bars
    said_of_bars = page.locator("#shown svg").nth(1).get_attribute("aria-label") or ""
    assert "rows by position in the context, from 0 to 128" in said_of_bars
    near = page.locator("section", has=page.get_by_role("heading", name="Nearest features")).locator("a")
    assert [int(text) for text in near.all_inner_texts()] == feature["neighbours"]
    near.first.click()
    page.wait_for_selector(f"body[data-feature='{feature['neighbours'][0]}']")
    assert page.evaluate("location.hash") == f"#feature={feature['neighbours'][0]}"
    page.go_back()
    page.wait_for_selector("body[data-feature='30']")
    beside = page.locator("section", has=page.get_by_role("heading", name="Nearest in other SAEs")).locator("a")
    other = beside.first.inner_text().split()[0]
    beside.first.click()
    page.wait_for_selector(f"body[data-feature='{other}']")
    assert f"/{OTHER}/" in page.url and told(page) == f"Feature {other}"
    assert said == []
    page.close()


def test_features_are_searched_sorted_and_filtered(browser: Browser, folder: Path) -> None:
    page, said, _ = show(browser, folder / TRIAL / "index.html")
    features = odd(GATED[0], 0).features.to_pylist()
    assert told(page) == "Feature 8" and listed(page) == list(range(8, 108)), "those before never fire"
    page.keyboard.press("/")
    page.keyboard.type("ZEB")
    wanted = [f["feature"] for f in features if f["fired"] and 15 in f["top_tokens"] + f["raised_tokens"]]
    assert listed(page) == wanted[:100] and f"{len(wanted)} features" in page.inner_text("#count")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"body[data-feature='{wanted[0]}']")
    page.keyboard.press("j")
    page.wait_for_selector(f"body[data-feature='{wanted[1]}']")
    page.locator("#alive").uncheck()
    assert listed(page) == [f["feature"] for f in features if 15 in f["top_tokens"] + f["raised_tokens"]][:100]
    page.locator("#query").fill("#3")
    assert listed(page) == [3]
    page.locator("#query").fill("nothing has this")
    assert listed(page) == [] and "0 features" in page.inner_text("#count")
    page.locator("#query").fill("")
    page.locator("#sort").select_option("dense")
    dense = sorted(features, key=lambda f: (-f["density"], f["feature"]))
    assert listed(page) == [f["feature"] for f in dense][:100]
    page.locator("#sort").select_option("small")
    assert listed(page)[:8] == list(range(8))
    page.locator("#after").click()
    page.locator("#after").click()
    assert page.inner_text("#count") == "201 to 300 of 300 features" and page.locator("#after").is_disabled()
    assert said == []
    page.close()


def test_keys_go_through_the_list(browser: Browser, folder: Path) -> None:
    page, said, _ = show(browser, folder / TRIAL / "index.html", "#feature=106")
    for key, feature in (("j", 107), ("ArrowRight", 108), ("k", 107), ("ArrowLeft", 106), ("j", 107), ("j", 108)):
        page.keyboard.press(key)
        page.wait_for_selector(f"body[data-feature='{feature}']")
        assert page.evaluate("location.hash") == f"#feature={feature}"
        assert page.locator("#rows tr[aria-current]").inner_text().split()[0] == str(feature)
    assert listed(page)[0] == 108, "the list turns with the feature"
    page.keyboard.press("Shift+ArrowLeft")
    page.locator("#find .scroll").focus()
    page.keyboard.press("ArrowLeft")  # which scrolls the list
    assert told(page) == "Feature 108"
    page.keyboard.press("k")
    page.wait_for_selector("body[data-feature='107']")
    page.keyboard.press("j")
    page.wait_for_selector("body[data-feature='108']")
    page.keyboard.press("/")
    page.keyboard.type("jk")
    assert page.locator("#query").input_value() == "jk" and told(page) == "Feature 108"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement === document.body")
    assert said == []
    page.close()


def test_a_number_leads_to_its_feature_and_the_list_goes_on_from_there(browser: Browser, folder: Path) -> None:
    page, said, _ = show(browser, folder / TRIAL / "index.html")
    page.fill("#query", "#40")
    assert listed(page) == [40]
    page.press("#query", "Enter")
    assert told(page) == "Feature 40" and page.input_value("#query") == ""
    page.keyboard.press("j")
    page.wait_for_function("document.querySelector('#title').textContent !== 'Feature 40'")
    assert int(told(page).split()[1]) > 40
    page.fill("#query", "#9999")
    assert "There is no feature 9999: they are 0 to" in page.inner_text("#count") and said == []
    page.close()


def test_a_feature_that_there_is_none_of_and_a_file_that_is_gone_are_said(
    browser: Browser, folder: Path, tmp_path: Path
) -> None:
    page, _, _ = show(browser, folder / TRIAL / "index.html", "#feature=300")
    assert page.inner_text("#alert") == f"There is no feature 300: they are 0 to {FEATURES - 1}."
    page.close()
    shutil.copytree(folder / TRIAL, tmp_path / "copy")
    (tmp_path / "copy/data/features_1.js").unlink()
    page, _, _ = show(browser, tmp_path / "copy/index.html")
    page.evaluate("location.hash = '#feature=299'")
    page.wait_for_selector("#alert:visible")
    assert "data/features_1.js" in page.inner_text("#alert")
    page.close()


def test_one_file_works_in_a_frame_without_an_address(browser: Browser, tmp_path: Path) -> None:
    """As MLflow shows an artifact."""
    whole = one_file(odd(GATED[0], 0), TRIAL, 2**24)
    assert whole is not None
    (tmp_path / "outer.html").write_text("<!doctype html><title>outer</title><body></body>")
    page, said, fetched = opened(browser, tmp_path / "outer.html")
    page.evaluate(
        "text => new Promise((done) => { const frame = document.createElement('iframe'); frame.onload = done; "
        "frame.sandbox = 'allow-scripts'; frame.srcdoc = text; document.body.append(frame); })",
        whole,
    )
    frame = page.frames[1]
    frame.wait_for_selector("body[data-feature='8']")
    frame.locator("#next").click()
    frame.wait_for_selector("body[data-feature='9']")
    frame.locator("#shown a").first.click()
    frame.wait_for_selector("body:not([data-feature='9'])")
    assert "Nearest in other SAEs" not in frame.inner_text("#shown")
    assert said == [] and [url for url in fetched if not url.startswith("data:")] == [page.url]
    page.close()
