"""A report: what it says, that it stays small, and that nothing in it can be taken for HTML."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from recorder import NEWER
from reports import SERVER, SITES, made_up, made_up_rows, training
from trials import FINGERPRINT, SITE_1, begin, expand, finish, row_metrics

import gsae_ray
from gsae_ray.activations.production_log import PRODUCTION_LOG, ProductionLog
from gsae_ray.driver.report import write_report
from gsae_ray.errors import UserError
from gsae_ray.results.frontier import frontier
from gsae_ray.results.frontier_table import FrontierTable
from gsae_ray.results.palette import COLOURS, MARKS, log_ticks, styles
from gsae_ray.results.plots import save_frontier
from gsae_ray.results.report import write
from gsae_ray.results.report.contents import answer, gather
from gsae_ray.results.report.data import grid_of, trainings_of
from gsae_ray.results.report.page import render
from gsae_ray.results.report.records import hours
from gsae_ray.storage.event_log import EventLog
from gsae_ray.storage.launch_directory import EVALUATED, LAUNCH
from gsae_ray.storage.stopped import Stop, StoppedTrials

EVIL = "</script><script>alert('x')</script><img src=x onerror=alert(1)>"


class _Page(HTMLParser):
    """The elements of a page, and the text of its tables and scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.data = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][1].get("id") == "data":
            self.data += data
        elif self.tags and self.tags[-1][0] not in ("script", "style"):
            self.texts.append(data.strip())


@pytest.fixture(scope="module")
def page() -> _Page:
    rows = made_up_rows(rates=[1e-3, 3e-3], seeds=2, references=2)
    return _Page(render(made_up(rows, failures=[("gated-l9", "loss is NaN at step 12")])))


def test_the_answer_comes_first_and_the_parts_follow_in_order(page: _Page) -> None:
    heads = [page.texts.index(head) for head in ("Answer", "Frontier", "A closer look", "What failed", "Cost")]
    assert heads == sorted(heads)
    sentence = page.texts[heads[0] + 1 : heads[1]]
    assert any(re.fullmatch(r"gated needs 0\.\d\d× the active features of standard at .*", text) for text in sentence)
    assert "loss is NaN at step 12" in page.texts[heads[3] : heads[4]]
    assert any("tried, is the best for" in text for text in page.texts), "notes on edges of grids"


def test_the_table_has_every_sae_with_its_interval_and_its_run(page: _Page) -> None:
    rows = made_up_rows(rates=[1e-3, 3e-3], seeds=2, references=2)
    assert set(rows["trial"]) - {""} <= set(page.texts)
    assert f"{rows['l0'][0]:.4g} [{rows['l0_low'][0]:.4g}, {rows['l0_high'][0]:.4g}]" in page.texts
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert sorted(map(str, links)) == sorted(f"{SERVER}run{number}" for number in range(len(rows)))


def test_the_coefficient_that_was_found_for_a_target_l0_is_in_the_table() -> None:
    rows = made_up_rows()
    found = rows.assign(found_coefficient=[2.71828, *[math.nan] * (len(rows) - 1)])
    texts = _Page(render(made_up(found))).texts
    assert "found coefficient" in texts and "2.718" in texts and "nan" not in texts
    assert "found coefficient" not in _Page(render(made_up(rows))).texts


def test_every_chart_has_a_name_and_its_rows(page: _Page) -> None:
    data = json.loads(page.data)
    named = [attributes for tag, attributes in page.tags if attributes.get("role") == "img"]
    assert len(named) == len(data["charts"]) and all(attributes["aria-label"] for attributes in named)
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {chart["id"] for chart in data["charts"]} <= ids
    frontiers = [chart["where"] for chart in data["charts"] if chart["id"].startswith("frontier-")]
    assert frontiers == [{"site": site} for site in SITES]
    expected = {
        "snapshots-quality",
        "snapshots-fvu",
        "snapshots-l0",
        "quality-gamma",
        "quality-fvu",
        "quality-density",
        "training-loss",
        "grid-0",
        "grid-1",
    }
    assert expected <= {chart["id"] for chart in data["charts"]}
    assert [sae["own"] for sae in data["saes"]].count(False) == 2
    assert {row["tokens"] for row in data["snapshots"]} == {100_000, 400_000}
    assert len(data["snapshots"]) == 2 * 2 * sum(sae["own"] for sae in data["saes"])
    assert len(data["grid"]) == 2 * 2 * 3 * 2 and {cell["seeds"] for cell in data["grid"]} == {2}


def test_seeds_of_one_setting_are_one_point_with_a_spread(page: _Page) -> None:
    rows = made_up_rows(rates=[1e-3, 3e-3], seeds=2, references=2)
    data = json.loads(page.data)
    drawn = [sae for sae in data["saes"] if sae["own"]]
    assert len(drawn) == 2 * 2 * 3 * 2
    pair = rows[rows["trial"].str.startswith(f"gated-l4-{SITES[0]}-lr0.001-s")]
    l0, gamma = pair["l0"], pair["gamma"]
    here = [sae for sae in drawn if sae["site"] == SITES[0] and sae["kind"] == "gated"]
    (point,) = (sae for sae in here if sae["l0"] == pytest.approx(l0.mean(), rel=1e-4))
    assert point["l0_high"] - point["l0_low"] == pytest.approx(2 * l0.std(), rel=1e-2)
    assert point["gamma_high"] - point["gamma_low"] == pytest.approx(2 * gamma.std(), rel=1e-2)
    assert point["told"]["seeds"] == "2" and "and 1 more: mean" in point["told"]["title"]
    assert any("one standard deviation to either side" in text for text in page.texts)
    assert not [chart["id"] for chart in data["charts"] if "spread" in chart["id"]]
    alone = json.loads(_Page(render(made_up())).data)["saes"][0]
    assert alone["gamma_low"] == pytest.approx(0.98 * alone["gamma"], rel=1e-4), "one seed has its interval"


def test_nothing_is_fetched(page: _Page) -> None:
    """Only the links of the table lead elsewhere; the browser is told so."""
    assert not any("src" in attributes for _, attributes in page.tags)
    fetched = [attributes for tag, attributes in page.tags if tag == "link"]
    assert fetched == [{"rel": "icon", "href": "data:,"}]
    policies = [attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes]
    assert policies and str(policies[0]).startswith("default-src 'none'")


def test_names_notes_and_errors_are_text_whatever_is_in_them() -> None:
    rows = made_up_rows(name=EVIL + "{kind}{sparsity}", references=1)
    rows["origin"] = rows["origin"].replace("elsewhere/0", EVIL)
    rows.attrs["notes"] = [EVIL]
    html = render(made_up(rows, failures=[(EVIL, EVIL)]))
    harmless = _Page(html)
    assert "alert('x')</script>" not in html
    assert "img" not in {tag for tag, _ in harmless.tags}
    assert harmless.texts.count(EVIL) >= 3
    assert [tag for tag, _ in harmless.tags].count("script") == 3
    assert json.loads(harmless.data)["saes"][0]["told"]["title"].startswith(EVIL)


def test_a_report_of_two_hundred_saes_is_below_three_megabytes() -> None:
    rows = made_up_rows(sparsities=[1 + 0.25 * n for n in range(25)], seeds=2)
    assert len(rows) == 200
    assert 1_000_000 < len(render(made_up(rows, points=1000)).encode()) < 3_000_000


def test_a_measured_column_that_we_do_not_know_of_has_a_chart() -> None:
    rows = made_up_rows().assign(probe_auc=0.8)
    charts = json.loads(_Page(render(made_up(rows))).data)["charts"]
    assert "quality-probe_auc" in {chart["id"] for chart in charts}


def test_without_a_language_model_the_frontier_is_of_explained_variance() -> None:
    rows = made_up_rows(references=1).drop(columns=["loss_recovered_low", "loss_recovered_high"])
    rows = rows.assign(loss_recovered=float("nan"), kl=float("nan"), mcc=0.7, true_l0=12.0)
    data = json.loads(_Page(render(made_up(rows))).data)
    charts = {chart["id"]: chart for chart in data["charts"]}
    assert charts["frontier-0"]["label"].startswith("explained variance against L0 at")
    assert {"quality-gamma", "quality-mcc"} <= charts.keys() and not {"quality-kl", "quality-fvu"} & charts.keys()
    sae = data["saes"][0]
    assert sae["quality"] == pytest.approx(1 - rows["fvu"][0], rel=1e-4)
    assert sae["quality_low"] == pytest.approx(1 - rows["fvu_high"][0], rel=1e-4)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"architecture": "gated"}, "All SAEs here are gated: there is nothing to compare them with."),
        ({"recipe": ["paper/a", "paper/b"] * 6}, "These SAEs cannot be compared: recipe: "),
    ],
)
def test_where_kinds_cannot_be_compared_a_line_says_so(change: dict[str, Any], expected: str) -> None:
    first, *spans = answer(made_up_rows().assign(**change), None)
    assert first.startswith(expected)
    assert len(spans) == 2 and all(re.match(r"At \S+ the frontier of 3 SAEs goes from L0 15 ", span) for span in spans)


def test_without_standard_saes_another_kind_is_the_base_and_tokens_are_compared_apart() -> None:
    few, many = made_up_rows(["topk", "batchtopk"]), made_up_rows(["topk", "batchtopk"]).assign(tokens=800_000)
    told = answer(pd.concat([few, many], ignore_index=True), None)
    assert len(told) == 4 and all(line.startswith("topk needs ") and " of batchtopk " in line for line in told)
    assert [line[-16:] for line in told] == ["(400,000 tokens)"] * 2 + ["(800,000 tokens)"] * 2


def test_a_cell_of_a_grid_counts_seeds_and_not_saes() -> None:
    rows = made_up_rows(rates=[1e-3, 3e-3], seeds=2)
    twice = pd.concat([rows, rows.assign(batch_size=256)], ignore_index=True)
    assert set(grid_of(twice.assign(quality=twice["loss_recovered"], kind=twice["architecture"]))["seeds"]) == {2}
    charts = {chart["id"]: chart for chart in json.loads(_Page(render(made_up(rows))).data)["charts"]}
    assert charts["grid-0"]["spec"]["encoding"]["x"]["title"] == "λ, k or target L0"


def test_trainings_are_thinned_to_first_last_and_what_lies_between() -> None:
    rows = made_up_rows().assign(run_id="a", kind="gated").head(1)
    (drawn,) = trainings_of(rows, {"a": training(5000)})
    assert len(drawn["tokens"]) == 100 and drawn["tokens"][0] == 1000 and drawn["tokens"][-1] == 5_000_000
    assert len(drawn["loss"]) == len(drawn["active"]) == len(drawn["dead"]) == 100
    assert trainings_of(rows, {"a": {}}) == []


def test_snapshots_are_neither_trainings_nor_saes_that_were_trained() -> None:
    whole = made_up()
    early = whole.over_tokens[whole.over_tokens["snapshot"]]
    shown = [_Page(render(whole))]
    for rows in (whole.over_tokens, early):  # --tokens all, and the tokens of the snapshots
        rows = FrontierTable(rows.reset_index(drop=True))
        rows.attrs["notes"] = []
        shown.append(_Page(render(dataclasses.replace(whole, rows=rows))))
    for page in shown:
        assert len(json.loads(page.data)["trainings"]) == len(whole.rows)
        cost = page.texts[page.texts.index("Cost") :]
        assert cost[cost.index("SAEs trained") + 1] == f"{len(whole.rows)}"
        assert cost[cost.index("tokens trained on, over all SAEs") + 1] == f"{len(whole.rows) * 400_000:,}"


def test_trial_hours_are_those_of_the_trials_own_clocks() -> None:
    assert hours(training(3600)) == pytest.approx(1)


def test_kinds_differ_in_colour_and_mark() -> None:
    names = [f"kind {number}" for number in range(len(COLOURS) * len(MARKS))]
    found = styles(names, ["other"])
    assert len({found[name] for name in names}) == len(names)
    assert len({found[name].colour for name in names[: len(COLOURS)]}) == len(COLOURS)
    assert found["other"].colour is None


@pytest.mark.parametrize(("low", "high"), [(1, 1000), (7, 40), (20, 60), (30, 41), (0.02, 0.2), (99, 101), (3, 2e6)])
def test_a_log_axis_has_three_round_numbers_or_more(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert 3 <= len(ticks) <= 11 and ticks == sorted(ticks)
    assert low <= ticks[0] and ticks[-1] <= high and all(len(f"{tick:g}") <= 6 for tick in ticks)


def stored(root: Path) -> str:
    """A launch in a storage, of two trials that came through and one that failed, whose name it returns."""
    *trials, bad = expand("gated", l1_coefficient=[1.0, 2.0, 4.0])
    for trial, l0 in zip(trials, (20.0, 10.0), strict=True):
        finish(begin(root / "swept/trials", trial, steps=3), trial, l0=l0)
    begin(root / "swept/trials", bad).fail("loss is NaN")
    folder = root / "swept/launches" / NEWER
    folder.mkdir(parents=True)
    sweep = {"name": "swept", "model": {"name": "builtin"}, "dataset": {"name": "text"}, "activations": None}
    identities = {trial.name: trial.identity for trial in (*trials, bad)}
    LAUNCH.write(folder / "launch.json", {"sweep": sweep, "trials": identities})
    EVALUATED.write(folder / "evaluation.json", {"fingerprint": FINGERPRINT, "encoders": [None]})
    PRODUCTION_LOG.write(folder / "record.json", ProductionLog(produced={0: 1, 1: 2}, evaluations=2))
    return bad.name


def test_trials_that_were_stopped_or_failed_are_told_and_cost_what_they_trained(tmp_path: Path) -> None:
    bad = stored(tmp_path)
    beaten, *_ = expand("gated", l1_coefficient=[8.0])
    directory = begin(tmp_path / "swept/trials", beaten)
    for tokens in (64, 128):
        directory.append(tokens, row_metrics(tokens) | {"train/tokens_per_s": 64 / 3600})
    folder = tmp_path / "swept/launches" / NEWER
    found = LAUNCH.read(folder / "launch.json")
    assert found is not None
    LAUNCH.write(folder / "launch.json", {**found, "trials": {**found["trials"], beaten.name: beaten.identity}})
    stop: Stop = {"tokens": 64, "l0": 25.0, "quality": 0.6, "by": ["a"], "by_l0": 20.0, "by_quality": 0.9}
    StoppedTrials(folder).create(beaten.name, stop)
    contents = gather("swept", storage=tmp_path)
    assert contents.stopped == [(beaten.name, "stopped at 64 tokens: L0 25, quality 0.6000; a had L0 20, 0.9000")]
    assert contents.trial_hours == pytest.approx(2), "64 tokens an hour, twice; the others did not log their speed"
    page = _Page(render(contents))
    assert page.texts.index(bad) < page.texts.index(beaten.name) < page.texts.index("Cost")
    cost = page.texts[page.texts.index("Cost") :]
    assert cost[cost.index("SAEs trained") + 1] == "2, 1 stopped, 1 failed"
    assert cost[cost.index("tokens trained on, over all SAEs") + 1] == f"{2 * 1024 + 128:,}"
    assert gather("swept", storage=tmp_path, site=SITE_1).stopped == contents.stopped


def launch_in(root: Path, shown: list[str]) -> Any:
    """As much of a launch as its report takes; what it says is shown."""
    folder = root / "swept/launches" / NEWER
    folder.mkdir(parents=True, exist_ok=True)
    return SimpleNamespace(
        id=NEWER,
        folder=root / "swept",
        own_folder=folder,
        log=EventLog(folder / "events.jsonl", shown.append),
        prepared=SimpleNamespace(sweep=SimpleNamespace(experiment_name="swept")),
    )


def test_a_report_is_gathered_from_storage(tmp_path: Path) -> None:
    """What the launch was, trainings, failures and costs; pages where they are known otherwise."""
    bad = stored(tmp_path)
    found = gather("swept", storage=tmp_path, pages=lambda row: f"http://there/{row['l0']:g}")
    assert found.title == "swept: model builtin, data text, 1,024 tokens"
    assert found.about.counters == {"forward_ratio": 1.5, "evaluations": 2}
    assert [training["l0"] for training in found.trainings.values()] == [[(64, 64), (128, 128), (192, 192)]] * 2
    assert found.failures == [(bad, "loss is NaN")]
    assert sorted(found.pages.values()) == ["http://there/10", "http://there/20"] and found.missing == []
    html = gsae_ray.report("swept", tmp_path / "report.html", storage=tmp_path).read_text()
    assert html.startswith("<!doctype html>")
    svg = gsae_ray.plot("swept", tmp_path / "frontier.svg", storage=tmp_path).read_text()
    assert ">swept: model builtin, data text, 1,024 tokens</text>" in svg


def test_a_launch_links_each_sae_to_its_run_and_counts_what_it_counted(tmp_path: Path) -> None:
    stored(tmp_path)
    shown: list[str] = []
    in_mlflow = frontier("swept", storage=tmp_path).assign(run_id=["run of L0 10", "run of L0 20"])
    counters = {"forward_ratio": 1.25, "peak_activation_bytes": math.nan}
    launch = launch_in(tmp_path, shown)
    out = write_report(launch, in_mlflow, counters, lambda run: f"http://there/#/{run}")
    assert shown == [] and out == launch.own_folder / "report.html"
    page = _Page((launch.own_folder / "report.html").read_text())
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == ["http://there/#/run of L0 10", "http://there/#/run of L0 20"]
    assert "1.25" in page.texts


def test_a_launch_goes_on_where_there_is_no_report_and_says_so(tmp_path: Path) -> None:
    shown: list[str] = []
    assert write_report(launch_in(tmp_path, shown), made_up_rows(), {}, lambda _: None) is None
    assert shown[0].startswith("there is no report of this launch: --storage: no launch in ")


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    nowhere = f"sqlite:///{tmp_path}/nowhere.db"
    for make, name in ((gsae_ray.report, "r.html"), (gsae_ray.plot, "f.png")):
        with pytest.raises(UserError, match=r"^--out: there is no folder .*/there; make it, or give another file$"):
            make("nothing", tmp_path / "there" / name, tracking_uri=nowhere)
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match=r"^--out: .* is a folder; give a file$"):
            make("nothing", tmp_path / name, tracking_uri=nowhere)


def test_what_is_there_stays_whole_where_a_new_one_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: dict[str, Callable[[Path], None]]
    files = {"r.html": lambda out: write(made_up(), out), "f.svg": lambda out: save_frontier(made_up_rows(), out)}

    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr("os.fsync", full)
    for name, write_it in files.items():
        (tmp_path / name).write_text("as it was")
        with pytest.raises(OSError, match="no space"):
            write_it(tmp_path / name)
        assert (tmp_path / name).read_text() == "as it was"
    assert len(list(tmp_path.iterdir())) == 2, "nothing is left beside them"


def test_what_is_no_html_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--out: report.pdf does not end in .html"):
        gsae_ray.report("nothing", tmp_path / "report.pdf", tracking_uri=f"sqlite:///{tmp_path}/nowhere.db")
    with pytest.raises(UserError, match=r"^--out: frontier.gif ends in none of .png, .svg, .pdf"):
        gsae_ray.plot("nothing", tmp_path / "frontier.gif", tracking_uri=f"sqlite:///{tmp_path}/nowhere.db")
