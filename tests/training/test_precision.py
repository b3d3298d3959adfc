"""The dense engine in bfloat16, as far as a CPU can tell: what is learnt stays float32, and close to what it was."""

from __future__ import annotations

import pytest
import torch
from trainers import make, run, weights

from gsae_ray.saes import Objective
from gsae_ray.training.engines.dense import DenseEngine
from gsae_ray.training.engines.precision import check_precision, products_in

architectures = pytest.mark.parametrize("architecture", ["standard", "gated"])
objectives = pytest.mark.parametrize("objective", ["paper", "norm_weighted"])


@architectures
@objectives
def test_products_of_bfloat16_leave_float32_behind(architecture: str, objective: Objective) -> None:
    """All that lasts longer than a product: losses, gradients, weights, Adam's state."""
    ours, exact = (make(architecture, objective=objective, engine=DenseEngine(p)) for p in ("bf16", "float32"))
    x_BD = make(objective=objective).stream.read(64) * ours.scale
    found = [trainer.engine.step(trainer.sae, x_BD, 1.0, objective) for trainer in (ours, exact)]
    assert found[0].losses_4.dtype == torch.float32
    torch.testing.assert_close(found[0].losses_4, found[1].losses_4, rtol=1e-2, atol=1e-2)
    assert not torch.equal(found[0].losses_4, found[1].losses_4), "they are of bfloat16"
    for name, parameter in ours.sae.learnt_parameters().items():
        gradient, other = parameter.grad, exact.sae.get_parameter(name).grad
        assert gradient is not None and other is not None
        assert parameter.dtype == gradient.dtype == torch.float32
        assert gradient.isfinite().all()
        assert (gradient - other).norm() < 5e-2 * other.norm(), name
    for trainer in (ours, exact):
        trainer.optimiser.zero_grad()
    rows = run(ours)
    assert {tensor.dtype for tensor in weights(ours).values()} == {torch.float32}
    assert {tensor.dtype for tensor in ours.optimiser.tensors().values()} == {torch.float32}
    assert rows[-1]["reconstruction_loss"] == pytest.approx(run(exact)[-1]["reconstruction_loss"], rel=0.05)


@objectives
def test_the_penalty_is_a_sum_in_float32(objective: Objective) -> None:
    sae = make("standard", objective=objective).sae
    acts_BF = torch.rand(300, sae.cfg.d_sae, generator=torch.Generator().manual_seed(0))
    expected = sae._l1(acts_BF, objective)
    with torch.autocast("cpu", torch.bfloat16):
        found = sae._l1(acts_BF, objective)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_the_precision_of_products_is_restored() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision, matmul.allow_bf16_reduced_precision_reduction
    with pytest.raises(RuntimeError), products_in("tf32"):
        assert matmul.fp32_precision == "tf32"
        assert not matmul.allow_bf16_reduced_precision_reduction
        with products_in("float32"):
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
        raise RuntimeError
    assert (matmul.fp32_precision, matmul.allow_bf16_reduced_precision_reduction) == before


def test_on_cpus_nothing_is_refused_here() -> None:
    """The sweep file refuses it."""
    check_precision("bf16", torch.device("cpu"))


def test_the_trial_names_its_precision() -> None:
    engine = make(precision="bf16").engine
    assert isinstance(engine, DenseEngine) and engine.precision == "bf16"
