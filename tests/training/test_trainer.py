"""The trainer: it learns, it goes on bit for bit from any interval, and only the initialisation knows the seed."""

from __future__ import annotations

import copy
import json
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from trainers import BATCH, BLOCKS, WALL_CLOCK, M, N, make, run, same, sparse_rows, through_files, weights

from gsae_ray.saes import Losses, Objective
from gsae_ray.training.optimiser import Adam
from gsae_ray.training.schedules import lr_factor, sparsity_factor
from gsae_ray.training.trainer import Trainer

architectures = pytest.mark.parametrize("architecture", ["standard", "gated"])
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("standard", {}),
    "gated": ("gated", {}),
    "untied": ("gated", {"tied": False}),
    "r_mag-0": ("gated", {"learn_r_mag": False}),
    "unfrozen": ("gated", {"auxiliary": "unfrozen"}),
    "no-auxiliary": ("gated", {"auxiliary": "none"}),
}
variants = pytest.mark.parametrize("variant", VARIANTS)


def make_variant(variant: str, **training: Any) -> Trainer:
    architecture, options = VARIANTS[variant]
    return make(architecture, options=options, **training)


@cache
def uninterrupted(architecture: str) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    trainer = make(architecture)
    rows = run(trainer)
    return weights(trainer), rows


# ---- it trains ------------------------------------------------------------------------------------------------------


@architectures
def test_the_loss_falls(architecture: str) -> None:
    _, rows = uninterrupted(architecture)
    assert rows[-1]["reconstruction_loss"] < 0.25 * rows[0]["reconstruction_loss"]
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]
    assert 0 < rows[-1]["l0"] < M


@variants
def test_decoder_norms_are_one_after_every_step_of_the_papers_objective(variant: str) -> None:
    trainer = make_variant(variant, tokens=40 * BATCH, log_every_tokens=BATCH, gradient_clip=1.0)
    while True:
        torch.testing.assert_close(trainer.sae.W_dec.norm(dim=1), torch.ones(M), atol=1e-6, rtol=0)
        if trainer.done:
            break
        trainer.train_interval()


@variants
def test_decoder_norms_are_free_with_the_norm_weighted_objective(variant: str) -> None:
    trainer = make_variant(variant, objective="norm_weighted", tokens=40 * BATCH)
    torch.testing.assert_close(trainer.sae.W_dec.norm(dim=1), torch.full((M,), 0.1), atol=1e-6, rtol=0)
    run(trainer)
    norms_F = trainer.sae.W_dec.detach().norm(dim=1)
    assert norms_F.std() > 0.01
    assert (norms_F > 0.11).any()


def test_r_mag_that_is_not_learnt_stays_0() -> None:
    trainer = make_variant("r_mag-0")
    run(trainer)
    assert not trainer.sae.get_parameter("r_mag").any()
    assert uninterrupted("gated")[0]["r_mag"].any()


@pytest.mark.parametrize(("tokens", "batch", "steps"), [(5000, 64, 78), (640, 64, 10), (703, 64, 10), (6000, 6000, 1)])
def test_steps_are_tokens_divided_by_the_batch_size_rounded_down(tokens: int, batch: int, steps: int) -> None:
    trainer = make(tokens=tokens, batch_size=batch, log_every_tokens=3 * batch)
    rows = run(trainer)
    assert trainer.step == steps
    assert trainer.tokens == steps * batch == rows[-1]["tokens"]
    batches = trainer.stream.batches  # type: ignore[attr-defined]
    assert torch.equal(torch.cat(batches), sparse_rows()[: steps * batch])  # batch n is rows [nB, (n+1)B)
    assert [row["tokens"] for row in rows] == [min(3 * k, steps) * batch for k in range(1, math.ceil(steps / 3) + 1)]


def test_the_scale_makes_the_mean_square_norm_n() -> None:
    trainer = make()
    scaled_RD = sparse_rows()[: BLOCKS[0]].double() * trainer.scale
    assert scaled_RD.square().sum(1).mean().item() == pytest.approx(N, rel=1e-9)
    torch.testing.assert_close(trainer.sae.b_dec.detach().double(), scaled_RD.mean(0), rtol=1e-5, atol=1e-6)


def test_training_does_not_depend_on_the_unit_of_the_activations() -> None:
    trainers = [make(rows_RD=factor * sparse_rows()) for factor in (1, 256)]
    rows = [run(trainer) for trainer in trainers]
    assert trainers[0].scale == 256 * trainers[1].scale
    assert rows[0] == rows[1]


# ---- what it reports ------------------------------------------------------------------------------------------------


def test_a_metric_row_holds_these_names() -> None:
    names = {"loss", "reconstruction_loss", "sparsity_loss", "auxiliary_loss", "l0", "dead_fraction", "lr"} | {
        "dense_fraction"
    }
    row = make().train_interval()
    names |= {"sparsity_coefficient", "left_out_fraction", "tokens_per_s", "step_ms", "data_wait_fraction"}
    assert set(row) == names
    assert all(type(value) is float for value in row.values())
    assert row["tokens_per_s"] > 0
    assert 0 <= row["data_wait_fraction"] <= 1


@architectures
def test_a_metric_row_holds_the_means_of_its_interval(architecture: str) -> None:
    trainer = make(architecture, tokens=30 * BATCH)
    trainer.train_interval()
    parts, active_F = [], torch.zeros(M)
    original = trainer.sae.losses

    def spy(x_BD: Tensor, coefficient: float, objective: Objective = "paper", y_BD: Tensor | None = None) -> Losses:
        losses = original(x_BD, coefficient, objective, y_BD)
        parts.append([part.item() for part in losses[:4]])
        active_F.add_((losses.acts_BF > 0).sum(0))
        return losses

    trainer.sae.losses = spy  # type: ignore[method-assign]
    row = trainer.train_interval()
    names = ["loss", "reconstruction_loss", "sparsity_loss", "auxiliary_loss"]
    assert [row[name] for name in names] == pytest.approx(np.mean(parts, axis=0).tolist(), rel=1e-6)
    assert len(parts) == 10
    assert row["l0"] == pytest.approx(active_F.sum().item() / (10 * BATCH))
    assert row["dead_fraction"] == (active_F == 0).double().mean().item()
    assert row["dense_fraction"] == (active_F > 0.1 * 10 * BATCH).double().mean().item()
    total = row["reconstruction_loss"] + row["sparsity_coefficient"] * row["sparsity_loss"] + row["auxiliary_loss"]
    assert row["loss"] == pytest.approx(total, rel=1e-5)  # the warm-up of λ is over


def test_reported_lr_and_sparsity_coefficient_are_those_of_the_interval_s_last_step() -> None:
    _, rows = uninterrupted("gated")
    last_steps = [row["tokens"] // BATCH - 1 for row in rows]
    assert [row["lr"] for row in rows] == [3e-3 * lr_factor(int(s), 78, 0.02, 0.2) for s in last_steps]
    expected = [sparsity_factor(int(s), 78, 0.05) for s in last_steps]
    assert [row["sparsity_coefficient"] for row in rows] == pytest.approx(expected, rel=1e-12)


# ---- stopping and going on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "stop"), [("standard", 4), *(("gated", stop) for stop in range(9))]
)  # 8 intervals
def test_stopping_after_any_interval_and_going_on_gives_the_same_weights_and_rows(architecture: str, stop: int) -> None:
    expected_weights, expected_rows = uninterrupted(architecture)
    first = make(architecture)
    rows = []
    for _ in range(min(stop, len(expected_rows))):
        row = first.train_interval()
        rows.append({"tokens": first.tokens, **{k: v for k, v in row.items() if k not in WALL_CLOCK}})
    state = through_files(first.state())
    second = make(architecture, chunk_rows=33)  # another process may get the rows in other chunks
    second.restore(*state)
    assert (second.step, second.tokens, second.stream.position) == (first.step, first.tokens, first.tokens)
    rows += run(second)
    assert rows == expected_rows
    assert same(weights(second), expected_weights)


def test_restoring_undoes_what_came_after() -> None:
    trainer = make()
    trainer.train_interval()
    state = through_files(trainer.state())
    trainer.train_interval()
    trainer.train_interval()
    trainer.restore(*state)
    rows = run(trainer)
    expected_weights, expected_rows = uninterrupted("gated")
    assert rows == expected_rows[1:]
    assert same(weights(trainer), expected_weights)


def test_a_restored_trainer_trains_in_tensors_of_its_own() -> None:
    trainer = make()
    trainer.train_interval()
    state = trainer.state()
    taken = copy.deepcopy(state)
    another = make()
    another.restore(*state)
    another.train_interval()
    assert same(state[0], taken[0])


def test_a_state_is_tensors_and_json() -> None:
    trainer = make()
    trainer.train_interval()
    tensors, rest = trainer.state()
    assert json.loads(json.dumps(rest)) == rest == {"step": 10, "position": 640, "scale": trainer.scale}
    names = {f"sae.{name}" for name in weights(trainer)}
    moments = {f"adam.{key}.{name}" for name in weights(trainer) for key in ("step", "exp_avg", "exp_avg_sq")}
    assert set(tensors) == names | moments


# ---- the seed -------------------------------------------------------------------------------------------------------


@architectures
def test_a_trials_seed_changes_only_the_initialisation(architecture: str) -> None:
    first, second = make(architecture, seed=0), make(architecture, seed=1)
    assert first.scale == second.scale
    assert not torch.equal(first.sae.W_dec, second.sae.W_dec)
    assert torch.equal(first.sae.b_dec, second.sae.b_dec)
    second.sae.load_state_dict(copy.deepcopy(first.sae.state_dict()))  # undo the seed's work
    assert run(first) == run(second)
    assert same(weights(first), weights(second))
    batches = [trainer.stream.batches for trainer in (first, second)]  # type: ignore[attr-defined]
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


def test_the_global_random_state_plays_no_part() -> None:
    torch.manual_seed(99)
    trainer = make()
    torch.manual_seed(7)
    assert run(trainer) == uninterrupted("gated")[1]


# ---- the gradient and the scale -------------------------------------------------------------------------------------


@variants
@pytest.mark.parametrize("objective", ["paper", "norm_weighted"])
def test_clipping_bounds_the_norm_of_the_whole_gradient(variant: str, objective: Objective) -> None:
    def norms(clip: float) -> list[float]:
        trainer = make_variant(variant, objective=objective, gradient_clip=clip, tokens=20 * BATCH)
        found: list[float] = []

        def measure(optimiser: Adam, lr: float) -> None:
            gradients = [p.grad for p in optimiser.names if p.grad is not None]
            found.append(torch.cat([g.flatten().double() for g in gradients]).norm().item())
            update(optimiser, lr)

        update = Adam.step
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Adam, "step", measure)
            run(trainer)
        return found

    free, clipped = norms(0.0), norms(0.5)
    assert len(free) == len(clipped) == 20
    assert max(free) > 1
    assert max(clipped) <= 0.5 + 1e-5
    assert clipped[0] == pytest.approx(0.5, rel=1e-4)


@architectures
def test_without_input_scaling_training_is_on_raw_activations(architecture: str) -> None:
    trainer = make(architecture, input_scaling=False, lr=2e-2, l1=1.0)
    assert trainer.scale == 1.0
    torch.testing.assert_close(trainer.sae.b_dec.detach(), sparse_rows()[: BLOCKS[0]].mean(0), rtol=1e-5, atol=1e-5)
    before = run(trainer)[0]["reconstruction_loss"]
    finished = trainer.finished_sae({})
    assert same(dict(finished.named_parameters()), weights(trainer))  # nothing to fold
    x_BD = sparse_rows()[-500:]
    assert (finished(x_BD) - x_BD).square().sum(1).mean() < 0.5 * before


@variants
@pytest.mark.parametrize("input_scaling", [True, False])
def test_a_finished_norm_weighted_sae_has_unit_rows_and_takes_raw_activations(
    variant: str, input_scaling: bool
) -> None:
    trainer = make_variant(variant, objective="norm_weighted", input_scaling=input_scaling, tokens=40 * BATCH)
    run(trainer)
    finished = trainer.finished_sae({}).double()
    torch.testing.assert_close(finished.W_dec.norm(dim=1), torch.ones(M).double(), atol=1e-6, rtol=0)
    x_BD = sparse_rows()[-500:].double()
    expected_BD = copy.deepcopy(trainer.sae).double()(x_BD * trainer.scale) / trainer.scale
    assert (finished(x_BD) - expected_BD).norm() <= 1e-5 * expected_BD.norm()
