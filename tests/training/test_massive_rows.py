"""Rows of massive norm weigh nothing in training: a trial sees what it would see if they were not there."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor
from trainers import BATCH, BLOCKS, M, N, make, run, same, sparse_rows, through_files, weights
from tune_trials import begun

from gsae_ray.errors import NumericError
from gsae_ray.saes import Losses, Objective
from gsae_ray.training.trainer import Trainer

MASSIVE = tuple(range(5, 6000, 97))
RESAMPLING = {"at_steps": [40], "window_steps": 10, "inputs": 5 * BATCH, "rewarm_steps": 0}
architectures = pytest.mark.parametrize("architecture", ["standard", "gated"])


def rows_with_sinks() -> Tensor:
    """One row in a hundred has 200 times the norm, and a direction of its own."""
    rows_RD = sparse_rows().clone()
    rows_RD[list(MASSIVE)] = 200 * rows_RD.norm(dim=1).median() * torch.eye(N)[0]
    return rows_RD


def massive(rows_RD: Tensor) -> Tensor:
    return (rows_RD[:, 0] > 100 * sparse_rows().norm(dim=1).median()) & (rows_RD[:, 1:] == 0).all(1)


def watched(trainer: Trainer) -> list[tuple[Tensor, Tensor]]:
    """(x, features) of every step, as the losses see them."""
    seen: list[tuple[Tensor, Tensor]] = []
    original = trainer.sae.losses

    def watch(x_BD: Tensor, coefficient: float, objective: Objective = "paper", y_BD: Tensor | None = None) -> Losses:
        losses = original(x_BD, coefficient, objective, y_BD)
        seen.append((x_BD.clone(), losses.acts_BF.clone()))
        return losses

    trainer.sae.losses = watch  # type: ignore[method-assign]
    return seen


@architectures
def test_every_step_learns_from_its_batch_without_the_rows_of_massive_norm(architecture: str) -> None:
    rows_RD = rows_with_sinks()
    trainer = make(architecture, rows_RD=rows_RD)
    seen = watched(trainer)
    rows = run(trainer)
    steps = 5000 // BATCH
    assert trainer.tokens == rows[-1]["tokens"] == steps * BATCH, "they keep their places"
    for step, (x_BD, _) in enumerate(seen):
        batch_BD = rows_RD[step * BATCH : (step + 1) * BATCH]
        assert torch.equal(x_BD, batch_BD[~massive(batch_BD)] * trainer.scale)
    assert len(seen) == steps
    first = seen[:10]
    active_F = torch.stack([(acts_BF > 0).sum(0) for _, acts_BF in first]).sum(0)
    taking_part = sum(len(x_BD) for x_BD, _ in first)
    assert rows[0]["l0"] == active_F.sum().item() / taking_part
    assert rows[0]["dead_fraction"] == (active_F == 0).double().mean().item()
    assert rows[0]["left_out_fraction"] == pytest.approx(1 - taking_part / (10 * BATCH))


def test_the_scale_and_the_start_of_b_dec_are_those_of_the_other_rows() -> None:
    trainer = make(rows_RD=rows_with_sinks())
    block_RD = rows_with_sinks()[: BLOCKS[0]]
    scaled_RD = block_RD[~massive(block_RD)].double() * trainer.scale
    assert scaled_RD.square().sum(1).mean().item() == pytest.approx(N, rel=1e-9)
    torch.testing.assert_close(trainer.sae.b_dec.detach().double(), scaled_RD.mean(0), rtol=1e-5, atol=1e-6)
    assert trainer.scale > 10 * make(rows_RD=rows_with_sinks(), max_norm=None).scale


def test_without_max_norm_the_sinks_are_trained_on() -> None:
    trainer = make(rows_RD=rows_with_sinks(), max_norm=None)
    seen = watched(trainer)
    rows = run(trainer)
    assert all(len(x_BD) == BATCH for x_BD, _ in seen)
    assert rows[0]["left_out_fraction"] == 0


def test_rows_below_the_limit_make_no_difference_bit_for_bit() -> None:
    for architecture in ("standard", "gated"):
        trainers = [make(architecture, max_norm=max_norm) for max_norm in (10.0, None)]
        rows = [run(trainer) for trainer in trainers]
        assert rows[0] == rows[1]
        assert same(*map(weights, trainers))


@architectures
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_training_with_massive_rows_goes_on_bit_for_bit_after_a_stop(architecture: str, stop: int) -> None:
    whole = make(architecture, rows_RD=rows_with_sinks(), resampling=RESAMPLING)
    expected = run(whole)
    first = make(architecture, rows_RD=rows_with_sinks(), resampling=RESAMPLING)
    for _ in range(stop):
        first.train_interval()
    second = make(architecture, rows_RD=rows_with_sinks(), resampling=RESAMPLING, chunk_rows=33)
    second.restore(*through_files(first.state()))
    assert run(second) == expected[stop:]
    assert same(weights(second), weights(whole))


@architectures
def test_silent_features_are_never_given_the_direction_of_a_massive_row(architecture: str) -> None:
    def before_the_event(max_norm: float | None) -> tuple[Trainer, Tensor]:
        trainer = make(architecture, rows_RD=rows_with_sinks(), resampling=RESAMPLING, max_norm=max_norm)
        with torch.no_grad():
            trainer.sae.get_parameter("b_enc" if architecture == "standard" else "b_gate")[: M // 2] = -1e3
        while trainer.step < 40:
            trainer.train_interval()
        assert trainer.resampler is not None
        return trainer, trainer.resampler.inputs_KD / trainer.scale

    _, inputs_KD = before_the_event(10.0)
    assert len(inputs_KD) >= M // 2
    assert not massive(inputs_KD).any()
    _, inputs_KD = before_the_event(None)
    assert (inputs_KD.norm(dim=1) > 100 * sparse_rows().norm(dim=1).median()).any(), "their losses are the largest"


def test_a_batch_of_massive_rows_alone_changes_nothing() -> None:
    rows_RD = rows_with_sinks()
    rows_RD[40 * BATCH : 41 * BATCH] = rows_RD[MASSIVE[0]]
    trainer = make(rows_RD=rows_RD, log_every_tokens=20 * BATCH)
    seen = watched(trainer)
    run(trainer)
    assert len(seen) == trainer.step - 1
    assert all(p.isfinite().all() for p in trainer.sae.parameters())


def test_an_interval_without_a_row_that_takes_part_is_a_numeric_error() -> None:
    rows_RD = sparse_rows().clone()
    rows_RD[BLOCKS[0] :] *= 1e4  # block 0 is not like the others
    with pytest.raises(NumericError, match=r"no row between steps 41 and 50 takes part: .*dataset\.max_norm"):
        run(make(rows_RD=rows_RD))


def test_a_trial_logs_the_share_of_the_largest_rows_once(tmp_path: Path) -> None:
    trainer = make("gated", rows_RD=rows_with_sinks())
    trial = begun(tmp_path / "trial", trainer)
    for _ in range(3):
        trial._train(trainer)
    rows, _ = trial.directory.rows()
    shares = [row["metrics"].get("train/sink_share") for row in rows]
    squares_R = rows_with_sinks()[: BLOCKS[0]].double().square().sum(1)
    two = squares_R.sort(descending=True).values[: BLOCKS[0] // 1000].sum() / squares_R.sum()
    assert shares[0] == pytest.approx(two.item(), rel=1e-6)
    assert shares[1:] == list(itertools.repeat(None, 2))
