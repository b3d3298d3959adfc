"""The finished SAE: it takes raw activations, whatever it was trained on."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from trainers import BATCH, SITE, M, N, make, run, same, sparse_rows, weights

from gsae_ray.saes import to_bytes

architectures = pytest.mark.parametrize("architecture", ["standard", "gated"])


@architectures
def test_the_finished_sae_takes_raw_activations(architecture: str) -> None:
    trainer = make(architecture)
    trainer.train_interval()
    before = weights(trainer)
    sae = trainer.finished_sae({"trained": "a while"})
    x_BD = sparse_rows()[-500:]
    scaled = copy.deepcopy(trainer.sae).double()
    expected_BD = scaled(x_BD.double() * trainer.scale) / trainer.scale
    torch.testing.assert_close(sae(x_BD).double(), expected_BD, rtol=1e-4, atol=1e-4)
    error = (sae(x_BD) - x_BD).square().sum() / (x_BD - x_BD.mean(0)).square().sum()
    assert error < 0.9  # of raw activations, and it has learnt something
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(M), atol=1e-6, rtol=0)
    assert same(weights(trainer), before)  # a copy
    assert not sae.training
    assert trainer.sae.training


def test_the_finished_sae_says_what_it_is() -> None:
    trainer = make("gated", l1=2.0)
    trainer.train_interval()
    cfg = trainer.finished_sae({"trained": "a while"}).cfg
    assert cfg.model_dump() == {
        "architecture": "gated",
        "d_in": N,
        "d_sae": M,
        "hyperparameters": {"l1_coefficient": 2.0},
        "site": SITE,
        "metadata": {"trained": "a while"},
        "d_out": None,
        "target": "",
        "skip": False,
    }


def test_finishing_is_repeatable() -> None:
    trainer = make()
    trainer.train_interval()
    assert to_bytes(trainer.finished_sae({})) == to_bytes(trainer.finished_sae({}))


def test_read_only_statistics_are_taken_without_a_warning() -> None:
    warn_always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # torch warns of arrays that are not writable once a process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            trainer = make()
    finally:
        torch.set_warn_always(warn_always)
    assert trainer.sae.b_dec.any()


# ---- units of the activations ---------------------------------------------------------------------------------------


@architectures
def test_unit_biases_train_as_on_activations_of_unit_norm(architecture: str) -> None:
    """With them, x scaled to E‖x‖² = n and to E‖x‖² = 1 give the same SAE; λ goes with the scale."""
    scaled = make(architecture, unit_biases=True, tokens=20 * BATCH)
    run(scaled)
    unit = make(
        architecture, rows_RD=sparse_rows() * scaled.scale / math.sqrt(N), input_scaling=False, tokens=20 * BATCH
    )
    assert unit.trivial_loss == pytest.approx(1, rel=1e-5)
    run(unit)
    for name, tensor in scaled.sae.named_parameters():
        factor = 1 / math.sqrt(N) if name in scaled.sae.scaled_tensors else 1.0
        torch.testing.assert_close(unit.sae.get_parameter(name), tensor * factor, rtol=2e-2, atol=2e-3)
