"""Evaluation on a tiny random GPT-NeoX, against a slow independent one: one context a forward, hand-written hooks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from slow_evaluation import (
    CONTEXTS,
    LENGTH,
    SITES,
    SPECIAL,
    VOCABULARY,
    N,
    at_both_layers,
    kept,
    make_sae,
    perfect_sae,
    slow_evaluation,
)
from torch import Tensor

from gsae_ray.config.site import Site
from gsae_ray.evaluation import evaluator as evaluator_module
from gsae_ray.evaluation.evaluator import Evaluator
from gsae_ray.evaluation.gradient_pursuit import gradient_pursuit
from gsae_ray.evaluation.metrics import METRICS, SUMS, resampled


@at_both_layers
@pytest.mark.parametrize("architecture", ["standard", "gated"])
def test_every_metric_is_that_of_a_slow_independent_evaluation(
    model: Any, tokens_ET: Tensor, evaluator: Evaluator, site: Site, architecture: str
) -> None:
    sae = make_sae(architecture, d_sae=40, seed=2)
    assert site.layer is not None
    expected = slow_evaluation(model, tokens_ET, site.layer, sae)
    actual = evaluator.evaluate(site, sae).metrics
    elsewhere = ("features", "training", "probes", "ratings")
    assert set(actual) == {name for name, metric in METRICS.items() if metric.takes not in elsewhere}
    assert actual == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert abs(expected["ce_zero"] - expected["ce_clean"]) > 0.05  # the comparison means something
    assert expected["kl"] > 0.05


# ---- known answers --------------------------------------------------------------------------------------------------


@at_both_layers
def test_a_perfect_sae_recovers_the_whole_loss(evaluator: Evaluator, tokens_ET: Tensor, site: Site) -> None:
    metrics = evaluator.evaluate(site, perfect_sae()).metrics
    assert metrics["loss_recovered"] == pytest.approx(1, abs=1e-6)
    assert metrics["gamma"] == pytest.approx(1, abs=1e-6)
    assert metrics["fvu"] == pytest.approx(0, abs=1e-10)
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["l0"] == N  # of each pair ±e_i one is on
    assert metrics["alive_fraction"] == 1
    assert metrics["rows"] == (tokens_ET[:, 1:] != SPECIAL).sum() < CONTEXTS * (LENGTH - 1)


@at_both_layers
def test_an_sae_that_gives_zero_recovers_nothing(evaluator: Evaluator, site: Site) -> None:
    metrics = evaluator.evaluate(site, make_sae()).metrics
    assert metrics["ce_spliced"] == metrics["ce_zero"]
    assert metrics["loss_recovered"] == 0
    assert metrics["l0"] == metrics["alive_fraction"] == 0
    assert math.isnan(metrics["gamma"])  # 0 / 0
    assert metrics["fvu"] > 1 - 1e-6
    if site == SITES[-1]:  # nothing after it but the final norm: a uniform guess
        assert metrics["ce_zero"] == pytest.approx(math.log(VOCABULARY))


@pytest.mark.parametrize(("factor", "sign"), [(-1.0, -1), (3.0, 1)])
def test_loss_recovered_may_be_negative_or_exceed_one(evaluator: Evaluator, factor: float, sign: int) -> None:
    sae = perfect_sae()
    with torch.no_grad():
        sae.W_dec.mul_(factor)
    metrics = evaluator.evaluate(SITES[0], sae).metrics
    clean, spliced, zero = (metrics[f"ce_{name}"] for name in ("clean", "spliced", "zero"))
    assert metrics["loss_recovered"] == pytest.approx(1 - (spliced - clean) / (zero - clean))
    assert metrics["loss_recovered"] < 0 if sign < 0 else metrics["loss_recovered"] > 1


def test_shrinkage_gives_a_gamma_below_one(evaluator: Evaluator) -> None:
    sae = perfect_sae()
    with torch.no_grad():
        sae.W_dec.mul_(0.8)
    metrics = evaluator.evaluate(SITES[0], sae).metrics
    assert metrics["gamma"] == pytest.approx(0.8, abs=1e-6)


def test_gamma_is_a_ratio_of_expectations_not_a_mean_of_ratios(model: Any, tokens_ET: Tensor) -> None:
    sae, site = make_sae(d_sae=24, seed=4), SITES[0]
    ratio = slow_evaluation(model, tokens_ET, 0, sae)["gamma"]
    per_context = [slow_evaluation(model, tokens_T[None], 0, sae)["gamma"] for tokens_T in tokens_ET]
    assert abs(sum(per_context) / CONTEXTS - ratio) > 1e-3 * abs(ratio)
    for batch in (1, 3, CONTEXTS):
        metrics = Evaluator(model, tokens_ET, kept, batch).evaluate(site, sae).metrics
        assert metrics["gamma"] == pytest.approx(ratio, rel=1e-6)


# ---- each context ---------------------------------------------------------------------------------------------------


@at_both_layers
@pytest.mark.parametrize("batch", [4, 7])
def test_the_sums_of_each_context_are_those_of_a_slow_evaluation_of_it(
    model: Any, tokens_ET: Tensor, site: Site, batch: int
) -> None:
    sae = make_sae("gated", d_sae=40, seed=2)
    assert site.layer is not None
    sequences = Evaluator(model, tokens_ET, kept, batch).evaluate(site, sae).sequences
    assert set(sequences) == set(SUMS)
    for e, tokens_T in enumerate(tokens_ET):
        slow = slow_evaluation(model, tokens_T[None], site.layer, sae)
        sums = {name: values[e] for name, values in sequences.items()}
        for name in set(resampled()) - {"fvu"}:  # the variance is about the mean of all contexts
            assert float(METRICS[name].formula(sums)) == pytest.approx(slow[name], rel=1e-4, abs=1e-5), (name, e)
        assert sums["rows"] == slow["rows"]
        assert sums["positions"] == int((tokens_T[1:-1] != SPECIAL).sum())
        assert sums["error_sq"] == pytest.approx(sums["x_sq"] - 2 * sums["x_hat_x"] + sums["x_hat_sq"])


def test_the_metrics_are_those_of_the_summed_contexts(evaluator: Evaluator) -> None:
    metrics, sequences, *_ = evaluator.evaluate(SITES[0], make_sae("gated", d_sae=40, seed=2))
    totals = {name: sum(values) for name, values in sequences.items()}
    for name, ratio in resampled().items():
        assert float(ratio(totals)) == pytest.approx(metrics[name], rel=1e-12), name
    assert metrics["rows"] == totals["rows"]
    assert all(len(values) == CONTEXTS for values in sequences.values())


# ---- gradient pursuit -----------------------------------------------------------------------------------------------


@at_both_layers
def test_pursuit_takes_the_encoders_place_in_every_metric(
    model: Any, tokens_ET: Tensor, evaluator: Evaluator, site: Site
) -> None:
    sae = make_sae("gated", d_sae=40, seed=2)
    assert site.layer is not None

    class Pursued:
        decode = sae.decode

        def encode(self, x_BD: Tensor) -> Tensor:
            return gradient_pursuit(x_BD, sae.W_dec, sae.b_dec, 5)

    expected = slow_evaluation(model, tokens_ET, site.layer, Pursued())  # type: ignore[arg-type]
    metrics, sequences, *_ = evaluator.evaluate(site, sae, pursuit_l0=5)
    assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert 0 < metrics["l0"] <= 5
    own = evaluator.evaluate(site, sae)
    assert own.metrics["l0"] != metrics["l0"]
    for name in ("rows", "x_sq", "centred_sq", "positions", "nll_clean", "nll_zero"):
        assert sequences[name] == own.sequences[name], "the same contexts: what pairs the two"


def test_more_pursued_features_explain_more(evaluator: Evaluator) -> None:
    sae = make_sae(d_sae=40, seed=2)
    fvu = [evaluator.evaluate(SITES[1], sae, l0).metrics["fvu"] for l0 in (1, 2, 4, 8, 16)]
    assert fvu == sorted(fvu, reverse=True)


# ---- the same SAE, the same numbers ---------------------------------------------------------------------------------


@at_both_layers
def test_an_evaluation_repeats_exactly_whatever_was_evaluated_before(
    model: Any, tokens_ET: Tensor, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = make_sae("gated", seed=5)
    fresh = Evaluator(model, tokens_ET, kept, batch=4).evaluate(site, sae)
    used = Evaluator(model, tokens_ET, kept, batch=4)
    for other in SITES:
        used.evaluate(other, make_sae(seed=6))
        used.evaluate(other, perfect_sae())
    assert used.evaluate(site, sae) == fresh
    assert used.evaluate(site, sae) == fresh
    monkeypatch.setattr(evaluator_module, "CLEAN_CACHE_BYTES", 0)
    forgetful = Evaluator(model, tokens_ET, kept, batch=4)
    assert [forgetful.evaluate(site, sae) for _ in range(2)] == [fresh, fresh]


@at_both_layers
@pytest.mark.parametrize("batch", [1, 3, 7, 100])
def test_the_size_of_a_slice_changes_results_by_rounding_only(
    model: Any, tokens_ET: Tensor, evaluator: Evaluator, site: Site, batch: int
) -> None:
    sae = make_sae("gated", seed=7)
    metrics = Evaluator(model, tokens_ET, kept, batch).evaluate(site, sae).metrics
    assert metrics == pytest.approx(evaluator.evaluate(site, sae).metrics, rel=1e-5, abs=1e-6)


def test_the_model_is_left_as_it_was(model: Any, tokens_ET: Tensor, evaluator: Evaluator) -> None:
    with torch.no_grad():
        before = model(tokens_ET).logits
        evaluator.evaluate(SITES[0], make_sae(seed=8))
        assert torch.equal(model(tokens_ET).logits, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("point", ["mlp_out", "attn_out", "resid_pre"])
def test_a_perfect_sae_is_perfect_at_every_point_of_width_n(evaluator: Evaluator, point: str) -> None:
    metrics = evaluator.evaluate(Site.of_point(1, point), perfect_sae()).metrics
    assert metrics["loss_recovered"] == pytest.approx(1, abs=1e-5)
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)
