"""The best SAE of a sweep: chosen under a constraint, fetched as it was saved, exported."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from damage import Damage, cut, flip
from recorder import GATED_1, NEWER, OLDER, Recorder, assert_same_weights, ends
from trials import FINGERPRINT, SITE_1, SITE_2, begin, finish

from gsae_ray import saes
from gsae_ray.cli.main import main
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import UserError
from gsae_ray.files import file_hash
from gsae_ray.results.best import best, candidates, choose, example_constraint, find_best
from gsae_ray.results.choice import choice_of
from gsae_ray.results.constraint import Constraint
from gsae_ray.results.frontier import frontier
from gsae_ray.saes.export import export
from gsae_ray.saes.folder import content_hash
from gsae_ray.storage.launch_directory import EVALUATED, LAUNCH
from gsae_ray.storage.trial_directory import DONE

ROWS = pd.DataFrame(
    [("a", 10.0, 0.90), ("b", 38.0, 0.97), ("c", 40.0, 0.96), ("d", 90.0, 0.99)],
    columns=["trial", "l0", "loss_recovered"],
).assign(site=SITE_1, tokens=1024)


@pytest.mark.parametrize(
    ("constraint", "trial"),
    [
        ({"max_l0": 40}, "b"),
        ({"max_l0": 10}, "a"),
        ({"max_l0": 1e9}, "d"),
        ({"min_loss_recovered": 0.95}, "b"),
        ({"min_loss_recovered": 0.98}, "d"),
        ({"min_loss_recovered": 0.90}, "a"),
        ({"min_loss_recovered": 0.0}, "a"),
    ],
)
def test_the_best_is_the_highest_quality_or_the_lowest_l0_within_the_constraint(
    constraint: dict[str, Any], trial: str
) -> None:
    assert choose(ROWS, **constraint)["trial"] == trial


def test_a_share_of_the_loss_in_percent_is_refused_before_anything_is_read() -> None:
    for ask in (lambda: choose(ROWS, min_loss_recovered=95), lambda: best("nowhere", min_loss_recovered=95)):
        with pytest.raises(UserError, match=r"^min_loss_recovered: 95 is above 1: a fraction is meant, 0\.95$"):
            ask()


def test_a_limit_that_is_text_is_refused_by_its_name() -> None:
    for limit in ("max_l0", "min_loss_recovered"):
        with pytest.raises(UserError, match=f"^{limit}: '0.4' is no number; give it without quotes$"):
            best("nowhere", **{limit: "0.4"})  # type: ignore[arg-type]


def test_of_several_sites_one_must_be_named() -> None:
    rows = pd.concat([ROWS, ROWS.assign(site=SITE_2)], ignore_index=True)
    with pytest.raises(UserError, match=rf"^site: this sweep has 2, name one \(one of: {SITE_1}, {SITE_2}\)$"):
        choose(rows, max_l0=40)


def test_of_several_numbers_of_tokens_one_must_be_named_or_all() -> None:
    rows = pd.concat([ROWS, ROWS.assign(tokens=2048, l0=ROWS["l0"] / 3, trial="long")], ignore_index=True)
    with pytest.raises(UserError, match=r"^tokens: these SAEs were trained on 1,024 and 2,048 tokens; .*--tokens all"):
        choose(rows, max_l0=40)
    assert choose(rows, max_l0=40, mixed_tokens=True)["trial"] == "long"


@pytest.mark.parametrize("lowest", [0.3, 12, 39.99, 40, 47.9, 48, 1234.5])
def test_the_command_that_is_printed_finds_an_sae_of_this_frontier(lowest: float) -> None:
    rows = ROWS.assign(l0=ROWS["l0"] + lowest - 10)
    rows = pd.concat([ROWS, rows.assign(site=SITE_2)], ignore_index=True)
    rows = pd.concat([rows, rows.assign(tokens=2048, l0=rows["l0"] * 2)], ignore_index=True)
    named = example_constraint(rows)
    options = dict(zip(named[::2], named[1::2], strict=True))
    assert options.keys() == {"--site", "--tokens", "--max-l0"}
    chosen = rows[(rows["site"] == options["--site"]) & (rows["tokens"] == int(options["--tokens"]))]
    assert choose(chosen, max_l0=float(options["--max-l0"]))["l0"] <= float(options["--max-l0"])


@pytest.mark.parametrize("constraint", [{}, {"max_l0": 40, "min_loss_recovered": 0.9}, {"max_l0": 40, "knee": True}])
def test_the_best_needs_exactly_one_constraint(constraint: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"either max_l0 \(e\.g\. 40\) or min_loss_recovered"):
        choose(ROWS, **constraint)


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (
            {"max_l0": 9},
            "max_l0: no SAE has L0 <= 9; the lowest is 10 (a, L0 10.00, loss recovered 0.9000); give more, or "
            "train sparser ones (a larger λ, a smaller k)",
        ),
        ({"max_l0": 0}, "max_l0: 0 is no number of active features; give one above 0, e.g. 40"),
        ({"max_l0": -3.5}, "max_l0: -3.5 is no number of active features; give one above 0, e.g. 40"),
        ({"max_l0": math.nan}, "max_l0: nan is no number of active features; give one above 0, e.g. 40"),
        ({"min_loss_recovered": math.nan}, "min_loss_recovered: NaN is no fraction; give one, e.g. 0.95"),
        (
            {"min_loss_recovered": 0.995},
            "min_loss_recovered: no SAE recovers 0.995; the highest is 0.9900 (d, L0 90.00, loss recovered 0.9900); "
            "give less, or train denser ones (a smaller λ, a larger k)",
        ),
    ],
)
def test_where_nothing_meets_the_constraint_the_nearest_is_named(constraint: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        choose(ROWS, **constraint)
    assert str(error.value) == message


def test_where_a_target_l0_set_how_sparse_saes_are_it_is_what_to_change() -> None:
    rows = ROWS.assign(found_coefficient=[0.1, 0.2, 0.3, 0.4])
    with pytest.raises(UserError, match=r"or train sparser ones \(a smaller target_l0\)$"):
        choose(rows, max_l0=2)
    assert choice_of(rows, Constraint(max_l0=90)).why.endswith("train denser ones (a larger target_l0)")


@pytest.mark.parametrize(
    ("constraint", "ranked", "why"),
    [
        (
            Constraint(max_l0=40),
            ["b", "c", "a"],
            "the highest loss recovered of 3 with L0 <= 40, from 4 at {}; the nearest above: d, L0 90.00, loss "
            "recovered 0.9900",
        ),
        (
            Constraint(max_l0=100),
            ["d", "b", "c", "a"],
            "the highest loss recovered of 4 with L0 <= 100, from 4 at {}; none lies above: train denser ones (a "
            "smaller λ, a larger k)",
        ),
        (
            Constraint(min_loss_recovered=0.95),
            ["b", "c", "d"],
            "the lowest L0 of 3 with loss recovered >= 0.95, from 4 at {}; the nearest below: a, L0 10.00, loss "
            "recovered 0.9000",
        ),
        (
            Constraint(knee=True),
            ["b", "a", "d"],
            "the knee of the frontier at {}: of its 3 SAEs the farthest above the straight line between the ends, in "
            "log L0 and loss recovered",
        ),
        (
            Constraint(max_l0=40, by="kl"),
            ["a", "c", "b"],
            "the lowest kl of 3 with L0 <= 40, from 4 at {}; the nearest above: d, L0 90.00, loss recovered 0.9900, "
            "kl 0.4",
        ),
        (
            Constraint(min_loss_recovered=0.95, by="gamma"),
            ["c", "d", "b"],
            "the gamma nearest to 1 of 3 with loss recovered >= 0.95, from 4 at {}; the nearest below: a, L0 10.00, "
            "loss recovered 0.9000, gamma 1",
        ),
        (
            Constraint(max_l0=1e9, by="probe_auc"),
            ["c", "d", "b"],
            "the highest probe auc of 3 with L0 <= 1e+09, from 3 at {}; none lies above: train denser ones (a smaller "
            "λ, a larger k)",
        ),
    ],
)
def test_a_choice_says_from_how_many_why_and_what_lies_beyond(
    constraint: Constraint, ranked: list[str], why: str
) -> None:
    measured = {"kl": [0.1, 0.3, 0.2, 0.4], "gamma": [1.0, 0.7, 1.1, 0.8], "probe_auc": [math.nan, 0.7, 0.9, 0.8]}
    found = choice_of(ROWS.assign(**measured), constraint)
    assert found.ranked["trial"].tolist() == ranked and found.row["trial"] == ranked[0]
    assert found.why == why.format(SITE_1)


def test_of_equal_saes_the_lower_l0_and_then_the_name_decides() -> None:
    rows = ROWS.assign(loss_recovered=0.9, l0=[20.0, 10.0, 10.0, 20.0], trial=["d", "c", "b", "a"])
    assert choice_of(rows, Constraint(max_l0=40)).ranked["trial"].tolist() == ["b", "c", "a", "d"]
    rows = ROWS.assign(loss_recovered=[0.9, 0.95, 0.9, 0.95], l0=10.0, trial=["d", "c", "b", "a"])
    assert choice_of(rows, Constraint(min_loss_recovered=0.5)).ranked["trial"].tolist() == ["a", "c", "b", "d"]


def test_what_is_no_quality_is_refused_and_a_frontier_without_a_knee_says_so() -> None:
    for by in ("l0", "tokens", "site", "loss_recoverd", "ce_clean"):
        with pytest.raises(UserError, match=f"^by: {by!r} is no quality that these SAEs have; .*loss_recovered"):
            choose(ROWS.assign(ce_clean=3.0), max_l0=40, by=by)
    with pytest.raises(UserError, match="^by: no SAE has a finite kl; one of: loss_recovered, fvu$"):
        choose(ROWS.assign(kl=math.nan, fvu=0.1), max_l0=40, by="kl")
    with pytest.raises(UserError, match="^by: 'klo' .* have; one of: loss_recovered, fvu$"):
        choose(ROWS.assign(kl=math.nan, fvu=0.1), max_l0=40, by="klo")
    for rows in (ROWS[:2], ROWS.assign(loss_recovered=[0.90, 0.901, 0.9, 0.99])):
        with pytest.raises(UserError, match="^knee: the frontier at .* has none: . points"):
            choose(rows, knee=True)


@pytest.mark.usefixtures("recorder")
def test_the_candidates_are_those_that_best_chooses_from(tmp_path: Path) -> None:
    rows = candidates("sweep", SITE_1, max_l0=44, n=2)
    assert rows["trial"].tolist() == [GATED_1[1].name, GATED_1[2].name]
    sae = best("sweep", SITE_1, max_l0=44)
    assert sae.cfg.metadata["choice"] == rows.attrs["choice"]
    assert len(candidates("sweep", SITE_1, max_l0=44, n=None)) == 3
    options = ["best", "sweep", "--site", SITE_1, "--max-l0", "44", "--by", "kl", "--n", "2", "--out", str(tmp_path)]
    done = CliRunner().invoke(main, options)
    assert done.exit_code == 0, done.output
    first, why, second = done.stdout.splitlines()
    assert first == f"{GATED_1[2].name}: L0 20.00, loss recovered 0.9000, kl 0.2, written to {tmp_path}"
    assert why.startswith("chosen: the lowest kl of 3 with L0 <= 44, from 4 at")
    assert second == f"2. {GATED_1[3].name}: L0 30.00, loss recovered 0.8900, kl 0.2"


@pytest.mark.parametrize("constraint", [{"max_l0": 9}, {"min_loss_recovered": 0.9}])
def test_where_no_sae_is_usable_nothing_is_said_to_be_the_best(constraint: dict[str, Any]) -> None:
    with pytest.raises(UserError) as error:
        choose(ROWS[:0], **constraint)
    assert "nan" not in str(error.value)


# ---- the SAE -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constraint", "launch", "trial"),
    [
        ({"max_l0": 40}, NEWER, GATED_1[1]),
        ({"max_l0": 35}, NEWER, GATED_1[2]),
        ({"min_loss_recovered": 0.9}, NEWER, GATED_1[2]),
        ({"max_l0": 20, "launch": OLDER}, OLDER, GATED_1[1]),
    ],
)
def test_best_is_the_sae_that_was_saved(
    recorder: Recorder, constraint: dict[str, Any], launch: str, trial: TrialSpec
) -> None:
    sae = best("sweep", site=SITE_1, **constraint)
    assert_same_weights(sae, recorder.saved("sweep", launch, trial))
    record = sae.cfg.metadata["frontier"]
    assert (record["trial"], record["site"]) == (trial.name, sae.cfg.site)
    x_BD = torch.randn(5, trial.d_in)
    assert sae.decode(sae.encode(x_BD)).shape == x_BD.shape


@pytest.mark.usefixtures("recorder")
def test_best_of_several_sites_asks_for_one() -> None:
    with pytest.raises(UserError, match=rf"^site: this sweep has 2, name one \(one of: {SITE_1}, {SITE_2}\)$"):
        best("sweep", max_l0=40)


def test_best_says_when_the_sae_cannot_be_fetched(recorder: Recorder) -> None:
    recorder.record("lost", NEWER, list(zip(GATED_1[:1], ends((10, 0.9)), strict=True)))
    for weights in (recorder.folder / "mlruns").rglob("sae_weights.safetensors"):
        if frontier("lost")["run_id"][0] in weights.parts:
            weights.unlink()
    with pytest.raises(UserError):
        best("lost", max_l0=40)


@pytest.mark.parametrize("name", ["sae_weights.safetensors", "cfg.json"])
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_best_never_hands_out_an_sae_that_is_not_the_one_that_was_measured(
    recorder: Recorder, damage: Damage, name: str
) -> None:
    experiment = f"damaged {name} {damage.__name__}"
    recorder.record(experiment, OLDER, list(zip(GATED_1[:1], ends((10, 0.9)), strict=True)))
    run_id = frontier(experiment)["run_id"][0]
    for file in (recorder.folder / "mlruns").rglob(name):
        if run_id in file.parts:
            damage(file)
    with pytest.raises(UserError, match=f"^best: the SAE of run {run_id} is damaged: .*without --resume"):
        best(experiment, max_l0=40)
    recorder.record(experiment, NEWER, list(zip(GATED_1[:1], ends((10, 0.9)), strict=True)))
    assert best(experiment, max_l0=40).cfg.metadata["frontier"]["l0"] == 10, "as the line says"


def test_best_of_a_storage_is_the_sae_there_and_never_a_damaged_one(tmp_path: Path) -> None:
    """Without MLflow; what is not as it was saved is refused in a line that names the file."""
    lower, higher = GATED_1[:2]
    folder = tmp_path / "swept" / "launches" / NEWER
    folder.mkdir(parents=True)
    identities = {trial.name: trial.identity for trial in (lower, higher)}
    LAUNCH.write(folder / "launch.json", {"sweep": {"name": "swept"}, "trials": identities})
    EVALUATED.write(folder / "evaluation.json", {"fingerprint": FINGERPRINT, "encoders": [None]})
    for trial, l0, recovered in ((lower, 10, 0.8), (higher, 30, 0.9)):
        finish(begin(tmp_path / "swept" / "trials", trial), trial, l0=l0, loss_recovered=recovered)
    sae = best("swept", max_l0=40, storage=tmp_path)
    saved = Path(sae.cfg.metadata["frontier"]["run_id"]) / "sae"
    assert sae.cfg.metadata["frontier"]["trial"] == higher.name
    assert_same_weights(sae, saes.load(saved))
    flip(saved / "sae_weights.safetensors")
    with pytest.raises(UserError, match=f"^{saved}/sae_weights.safetensors: this file is damaged"):
        best("swept", max_l0=40, storage=tmp_path)
    assert best("swept", max_l0=20, storage=tmp_path).cfg.metadata["frontier"]["trial"] == lower.name


@pytest.mark.usefixtures("recorder")
def test_best_leaves_no_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    best("sweep", site=SITE_1, max_l0=40)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("recorder")
def test_export_writes_what_load_reads_with_where_it_came_from(tmp_path: Path) -> None:
    sae = best("sweep", site=SITE_1, max_l0=40)
    export(sae, tmp_path / "new" / "folder")
    loaded = saes.load(tmp_path / "new" / "folder")
    assert_same_weights(loaded, sae)
    assert loaded.cfg == sae.cfg
    assert loaded.cfg.metadata["frontier"]["l0"] == 40


@pytest.mark.slow
def test_results_import_nothing_of_ray(recorder: Recorder, tmp_path: Path) -> None:
    script = f"""
import sys, json, gsae_ray
rows = gsae_ray.frontier("sweep")
gsae_ray.export(gsae_ray.best("sweep", {SITE_1!r}, max_l0=40), {str(tmp_path / "out")!r})
print(json.dumps([len(rows), [name for name in sys.modules if name.split(".")[0] == "ray"]]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [5, []]
    assert_same_weights(saes.load(tmp_path / "out"), recorder.saved("sweep", NEWER, GATED_1[1]))


def test_the_best_that_a_newer_version_has_saved_is_one_line(recorder: Recorder, tmp_path: Path) -> None:
    recorder.record("newer", NEWER, list(zip(GATED_1[:1], ends((10, 0.9)), strict=True)))
    found = find_best("newer", None, 40, None, None, recorder.uri, None, None, False)
    folder = recorder.folder / "newer" / NEWER / GATED_1[0].directory_name
    cfg = folder / "sae/cfg.json"
    cfg.write_text(cfg.read_text().replace("gsae-2", "gsae-3"))
    done = json.loads((folder / "DONE").read_text())
    files = {**done["files"], "sae/cfg.json": file_hash(cfg)}
    DONE.write(folder / "DONE", {"attempt": done["attempt"], "sae": content_hash(cfg.parent), "files": files})
    choice = dataclasses.replace(found.choice, ranked=found.choice.ranked.assign(run_id=str(folder)))
    in_storage = dataclasses.replace(found, choice=choice, storage=folder)
    for fetch in (in_storage.load, lambda: in_storage.save(tmp_path / "out")):
        with pytest.raises(UserError, match="this SAE cannot be read: .*'gsae-3' is not gsae-2"):
            fetch()
    assert not (tmp_path / "out").exists()
