"""What training of each architecture comes to on the same rows: a change of any loss or rule shows here first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from trainers import make, run, sparse_rows

from gsae_ray.saes import trainable_architectures

OPTIONS: dict[str, dict[str, Any]] = {
    "gated": {"l1_coefficient": 1.0},
    "standard": {"l1_coefficient": 1.0},
    "topk": {"k": 4},
    "batchtopk": {"k": 4},
    "matryoshka_batchtopk": {"k": 4},
    "jumprelu": {"l0_coefficient": 0.02},
    "p_anneal": {"l1_coefficient": 1.0},
}
GOLDEN = {
    "gated": (7.2785, 0.06571),
    "standard": (6.9838, 0.13654),
    "topk": (4.0, 0.10469),
    "batchtopk": (3.5232, 0.091),
    "matryoshka_batchtopk": (3.8023, 0.10249),
    "jumprelu": (5.0473, 0.09183),
    "p_anneal": (6.3933, 0.11563),
}
"""Architecture -> L0, and the share of E‖x‖² that is not reconstructed, of the finished SAE on all rows."""


@pytest.mark.parametrize("architecture", OPTIONS)
def test_an_architecture_comes_to_what_it_came_to(architecture: str) -> None:
    """Within a hundredth: the last bits differ between processors."""
    trained = make(architecture, options=OPTIONS[architecture], lr=1e-2)
    run(trained)
    sae, rows = trained.finished_sae({}), sparse_rows()
    with torch.no_grad():
        acts_BF = sae.encode(rows)
        unexplained = ((rows - sae.decode(acts_BF)).square().sum() / rows.square().sum()).item()
    l0 = (acts_BF > 0).sum(1).double().mean().item()
    assert (l0, unexplained) == pytest.approx(GOLDEN[architecture], rel=1e-2)


def test_every_architecture_that_starts_from_random_weights_has_such_a_run() -> None:
    assert set(OPTIONS) == set(trainable_architectures()) - {"rescale_shift"}
