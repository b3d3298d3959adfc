"""Trials that ask for an L0: the controller, what it comes to, that it is the same in pieces, and where it gives up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from selection import quick
from torch import Tensor
from trainers import N, make, run, same, sparse_rows, through_files, weights

from gsae_ray.errors import NumericError
from gsae_ray.saes import SAEConfig, build
from gsae_ray.training.margins import MarginCalibration
from gsae_ray.training.target_l0 import TargetL0
from gsae_ray.training.trainer import Trainer

ARCHITECTURES = ["standard", "gated", "jumprelu", "p_anneal"]
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
some_architectures = pytest.mark.parametrize(
    "architecture", quick(ARCHITECTURES, lambda name: name in ("gated", "jumprelu"))
)
TARGET = 4.0


def trainer(architecture: str, target: float = TARGET, options: dict[str, Any] | None = None, **given: Any) -> Trainer:
    """A trainer at the start, of 16 batches of 32 rows an interval."""
    wide = {"bandwidth": 0.1, "initial_threshold": 0.1} if architecture == "jumprelu" else {}
    training = {"tokens": 6000, "batch_size": 16, "log_every_tokens": 16 * 25, "lr": 1e-2, **given}
    return make(architecture, l1=None, options={"target_l0": target, **wide, **(options or {})}, **training)


def train_side_l0(trained: Trainer) -> float:
    """L0 of the finished SAE on the rows that calibrated it, and on those alone."""
    controller = trained.controller
    assert controller is not None
    rows = controller.calibration_steps * trained.settings.batch_size
    rows_RD = sparse_rows()[trained.tokens - rows : trained.tokens]
    return (trained.sae.eval().encode(rows_RD * trained.scale) > 0).sum().item() / rows


# ---- what it comes to ----


@every_architecture
def test_l0_on_training_rows_is_the_target_and_the_metrics_say_what_was_found(architecture: str) -> None:
    trained = trainer(architecture)
    rows = run(trained)
    assert train_side_l0(trained) == pytest.approx(TARGET, rel=0.02)
    found = [row["found_coefficient"] for row in rows]
    assert len(set(found)) > 5, "it looks for λ"
    assert found[-1] == pytest.approx(rows[-1]["sparsity_coefficient"] / trained._scaled_coefficient(1.0), rel=0.5)
    finished = trained.finished_sae({})
    assert finished.cfg.hyperparameters["target_l0"] == TARGET
    assert finished.sparsity_coefficient is None
    raw_RD = sparse_rows()[: trained.tokens]
    assert (finished.encode(raw_RD) > 0).sum().item() / len(raw_RD) == pytest.approx(TARGET, rel=0.1)


def test_a_sparse_engine_has_the_l0_too() -> None:
    trained = trainer("gated", engine="sparse-cpu")
    run(trained)
    assert train_side_l0(trained) == pytest.approx(TARGET, rel=0.02)


def test_it_is_the_same_in_other_units() -> None:
    """What is found is in the sweep file's units, in which training minimises the same."""
    ours, papers = (trainer("standard", l1_units=units) for units in ("sum", "paper"))
    assert run(ours)[-1]["l0"] == run(papers)[-1]["l0"]
    assert same(weights(ours), weights(papers))
    assert ours.controller is not None and papers.controller is not None
    assert ours.coefficient == papers.coefficient
    ratio = ours._scaled_coefficient(1.0) / papers._scaled_coefficient(1.0)
    assert papers.controller.found == pytest.approx(ours.controller.found * ratio)


def test_the_size_of_activations_does_not_matter() -> None:
    one, other = (trainer("gated", rows_RD=factor * sparse_rows()) for factor in (1.0, 64.0))
    assert run(one) == run(other)


def test_the_found_coefficient_from_the_start_comes_near_the_target() -> None:
    asked = trainer("standard")
    found = run(asked)[-1]["found_coefficient"]
    given = make("standard", l1=found, tokens=6000, batch_size=16, log_every_tokens=16 * 25, lr=1e-2)
    assert run(given)[-1]["l0"] == pytest.approx(TARGET, rel=0.3)


# ---- bit for bit ----


@some_architectures
def test_it_acts_on_steps_that_no_interval_changes(architecture: str) -> None:
    one = trainer(architecture)
    other = trainer(architecture, log_every_tokens=16 * 7, checkpoint_every_tokens=16 * 21)
    run(one), run(other)
    assert same(weights(one), weights(other))
    assert one.controller is not None and other.controller is not None
    assert one.controller.found == other.controller.found


@some_architectures
def test_a_trial_that_is_killed_finds_the_same_bit_for_bit(architecture: str) -> None:
    whole = trainer(architecture)
    rows = run(whole)
    killed = trainer(architecture)
    for interval in range(len(rows)):
        if interval:  # every interval in a process of its own, also that of calibration
            state = through_files(killed.state())
            killed = trainer(architecture)
            killed.restore(*state)
        row = killed.train_interval()
        assert all(row[key] == rows[interval][key] for key in ("loss", "l0", "found_coefficient"))
    assert same(weights(killed), weights(whole))


def test_it_goes_on_within_calibration() -> None:
    """A checkpoint may lie between two of its steps."""
    settings: dict[str, Any] = {"log_every_tokens": 5 * 16, "checkpoint_every_tokens": 5 * 16}
    whole = trainer("standard", **settings)
    run(whole)
    killed = trainer("standard", **settings)
    while killed.step < whole.learning_steps + 2:
        killed.train_interval()
    assert killed.learning_steps < killed.step < killed.settings.steps
    state = through_files(killed.state())
    killed = trainer("standard", **settings)
    killed.restore(*state)
    run(killed)
    assert same(weights(killed), weights(whole))


def test_weights_stay_while_thresholds_are_calibrated() -> None:
    trained = trainer("jumprelu", log_every_tokens=4 * 16)
    while trained.step < trained.learning_steps:
        trained.train_interval()
    before = weights(trained)
    run(trained)
    after = weights(trained)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"threshold"}
    assert trained.controller is not None
    assert trained.settings.steps - trained.learning_steps == trained.controller.calibration_steps == 375 // 50


# ---- the controller by itself ----


def controller(target: float, architecture: str = "standard", **training: Any) -> TargetL0:
    trained = make(architecture, l1=None, options={"target_l0": target}, tokens=96_000, batch_size=32, **training)
    assert trained.controller is not None
    return trained.controller


def simulate(found: TargetL0, l0_of: Any, rows: int = 100) -> list[float]:
    """L0 of every step of training where it follows at once from the coefficient."""
    sae, l0s = build(SAEConfig(architecture="topk", d_in=1, d_sae=1, hyperparameters={"k": 1})), []
    for step in range(3000):
        if step < 3000 - found.calibration_steps:
            l0s.append(l0_of(found.coefficient))
            found.observe(torch.tensor([round(l0s[-1] * rows)]), rows)
        found.end_step(step, sae)
    return l0s


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("start", [0.2, 1.0, 5.0])
def test_it_settles_from_far_away_whatever_l0_makes_of_the_coefficient(power: float, start: float) -> None:
    found = controller(8.0)
    first = found.coefficient
    l0s = simulate(found, lambda coefficient: min(32.0, 8 * start * (first / coefficient) ** power))
    assert l0s[-1] == pytest.approx(8.0, rel=0.02)
    assert max(l0s[-300:]) == pytest.approx(min(l0s[-300:]), rel=0.05), "it comes to rest"


@pytest.mark.parametrize("most, target", [(5.0, 8.0), (40.0, 64.0)])
def test_what_no_coefficient_reaches_fails_with_what_was_seen(most: float, target: float) -> None:
    found = of_width(100, target)
    with pytest.raises(NumericError) as error:
        simulate(found, lambda coefficient: most / (1 + 1e-6 * coefficient))
    assert str(error.value).startswith(f"target_l0: {target:g} was not reached: L0 was {most:.3g} to {most:.3g} in")
    assert "l1_coefficient" in str(error.value) and "\n" not in str(error.value)


def test_an_architecture_without_thresholds_is_not_calibrated() -> None:
    sae = build(SAEConfig(architecture="standard", d_in=64, d_sae=100, hyperparameters={"target_l0": 8.0}))
    sae.has_thresholds = False  # type: ignore[misc]
    found = TargetL0(sae, make(tokens=96_000, batch_size=32).settings, 64.0, 1.0)
    assert found.calibration_steps == 0
    first = found.coefficient
    assert simulate(found, lambda coefficient: 40 * first / coefficient)[-1] == pytest.approx(8.0, rel=0.05)
    assert "margins" not in found.state()


def of_width(d_sae: int, target: float) -> TargetL0:
    sae = build(SAEConfig(architecture="standard", d_in=64, d_sae=d_sae, hyperparameters={"target_l0": target}))
    return TargetL0(sae, make(tokens=96_000, batch_size=32).settings, 64.0, 1.0)


def test_features_that_died_are_out_of_reach() -> None:
    with pytest.raises(NumericError, match=r"target_l0: 8 was not reached: L0 was 1e-06 to 1e-06 .*and 1e-06"):
        simulate(controller(8.0), lambda _: 0.0)


def test_a_trial_that_cannot_have_so_many_features_fails() -> None:
    """Of 32 features 31 on every row, on rows of which a third is all zero but for a constant."""
    with pytest.raises(NumericError, match="target_l0: 31 was not reached: L0 was .* with l1_coefficient"):
        run(trainer("standard", 31.0))


# ---- thresholds ----


def parts(architecture: str, objective: str, tied: bool = True) -> tuple[Any, Tensor]:
    """An SAE with weights of all kinds, and rows for it."""
    options: dict[str, Any] = {"target_l0": TARGET} | ({} if tied else {"tied": False})
    sae = build(SAEConfig(architecture=architecture, d_in=N, d_sae=32, hyperparameters=options))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
            if name == "threshold":
                parameter.abs_()
        if objective != "norm_weighted":
            sae.normalise_decoder()
    return sae.eval(), torch.randn(500, N, generator=generator)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("objective", ["paper", "norm_weighted"])
@pytest.mark.parametrize("by", [-0.2, 0.0, 0.3])
@every_architecture
def test_raised_thresholds_keep_what_was_above(architecture: str, by: float, objective: str, tied: bool) -> None:
    if not tied and architecture != "gated":
        return
    sae, x_BD = parts(architecture, objective, tied)
    margins_BF = sae.margins(x_BD)
    assert torch.equal(margins_BF > 0, sae.encode(x_BD) > 0)
    with torch.no_grad():
        sae.raise_thresholds(by)
    near = (margins_BF - by).abs() < 1e-5
    assert torch.equal((margins_BF > by) | near, (sae.encode(x_BD) > 0) | near)


@every_architecture
@pytest.mark.parametrize("target", [1.0, 8.0, 14.0])
def test_calibration_is_exact_on_its_rows(architecture: str, target: float) -> None:
    sae, x_BD = parts(architecture, "paper")
    calibration = MarginCalibration(target, 1e6, torch.device("cpu"))  # within its reach is everything
    for batch_BD in x_BD.split(37):
        fired_F = calibration.observe(sae, batch_BD)
    shift = calibration.shift()
    if shift is None:
        assert (sae.margins(x_BD) > -torch.inf).sum() < target * len(x_BD)
        return
    with torch.no_grad():
        sae.raise_thresholds(shift)
    assert (sae.encode(x_BD) > 0).sum().item() / len(x_BD) == pytest.approx(target, rel=0.005)
    assert fired_F.sum().item() == (sae.encode(batch_BD) > 0).sum().item()


def test_without_so_many_near_their_threshold_there_is_no_shift() -> None:
    sae, x_BD = parts("standard", "paper")
    calibration = MarginCalibration(30.0, 1.0, torch.device("cpu"))
    calibration.observe(sae, x_BD)
    assert calibration.shift() is None
