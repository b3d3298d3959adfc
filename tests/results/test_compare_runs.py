"""Comparisons of SAEs that were evaluated: intervals over held-out text and seeds, and the command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from trials import FINGERPRINT, SITE_1, begin, expand, random_sae
from typed_rows import joined, line, typed, value

import gsae_ray
from gsae_ray.cli.main import main
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import UserError
from gsae_ray.evaluation.metrics import Evaluation
from gsae_ray.storage.launch_directory import EVALUATED, LAUNCH

CONTEXTS = 60


def an_evaluation(l0: float, loss_recovered: float, fvu: float, noise: float, seed: int) -> Evaluation:
    """Of contexts some of which are harder than others; `noise` is what differs between SAEs."""
    hard = np.random.RandomState(0).lognormal(0, 0.3, CONTEXTS)
    own = 1 + noise * np.random.RandomState(seed).standard_normal(CONTEXTS)
    rows = np.full(CONTEXTS, 50.0)
    sums = {
        "rows": rows,
        "x_sq": 128 * rows,
        "centred_sq": 100 * rows,
        "positions": rows,
        "nll_clean": 3 * rows * hard,
        "nll_zero": 7 * rows * hard,
        "active": l0 * rows * hard * own / hard.mean(),
        "nll_spliced": 3 * rows * hard + (1 - loss_recovered) * 4 * rows * hard,
        "error_sq": fvu * 100 * rows,
        "x_hat_sq": 81 * rows,
        "x_hat_x": 90 * rows,
        "kl": rows,
    }
    return Evaluation.of({name: values.tolist() for name, values in sums.items()}, 0.5)


def swept(root: Path, factors: dict[tuple[str, int], float], noise: float = 0.0) -> pd.DataFrame:
    """The frontier of a sweep in a storage, whose SAEs lie on straight lines; `factors` by architecture and seed."""
    launch = root / "swept/launches/20260101-000000-abcd"
    launch.mkdir(parents=True)
    identities: dict[str, str] = {}
    for number, ((architecture, seed), factor) in enumerate(factors.items()):
        trials: list[TrialSpec] = expand(architecture, l1_coefficient=[8.0, 4.0, 2.0, 1.0], seeds=[seed])
        for trial, (l0, recovered, fvu) in zip(trials, line(factor), strict=True):
            identities[trial.name] = trial.identity
            directory = begin(root / "swept/trials", trial)
            directory.finish(random_sae(trial))
            found = an_evaluation(l0, recovered, fvu, noise, seed=int(l0 * 100) + number)
            directory.save_evaluation(FINGERPRINT, trial.training.tokens, found)
    LAUNCH.write(launch / "launch.json", {"sweep": {"name": "swept"}, "trials": identities})
    EVALUATED.write(launch / "evaluation.json", {"fingerprint": FINGERPRINT, "encoders": [None]})
    return gsae_ray.frontier("swept", storage=root)


def test_intervals_are_paired_so_that_what_is_common_to_all_saes_cancels(tmp_path: Path) -> None:
    rows = swept(tmp_path, {("gated", 0): 0.5, ("standard", 0): 1.0})
    assert (rows["l0_high"] / rows["l0_low"] > 1.1).all(), "of each SAE alone"
    row = value(gsae_ray.compare(rows), "l0_ratio_at_loss_recovered")
    assert [row["value"], row["low"], row["high"]] == pytest.approx([0.5] * 3, rel=1e-3)
    assert (row["covers"], row["contexts"], row["seeds"]) == ("held-out text, one seed", CONTEXTS, 1)


def test_an_interval_covers_the_text_and_says_so_in_the_sentence(tmp_path: Path) -> None:
    rows = swept(tmp_path, {("gated", 0): 0.5, ("standard", 0): 1.0}, noise=0.2)
    found = gsae_ray.compare(rows)
    for measure in ("l0_ratio_at_loss_recovered", "l0_ratio_at_fvu", "loss_recovered_gap_at_l0", "hypervolume"):
        row = value(found, measure)
        assert row["low"] < row["value"] < row["high"], measure
    row = value(found, "l0_ratio_at_loss_recovered")
    assert found.sentences == [
        f"gated needs {row['value']:.2f}× [{row['low']:.2f}, {row['high']:.2f}] the active features of standard at "
        f"equal loss recovered, {SITE_1}; held-out text, one seed"
    ]
    assert repr(found).startswith(
        found.sentences[0]
    ) and f"95 % intervals: held-out text, one seed ({CONTEXTS} contexts)" in repr(found)
    alone = gsae_ray.compare(rows.drop(columns="run_id"))
    assert value(alone, "l0_ratio_at_fvu")["value"] == pytest.approx(value(found, "l0_ratio_at_fvu")["value"])
    assert any(note.startswith(f"no intervals at {SITE_1}") for note in alone.notes)


def test_numbers_of_a_paper_beside_a_sweep_leave_its_own_pairs_their_intervals(tmp_path: Path) -> None:
    rows = swept(tmp_path, {("gated", 0): 0.5, ("standard", 0): 1.0}, noise=0.2)
    found = gsae_ray.compare(joined(rows, typed("topk", 0.4, site=SITE_1)))
    alone = gsae_ray.compare(rows)
    for measure in ("l0_ratio_at_loss_recovered", "loss_recovered_gap_at_l0"):
        own, paper = value(found, measure), value(found, measure, "topk")
        assert own.equals(value(alone, measure)) and own["low"] < own["value"] < own["high"]
        assert paper["covers"] == "" and math.isnan(paper["low"]) and paper["contexts"] == 0
    (note,) = (note for note in found.notes if note.startswith("no intervals"))
    assert "some rows of topk name no run" in note


def test_seeds_are_drawn_too_where_every_setting_has_two(tmp_path: Path) -> None:
    both = {("gated", 0): 0.4, ("gated", 1): 0.6, ("standard", 0): 1.0, ("standard", 1): 1.0}
    rows = swept(tmp_path, both)
    found = gsae_ray.compare(rows)
    row = value(found, "l0_ratio_at_loss_recovered")
    assert (row["covers"], row["seeds"], row["saes"]) == ("held-out text and two seeds", 2, 8)
    assert [row["low"], row["value"], row["high"]] == pytest.approx([0.4, 0.5, 0.6], rel=1e-3), (
        "each seed alone, or both"
    )
    assert found.sentences[0].endswith(f"{SITE_1}; held-out text and two seeds")
    unbalanced = gsae_ray.compare(rows[~((rows["architecture"] == "standard") & (rows["seed"] == 1))])
    row = value(unbalanced, "l0_ratio_at_loss_recovered")
    assert row["covers"] == "held-out text, one seed" and row["high"] - row["low"] < 0.01


def test_whether_seeds_are_drawn_is_decided_for_each_pair_and_said_of_each(tmp_path: Path) -> None:
    both = {("gated", 0): 0.4, ("gated", 1): 0.6, ("standard", 0): 1.0, ("standard", 1): 1.0}
    rows = swept(tmp_path, {**both, ("p_anneal", 7): 0.8})
    found = gsae_ray.compare(rows)
    without = gsae_ray.compare(rows[rows["architecture"] != "p_anneal"])
    here = found.table[found.table["group"] != "p_anneal"].reset_index(drop=True)
    ratios = here["measure"].str.startswith("l0_ratio")
    pd.testing.assert_frame_equal(here[ratios], without.table[ratios.to_numpy()], check_index_type=False)
    assert set(here["covers"]) == {"held-out text and two seeds"}
    assert [line.partition("; ")[2] for line in found.sentences] == [
        "held-out text and two seeds",
        "held-out text, one seed",
    ]
    (told,) = (line for line in repr(found).splitlines() if line.startswith("95 % intervals"))
    assert told == (
        "95 % intervals: held-out text and two seeds (gated, gated ÷ standard, standard); held-out text, one seed "
        f"(p_anneal, p_anneal ÷ standard); {CONTEXTS} contexts"
    )


def test_draws_without_a_seed_of_a_kind_say_nothing_of_its_area(tmp_path: Path) -> None:
    rows = swept(tmp_path, {("gated", 0): 0.5, ("gated", 1): 0.5, ("standard", 2): 1.0, ("standard", 3): 1.0})
    found = gsae_ray.compare(rows)
    for kind in ("gated", "standard"):
        row = value(found, "hypervolume", kind)
        assert row["low"] > 0.5 * row["value"] > 0, "not 0, of the draws in which only the other kind's seeds are"


def test_numbers_that_are_not_those_of_their_runs_are_refused(tmp_path: Path) -> None:
    rows = swept(tmp_path, {("gated", 0): 0.5, ("standard", 0): 1.0})
    with pytest.raises(UserError, match=r"^l0: these rows do not say what their runs have measured; .*run_id"):
        gsae_ray.compare(rows.assign(l0=2 * rows["l0"]))


def test_the_command_prints_what_python_shows(tmp_path: Path) -> None:
    rows = swept(tmp_path, {("gated", 0): 0.5, ("standard", 0): 1.0}, noise=0.1)
    done = CliRunner().invoke(main, ["compare", "swept", "--storage", str(tmp_path), "--site", SITE_1])
    found = gsae_ray.compare(rows)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(found.sentences[0]) and "hypervolume − that of standard" in done.stdout
    as_json = CliRunner().invoke(main, ["compare", "swept", "--storage", str(tmp_path), "--json"])
    told = pd.DataFrame(json.loads(as_json.stdout))
    assert told["value"].tolist() == pytest.approx(found.table["value"].tolist(), rel=1e-12)
    assert found.notes and as_json.stderr.splitlines() == found.notes, "standard output is JSON, and nothing else"
    wrong = CliRunner().invoke(main, ["compare", "swept", "--storage", str(tmp_path), "--by", "d_sae"])
    assert wrong.exit_code == 2 and wrong.stderr.startswith("gsae-ray: compare: all rows are 16")


# ---- the arithmetic -------------------------------------------------------------------------------------------------
