"""Snapshots are on a frontier only where a number of tokens is asked for; then they are SAEs as any others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from damage import flip
from mlflow_stores import new_store
from recorder import NEWER, assert_same_weights
from trials import FINGERPRINT, begin, evaluation, expand, finish, finish_with_snapshots, random_sae, row_metrics

import gsae_ray
from gsae_ray.cli.main import main
from gsae_ray.errors import UserError
from gsae_ray.evaluation.metrics import Evaluation
from gsae_ray.results.push import push
from gsae_ray.results.sums import sums_of_rows
from gsae_ray.storage import launch_directory
from gsae_ray.storage.evaluations import EvaluationRequest
from gsae_ray.storage.trial_directory import Trial, TrialDirectory
from gsae_ray.tracking.mirror import Mirror

LONG = expand(l1_coefficient=[1.0, 2.0], snapshots_at=[256, 512])
(SHORT,) = expand("standard", tokens=512)


class Recorded(NamedTuple):
    storage: Path
    uri: str
    directories: dict[str, TrialDirectory]

    @property
    def sources(self) -> list[dict[str, Any]]:
        return [{"storage": self.storage}, {"tracking_uri": self.uri}]


def measured(l0: float) -> Evaluation:
    """The evaluation of a snapshot; by the clean model's losses contexts are known again."""
    found = evaluation(l0=l0, loss_recovered=0.5)
    return found._replace(sequences={**found.sequences, "nll_clean": [3.0, 4.0]})


def record(folder: Path) -> Recorded:
    """Two trials with two snapshots each, and one of half their tokens."""
    sweep, uri = folder / "swept", new_store(folder)
    directories = {trial.name: begin(sweep / "trials", trial, steps=2) for trial in (*LONG, SHORT)}
    for number, trial in enumerate(LONG):
        directory = directories[trial.name]
        directory.append(192, row_metrics(192) | {"train/found_coefficient": 0.5})
        snapshots = {tokens: measured(l0 + number) for tokens, l0 in ((256, 60), (512, 40))}
        finish_with_snapshots(directory, trial, snapshots, l0=20.0 + number, loss_recovered=0.9)
    finish(directories[SHORT.name], SHORT, l0=50, loss_recovered=0.4)
    launch, request = sweep / "launches" / NEWER, EvaluationRequest(FINGERPRINT, (None,), (256, 512))
    launch.mkdir(parents=True)
    identities = {trial.name: trial.identity for trial in (*LONG, SHORT)}
    launch_directory.LAUNCH.write(launch / "launch.json", {"sweep": {"name": "swept"}, "trials": identities})
    launch_directory.write_request(launch, request)
    mirror = Mirror(uri, "swept", NEWER, request)
    mirror.open_launch("swept", {})
    mirror.sync([Trial(trial, directories[trial.name]) for trial in (*LONG, SHORT)])
    mirror.close("FINISHED")
    return Recorded(folder, uri, directories)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    folder = tmp_path_factory.mktemp("snapshots")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # MLflow puts the artifacts of an SQLite store into the working directory
        yield record(folder)


def told(rows: pd.DataFrame) -> list[tuple[int, bool, float, bool]]:
    return list(rows[["tokens", "snapshot", "l0", "on_frontier"]].itertuples(index=False, name=None))


def test_none_is_shown_or_chosen_unless_tokens_are_asked_for(recorded: Recorded) -> None:
    for source in recorded.sources:
        rows = gsae_ray.frontier("swept", **source)
        assert told(rows) == [(512, False, 50, True), (1024, False, 20, True), (1024, False, 21, False)]
        assert not any("snapshot" in note for note in rows.attrs["notes"])
        candidates = gsae_ray.candidates("swept", tokens="1024", max_l0=100, **source)
        assert not candidates["snapshot"].any() and "snapshot" not in candidates.attrs["choice"]


def test_those_of_a_number_of_tokens_share_a_frontier_with_what_was_trained_for_so_many(recorded: Recorded) -> None:
    for source in recorded.sources:
        rows = gsae_ray.frontier("swept", tokens=512, **source)
        assert told(rows) == [(512, True, 40, True), (512, True, 41, False), (512, False, 50, False)]
        assert rows["trial"].tolist() == [LONG[0].name, LONG[1].name, SHORT.name]
        assert rows["found_coefficient"].isna().all(), "that is known of the end"
        (note,) = [note for note in rows.attrs["notes"] if "snapshot" in note]
        assert note.startswith(
            "2 of 3 SAEs are snapshots of longer trainings, from before the end of their learning-rate"
        )
        early = gsae_ray.frontier("swept", tokens="256", **source)
        assert told(early) == [(256, True, 60, True), (256, True, 61, False)]
        everything = gsae_ray.frontier("swept", tokens="all", **source)
        assert [row[:3] for row in told(everything)] == [
            *((1024, False, 20), (1024, False, 21), (512, True, 40), (512, True, 41), (512, False, 50)),
            *((256, True, 60), (256, True, 61)),
        ]
        with pytest.raises(UserError, match=r"^tokens: no SAE was trained on 300; .*256.*512.*1024"):
            gsae_ray.frontier("swept", tokens=300, **source)


def test_storage_tells_the_same_as_mlflow(recorded: Recorded) -> None:
    for tokens in (None, 256, 512, "all"):
        mine, theirs = (gsae_ray.frontier("swept", tokens=tokens, **source) for source in recorded.sources)
        pd.testing.assert_frame_equal(mine.drop(columns="run_id"), theirs.drop(columns="run_id"))
        assert mine.attrs["notes"] == theirs.attrs["notes"]
    mine, theirs = (gsae_ray.frontier("swept", tokens="all", **source) for source in recorded.sources)
    for rows in (mine, theirs):
        sums = sums_of_rows(rows, recorded.uri)
        assert [np.sum(s["active"]) / np.sum(s["rows"]) for s in sums] == pytest.approx(rows["l0"].tolist())


def test_the_best_may_be_a_snapshot_which_is_fetched_and_says_so(recorded: Recorded, tmp_path: Path) -> None:
    for number, source in enumerate(recorded.sources):
        sae = gsae_ray.best("swept", tokens=512, max_l0=45, **source)
        assert_same_weights(sae, random_sae(LONG[0], seed=512))
        assert sae.cfg.metadata["frontier"]["snapshot"] is True
        assert sae.cfg.metadata["choice"].endswith(
            "it is a snapshot, from before the end of its learning-rate schedule"
        )
        option, value = next(iter(source.items()))
        where = [f"--{option.replace('_', '-')}", str(value)]
        out = tmp_path / str(number)
        command = ["best", "swept", "--tokens", "512", "--max-l0", "45", "--out", str(out), *where]
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.output
        assert done.output.startswith(f"{LONG[0].name} (snapshot at 512 tokens): L0 40.00")
        assert_same_weights(gsae_ray.load(out), sae)
        assert json.loads((out / "cfg.json").read_text())["gsae"]["metadata"]["frontier"]["tokens"] == 512


def test_the_command_prints_them_beside_what_was_trained(recorded: Recorded) -> None:
    command = ["frontier", "swept", "--storage", str(recorded.storage)]
    done = CliRunner().invoke(main, [*command, "--tokens", "512"])
    assert done.exit_code == 0, done.output
    assert "snapshot" in done.stdout and done.stdout.count("true") == 2
    assert "snapshots of longer trainings" in done.stderr
    assert "snapshot" not in CliRunner().invoke(main, command).output


def test_a_snapshot_is_published_as_it_is(recorded: Recorded, tmp_path: Path) -> None:
    push("swept", "owner/saes", tokens=512, tracking_uri=recorded.uri, dry_run=tmp_path / "out")
    (folder,) = (tmp_path / "out").glob("*/*/l0_*")
    assert_same_weights(gsae_ray.load(folder), random_sae(LONG[0], seed=512))


def test_a_damaged_snapshot_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recorded = record(tmp_path)
    for directory in recorded.directories.values():
        for file in directory.path.glob("snapshots/512/sae_weights.safetensors"):
            flip(file)
    with pytest.raises(UserError, match=r"snapshots/512: these files are damaged; this snapshot is not shown any more"):
        gsae_ray.best("swept", tokens=512, max_l0=45, storage=tmp_path)
    for file in (tmp_path / "mlruns").rglob("snapshots/512/sae_weights.safetensors"):
        flip(file)
    with pytest.raises(UserError, match=r"^best: the SAE of run \w+ is damaged"):
        gsae_ray.best("swept", tokens=512, max_l0=45, tracking_uri=recorded.uri)
