"""SAEs from elsewhere on the held-out tokens of a launch: the same numbers, once, and none of the launch's own."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from elsewhere import near_identity
from producers import small_plan
from rich.console import Console
from trials import random_sae

import gsae_ray
from gsae_ray.activations.producer import Producer
from gsae_ray.cli.main import main
from gsae_ray.driver import launched as module
from gsae_ray.driver.evaluate import evaluate
from gsae_ray.driver.prepare import prepare, producer_spec
from gsae_ray.errors import UserError
from gsae_ray.evaluation import metrics
from gsae_ray.evaluation.task import Evaluate
from gsae_ray.files import SEAL
from gsae_ray.saes import load, to_bytes
from gsae_ray.storage.launch_directory import EVALUATED, begin_launch, trial_folder
from gsae_ray.storage.trial_directory import TrialDirectory

SITE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with a launch whose one SAE, of random weights, is evaluated as a launch does that; without Ray."""
    root = tmp_path_factory.mktemp("launched") / "runs"
    prepared = small_plan(root)
    (trial,) = prepared.trials
    directory = TrialDirectory(trial_folder(root / "small", trial))
    directory.begin_attempt(trial)
    directory.finish(random_sae(trial))
    task = Evaluate(SITE, *to_bytes(load(directory.path / "sae")))
    fingerprint = prepared.evaluation.fingerprint
    directory.save_evaluation(fingerprint, 4096, Producer(producer_spec(prepared)).run(task))
    launch_id, _ = begin_launch(root / "small", prepared.sweep, prepared.trials, resume=False)
    folder = root / "small" / "launches" / launch_id
    EVALUATED.write(folder / "evaluation.json", {"fingerprint": fingerprint, "encoders": [None]})
    return root


@pytest.fixture
def storage(launched: Path, tmp_path: Path) -> Path:
    return shutil.copytree(launched, tmp_path / "runs")


def evaluated(storage: Path, *sources: Path | str, site: str = SITE, **options: Any) -> pd.DataFrame:
    """By a user without MLflow."""
    uri = f"sqlite:///{storage}/none.db"
    quiet = Console(quiet=True)
    return evaluate(
        [str(s) for s in sources], "small", site, storage=storage, tracking_uri=uri, console=quiet, **options
    )


def frontier(storage: Path, **options: Any) -> pd.DataFrame:
    return gsae_ray.frontier("small", storage=storage, **options)


def trial_of(storage: Path) -> Path:
    (folder,) = (storage / "small" / "trials").iterdir()
    return folder


def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Producer", lambda _: pytest.fail("the model is loaded"))


def test_an_sae_of_ours_has_exactly_the_numbers_that_its_launch_gave_it(storage: Path) -> None:
    row = evaluated(storage, trial_of(storage)).iloc[0]
    own, reference = frontier(storage).to_dict("records")
    for name in [name for name in metrics.columns() if name not in metrics.TRAINING]:
        assert row[name] == reference[name] == own[name], name
    assert reference["d_sae"] == own["d_sae"] == 16
    records = [*trial_of(storage).glob("evaluations/*"), *storage.glob("references/*/*")]
    ours, theirs = (json.loads(path.read_text()) for path in records)
    assert ours["sequences"] == theirs["sequences"] and ours["metrics"] == theirs["metrics"]


def test_a_reference_is_shown_and_competes_only_when_asked(storage: Path, tmp_path: Path) -> None:
    before = frontier(storage)
    assert before["origin"].tolist() == ["own"]
    best = gsae_ray.best("small", max_l0=1000, storage=storage)
    theirs = near_identity(tmp_path / "theirs", 128, 0.05, SITE)
    row = evaluated(storage, theirs, name="their SAE").iloc[0]
    assert row["loss_recovered_low"] < row["loss_recovered"] < row["loss_recovered_high"]
    assert row["l0_low"] < row["l0"] < row["l0_high"] < 128
    assert row["loss_recovered"] > 0.99

    rows = frontier(storage)
    pd.testing.assert_frame_equal(rows[:1], before, check_dtype=False)
    reference = rows.iloc[1]
    assert reference["origin"] == "their SAE"
    assert reference[["trial", "recipe", "variant", "l1_units", "parent"]].tolist() == [""] * 5
    assert reference[["sparsity", "lr", "seed", "tokens", "batch_size", "sink_share"]].isna().all()
    assert rows["on_frontier"].tolist() == [True, False]
    assert rows.attrs["notes"] == before.attrs["notes"] == []
    again = gsae_ray.best("small", max_l0=1000, storage=storage)
    assert to_bytes(again)[1] == to_bytes(best)[1]
    unequal = ("sink_share",)  # NaN: this trial has logged nothing
    of_best, of_again = (
        {k: v for k, v in sae.cfg.metadata["frontier"].items() if k not in unequal} for sae in (best, again)
    )
    assert of_best == of_again

    rows = frontier(storage, with_references=True)
    worse = rows["l0"][0] > rows["l0"][1] and rows["loss_recovered"][0] < rows["loss_recovered"][1]
    assert rows["on_frontier"].tolist() == [not worse, True]
    found = gsae_ray.best("small", min_loss_recovered=0.99, storage=storage, with_references=True)
    assert found.architecture == "jumprelu" and torch.equal(found.W_enc, load(theirs).W_enc)
    assert found.cfg.metadata["frontier"]["origin"] == "their SAE"
    assert found.cfg.metadata["frontier"]["tokens"] is None
    assert found.cfg.site == SITE
    found.save(tmp_path / "saved")
    shutil.rmtree(theirs)
    with pytest.raises(UserError, match=r"^their SAE: it was read from another folder, .*no SAE here"):
        gsae_ray.best("small", min_loss_recovered=0.99, storage=storage, with_references=True)
    near_identity(theirs, 128, 0.1, SITE)
    with pytest.raises(UserError, match="theirs: this SAE has changed since it was evaluated; evaluate it again$"):
        gsae_ray.best("small", min_loss_recovered=0.99, storage=storage, with_references=True)


def test_what_was_evaluated_is_not_evaluated_again_and_what_is_damaged_is(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (near_identity(tmp_path / str(threshold), 128, threshold) for threshold in (0.5, 1.0))
    first = evaluated(storage, one)
    assert first["origin"].tolist() == [str(one)]
    shutil.copytree(one, tmp_path / "copy")
    with monkeypatch.context() as patch:
        no_model(patch)
        again = evaluated(storage, tmp_path / "copy", name="the copy")
    named = ["origin", "source"]
    pd.testing.assert_frame_equal(again.drop(columns=named), first.drop(columns=named))
    assert [first["source"][0], again["source"][0]] == [str(one), str(tmp_path / "copy")]
    assert frontier(storage)["origin"].tolist() == ["own", "the copy"]

    asked: list[str] = []

    class Counting(Producer):
        def run(self, task: Any, *say: Any) -> Any:
            asked.append(task.site)
            return super().run(task, *say)

    monkeypatch.setattr(module, "Producer", Counting)
    threads = torch.get_num_threads()
    assert len(evaluated(storage, one, two)) == 2
    assert asked == [SITE], "only the second"
    assert torch.get_num_threads() == threads
    for record in storage.glob("references/*/*.json"):
        text = record.read_text()
        record.write_text(text.replace('"step": 0', '"step": 1'))
    assert frontier(storage)["origin"].tolist() == ["own"], "nothing that is damaged is shown"
    once_more = evaluated(storage, one, name="the copy")
    pd.testing.assert_frame_equal(once_more.drop(columns="source"), again.drop(columns="source"))
    assert asked == [SITE] * 2
    (description,) = (p for p in storage.glob("small/launches/*/references/*") if "the copy" in p.read_text())
    description.write_text("{")
    assert re.search(
        "references/.*: this file is damaged; evaluate this SAE again", frontier(storage).attrs["notes"][0]
    )


def test_an_sae_that_says_another_site_is_shown_with_a_note(storage: Path, tmp_path: Path) -> None:
    theirs = near_identity(tmp_path / "theirs", 128, 0.5, "blocks.2.hook_resid_post")
    rows = evaluated(storage, theirs, name="theirs")
    said = f"theirs is shown at {SITE}, but its own files say that it was trained at blocks.2.hook_resid_post"
    assert rows.attrs["notes"][0] == said
    assert rows.attrs["notes"][-1].startswith(
        "MLflow does not show this (--tracking-uri: nothing has been recorded at "
    )
    assert frontier(storage).attrs["notes"] == [said]


def test_what_cannot_be_compared_is_one_line_before_the_model_is_loaded(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_model(monkeypatch)
    theirs, narrow = (near_identity(tmp_path / str(width), width, 0.5) for width in (128, 64))
    refusals: list[tuple[tuple[Path, ...], dict[str, Any], str]] = [
        ((tmp_path / "no",), {}, "no SAE here (no is missing)"),
        ((theirs, narrow), {}, f"the activations at {SITE} have 128 coordinates, and this SAE takes 64 (its d_in)"),
        (
            (theirs,),
            {"site": "blocks.1.hook_resid_pots"},
            f"has no SAEs at 'blocks.1.hook_resid_pots'; did you mean '{SITE}'",
        ),
        ((theirs,), {"launch": "none"}, "launch: no 'none' in 'small'; one of: 2"),
        ((theirs,), {"launch": "all"}, "launch: name one"),
        ((theirs,), {"name": "own"}, "name: 'own' is what the frontier calls a sweep's own SAEs"),
        ((), {}, "no SAE; give at least one"),
    ]
    for sources, options, said in refusals:
        with pytest.raises(UserError, match=re.escape(said)) as caught:
            evaluated(storage, *sources, **options)
        assert "\n" not in str(caught.value)
    (launch,) = (storage / "small" / "launches").iterdir()
    with pytest.raises(UserError, match="^--storage: no launch in .*/elsewhere; give the folder that `run` was given$"):
        evaluated(storage / "elsewhere", theirs)
    EVALUATED.write(launch / "evaluation.json", {"fingerprint": "a" * 64, "encoders": [None]})
    with pytest.raises(
        UserError, match=f"^--like: the model, its data or gsae-ray has changed since launch {launch.name}"
    ):
        evaluated(storage, theirs)
    described = json.loads((launch / "launch.json").read_text())
    described["sweep"]["dataset"]["skip_first"] = True
    del described[SEAL]  # another version's
    (launch / "launch.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="was begun by another version of gsae-ray .dataset.skip_first: unknown key"):
        evaluated(storage, theirs)
    assert not (launch / "references").exists()


def test_the_command_prints_intervals_and_asks_for_a_site(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    theirs = near_identity(tmp_path / "theirs", 128, 0.5)
    command = ["evaluate", "theirs", "--like", "small", "--storage", str(storage)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert re.fullmatch(r"gsae-ray: --site: missing; it is where the SAEs are spliced in, .*\n", result.stderr)
    row = evaluated(storage, theirs).iloc[0]
    result = CliRunner().invoke(main, [*command, "--site", SITE])
    assert result.exit_code == 0, result.stderr
    numbers = [float(number) for number in re.findall(r"\d+\.\d+|\d+", result.stdout.partition("L0 ")[2])]
    expected = [row[f"{name}{end}"] for name in ("l0", "loss_recovered") for end in ("", "_low", "_high")]
    np.testing.assert_allclose([*numbers[:3], *numbers[-3:]], expected, rtol=1e-3)
    listed = CliRunner().invoke(main, [*command, "--site", SITE, "--json"])
    assert json.loads(listed.stdout)[0]["origin"] == "theirs"
    near_identity(tmp_path / "others", 128, 0.1)
    both = ["evaluate", "theirs", "others", *command[2:], "--site", SITE, "--name", "both"]
    lines = CliRunner().invoke(main, both).stdout.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [f"both ({tmp_path / n})" for n in ("theirs", "others")]


def test_an_sae_of_another_model_is_shown_with_a_note(storage: Path, tmp_path: Path) -> None:
    theirs = near_identity(tmp_path / "theirs", 128, 0.5, SITE)
    cfg = json.loads((theirs / "cfg.json").read_text())
    cfg["metadata"]["model_name"] = "gpt2"
    (theirs / "cfg.json").write_text(json.dumps(cfg))
    notes = evaluated(storage, theirs, name="theirs").attrs["notes"]
    assert notes[0] == "theirs is spliced into builtin, but its own files say that it was trained on gpt2"


def test_a_sweep_refuses_references_that_do_not_fit_before_anything_runs(storage: Path, tmp_path: Path) -> None:
    theirs, narrow = (near_identity(tmp_path / str(width), width, 0.5) for width in (128, 64))
    (launch,) = (storage / "small" / "launches").iterdir()
    sweep = json.loads((launch / "launch.json").read_text())["sweep"]

    def prepared(*sources: Path) -> Any:
        references = [{"source": str(source), "site": SITE} for source in sources]
        described = {**sweep, "references": references}
        return prepare(gsae_ray.Sweep.model_validate_json(json.dumps(described)), storage)

    (reference,) = prepared(theirs).references
    assert reference["origin"] == reference["source"] == str(theirs)
    assert prepared(theirs).trials == prepared().trials, "they are no part of any trial"
    with pytest.raises(UserError, match="^references.1: site: the activations at .* this SAE takes 64"):
        prepared(theirs, narrow)
    with pytest.raises(UserError, match="^references.0: .*no SAE here"):
        prepared(tmp_path / "no")
