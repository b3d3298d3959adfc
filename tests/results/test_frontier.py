"""The frontier of a sweep, read from a real MLflow store."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from added_metric import added_metric
from click.testing import CliRunner
from mlflow.tracking import MlflowClient
from recorder import GATED_1, GATED_2, L1, NEWER, OLDER, STANDARD_1, Recorder, ends
from trials import DENSITY, REQUEST, SITE_1, SITE_2, evaluation, expand

from gsae_ray.cli.main import main
from gsae_ray.errors import UserError
from gsae_ray.results.best import best
from gsae_ray.results.columns import columns
from gsae_ray.results.comparison import sequences
from gsae_ray.results.frontier import frontier
from gsae_ray.results.plots import plot_frontier
from gsae_ray.results.report.contents import gather
from gsae_ray.tracking.mirror import Mirror
from gsae_ray.tracking.tags import EVALUATION, KIND, LAUNCH, TRIAL


def trials_of(rows: pd.DataFrame) -> list[str]:
    return rows["trial"].tolist()


@pytest.mark.usefixtures("recorder")
def test_the_newest_launch_is_the_default_and_its_rows_are_whole_and_sorted() -> None:
    rows = frontier("sweep")
    assert rows.columns.tolist() == columns()
    expected = [GATED_1[2], GATED_1[3], GATED_1[1], STANDARD_1[0], GATED_2[0]]
    assert trials_of(rows) == [trial.name for trial in expected]
    assert rows["l0"].tolist() == [20, 30, 40, 45, 12]
    assert rows["on_frontier"].tolist() == [True, False, True, False, True]
    row = rows.iloc[3].to_dict()
    expected_row: dict[str, Any] = {
        "site": SITE_1,
        "architecture": "standard",
        "recipe": "norm_weighted/modern",
        "variant": "",
    }
    expected_row |= {"d_sae": 16, "sparsity": 0.5, "sink_share": 0.25}
    expected_row |= {"lr": 5e-4, "seed": 7, "tokens": 1024, "l0": 45.0, "loss_recovered": 0.95, "gamma": 1.0}
    expected_row |= {"fvu": 0.1, "kl": 0.2, "ce_clean": 3.0, "ce_spliced": 3.4, "ce_zero": 7.0, "alive_fraction": 0.5}
    expected_row |= {**DENSITY, "dead_train": 0.125}
    assert expected_row.items() <= row.items()


def test_the_store_may_be_named_instead(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = frontier("sweep")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    pd.testing.assert_frame_equal(frontier("sweep", tracking_uri=recorder.uri), expected)
    monkeypatch.chdir(recorder.folder)
    pd.testing.assert_frame_equal(frontier("sweep"), expected)


@pytest.mark.usefixtures("recorder")
def test_a_launch_is_chosen_by_its_id() -> None:
    rows = frontier("sweep", launch=OLDER)
    assert rows["l0"].tolist() == [9, 19, 29]
    pd.testing.assert_frame_equal(frontier("sweep", launch=NEWER), frontier("sweep"))


@pytest.mark.usefixtures("recorder")
def test_of_all_launches_a_trial_counts_once_with_its_newest_result() -> None:
    rows = frontier("sweep", site=SITE_1, launch="all")
    assert trials_of(rows) == [t.name for t in (GATED_1[0], GATED_1[2], GATED_1[3], GATED_1[1], STANDARD_1[0])]
    assert rows["l0"].tolist() == [9, 20, 30, 40, 45]


def test_of_all_launches_trials_of_one_name_and_other_settings_are_two(recorder: Recorder) -> None:
    (short,), (long,) = expand(tokens=1024), expand(tokens=2048)
    assert short.name == long.name
    assert short.identity != long.identity
    recorder.record("longer", OLDER, list(zip([short], ends((10, 0.8)), strict=True)))
    recorder.record("longer", NEWER, list(zip([long], ends((20, 0.9)), strict=True)))
    assert frontier("longer", launch="all")["tokens"].tolist() == [1024, 2048]


def test_different_numbers_of_tokens_never_share_a_frontier_without_being_asked(recorder: Recorder) -> None:
    short, long = expand(tokens=1024, l1_coefficient=L1[:3]), expand(tokens=2048, l1_coefficient=L1[:2])
    recorder.record("budgets", OLDER, list(zip(short, ends((30, 0.90), (10, 0.80), (20, 0.79)), strict=True)))
    recorder.record("budgets", NEWER, list(zip(long, ends((25, 0.95), (9, 0.85)), strict=True)))
    rows = frontier("budgets", launch="all")
    assert rows[["tokens", "l0"]].to_numpy().tolist() == [[1024, 10], [1024, 20], [1024, 30], [2048, 9], [2048, 25]]
    assert rows["on_frontier"].tolist() == [True, False, True, True, True], "of each number of tokens"
    (note,) = rows.attrs["notes"]
    assert "1,024 and 2,048 tokens" in note and "--tokens all" in note
    assert set(rows["launch"]) == {OLDER, NEWER}

    mixed = frontier("budgets", launch="all", tokens="all")
    assert mixed["l0"].tolist() == [9, 10, 20, 25, 30]
    assert mixed["on_frontier"].tolist() == [True, False, False, True, False]
    for tokens in (1024, "1024", "1_024"):
        assert frontier("budgets", launch="all", tokens=tokens)["l0"].tolist() == [10, 20, 30]
    with pytest.raises(UserError, match=r"^tokens: no SAE was trained on 512; .*1024, 2048, all"):
        frontier("budgets", launch="all", tokens=512)

    with pytest.raises(UserError, match=r"^tokens: .* 1,024 and 2,048 tokens"):
        best("budgets", launch="all", max_l0=40)
    for tokens, l0 in ((1024, 30), (2048, 25), ("all", 25)):
        assert best("budgets", launch="all", max_l0=40, tokens=tokens).cfg.metadata["frontier"]["l0"] == l0


@pytest.mark.usefixtures("recorder")
def test_what_is_left_out_is_said() -> None:
    notes = frontier("sweep").attrs["notes"]
    assert [note for note in notes if GATED_2[1].name in note and "L0 = 0" in note]
    assert [note for note in notes if GATED_2[2].name in note and "loss recovered nan" in note]
    failed = f"1 trial failed ({GATED_2[3].name}: NaN); why: the tag gsae.failure of its run"
    assert failed in notes
    assert len(notes) == 3
    as_json = CliRunner().invoke(main, ["frontier", "sweep", "--json"])
    assert len(json.loads(as_json.stdout)) == 5 and set(notes) <= set(as_json.stderr.splitlines())
    assert frontier("sweep", launch=OLDER).attrs["notes"] == []


@pytest.mark.usefixtures("recorder")
def test_a_site_is_chosen_by_its_name() -> None:
    rows = frontier("sweep", site=SITE_2)
    assert trials_of(rows) == [GATED_2[0].name]
    assert rows["on_frontier"].tolist() == [True]


def test_where_zero_ablation_costs_nothing_the_frontier_says_so(recorder: Recorder) -> None:
    usual, cheap = ends((10, 0.9)), ends((10, 0.9), ce_clean=3.0, ce_zero=3.049)
    recorder.record("cheap", NEWER, [*zip(GATED_1, usual, strict=False), *zip(GATED_2, cheap, strict=False)])
    (note,) = frontier("cheap").attrs["notes"]
    assert note.startswith(f"{SITE_2}: zero-ablation costs only 0.049 nats")


def test_law_6_different_evaluation_fingerprints_never_share_a_frontier(recorder: Recorder) -> None:
    recorder.record("retokenised", OLDER, list(zip(GATED_1[:1], ends((10, 0.9)), strict=True)), "a" * 64)
    recorder.record("retokenised", NEWER, list(zip(GATED_1[1:2], ends((20, 0.9)), strict=True)), "b" * 64)
    with pytest.raises(UserError, match=r"launch: the launches of 'retokenised' were evaluated on different tokens"):
        frontier("retokenised", launch="all")
    assert frontier("retokenised")["l0"].tolist() == [20]
    assert frontier("retokenised", launch=OLDER)["l0"].tolist() == [10]


def test_a_sweep_of_which_nothing_is_usable_has_an_empty_frontier(recorder: Recorder) -> None:
    recorder.record("dead", NEWER, [*zip(GATED_1, ends((0, 0.5)), strict=False)])
    rows = frontier("dead")
    assert rows.empty
    assert rows.columns.tolist() == columns()
    assert len(rows.attrs["notes"]) == 1
    pd.testing.assert_frame_equal(frontier("dead", site=SITE_1), rows)
    with pytest.raises(UserError):
        best("dead", max_l0=40)


@pytest.mark.usefixtures("recorder")
def test_a_frontier_shows_itself_with_what_tells_its_saes_apart() -> None:
    rows = frontier("sweep")
    first, *_ = (line for line in repr(rows).splitlines() if "*" in line and "gated" in line)
    assert "20 [20, 20]" in first and "0.9" in first and SITE_1 in first
    assert f"5 SAEs, * on the frontier; {len(columns())} columns" in repr(rows)
    assert rows.attrs["notes"][0] in repr(rows)
    shown = rows._repr_html_()
    assert "<table" in shown and "data:image/png;base64," in shown
    at_site = rows[rows["site"] == SITE_2]
    assert "one SAE, * on the frontier" in repr(at_site), "what is chosen of a frontier is one"
    assert repr(rows[["l0", "trial"]]) == repr(pd.DataFrame(rows[["l0", "trial"]])), "anything else is a table as any"
    assert "<img" not in rows[["l0"]]._repr_html_() and repr(rows[:0]).startswith("Empty")


# ---- gradient pursuit and sums of each context ----------------------------------------------------------------------


@pytest.mark.usefixtures("recorder")
def test_a_metric_that_is_added_is_a_column_and_saes_evaluated_before_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    before = frontier("sweep")
    added_metric(monkeypatch)
    rows = frontier("sweep")
    assert rows["norm_ratio"].isna().all()
    pd.testing.assert_frame_equal(rows.drop(columns=["norm_ratio", "norm_ratio_low", "norm_ratio_high"]), before)
    *notes, last = rows.attrs["notes"]
    assert notes == before.attrs["notes"]
    assert last == (
        "5 evaluations are of an older version, without norm_ratio; the next launch of the sweep makes them again"
    )


def test_pursuit_has_a_frontier_of_its_own_with_a_row_for_each_target(recorder: Recorder) -> None:
    pursuit = {4: evaluation(l0=4.0, loss_recovered=0.8), 16: evaluation(l0=15.5, loss_recovered=0.95)}
    recorder.record("pursued", NEWER, list(zip(GATED_1[:2], ends((9, 0.85), (19, 0.9)), strict=True)), pursuit=pursuit)
    own, rows = frontier("pursued"), frontier("pursued", encoder="pursuit")
    assert own.columns.tolist() == columns()
    assert own["l0"].tolist() == [9, 19]
    assert rows.columns.tolist() == [*columns(), "pursuit_l0"]
    assert rows["pursuit_l0"].tolist() == [4, 4, 16, 16]
    assert rows["l0"].tolist() == [4, 4, 15.5, 15.5]
    assert rows["loss_recovered"].tolist() == [0.8, 0.8, 0.95, 0.95]
    assert sorted(set(rows["trial"])) == sorted(trial.name for trial in GATED_1[:2])
    assert rows["on_frontier"].all()
    assert frontier("pursued", encoder="pursuit", launch="all")["l0"].tolist() == rows["l0"].tolist()


@pytest.mark.usefixtures("recorder")
def test_where_pursuit_was_not_asked_for_its_frontier_says_how_to_get_it() -> None:
    with pytest.raises(UserError, match=r"^--encoder: no trial of 'sweep' \(launch .*\) .* evaluation.pursuit_l0"):
        frontier("sweep", encoder="pursuit")
    with pytest.raises(UserError, match=r"^--encoder: unknown 'pursut'; did you mean 'pursuit'"):
        frontier("sweep", encoder="pursut")


def test_what_pursuit_leaves_out_is_said_with_its_target(recorder: Recorder) -> None:
    pursuit = {4: evaluation(l0=0.0), 8: evaluation(l0=8.0, loss_recovered=math.nan), 16: evaluation(l0=15.5)}
    recorder.record("half", NEWER, list(zip(GATED_1[:1], ends((9, 0.85)), strict=True)), pursuit=pursuit)
    rows = frontier("half", encoder="pursuit")
    assert rows["pursuit_l0"].tolist() == [16]
    assert [note for note in rows.attrs["notes"] if "pursuit L0 4," in note and "L0 = 0" in note]
    assert [note for note in rows.attrs["notes"] if "pursuit L0 8," in note and "nan" in note]


def test_the_sums_of_each_context_are_fetched_for_a_row(recorder: Recorder) -> None:
    pursuit = {4: evaluation(l0=3.5)}
    recorder.record("sums", NEWER, list(zip(GATED_1[:1], ends((9, 0.85)), strict=True)), pursuit=pursuit)
    run_id = frontier("sums")["run_id"][0]
    for found, expected in ((sequences(run_id), evaluation(l0=9)), (sequences(run_id, pursuit_l0=4), pursuit[4])):
        assert {name: values.tolist() for name, values in found.items()} == expected.sequences
        assert all(values.dtype == np.float64 for values in found.values())
    with pytest.raises(UserError, match=rf"^sequences: run {run_id} has no sums of each context by pursuit at L0 5"):
        sequences(run_id, pursuit_l0=5)
    with pytest.raises(UserError, match=r"^sequences: run nothing has no"):
        sequences("nothing")


def test_the_picture_has_dashed_lines_for_pursuit(recorder: Recorder) -> None:
    pursuit = {4: evaluation(l0=4.0, loss_recovered=0.8), 16: evaluation(l0=15.5, loss_recovered=0.95)}
    trials = [
        *zip(GATED_1[:2], ends((9, 0.85), (19, 0.9)), strict=True),
        *zip(GATED_2[:1], ends((8, 0.8)), strict=True),
    ]
    recorder.record("drawn", NEWER, trials, pursuit=pursuit)
    figure = plot_frontier(frontier("drawn"), frontier("drawn", encoder="pursuit"))
    assert len(figure.axes) == 2
    solid, dashed = (
        next(line for line in figure.axes[0].lines if line.get_label() == label)
        for label in ("gated", "gated, pursuit")
    )
    assert solid.get_linestyle() == "-" and sorted(np.asarray(solid.get_xdata()).tolist()) == [9, 19]
    assert dashed.get_linestyle() == "--" and sorted(set(np.asarray(dashed.get_xdata()).tolist())) == [4, 15.5]
    assert all("pursuit" not in str(line.get_label()) for line in plot_frontier(frontier("drawn")).axes[0].lines)


# ---- what else is in an experiment, and where MLflow is away --------------------------------------------------------


def test_runs_that_no_launch_has_made_are_left_out_with_a_note(recorder: Recorder) -> None:
    """Somebody's own run, a copy without parameters, one without tags, one whose numbers are words."""
    recorder.record("shared", NEWER, list(zip(GATED_1[:1], ends((10, 0.9)), strict=True)))
    client = MlflowClient(recorder.uri)
    experiment = client.get_experiment_by_name("shared").experiment_id
    (row,) = frontier("shared").itertuples()
    whole = client.get_run(row.run_id).data
    tags = {name: value for name, value in whole.tags.items() if name.startswith("gsae.")}
    before = {
        name: value for name, value in whole.params.items() if not name.startswith("sparsity")
    }  # as runs were recorded
    others: list[tuple[dict[str, str], dict[str, str], str]] = [
        ({KIND: "trial"}, {}, ""),
        (tags, {}, "architecture"),
        (tags, before | {"architecture": "mine"}, "mine"),
        (tags, whole.params | {"seed": "none"}, "none"),
        ({KIND: "trial", LAUNCH: NEWER}, whole.params, TRIAL),
        ({name: value for name, value in tags.items() if name != EVALUATION}, whole.params, EVALUATION),
        ({}, {"lr": "1"}, ""),
        ({KIND: "launch"}, {}, ""),
    ]
    notes = {}
    for number, (its_tags, params, missing) in enumerate(others):
        run = client.create_run(experiment, tags=its_tags, run_name=f"mine {number}")
        for name, value in params.items():
            client.log_param(run.info.run_id, name, value)
        client.set_terminated(run.info.run_id, "FINISHED")
        if missing:
            notes[run.info.run_id] = missing
    for launch in (None, "all"):
        rows = frontier("shared", launch=launch)
        assert rows["run_id"].tolist() == [row.run_id]
        for run_id, missing in notes.items():
            (note,) = [note for note in rows.attrs["notes"] if run_id in note]
            assert "is left out: no run of a sweep, or not a whole one" in note and missing in note
    assert best("shared", max_l0=40).cfg.metadata["frontier"]["run_id"] == row.run_id


def test_failed_trials_are_counted_with_the_reasons_of_some(recorder: Recorder) -> None:
    ended = [*zip(GATED_1[:1], ends((10, 0.9)), strict=True), *((t, "failed") for t in (*GATED_1[1:], *GATED_2[:2]))]
    recorder.record("failing", OLDER, ended)
    (note,) = frontier("failing").attrs["notes"]
    assert note.startswith("5 trials failed (") and note.count(": NaN") == 3 and "; and 2 more); why: " in note
    recorder.record("failing", NEWER, list(zip(GATED_1, ends((9, 0.8), (10, 0.9), (11, 0.9), (12, 0.9)), strict=True)))
    assert frontier("failing").attrs["notes"] == []
    (note,) = frontier("failing", launch="all").attrs["notes"]
    assert note.startswith("2 trials failed ("), "those that a newer launch has finished do not count"


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("recorder")
def test_an_unknown_experiment_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"^experiment: no 'sweeep' at .*; did you mean 'sweep'\? \(one of: .*sweep"):
        frontier("sweeep")


@pytest.mark.usefixtures("recorder")
def test_an_unknown_site_names_the_nearest() -> None:
    with pytest.raises(UserError, match=rf"^site: no 'blocks.1.resid_post' in 'sweep'; did you mean '{SITE_1}'"):
        frontier("sweep", site="blocks.1.resid_post")


@pytest.mark.usefixtures("recorder")
def test_an_unknown_launch_names_the_nearest() -> None:
    with pytest.raises(UserError, match=rf"^launch: no '{OLDER[:-1]}' in 'sweep'; did you mean '{OLDER}'"):
        frontier("sweep", launch=OLDER[:-1])


def test_an_experiment_without_runs_or_without_a_finished_trial_says_so(recorder: Recorder) -> None:
    recorder.record("begun", NEWER, [(GATED_1[0], "running"), (GATED_1[1], "failed")])
    end = re.escape(f" has finished yet; 1 trial failed ({GATED_1[1].name}: NaN); why: the tag gsae.failure of its run")
    with pytest.raises(UserError, match=rf"^experiment: no trial of 'begun' \(launch {NEWER}\){end}$"):
        frontier("begun")
    with pytest.raises(UserError, match=rf"^experiment: no trial of 'begun' \(any launch\){end}$"):
        frontier("begun", launch="all")
    Mirror(recorder.uri, "empty", NEWER, REQUEST)
    with pytest.raises(UserError, match=r"^experiment: 'empty' has no runs"):
        frontier("empty")


@pytest.mark.usefixtures("recorder")
def test_where_nothing_was_recorded_is_said_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(UserError, match=rf"^--tracking-uri: nothing has been recorded at {tmp_path}/mlflow.db"):
        frontier("sweep")
    assert list(tmp_path.iterdir()) == []


def test_a_report_is_gathered_from_mlflow(recorder: Recorder) -> None:
    """Of the recorder's trials at a site one came through, each with one metric row; another failed."""
    found = gather("sweep", SITE_2, tracking_uri=recorder.uri)
    assert found.launch == NEWER and found.about.settings == {} and found.pages == {}
    assert [training["l0"] for training in found.trainings.values()] == [[(64, 64.0)]]
    assert found.answer[0] == "All SAEs here are gated: there is nothing to compare them with."
    assert [why for _, why in found.failures] == ["NaN"]
    assert any("forward ratio" in line for line in found.missing)
    assert gather("sweep", launch=OLDER, tracking_uri=recorder.uri).failures == []
    assert gather("sweep", SITE_2, "all", recorder.uri).launch == "all"
