"""The frontier as text: what tells SAEs apart is a column, and nothing of it is cut."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import pandas as pd
import pytest
from rich.console import Console
from trials import SITE_1, SITE_2, expand

from gsae_ray.cli.frontier_table import print_frontier
from gsae_ray.cli.tables import print_table
from gsae_ray.config.recipe import TrialTraining
from gsae_ray.config.trial import TrialSpec
from gsae_ray.evaluation import metrics
from gsae_ray.results.columns import columns
from gsae_ray.results.frontier_table import FrontierTable
from gsae_ray.tracking.params import trial_params

LAMBDA = 0.000123457
RECIPE_KEYS = {
    *("objective", "schedule", "input_scaling", "lr_warmup", "lr_decay", "l1_warmup", "gradient_clip"),
    *("unit_biases", "resampling", "adam_betas"),
}
"""What the recipe tells of."""


def rows_of(*trials: TrialSpec, **values: Any) -> pd.DataFrame:
    """As `results.frontier` makes them of their runs; the L0 is their number."""
    rows = []
    for number, trial in enumerate(trials):
        params = trial_params(trial)
        row = {name: params.get(name, "") for name in columns()} | dict.fromkeys(metrics.columns(), 0.98765)
        row |= {name: math.nan for name in columns() if name.endswith(("_low", "_high"))}
        row |= {"sparsity": params["sparsity"], "l0": 100.0 + number, "on_frontier": number == 0, "launch": "one"}
        row |= {"origin": "own", "found_coefficient": float("nan")}
        rows.append(row | values)
    return pd.DataFrame(rows)[columns()]


def printed(rows: pd.DataFrame, width: int, **options: Any) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    print_frontier(rows, console, **options)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return [line.rstrip() for line in lines]


def head(lines: list[str]) -> str:
    """What stands over the columns of the first table."""
    return " ".join(lines[1 : next(i for i, line in enumerate(lines) if line.startswith("──"))])


@pytest.mark.parametrize(
    ("setting", "entries", "values"),
    [
        ("lr", [{"lr": [1e-3, 3e-4]}], ["0.001", "0.0003"]),
        ("seed", [{"seeds": [0, 7]}], ["0", "7"]),
        ("recipe", [{}, {"lr_decay": 0.5}], ["norm_weighted/modern", "norm_weighted/modern+lr_decay=0.5"]),
        ("recipe", [{"objective": ["paper", "norm_weighted"]}], ["paper/modern", "norm_weighted/modern"]),
        ("size", [{"batch_size": 64}, {"batch_size": 128}], ["64", "128"]),
        ("units", [{"l1_units": "sum"}, {"l1_units": "paper"}], ["sum", "paper"]),
        ("engine", [{}, {"engine": "sparse-cpu"}], ["dense", "sparse-cpu"]),
        ("precision", [{}, {"gpus": 1, "precision": "bf16"}], ["float32", "bf16"]),
        ("architecture", [{"tied": [True, False]}], ["gated", "gated tied=false"]),
    ],
)
def test_a_setting_in_which_saes_differ_is_a_column_and_no_other(
    setting: str, entries: list[dict[str, Any]], values: list[str]
) -> None:
    trials = [trial for entry in entries for trial in expand(**entry)]
    lines = printed(rows_of(*trials), 200)
    assert setting in head(lines)
    for value, line in zip(values, lines[-len(values) - 1 :], strict=False):
        assert f" {value} " in f" {line} "
    always = {"architecture", "d", "sae", "sparsity", "l0", "loss", "recovered", "gamma", "fvu", "alive", "fraction"}
    assert set(re.findall(r"\w+", head(lines))) - always <= {setting, "batch", "l1"}
    in_notebooks = repr(FrontierTable(rows_of(*trials))).splitlines()
    assert setting in re.findall(r"[a-z0-9]+", in_notebooks[0]), "the same columns"


def test_what_was_found_for_an_l0_is_shown_where_it_was_asked_for() -> None:
    asking = rows_of(*expand(l1_coefficient=None, target_l0=8)).assign(found_coefficient=1.23456)
    lines = printed(pd.concat([asking, rows_of(*expand())], ignore_index=True), 200)
    text = "\n".join(lines)
    assert {"found", "coefficient"} <= set(re.findall(r"\w+", head(lines)))
    assert "1.235" in text and "nan" not in text
    assert "found" not in head(printed(rows_of(*expand()), 200))


def test_every_setting_of_training_that_decides_weights_has_a_column() -> None:
    about_files = {"log_every_tokens", "checkpoint_every_tokens", "snapshots_at"}
    assert TrialTraining.model_fields.keys() - about_files - RECIPE_KEYS <= set(columns())


def all_varying() -> pd.DataFrame:
    trials = [
        *expand(l1_coefficient=LAMBDA, lr=[1e-3, 3e-4], seeds=[0, 12]),
        *expand("standard", l1_coefficient=LAMBDA, lr_decay=0.5, l1_units="paper"),
        *expand(l1_coefficient=2 * LAMBDA, batch_size=128, objective="paper", schedule="paper", tied=False),
    ]
    return rows_of(*trials).assign(d_sae=16384)


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_the_table_fits_its_terminal_and_every_number_is_whole(width: int) -> None:
    rows = all_varying()
    lines = printed(rows, width)
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    text = " ".join(lines)
    for name in ("sparsity", "lr", "seed", "batch", "l0", "recovered"):
        assert f" {name} " in text
    first = [line.split() for line in lines if "16384" in line]
    assert len(first) == len(rows)
    for cells, row in zip(first, rows.to_dict("records"), strict=True):
        wanted = [f"{row['sparsity']:g}", f"{row['lr']:g}", str(row["seed"]), str(row["batch_size"])]
        assert [cell for cell in cells if cell in wanted] == wanted, cells
        assert {f"{row['l0']:.4g}", "0.9877"} <= set(cells)


def test_measurements_without_room_are_named_and_settings_never_left_out() -> None:
    (said,) = [line for line in printed(all_varying(), 80) if line.startswith("no room for")]
    assert "alive fraction" in said and "--json" in said
    assert not [line for line in printed(all_varying(), 200) if line.startswith("no room for")]
    lines = printed(all_varying(), 40)
    assert len([line for line in lines if "16384" in line and f"{LAMBDA:g}" in line]) == 5


def test_each_number_of_tokens_has_a_table_of_its_own_unless_they_are_mixed() -> None:
    rows = rows_of(*expand(tokens=60_032), *expand(tokens=200_000))
    titles = [line for line in printed(rows, 80) if line.startswith("blocks")]
    assert titles == [f"{SITE_1}, {tokens} tokens (* on the frontier)" for tokens in ("60,032", "200,000")]
    mixed = printed(rows, 80, mixed_tokens=True)
    assert [line for line in mixed if line.startswith("blocks")] == [f"{SITE_1} (* on the frontier)"]
    assert "tokens" in head(mixed)
    assert [cell for line in mixed for cell in line.split() if cell in ("60,032", "200,000")] == ["60,032", "200,000"]


def test_the_launch_is_a_column_where_nothing_else_tells_saes_apart() -> None:
    """E.g. of `--launch all` after the data's seed was changed."""
    rows = pd.concat([rows_of(*expand()), rows_of(*expand(), launch="two")], ignore_index=True)
    assert "launch" in head(printed(rows, 80))
    rows["seed"] = [0, 1]
    assert "launch" not in head(printed(rows, 80))


def test_a_star_marks_the_frontier_of_each_site() -> None:
    rows = rows_of(*expand(layers=(1, 2), l1_coefficient=[1.0, 2.0]))
    rows["on_frontier"] = [True, False, False, True]
    lines = printed(rows, 80)
    assert [line.endswith("*") for line in lines if line.startswith("gated")] == [True, False, False, True]
    assert [line for line in lines if line.startswith("blocks")] == [
        f"{s} (* on the frontier)" for s in (SITE_1, SITE_2)
    ]


def test_intervals_stand_beside_their_metrics_where_they_are_asked_for() -> None:
    rows = rows_of(*expand(), l0=22.5312, l0_low=21.9, l0_high=23.25, gamma_low=math.nan, gamma_high=math.nan)
    text = " ".join(printed(rows, 200, intervals=True))
    assert " 22.53 [21.9, 23.25] " in text and " 0.9877 [" not in text
    assert "[" not in " ".join(printed(rows, 200))


def test_references_stand_in_every_table_of_their_site_with_their_origin_and_what_is_known_of_them() -> None:
    (one,), (other,) = expand("gated", l1_coefficient=[1.0]), expand("gated", l1_coefficient=[1.0], tokens=2048)
    unknown = {"sparsity": math.nan, "lr": math.nan, "recipe": "", "seed": None, "tokens": None, "batch_size": None}
    theirs = rows_of(one, origin="their SAE", l0=7.0, **unknown)
    whole = dict.fromkeys(("seed", "tokens", "batch_size"), "Int64")
    rows = pd.concat([rows_of(one, other).astype(whole), theirs.astype(whole)], ignore_index=True)
    lines = printed(rows, 200)
    tables = [line for line in lines if "on the frontier" in line]
    assert tables == [f"{SITE_1}, {tokens} tokens (* on the frontier)" for tokens in ("1,024", "2,048")]
    shown = [line.split() for line in lines if line.startswith(("own", "their SAE"))]
    assert [line[:5] for line in shown] == [
        ["own", "gated", "16", "1", "100"],
        ["their", "SAE", "gated", "16", "7"],  # no sparsity
        ["own", "gated", "16", "1", "101"],
        ["their", "SAE", "gated", "16", "7"],
    ]
    assert "origin" in head(lines) and "recipe" not in head(lines)
    assert "origin" not in head(printed(rows_of(one, other), 200))


def test_what_has_no_value_is_no_hindrance() -> None:
    lines = printed(rows_of(*expand("standard"), sparsity=math.nan), 80)
    assert "nan" in " ".join(lines)


@pytest.mark.parametrize("width", [30, 80, 120])
def test_no_table_cuts_what_is_to_be_copied_or_told_apart(width: int) -> None:
    """A job's id is copied; the variants of an architecture differ at their ends."""
    ids = ["quickstart-20261128-140009-ab12", "quickstart-20261128-140009-cd34"]
    variants = ["gated auxiliary=frozen,tied=false", "gated auxiliary=unfrozen,tied=false"]
    console = Console(file=io.StringIO(), width=width)
    print_table(
        {"job": ids, "architecture": variants, "parameters": ["4,243,584", "197,504"]}, console, texts=("architecture",)
    )
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert all(any(text in line for line in lines) for text in (*ids, "4,243,584", "197,504"))
    *_, first, second = "".join(line[len(ids[0]) :] for line in lines).replace(" ", "").split("gated")
    assert "unfrozen" not in first and "unfrozen" in second
