"""Recipes: what each schedule sets, that all of it can be overridden and is told, and mistakes in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydantic
import pytest
from trainers import BATCH, make, run

from gsae_ray.config.explain import explain
from gsae_ray.config.load import load_sweep
from gsae_ray.config.recipe import SCHEDULED, Schedule, TrainingSettings, TrialTraining
from gsae_ray.errors import UserError

STEPS = 300_000
"""The paper's run."""


def settings(steps: int = STEPS, **training: Any) -> TrainingSettings:
    return TrainingSettings.model_validate({"tokens": steps * 4096, **training})


def resolve(schedule: Schedule = "paper", steps: int = STEPS, **training: Any) -> TrialTraining:
    return settings(steps, **training).resolve(3e-4, 0, "paper", schedule)


# ---- the presets ----------------------------------------------------------------------------------------------------


def test_the_paper_schedule_is_that_of_the_paper() -> None:
    paper = resolve("paper")
    assert paper.batch_size == 4096
    assert paper.steps == 300_000
    assert paper.adam_betas == (0.0, 0.999)
    assert settings().lr == (3e-4,)
    assert paper.lr_warmup * paper.steps == pytest.approx(1000)
    assert (paper.lr_decay, paper.l1_warmup, paper.gradient_clip) == (0.0, 0.0, 0.0)
    assert paper.input_scaling is False and paper.unit_biases is False
    assert paper.resampling is not None
    assert paper.resampling.model_dump() == {
        "at_steps": (25_000, 50_000, 75_000, 100_000),
        "window_steps": 12_500,
        "inputs": 819_200,
        "direction": "centred",
        "rewarm_steps": 1000,
    }


def test_the_modern_schedule_is_the_newer_recipe() -> None:
    modern = resolve("modern")
    assert (modern.lr_decay, modern.l1_warmup, modern.gradient_clip) == (0.2, 0.05, 1.0)
    assert modern.input_scaling is True and modern.unit_biases is True
    assert modern.resampling is None
    assert modern.adam_betas == (0.0, 0.999)


@pytest.mark.parametrize("schedule", ["paper", "modern"])
def test_a_schedule_as_it_stands_is_named_by_itself(schedule: Schedule) -> None:
    for steps in (200, 30_000, STEPS):  # where its parts do not fit, too
        assert resolve(schedule, steps).recipe == f"paper/{schedule}"
        assert resolve(schedule, steps, log_every_tokens=4096).recipe == f"paper/{schedule}"


OVERRIDES: dict[str, tuple[Any, str]] = {
    "input_scaling": ({"paper": True, "modern": False}, ""),
    "unit_biases": ({"paper": True, "modern": False}, ""),
    "lr_warmup": (0.03, "lr_warmup=0.03"),
    "lr_decay": (0.3, "lr_decay=0.3"),
    "l1_warmup": (0.1, "l1_warmup=0.1"),
    "gradient_clip": (2.5, "gradient_clip=2.5"),
    "resampling": ({"at_steps": [100, 300]}, "resampling=at_steps:100-300,window_steps:50"),
    "adam_betas": ([0.9, 0.99], "adam_betas=0.9-0.99"),
}


@pytest.mark.parametrize("schedule", ["paper", "modern"])
@pytest.mark.parametrize("key", OVERRIDES)
def test_every_part_of_a_schedule_can_be_overridden_and_is_then_told(schedule: Schedule, key: str) -> None:
    value, told = OVERRIDES[key]
    if isinstance(value, dict) and schedule in value:
        value = value[schedule]
        told = f"{key}={str(value).lower()}"
    resolved = resolve(schedule, **{key: value})
    assert resolved.recipe.startswith(f"paper/{schedule}+{told}")
    assert resolved.recipe.count("+") == 1
    others = resolve(schedule).model_dump() | {key: resolved.model_dump()[key]}
    assert resolved.model_dump() == others
    if key not in ("resampling", "adam_betas"):
        assert getattr(resolved, key) == value


def test_every_key_that_a_schedule_sets_is_in_the_test_above() -> None:
    assert {*SCHEDULED, "adam_betas"} == set(OVERRIDES)


def test_overriding_with_the_schedule_s_own_value_is_no_deviation() -> None:
    assert resolve("modern", lr_decay=0.2, gradient_clip=1.0, resampling=False).recipe == "paper/modern"
    assert resolve("paper", resampling=True, input_scaling=False, l1_warmup=0.0).recipe == "paper/paper"


def test_a_zero_overrides_too() -> None:
    modern = resolve("modern", lr_decay=0, gradient_clip=0, l1_warmup=0, lr_warmup=0)
    assert (modern.lr_decay, modern.gradient_clip, modern.l1_warmup, modern.lr_warmup) == (0, 0, 0, 0)
    assert modern.recipe == "paper/modern+lr_warmup=0+lr_decay=0+l1_warmup=0+gradient_clip=0"


# ---- short runs -----------------------------------------------------------------------------------------------------


def test_resampling_events_past_the_end_are_dropped_with_a_notice() -> None:
    short = settings(60_000, schedule="paper")
    resampling = short.resolve(3e-4, 0, "paper", "paper").resampling
    assert resampling is not None
    assert resampling.at_steps == (25_000, 50_000)
    (notice,) = short.notices()
    assert notice == "resampling: at_steps 75,000, 100,000 dropped: the run ends after 60,000 steps"
    assert list(settings(schedule="paper").notices()) == []


def test_an_event_at_the_end_is_dropped_since_nothing_would_learn_from_it() -> None:
    assert resolve("paper", 50_000).resampling.at_steps == (25_000,)  # type: ignore[union-attr]
    assert resolve("paper", 50_001).resampling.at_steps == (25_000, 50_000)  # type: ignore[union-attr]


def test_a_run_too_short_for_any_event_has_no_resampling() -> None:
    assert resolve("paper", 25_000).resampling is None
    lines = list(settings(1000, schedule="paper").notices())
    assert len(lines) == 2
    assert "lr warm-up" in lines[0] and "a tenth" in lines[0]
    assert "25,000, 50,000, 75,000, 100,000 dropped" in lines[1]
    assert list(settings(1000, schedule="paper", resampling=False, lr_warmup=0.01).notices()) == []


def test_the_papers_warm_up_is_at_most_a_tenth_of_the_run() -> None:
    assert resolve("paper", 2000).lr_warmup == 0.1
    assert resolve("paper", 10_000).lr_warmup == 0.1
    assert resolve("paper", 20_000).lr_warmup == 0.05


@pytest.mark.parametrize(
    ("given", "window", "rewarm"),
    [
        ({"at_steps": [1000, 2000]}, 500, 40),
        ({"at_steps": [1000, 1100]}, 100, 40),  # a window never begins before the event before
        ({"at_steps": [1]}, 1, 0),
        ({"at_steps": [1000], "window_steps": 7, "rewarm_steps": 0}, 7, 0),
    ],
)
def test_defaults_of_resampling_follow_its_steps(given: dict[str, Any], window: int, rewarm: int) -> None:
    resampling = resolve(resampling=given).resampling
    assert resampling is not None
    assert (resampling.window_steps, resampling.rewarm_steps) == (window, rewarm)


@pytest.mark.parametrize("value", [False, {"at_steps": []}])
def test_resampling_can_be_turned_off(value: Any) -> None:
    assert resolve("paper", resampling=value).resampling is None


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("objective", "papr", ["objective", "'papr'", "'paper' or 'norm_weighted'"]),
        ("objective", [], ["objective", "empty list"]),
        ("schedule", "moden", ["schedule", "'moden'", "'paper' or 'modern'"]),
        ("l1_units", "mean", ["l1_units", "'mean'", "'sum' or 'paper'"]),
        ("lr_warmup", 1.5, ["lr_warmup", "1.5"]),
        ("lr_warmup", -0.1, ["lr_warmup", "-0.1"]),
        ("lr_decay", 2, ["lr_decay", "2"]),
        ("l1_warmup", -1, ["l1_warmup", "-1"]),
        ("gradient_clip", -1, ["gradient_clip", "-1"]),
        ("input_scaling", "yes please", ["input_scaling", "'yes please'", "true or false"]),
        ("resampling", {"window_steps": 11, "at_steps": [20]}, ["resampling.window_steps", "11", "10 steps"]),
        ("resampling", {"window_steps": 6, "at_steps": [5]}, ["resampling", "window_steps", "6", "5 steps"]),
        ("resampling", {"window_steps": 3, "at_steps": [5, 7]}, ["resampling", "window_steps", "3", "2 steps"]),
        ("resampling", {"at_steps": [5, 5]}, ["resampling", "at_steps", "[5, 5]", "rise"]),
        ("resampling", {"at_steps": [0]}, ["resampling.at_steps.0", "0", "greater than 0"]),
        ("resampling", {"at_steps": 5}, ["resampling.at_steps", "5"]),
        ("resampling", {"inputs": 0}, ["resampling.inputs", "0"]),
        ("resampling", {"rewarm_steps": -1}, ["resampling.rewarm_steps", "-1"]),
        ("resampling", {"direction": "centered"}, ["resampling.direction", "'centered'", "'centred' or 'input'"]),
        ("resampling", {"window": 3}, ["resampling.window", "did you mean 'window_steps'?"]),
        ("resampling", "often", ["resampling", "'often'"]),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(key: str, value: Any, parts: list[str]) -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        settings(10, **{key: value})
    line = explain(caught.value, TrainingSettings)
    assert "\n" not in line
    assert all(part in line for part in parts), line


SWEEP = """\
name: test
model: {name: builtin}
dataset: {name: builtin}
sites: {layers: [1], points: [resid_post]}
saes: [{architecture: gated, widths: 32, l1_coefficient: 1}]
training: {tokens: 1000, batch_size: 100}
"""


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("saes.0.l1_coefficient=-1", ["saes.0.l1_coefficient", "-1"]),
        ("saes.0.objective=papr", ["saes.0", "objective", "'papr'"]),
        ("training.schedule=old", ["training.schedule", "'old'"]),
        ("training.resampling={window_steps: 50, at_steps: [60]}", ["training", "resampling.window_steps: 50", "10"]),
        ("saes.0.resampling={window_steps: 50, at_steps: [60]}", ["saes.0", "resampling.window_steps: 50", "10"]),
        ("saes.0.auxiliary=thawed", ["saes.0.auxiliary", "'thawed'", "'frozen', 'unfrozen' or 'none'"]),
        ("saes.0.tied=1", ["saes.0.tied", "1 should be true or false"]),
        (
            "saes.0={architecture: gated, widths: 8, l1_coefficient: 1, tied: false, learn_r_mag: false}",
            ["learn_r_mag"],
        ),
        (
            "saes.0={architecture: standard, widths: 8, l1_coefficient: 1, tied: false}",
            ["saes.0.tied: unknown key for standard, one of gated; leave it out"],
        ),
    ],
)
def test_a_mistake_in_a_sweep_file_is_one_line(tmp_path: Path, override: str, parts: list[str]) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP)
    with pytest.raises(UserError) as caught:
        load_sweep(path, [override])
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts), caught.value


# ---- what a trainer makes of them -----------------------------------------------------------------------------------


def test_the_paper_schedule_keeps_the_lr_after_its_warm_up() -> None:
    trainer = make(schedule="paper", lr_warmup=0.1, tokens=40 * BATCH, log_every_tokens=BATCH)
    rates = [row["lr"] / 3e-3 for row in run(trainer)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[2] == pytest.approx(0.55)
    assert set(rates[4:]) == {1.0}
    assert trainer.scale == 1.0
