"""An engine is one class: this file adds two, and trainers that are given them learn the same weights."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor
from trainers import BATCH, M, make, run, same, weights

from gsae_ray.errors import UserError
from gsae_ray.saes import SAE, Objective
from gsae_ray.training.engines import check_engine, make_engine
from gsae_ray.training.engines.base import LOSSES, Engine, StepResult, Update
from gsae_ray.training.engines.dense import DenseEngine
from gsae_ray.training.optimiser import Adam

RESAMPLING = {"at_steps": [40], "window_steps": 10, "inputs": 5 * BATCH, "rewarm_steps": 0}


class ClosedForm(DenseEngine):
    """Standard SAEs with the paper's objective: the gradient as a formula, feature by feature, without autograd."""

    @torch.no_grad()
    def step(
        self,
        sae: SAE,
        x_BD: Tensor,
        coefficient: float,
        objective: Objective,
        y_BD: Tensor | None = None,
        share: float = 1.0,
    ) -> StepResult:
        assert (sae.architecture, objective, y_BD, share) == ("standard", "paper", None, 1.0)
        batch, b_enc = len(x_BD), sae.get_parameter("b_enc")
        centred_BD = x_BD - sae.b_dec
        error_BD = sae(x_BD) - x_BD
        d_x_hat_BD = 2 * error_BD / batch
        for parameter in sae.parameters():
            assert parameter.grad is None
            parameter.grad = torch.zeros_like(parameter)
        grads = {name: parameter.grad for name, parameter in sae.named_parameters()}
        W_enc, W_dec, d_b_enc, d_b_dec = (grads[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec"))
        assert W_enc is not None and W_dec is not None and d_b_enc is not None and d_b_dec is not None
        d_b_dec.copy_(d_x_hat_BD.sum(0))
        fired_F = torch.zeros(sae.cfg.d_sae, dtype=torch.int64)
        l1 = x_BD.new_zeros(())
        for i in range(sae.cfg.d_sae):
            pre_B = centred_BD @ sae.W_enc[:, i] + b_enc[i]
            rows = (pre_B > 0).nonzero().squeeze(1)
            acts_R = pre_B[rows]
            d_pre_R = d_x_hat_BD[rows] @ sae.W_dec[i] + coefficient / batch
            W_enc[:, i] = centred_BD[rows].T @ d_pre_R
            W_dec[i] = acts_R @ d_x_hat_BD[rows]
            d_b_enc[i] = d_pre_R.sum()
            d_b_dec -= sae.W_enc[:, i] * d_pre_R.sum()
            fired_F[i] = len(rows)
            l1 += acts_R.sum() / batch
        reconstruction = error_BD.square().sum() / batch
        losses_4 = torch.stack([reconstruction + coefficient * l1, reconstruction, l1, x_BD.new_zeros(())])
        return StepResult(losses_4, fired_F)


class Recording:
    """Passes all on to another engine, and remembers what it was asked and what it found."""

    torch_threads = None

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.calls: list[tuple[int, float, Objective]] = []
        self.results: list[StepResult] = []
        self.updates: list[Update] = []

    def prepare(self, sae: SAE) -> None:
        self.engine.prepare(sae)

    def step(
        self, sae: SAE, x_BD: Tensor, coefficient: float, objective: Objective, y_BD: Tensor | None = None
    ) -> StepResult:
        assert all(parameter.grad is None for parameter in sae.parameters())
        before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
        result = self.engine.step(sae, x_BD, coefficient, objective, y_BD)
        assert same(before, dict(sae.state_dict())), "a step only finds what to learn"
        self.calls.append((len(x_BD), coefficient, objective))
        self.results.append(result)
        return result

    def update(self, sae: SAE, optimiser: Adam, update: Update) -> None:
        self.engine.update(sae, optimiser, update)
        assert all(parameter.grad is None for parameter in sae.parameters())
        self.updates.append(update)


@pytest.mark.parametrize("resampling", [False, RESAMPLING])
def test_an_engine_of_ones_own_trains_the_same_sae(resampling: Any) -> None:
    settings = {"resampling": resampling, "tokens": 60 * BATCH}
    ours, theirs = make("standard", **settings), make("standard", engine=ClosedForm(), **settings)
    for trainer in (ours, theirs):
        with torch.no_grad():
            trainer.sae.get_parameter("b_enc")[:5] = -1e3  # silent
    rows, expected = run(theirs), run(ours)
    for row, other in zip(rows, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-4)
    if resampling:
        assert sum(row["resampled_features"] for row in rows) == 5
    for name, tensor in weights(ours).items():
        torch.testing.assert_close(weights(theirs)[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("architecture", ["standard", "gated"])
@pytest.mark.parametrize("objective", ["paper", "norm_weighted"])
def test_the_trainer_takes_all_it_knows_of_a_step_from_the_engine(architecture: str, objective: Objective) -> None:
    engine = Recording(DenseEngine())
    plain = make(architecture, objective=objective)
    recorded = make(architecture, objective=objective, engine=engine)
    expected = run(plain)
    row = recorded.train_interval()
    assert [row[name] for name in LOSSES] == torch.stack([r.losses_4 for r in engine.results]).double().mean(0).tolist()
    fired_F = torch.stack([result.fired_F for result in engine.results]).sum(0)
    assert row["l0"] == fired_F.sum().item() / (10 * BATCH)
    assert row["dead_fraction"] == (fired_F == 0).double().mean().item()
    assert fired_F.shape == (M,) and fired_F.dtype == torch.int64
    rest = run(recorded)
    assert rest == expected[1:]
    assert same(weights(recorded), weights(plain))
    assert len(engine.calls) == recorded.step
    assert {(rows, said) for rows, _, said in engine.calls} == {(BATCH, objective)}
    assert engine.calls[0][1] < engine.calls[-1][1] == recorded.coefficient
    assert len(engine.updates) == recorded.step
    assert {update.unit_norm for update in engine.updates} == {objective == "paper"}
    assert engine.updates[-1].lr == rest[-1]["lr"]


@pytest.mark.skipif(importlib.util.find_spec("triton") is not None, reason="Triton is here")
def test_an_engine_whose_compiler_is_missing_is_refused_by_name() -> None:
    """Never another engine in its place."""
    for call in (lambda: check_engine("sparse-cuda"), lambda: make_engine("sparse-cuda", 1)):
        with pytest.raises(UserError) as caught:
            call()
        assert str(caught.value) == (
            "training.engine: sparse-cuda: Triton, which compiles its kernels, cannot be loaded (it comes with "
            "PyTorch's builds for CUDA): No module named 'triton'; engine: dense does without"
        )
