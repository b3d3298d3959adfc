"""The frontier of a sweep, read from storage: what MLflow tells too, and damaged files."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from damage import COMMON, Damage, cut
from recorder import GATED_1, GATED_2, NEWER, OLDER, End, Recorder, ends
from trials import FINGERPRINT, SITE_1, SITE_2, begin, evaluation, expand, finish, row_metrics

from gsae_ray import saes
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import UserError
from gsae_ray.results.frontier import frontier
from gsae_ray.storage import launch_directory
from gsae_ray.storage.evaluations import EvaluationRequest
from gsae_ray.storage.references import Reference, add_reference, save_evaluation
from gsae_ray.storage.stopped import Stop, StoppedTrials
from gsae_ray.storage.trial_directory import Trial
from gsae_ray.tracking.mirror import Mirror
from gsae_ray.tracking.references import record_references


def expected_references(options: dict[str, Any]) -> list[float]:
    """The L0s of those that are shown: both are at site 1."""
    if options.get("site") == SITE_2 or options.get("encoder") == "pursuit":
        return []
    return [11] if options.get("launch") == OLDER else [11, 12]


@pytest.mark.slow
def test_storage_tells_the_same_as_mlflow(recorder: Recorder) -> None:
    """The same rows, notes and refusals, but for where each trial is found."""
    storage, uri = recorder.folder / "runs", f"sqlite:///{recorder.folder}/other.db"
    pursuit = {4: evaluation(l0=4.0, loss_recovered=0.8), 16: evaluation(l0=15.5, loss_recovered=math.inf)}
    wide = expand("standard", l1_coefficient=[0.5, 1.0], tokens=2048)
    values: list[tuple[TrialSpec, End]] = [
        *zip(GATED_1, ends((40, 0.96), (20, 0.90), (30, 0.89), (30, 0.7)), strict=True),
        *zip(wide, ends((45, 0.95), (0, 0.5)), strict=True),
        *zip(GATED_2, [*ends((12, 0.80), (8, math.inf)), "failed", "stopped"], strict=True),
    ]
    directories = {}
    for trial, end in values:
        directory = directories[trial.name] = begin(storage / "swept" / "trials", trial, steps=2)
        if isinstance(end, dict):
            finish(directory, trial, FINGERPRINT, pursuit, **end)
        elif end == "failed":
            directory.fail("NaN")
        elif end == "stopped":
            for tokens, l0 in ((150, 35.0), (192, 25.0), (320, 15.0)):  # the last is of after the decision
                directory.append(tokens, {"rung/l0": l0, "rung/loss_recovered": 0.6, "rung/fvu": 0.4})
    launches = {OLDER: values[:3], NEWER: values}
    stopped = StoppedTrials(storage / "swept" / "launches" / NEWER)
    beaten: Stop = {"tokens": 160, "l0": 25.0, "quality": 0.6, "by": ["a"], "by_l0": 20.0, "by_quality": 0.9}
    stopped.create(GATED_2[3].name, beaten)
    for launch, carried in launches.items():
        time.sleep(0.002)
        encoders: list[int | str | None] = [None] if launch == OLDER else [None, *pursuit]
        mirror = Mirror(
            uri, "other experiment", launch, EvaluationRequest(FINGERPRINT, tuple(encoders)), stop_of=stopped.get
        )
        mirror.open_launch("swept", {})
        mirror.sync([Trial(trial, directories[trial.name]) for trial, _ in carried])
        mirror.close("FINISHED")
        folder = storage / "swept" / "launches" / launch
        folder.mkdir(parents=True, exist_ok=True)
        sweep = {"name": "swept", "experiment": "other experiment"}
        identities = {trial.name: trial.identity for trial, _ in carried}
        launch_directory.LAUNCH.write(folder / "launch.json", {"sweep": sweep, "trials": identities})
        launch_directory.EVALUATED.write(folder / "evaluation.json", {"fingerprint": FINGERPRINT, "encoders": encoders})
    of_both = Reference(
        origin="theirs",
        source="/there",
        site=SITE_1,
        trained_at=SITE_2,
        architecture="topk",
        d_in=8,
        d_sae=24,
        sae="1" * 64,
    )
    of_newer: Reference = {**of_both, "origin": "other", "sae": "2" * 64, "trained_at": ""}
    add_reference(storage / "swept" / "launches" / OLDER, {**of_both, "origin": "their old name"})
    save_evaluation(storage, of_both, FINGERPRINT, evaluation(l0=11.0, loss_recovered=0.99))
    add_reference(folder, of_both)
    add_reference(folder, of_newer)
    for launch in launches:
        record_references(uri, "other experiment", storage / "swept" / "launches" / launch, FINGERPRINT)
    assert frontier("other experiment", tracking_uri=uri)["origin"].tolist().count("theirs") == 1, "one is evaluated"
    save_evaluation(storage, of_newer, FINGERPRINT, evaluation(l0=12.0, loss_recovered=0.5, kl=math.inf))
    for _ in range(2):
        record_references(uri, "other experiment", folder, FINGERPRINT)
    questions: list[dict[str, Any]] = [
        {},
        {"launch": "all"},
        {"launch": OLDER},
        {"site": SITE_2},
        {"encoder": "pursuit"},
        {"tokens": "all"},
        {"with_references": True},
        {"tokens": "1024", "with_references": True},
        {"with_stopped": True},
        {"with_stopped": True, "site": SITE_1},
        {"with_stopped": True, "tokens": "1024"},
        {"with_stopped": True, "tokens": "2048"},
    ]
    for options in questions:
        theirs = frontier("other experiment", tracking_uri=uri, **options)
        mine = frontier("other experiment", storage=storage, **options)
        assert len(mine) > 0
        pd.testing.assert_frame_equal(mine.drop(columns="run_id"), theirs.drop(columns="run_id"))
        notes = [n.replace("the tag gsae.failure of its run", "FAILED in its folder") for n in theirs.attrs["notes"]]
        assert mine.attrs["notes"] == notes
        if "with_stopped" in options:
            shown = mine[mine["stopped_at"].notna()]
            elsewhere = "site" in options or options.get("tokens") == "2048"
            assert shown["l0"].tolist() == ([] if elsewhere else [25.0]) and not shown["on_frontier"].any()
            mine = mine.drop(shown.index)
        own = mine[mine["origin"] == "own"]
        assert all(saes.load(Path(folder) / "sae").cfg.d_sae == 16 for folder in own["run_id"])
        theirs = mine.drop(own.index)
        assert theirs["l0"].tolist() == expected_references(options)
        assert theirs["on_frontier"].tolist() == [l0 == 11 and "with_references" in options for l0 in theirs["l0"]]
    with pytest.raises(UserError, match=f"has no run of launch {OLDER}x$"):
        record_references(uri, "other experiment", folder.with_name(f"{OLDER}x"), FINGERPRINT)
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"launch": "none"}, f"launch: no 'none' in 'other experiment'; one of: {NEWER}, {OLDER}"),
        ({"with_stopped": True, "encoder": "pursuit"}, "--stopped: trials are compared with their own encoder"),
        ({"launch": OLDER, "encoder": "pursuit"}, "--encoder: no trial of 'other experiment'"),
    ]
    for options, said in refusals:
        where: dict[str, Any]
        for where in ({"tracking_uri": uri}, {"storage": storage}):
            with pytest.raises(UserError, match=re.escape(said)):
                frontier("other experiment", **options, **where)
    with pytest.raises(UserError, match=r"^experiment: no 'swpet' at .*runs; did you mean 'other experiment'|one of"):
        frontier("swpet", storage=storage)
    with pytest.raises(UserError, match="^--storage: no launch in .*/nowhere; give the folder that `run` was given"):
        frontier("other experiment", storage=storage / "nowhere")
    launch_directory.EVALUATED.write(folder / "evaluation.json", {"fingerprint": "a" * 64, "encoders": [None]})
    directories[GATED_1[0].name].save_evaluation("a" * 64, 1024, evaluation(l0=10.0))
    assert frontier("other experiment", storage=storage)["l0"].tolist() == [10]
    with pytest.raises(UserError, match="were evaluated on different tokens"):
        frontier("other experiment", storage=storage, launch="all")
    (directories[GATED_1[0].name].path / "trial.json").write_text("{")
    with pytest.raises(UserError, match="no run of a sweep, or not a whole one"):
        frontier("other experiment", storage=storage)


@pytest.mark.parametrize("damage", COMMON.values(), ids=COMMON)
def test_the_frontier_of_a_damaged_storage_names_the_file_and_shows_the_rest(tmp_path: Path, damage: Damage) -> None:
    """It says neither that no trial has finished, nor shows an older launch in the newest one's place."""
    finish(begin(tmp_path / "swept/trials", GATED_1[0], steps=2), GATED_1[0], FINGERPRINT)
    for launch in (OLDER, NEWER):
        folder = tmp_path / "swept/launches" / launch
        folder.mkdir(parents=True)
        identities = {GATED_1[0].name: GATED_1[0].identity}
        launch_directory.LAUNCH.write(folder / "launch.json", {"sweep": {"name": "swept"}, "trials": identities})
        launch_directory.EVALUATED.write(folder / "evaluation.json", {"fingerprint": FINGERPRINT, "encoders": [None]})
    damage(folder / "evaluation.json")
    with pytest.raises(UserError, match=rf"^experiment: no trial .*{NEWER}/evaluation.json"):
        frontier("swept", storage=tmp_path)
    rows = frontier("swept", storage=tmp_path, launch="all")
    assert rows["launch"].tolist() == [OLDER]
    (note,) = rows.attrs["notes"]
    assert f"{NEWER}/evaluation.json" in note
    cut(folder / "launch.json")
    rows = frontier("swept", storage=tmp_path)
    assert rows["launch"].tolist() == [OLDER]
    (note,) = rows.attrs["notes"]
    assert f"{NEWER}/launch.json: this file is damaged" in note


def test_architectures_with_sparsities_of_other_kinds_share_a_frontier_without_a_caveat(tmp_path: Path) -> None:
    specs = [*expand(), *expand("topk"), *expand("batchtopk"), *expand("jumprelu")]
    for number, trial in enumerate(specs, start=1):
        finish(
            begin(tmp_path / "swept" / "trials", trial, steps=1), trial, l0=4.0 * number, loss_recovered=0.2 * number
        )
    folder = tmp_path / "swept" / "launches" / NEWER
    folder.mkdir(parents=True)
    identities = {trial.name: trial.identity for trial in specs}
    launch_directory.LAUNCH.write(folder / "launch.json", {"sweep": {"name": "swept"}, "trials": identities})
    launch_directory.EVALUATED.write(folder / "evaluation.json", {"fingerprint": FINGERPRINT, "encoders": [None]})
    rows = frontier("swept", storage=tmp_path)
    assert rows.attrs["notes"] == []
    by_architecture = rows.set_index("architecture")
    assert by_architecture["sparsity"].to_dict() == {"gated": 1, "topk": 4, "batchtopk": 4, "jumprelu": 0.01}
    units = {"gated": "sum", "topk": "", "batchtopk": "", "jumprelu": "square_norm"}
    assert by_architecture["l1_units"].to_dict() == units
    assert set(rows["recipe"]) == {"norm_weighted/modern", "unit_norm/modern"}
    assert rows["on_frontier"].all()


def test_what_was_found_for_an_l0_is_a_column_beside_what_was_asked(tmp_path: Path) -> None:
    (asking,) = expand("standard", l1_coefficient=None, target_l0=8)
    specs = [asking, *expand("standard")]
    for number, trial in enumerate(specs, start=1):
        directory = begin(tmp_path / "swept" / "trials", trial, steps=1)
        found = {"train/found_coefficient": 0.25 * number} if trial is asking else {}
        directory.append(128, row_metrics(128) | found)
        finish(directory, trial, l0=4.0 * number, loss_recovered=0.2 * number)
    folder = tmp_path / "swept" / "launches" / NEWER
    folder.mkdir(parents=True)
    identities = {trial.name: trial.identity for trial in specs}
    launch_directory.LAUNCH.write(folder / "launch.json", {"sweep": {"name": "swept"}, "trials": identities})
    launch_directory.EVALUATED.write(folder / "evaluation.json", {"fingerprint": FINGERPRINT, "encoders": [None]})
    rows = frontier("swept", storage=tmp_path).set_index("trial")
    assert rows.loc[asking.name, "sparsity"] == 8
    assert rows.loc[asking.name, "found_coefficient"] == 0.25
    assert rows.loc[specs[1].name, "sparsity"] == 1 and pd.isna(rows.loc[specs[1].name, "found_coefficient"])
