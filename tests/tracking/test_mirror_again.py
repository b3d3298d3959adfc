"""What is damaged or evaluated again: its run says so, and gets the new values."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest
from added_metric import added_metric
from damage import DAMAGES, flip
from mirrors import ONE, TRIALS, Server, fail_in_call, pair
from trials import FINGERPRINT, REQUEST, evaluation, finish

from gsae_ray.evaluation.metrics import METRICS, schema_version
from gsae_ray.results.outcomes import MLflowOutcomes
from gsae_ray.saes.folder import content_hash
from gsae_ray.storage.trial_directory import Trial
from gsae_ray.tracking.artifacts import download_sae
from gsae_ray.tracking.tags import CONTENT, FAILURE, SCHEMA


def test_a_run_carries_the_hash_of_its_sae(server: Server, tmp_path: Path) -> None:
    trial, directory = pair(tmp_path)
    finish(directory, trial)
    server.mirror().sync([Trial(trial, directory)])
    run = server.run()
    folder = download_sae(server.client, run.info.run_id, tmp_path)
    assert content_hash(folder) == content_hash(directory.path / "sae") == run.data.tags[CONTENT]


@pytest.mark.parametrize("damaged", ["sae/sae_weights.safetensors", "metrics-1.jsonl"])
def test_one_damaged_trial_never_stops_another_from_being_mirrored(
    server: Server, tmp_path: Path, damaged: str
) -> None:
    pairs = [pair(tmp_path, 2, trial) for trial in TRIALS]
    for trial, directory in pairs:
        finish(directory, trial)
    flip(pairs[0][1].path / damaged)
    mirror = server.mirror()
    mirror.sync(pairs)
    found = {run.info.run_name: run for run in server.runs()}
    assert {name: run.info.status for name, run in found.items()} == {
        trial.name: "FAILED" if trial is ONE else "FINISHED" for trial in TRIALS
    }
    line = f"{pairs[0][1].path / damaged}: this file is damaged; the same command trains this SAE again"
    assert mirror.damaged == {ONE.name: line}
    assert found[ONE.name].data.tags[FAILURE] == line
    assert CONTENT not in found[ONE.name].data.tags


def test_a_damaged_evaluation_is_made_again_and_never_nan_for_good(server: Server, tmp_path: Path) -> None:
    trial, directory = pair(tmp_path)
    finish(directory, trial)
    (path,) = directory.path.glob("evaluations/*")
    mirror = server.mirror()
    for damage in DAMAGES.values():
        damage(path)
        assert directory.status(REQUEST).missing == (None,)
        mirror.sync([Trial(trial, directory)])
        assert server.run().info.status == "RUNNING"
        directory.save_evaluation(FINGERPRINT, trial.training.tokens, evaluation(l0=21))
    mirror.sync([Trial(trial, directory)])
    assert server.run().info.status == "FINISHED"
    assert server.run().data.metrics["eval/l0"] == 21


def test_a_trial_whose_description_is_gone_is_mirrored(server: Server, tmp_path: Path) -> None:
    trial, directory = pair(tmp_path)
    finish(directory, trial)
    (directory.path / "trial.json").unlink()
    server.mirror().sync([Trial(trial, directory)])
    assert server.run().info.status == "FINISHED"


def test_a_finished_run_gets_the_metrics_that_evaluations_of_before_did_not_have(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, directory = pair(tmp_path, 2)
    finish(directory, trial)
    server.mirror().sync([Trial(trial, directory)])
    before = server.run()
    assert before.data.tags[SCHEMA] == str(schema_version())
    added_metric(monkeypatch)
    mirror = server.mirror()
    mirror.sync([Trial(trial, directory)])  # while its evaluation is still to be made again
    mirror.close("KILLED")
    assert server.run().info.status == "FINISHED" and server.run().data.metrics == before.data.metrics
    directory.save_evaluation(FINGERPRINT, 1024, evaluation(norm_ratio=0.75))
    server.mirror().sync([Trial(trial, directory)])
    run = server.run()
    assert run.info.run_id == before.info.run_id and run.info.status == "FINISHED"
    assert run.data.tags[SCHEMA] == str(schema_version())
    assert run.data.metrics == before.data.metrics | {"eval/norm_ratio": 0.75}
    assert server.steps() == [64, 128]


def test_a_finished_run_gets_the_new_values_of_metrics_whose_formula_has_changed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their steps are those of the old values."""
    trial, directory = pair(tmp_path, 2)
    directory.append(192, {"eval/fvu": 0.5})  # an evaluation while it is trained
    finish(directory, trial, pursuit={4: evaluation(l0=3), 16: evaluation(l0=15)})
    encoders = (None, 4, 16)
    server.mirror(encoders=encoders).sync([Trial(trial, directory)])
    before = server.run()
    monkeypatch.setitem(METRICS, "fvu", dataclasses.replace(METRICS["fvu"], since=schema_version() + 1))
    time.sleep(0.002)  # made later
    directory.save_evaluation(FINGERPRINT, 1024, evaluation(fvu=0.25))
    for l0, fvu in ((4, 0.05), (16, 0.5)):  # less and more than before
        directory.save_evaluation(FINGERPRINT, 1024, evaluation(l0=l0 - 1, fvu=fvu), l0)
    failing = server.mirror(encoders=encoders)
    failing.client.set_tag = fail_in_call(failing.client.set_tag, 1)  # the values are there, and not yet said to be
    with pytest.raises(ConnectionError):
        failing.sync([Trial(trial, directory)])
    for _ in range(2):
        server.mirror(encoders=encoders).sync([Trial(trial, directory)])
    run = server.run()
    assert run.info.run_id == before.info.run_id and run.data.tags[SCHEMA] == str(schema_version())
    assert run.data.metrics == before.data.metrics | {"eval/fvu": 0.25, "pursuit/fvu": 0.5}
    values = [(step, value) for step, _, value in server.history(run, "eval/fvu")]
    assert values == [(192, 0.5), (1024, 0.1), (1024, 0.25)]
    values = [(step, value) for step, _, value in server.history(run, "pursuit/fvu")]
    assert values == [(4, 0.1), (4, 0.05), (16, 0.1), (16, 0.5)]
    (read,) = MLflowOutcomes(server.uri, server.experiment).finished(None)
    assert read.evaluation["fvu"] == 0.25
    assert MLflowOutcomes(server.uri, server.experiment).pursuit(read)[4]["fvu"] == 0.05
    assert server.steps("train/loss") == [64, 128]
