"""A launch, end to end: real Ray processes, the built-in model, a real MLflow store; and the laws that it must keep."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from faults import Home, on_nodes
from golden import ONE_PRODUCER, SWEEP, full_store, parent_run, run
from mlflow.tracking import MlflowClient
from rich.console import Console

import gsae_ray
from gsae_ray.activations.producer import LocalBlockReader, Producer
from gsae_ray.activations.reader import RowStream
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver import launch
from gsae_ray.driver.prepare import PreparedSweep, producer_spec
from gsae_ray.evaluation.task import Evaluate
from gsae_ray.results import sequences
from gsae_ray.results.frontier import frontier
from gsae_ray.results.intervals import interval, of
from gsae_ray.saes import SAE, to_bytes
from gsae_ray.storage.trial_directory import TrialDirectory
from gsae_ray.training.trainer import Trainer

GOLDEN = {  # (layer, architecture) -> L0, loss recovered, γ
    (1, "gated"): (14.37, 0.8485, 1.0244),
    (1, "standard"): (29.06, 0.8358, 0.7995),
    (2, "gated"): (14.29, 0.9477, 1.0280),
    (2, "standard"): (31.84, 0.9430, 0.7783),
}


SNAPSHOTS = [10_000, 30_000]


@pytest.fixture(scope="module")
def sweep() -> dict[str, Any]:
    return {**SWEEP, "training": {**SWEEP["training"], "snapshots_at": SNAPSHOTS}}


def test_every_trial_finishes_and_the_golden_numbers_come_out(launched: launch.SweepResult) -> None:
    """The stated tolerance: L0 within 10 %, loss recovered within 0.01, γ within 0.02, on any CPU."""
    assert launched.failures == {}
    rows = launched.frontier()
    assert len(rows) == 4
    for row in rows.itertuples():
        layer = int(row.site.split(".")[1])
        l0, loss_recovered, gamma = GOLDEN[layer, row.architecture]
        assert row.l0 == pytest.approx(l0, rel=0.1)
        assert row.loss_recovered == pytest.approx(loss_recovered, abs=0.01)
        assert row.gamma == pytest.approx(gamma, abs=0.02)


@pytest.mark.usefixtures("launched")
def test_law_2_a_trial_in_a_sweep_is_the_trial_alone_bit_for_bit(
    plan: PreparedSweep, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = Producer(producer_spec(plan))
    # Once for all trials of a site.
    produce = functools.cache(lambda block, site: Producer.produce(producer, block, [site]))
    monkeypatch.setattr(producer, "produce", lambda block, sites: produce(block, *sites))
    for trial in plan.trials:
        trainer = Trainer(trial, RowStream.of(LocalBlockReader(producer, *trial.sites), plan.layout, trial.sites))
        snapshots: dict[int, SAE] = {}
        while not trainer.done:
            trainer.train_interval(lambda tokens: snapshots.update({tokens: trainer.finished_sae({})}))  # noqa: B023
        folder = home / "runs/golden/trials" / trial.directory_name
        assert list(snapshots) == SNAPSHOTS
        alone = {"sae": trainer.finished_sae({}), **{f"snapshots/{t}": sae for t, sae in snapshots.items()}}
        for name, sae in alone.items():
            assert to_bytes(sae)[1] == to_bytes(gsae_ray.load(folder / name))[1], f"{trial.name}: {name}"


@pytest.mark.usefixtures("launched")
def test_a_saved_sae_tells_saelens_what_it_was_trained_on(plan: PreparedSweep, home: Path) -> None:
    for trial in plan.trials:
        cfg = json.loads((home / "runs/golden/trials" / trial.directory_name / "sae/cfg.json").read_text())
        assert cfg["metadata"] == {
            "sae_lens_version": "6.54.12",
            "training_architecture": trial.architecture,
            "model_name": "builtin",
            "model_class_name": "HookedTransformer",
            "hook_name": trial.site,
            "context_size": 128,
            "dataset_path": "builtin",
            "prepend_bos": False,
            "exclude_special_tokens": True,
            "seqpos_slice": [1, None],
        }


def test_law_3_one_forward_for_all_trials(launched: launch.SweepResult, plan: PreparedSweep) -> None:
    assert launched.forward_ratio == 1.0
    metrics = parent_run(launched).data.metrics
    assert metrics["forward_ratio"] == 1.0
    assert metrics["rows_produced"] == sum(plan.layout.rows)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_law_4_the_store_stays_within_its_budget(home: Path) -> None:
    """A budget of three of five blocks, one trial at a time: more forward passes, never more memory.

    Two of the three are the running trial's window (its block and the next), one stays for the trial after it.
    """
    budget_gib = 3.2 * 8_250 * 128 * 4 / 2**30
    sweep = {
        **ONE_PRODUCER,
        "name": "tight",
        "dataset": {"name": "builtin", "shuffle_tokens": 8192},
        "training": {**SWEEP["training"], "tokens": 40_000},
        "evaluation": {"tokens": 1024},
        "sites": {"layers": [1], "points": ["resid_post"]},
        "producers": {"budget_gib": budget_gib},
        "trials": {"max_concurrent": 1},
    }
    result = run(sweep, home)
    metrics = parent_run(result).data.metrics
    assert len(result.frontier()) == 2
    assert metrics["peak_activation_bytes"] <= budget_gib * 2**30
    assert 1.0 < metrics["forward_ratio"] <= 1 + (1 - 1 / 5)


def test_law_6_evaluation_again_gives_the_logged_numbers(launched: launch.SweepResult, plan: PreparedSweep) -> None:
    site = "blocks.2.hook_resid_post"
    sae = gsae_ray.best("golden", site=site, max_l0=100, tracking_uri=launched.tracking_uri)
    logged = sae.cfg.metadata["frontier"]
    again = Producer(producer_spec(plan)).run(Evaluate(site, *to_bytes(sae))).metrics
    for name in ("l0", "loss_recovered", "gamma", "fvu", "kl", "ce_zero", "ce_clean", "ce_spliced"):
        assert again[name] == pytest.approx(logged[name], rel=1e-4)


@pytest.mark.usefixtures("launched")
def test_law_7_nothing_on_disk_can_run_code(home: Path) -> None:
    kinds = {path.suffix or path.name for path in (home / "runs").rglob("*") if path.is_file()}
    assert kinds <= {".json", ".jsonl", ".safetensors", ".yaml", ".csv", ".png", ".html", "DONE", "FAILED"}


def test_trials_are_mirrored_once_with_every_row(launched: launch.SweepResult, plan: PreparedSweep, home: Path) -> None:
    client = MlflowClient(launched.tracking_uri)
    for row in launched.frontier().itertuples():
        trial = next(t for t in plan.trials if t.name == row.trial)
        rows, _ = TrialDirectory(home / "runs/golden/trials" / trial.directory_name).rows()
        history = client.get_metric_history(row.run_id, "train/l0")
        assert [(m.step, m.value) for m in history] == [(r["step"], r["metrics"]["train/l0"]) for r in rows]
        assert rows[-1]["step"] == trial.training.steps * trial.training.batch_size
        assert client.get_run(row.run_id).data.tags["mlflow.parentRunId"] == parent_run(launched).info.run_id
    artifacts = {item.path for item in client.list_artifacts(parent_run(launched).info.run_id)}
    tables = {"frontier.csv", "frontier.json", "frontier.png"}
    assert artifacts == {"sweep.yaml", "versions.json", "report.html", "events.jsonl", *tables}


def test_a_launch_is_read_in_mlflow_by_its_note_its_data_and_its_registered_saes(
    launched: launch.SweepResult, plan: PreparedSweep
) -> None:
    client = MlflowClient(launched.tracking_uri)
    run = client.get_run(parent_run(launched).info.run_id)
    note, rows = run.data.tags["mlflow.note.content"], launched.frontier()
    best = rows[rows["on_frontier"]]
    assert f"![frontier.png](get-artifact?path=frontier.png&run_id={run.info.run_id})" in note
    assert len([line for line in note.splitlines() if line.startswith("| blocks.")]) == len(best)
    data = {d.dataset.name: d.dataset.digest for d in run.inputs.dataset_inputs}
    tokens = plan.source.provenance["tokens"]
    assert data == {"builtin": tokens[:36], "builtin (held out)": plan.evaluation.fingerprint[:36]}
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert [found.model_id for found in run.inputs.model_inputs] == [model.model_id] and model.name == "builtin"
    registered = {model.name: model.aliases for model in client.search_registered_models()}
    assert registered.keys() == {f"golden~{site}" for site in set(best["site"])}
    for site, found in best.groupby("site"):
        versions = client.search_model_versions(f"name = 'golden~{site}'")
        assert {version.run_id for version in versions} == set(found["run_id"])
    sae = gsae_ray.best("golden", site, alias="best-l0-32", tracking_uri=launched.tracking_uri)
    within = best[(best["site"] == site) & (best["l0"] <= 32)]
    assert sae.cfg.metadata["frontier"]["loss_recovered"] == within["loss_recovered"].max()


def test_storage_tells_the_frontier_that_mlflow_tells(launched: launch.SweepResult, home: Path) -> None:
    theirs, mine = launched.frontier(), frontier("golden", storage=home / "runs")
    assert len(mine) == 4
    pd.testing.assert_frame_equal(mine.drop(columns="run_id"), theirs.drop(columns="run_id"))


def test_the_sums_of_each_context_give_the_logged_numbers_and_intervals(launched: launch.SweepResult) -> None:
    rows = launched.frontier("blocks.2.hook_resid_post")
    sums = [sequences(run_id, launched.tracking_uri) for run_id in rows["run_id"]]
    assert {len(values) for sae in sums for values in sae.values()} == {len(sums[0]["rows"])}
    for position, row in enumerate(rows.itertuples()):
        for name in ("l0", "loss_recovered", "gamma", "fvu", "kl"):
            found = interval(of(name, position), [sums], draws=200)
            assert found.value == pytest.approx(getattr(row, name), rel=1e-9)
            assert found.low < found.value < found.high


def test_snapshots_are_evaluated_and_shown_where_tokens_are_asked_for(launched: launch.SweepResult, home: Path) -> None:
    """The more tokens, the better: at 10,000 the sparsity coefficient has just risen."""
    found = {}
    for tokens in SNAPSHOTS:
        theirs = frontier("golden", tokens=tokens, tracking_uri=launched.tracking_uri)
        mine = frontier("golden", tokens=tokens, storage=home / "runs")
        pd.testing.assert_frame_equal(mine.drop(columns="run_id"), theirs.drop(columns="run_id"))
        assert theirs["snapshot"].all() and sorted(theirs["trial"]) == sorted(launched.frontier()["trial"])
        found[tokens] = theirs.set_index("trial")
    found[80_000] = launched.frontier().set_index("trial")
    early, late, final = (rows["fvu"].sort_index() for rows in found.values())
    assert (late < early).all() and (final < late).all()
    site, limit = "blocks.2.hook_resid_post", 1e4
    sae = gsae_ray.best("golden", site=site, tokens=30_000, max_l0=limit, tracking_uri=launched.tracking_uri)
    row = sae.cfg.metadata["frontier"]
    assert (row["tokens"], row["snapshot"], sae.cfg.metadata["snapshot_at"]) == (30_000, True, 30_000)
    (folder,) = (home / "runs/golden/trials").glob(f"{row['trial']}-*/snapshots/30000")
    assert to_bytes(sae)[1] == to_bytes(gsae_ray.load(folder))[1]
    client = MlflowClient(launched.tracking_uri)
    history = client.get_metric_history(row["run_id"], "snapshot/l0")
    assert sorted(metric.step for metric in history) == SNAPSHOTS, "in whichever order they were evaluated"


def events(home: Path, result: launch.SweepResult) -> list[dict[str, str]]:
    log = home / "runs" / "golden" / "launches" / result.launch_id / "events.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_what_happened_is_written_down_from_the_launchs_first_moment_to_its_end(
    launched: launch.SweepResult, home: Path
) -> None:
    said = [event["event"] for event in events(home, launched)]
    assert said[0] == "begins: 4 of 4 trials to train or to evaluate"
    assert "starting 2 producers and 4 trials" in said
    assert said[-2:] == ["trials: 0 waiting, 0 running, 0 evaluating, 4 done, 0 failed", "ends"]
    assert all(event["time"] for event in events(home, launched))


def test_a_launch_whose_server_is_down_at_its_end_still_has_its_frontier(
    launched: launch.SweepResult, home: Path, tmp_path: Path
) -> None:
    """MLflow takes its runs, but no metric."""
    quiet, uri = Console(quiet=True), full_store(tmp_path, "metrics")
    result = launch.run(Sweep.model_validate(SWEEP), storage=home / "runs", tracking_uri=uri, console=quiet)
    assert not result.mirrored
    assert result.picture is not None and result.picture.exists()
    columns = ["run_id", "launch"]
    pd.testing.assert_frame_equal(result.frontier().drop(columns=columns), launched.frontier().drop(columns=columns))
    shown = pd.read_csv(result.picture.with_name("frontier.csv"))
    assert shown["l0"].tolist() == result.frontier()["l0"].tolist()
    assert "is not up to date" in events(home, result)[-2]["event"]


@pytest.mark.slow
def test_a_node_pulls_a_chunk_once_however_many_trials_it_holds(tmp_path: Path) -> None:
    """By Ray's own count of what nodes send each other."""
    said = on_nodes("node_transfers.py", Home(tmp_path))
    assert 0.99 < float(said.splitlines()[-1]) < 1.05, said
