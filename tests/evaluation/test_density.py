"""The share of features that never fire, and of those that fire on more than a tenth of the rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from slow_evaluation import N
from torch import Tensor

from gsae_ray.config.site import Site
from gsae_ray.evaluation.density import GROUPS, Firing
from gsae_ray.evaluation.evaluator import Evaluator
from gsae_ray.saes import SAEConfig, build

SITE = Site("blocks.1.hook_resid_post")


def fired(active_RF: Tensor, context_R: Tensor, contexts: int, batch: int) -> Firing:
    firing = Firing(active_RF.shape[1], contexts, torch.device("cpu"))
    for rows in range(0, len(active_RF), batch):
        firing.add(active_RF[rows : rows + batch], context_R[rows : rows + batch])
    return firing


def test_dead_and_dense_features_are_counted_exactly() -> None:
    """Ten rows: a tenth of them is one. A feature that fires on that one is not dense, one on two is."""
    active_RF = torch.zeros(10, 4, dtype=torch.bool)
    active_RF[3, 1] = active_RF[[3, 4], 2] = True
    active_RF[:, 3] = True
    found = fired(active_RF, torch.arange(10) // 2, contexts=5, batch=3).metrics()
    assert found["alive_fraction"] == 0.75 and found["dense_heldout"] == 0.5


@pytest.mark.parametrize("contexts", [5, 200])
def test_the_interval_is_of_all_draws_of_groups(contexts: int) -> None:
    """As by drawing for every feature; the same for every size of batches."""
    generator = torch.Generator().manual_seed(0)
    context_R = torch.arange(4 * contexts) // 4
    rates_F = torch.linspace(0, 0.3, 40)
    active_RF = torch.rand(4 * contexts, 40, generator=generator) < rates_F
    found = fired(active_RF, context_R, contexts, batch=7).ends()
    assert found == fired(active_RF, context_R, contexts, batch=4 * contexts).ends()
    groups = min(GROUPS, contexts)
    group_R = (context_R * groups // contexts).numpy()
    counts_GF = np.stack([active_RF.numpy()[group_R == group].sum(0) for group in range(groups)])
    rows_G = np.bincount(group_R)
    random = np.random.RandomState(0)
    taken = random.multinomial(groups, np.full(groups, 1 / groups), size=1000)
    shares = (taken @ counts_GF > 0.1 * (taken @ rows_G)[:, None]).mean(1)
    assert [found["dense_heldout_low"], found["dense_heldout_high"]] == pytest.approx(
        np.percentile(shares, [2.5, 97.5])
    )
    assert found["dense_heldout_low"] < found["dense_heldout_high"]


def test_a_feature_that_fires_everywhere_is_dense_and_has_no_doubt(evaluator: Evaluator) -> None:
    """One feature of eight fires on every row by its bias, and another on none."""
    sae = build(SAEConfig(architecture="standard", d_in=N, d_sae=8, hyperparameters={"l1_coefficient": 1.0}))
    sae.initialise(torch.Generator().manual_seed(0), torch.zeros(N))
    with torch.no_grad():
        bias_F = sae.get_parameter("b_enc")
        bias_F.fill_(-1e6)
        bias_F[3] = 1e6
    evaluation = evaluator.evaluate(SITE, sae.eval())
    found = evaluation.metrics
    assert [found["dense_heldout"], *evaluation.ends.values()] == [1 / 8] * 3
    assert found["dead_heldout"] == 7 / 8 == 1 - found["alive_fraction"]
