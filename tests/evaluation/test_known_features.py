"""Metrics that take the true features of rows, on SAEs whose numbers are worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from gsae_ray.config.site import Site
from gsae_ray.evaluation.known_features import match
from gsae_ray.evaluation.metrics import Evaluation
from gsae_ray.evaluation.row_evaluator import RowEvaluator
from gsae_ray.language_model.source import HeldOutRows, KnownFeatures
from gsae_ray.results.intervals import interval, of
from gsae_ray.saes import SAE, SAEConfig, build

PARENT, CHILD, OTHER, NEVER = range(4)
DIRECTIONS_GD = torch.eye(4)
ACTIVE_RG = torch.tensor(
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool
)
HAS_CHILD = torch.tensor([-1, PARENT, -1, -1])
FLAT = torch.full((4,), -1)


def evaluate(sae: SAE, parent_G: Tensor = HAS_CHILD, max_norm: float | None = None, factor: float = 1) -> Evaluation:
    """Rows are sums of the directions of their active features, the last one of them times `factor`."""
    x_RD = ACTIVE_RG.float() @ DIRECTIONS_GD
    x_RD[-2] *= factor

    def known(_site: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for rows in torch.arange(len(x_RD)).split(4):
            yield x_RD[rows], rows // 2, ACTIVE_RG[rows]

    def heldout(site: str) -> Iterator[tuple[Tensor, Tensor]]:
        return ((x, group) for x, group, _ in known(site))

    rows = HeldOutRows(3, heldout, KnownFeatures(DIRECTIONS_GD, parent_G, known))
    return RowEvaluator(rows, torch.device("cpu"), max_norm).evaluate(Site("synthetic"), sae)


def an_sae(encoder: list[list[float]], decoder: list[list[float]], biases: list[float] | None = None) -> SAE:
    """A standard SAE with these latents, a row each: f = max(encoder x + bias, 0)."""
    sae = build(SAEConfig(architecture="standard", d_in=4, d_sae=len(encoder), hyperparameters={"l1_coefficient": 1.0}))
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor(encoder).T)
        sae.W_dec.copy_(torch.tensor(decoder))
        sae.get_parameter("b_enc").copy_(torch.tensor(biases or [0.0] * len(encoder)))
    return sae


P, C, X, N = torch.eye(4).tolist()
"""Latents for PARENT, CHILD, OTHER and NEVER alone."""


def test_an_sae_with_the_true_dictionary_is_perfect() -> None:
    """In another order, and with decoder rows of other norms."""
    found = evaluate(an_sae([X, N, P, C], [[2 * x for x in X], N, P, C])).metrics
    # NEVER is active on no row: its latent is dead, and it counts as a feature without one.
    assert found["mcc"] == pytest.approx(3 / 4)
    assert found["feature_precision"] == found["feature_recall"] == found["feature_f1"] == 1
    assert found["absorption"] == 0
    assert found["splitting"] == 1
    assert found["true_l0"] == 9 / 6 == found["l0"]


def test_absorption_is_told_where_the_childs_latent_has_taken_the_parent_in() -> None:
    parent_without_child, both = [1.0, -1.0, 0.0, 0.0], [0.6, 0.8, 0.0, 0.0]
    evaluation = evaluate(an_sae([parent_without_child, C, X], [P, both, X]))
    found = evaluation.metrics
    assert found["absorption"] == 1, "on both rows with the child its latent is active alone"
    assert found["mcc"] == pytest.approx((1 + 0.8 + 1 + 0) / 4)
    assert found["feature_precision"] == 1
    assert found["feature_recall"] == pytest.approx((2 / 4 + 1 + 1) / 3)
    assert found["feature_f1"] == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert evaluation.sequences["with_child"] == [1, 1, 0] == evaluation.sequences["absorbed"]
    assert evaluation.sequences["true_active"] == [3, 4, 2]


def test_half_of_the_childs_rows_may_be_absorbed() -> None:
    """Of the two rows with the child one has OTHER too, which keeps the parent's latent on."""
    evaluation = evaluate(an_sae([[1.0, -1.0, 1.0, 0.0], C, X], [P, C, X]))
    assert evaluation.metrics["absorption"] == 0.5
    assert interval(of("absorption"), [[evaluation.sequences]]).value == 0.5


def test_what_is_not_found_is_not_absorbed() -> None:
    """There is no latent for the parent, so that none is off that ought to be on."""
    evaluation = evaluate(an_sae([C, X], [C, X]))
    assert np.isnan(evaluation.metrics["absorption"])
    assert evaluation.sequences["with_child"] == [0, 0, 0]


def test_without_a_hierarchy_there_is_no_absorption() -> None:
    found = evaluate(an_sae([P, C, X], [P, C, X]), FLAT)
    assert "absorption" not in found.metrics and "absorbed" not in found.sequences
    assert found.metrics["mcc"] == pytest.approx(3 / 4)


def test_two_latents_of_one_feature_split_it() -> None:
    """OTHER has one for when it is alone, and one for when it comes with PARENT; each is active on one of its rows."""
    alone, with_parent = [-1.0, 0.0, 1.0, 0.0], [1.0, -9.0, 1.0, 0.0]
    found = evaluate(an_sae([P, C, alone, with_parent], [P, C, X, X], [0, 0, 0, -1.0])).metrics
    assert found["splitting"] == pytest.approx(4 / 3)
    assert found["mcc"] == pytest.approx(3 / 4), "the fourth latent is matched to what is left, which is orthogonal"
    assert found["feature_recall"] == pytest.approx((1 + 1 + 1 / 3) / 3)
    assert found["feature_precision"] == 1


def test_a_latent_that_is_mostly_active_elsewhere_belongs_to_none() -> None:
    """Its decoder row is OTHER's, which is active on half of its rows only."""
    found = evaluate(an_sae([P], [X])).metrics
    assert np.isnan(found["splitting"])
    assert found["feature_precision"] == pytest.approx((0 + 0 + 2 / 4) / 3)
    assert found["feature_recall"] == pytest.approx((0 + 0 + 2 / 3) / 3)


def test_dead_latents_are_matched_to_nothing() -> None:
    """Their decoder rows are right, and they are never active."""
    alive, dead = evaluate(an_sae([X], [X])), evaluate(an_sae([X, P, C], [X, P, C], [0, -9.0, -9.0]))
    assert dead.metrics["mcc"] == alive.metrics["mcc"] == 1 / 4
    nothing = evaluate(an_sae([X], [X], [-9.0])).metrics
    assert nothing["mcc"] == nothing["feature_precision"] == nothing["feature_recall"] == nothing["feature_f1"] == 0


def test_the_sign_of_a_decoder_row_does_not_matter_to_mcc() -> None:
    assert evaluate(an_sae([X], [[-x for x in X]])).metrics["mcc"] == 1 / 4


def test_rows_of_massive_norm_take_no_part() -> None:
    found = evaluate(an_sae([P, C, X], [P, C, X]), max_norm=10, factor=1e3)
    assert found.metrics["rows"] == 5
    assert found.sequences["true_active"] == [3, 4, 0]
    assert found.metrics["feature_recall"] == 1


def test_matching_is_one_to_one_and_the_best_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    for n_features, n_latents in ((4, 5), (5, 4), (5, 5)):
        d_GD = torch.nn.functional.normalize(torch.randn(n_features, 3, generator=generator), dim=1)
        W_dec_FD = torch.randn(n_latents, 3, generator=generator)
        cosine_GF = (d_GD @ torch.nn.functional.normalize(W_dec_FD, dim=1).T).abs().double()
        found = match(d_GD, W_dec_FD, torch.ones(n_latents, dtype=torch.bool))
        small, large = sorted((n_features, n_latents))
        table = cosine_GF if n_features == small else cosine_GF.T
        best = max(sum(table[i, j] for i, j in enumerate(chosen)) for chosen in permutations(range(large), small))
        assert found.cosine_G.sum().item() == pytest.approx(float(best))
        used = found.latent_G[found.latent_G >= 0]
        assert len(used) == len(used.unique()) == small
        assert found.nearest_F.tolist() == cosine_GF.argmax(0).tolist()
