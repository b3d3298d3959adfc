"""Which rows an evaluation counts: neither masked ones nor padding nor those of massive norm; and what it refuses."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from slow_evaluation import (
    CONTEXTS,
    MLP_OUT,
    SITES,
    SPECIAL,
    N,
    at_both_layers,
    kept,
    make_sae,
    perfect_sae,
    slow_evaluation,
)
from torch import Tensor
from transformers import GPTNeoXForCausalLM

from gsae_ray.config.site import Site
from gsae_ray.data.tokens import PADDING
from gsae_ray.errors import NumericError, UserError
from gsae_ray.evaluation.evaluator import Evaluator
from gsae_ray.evaluation.row_evaluator import RowEvaluator
from gsae_ray.language_model.partial_pass import layers_before
from gsae_ray.language_model.source import HeldOutRows


@at_both_layers
def test_masked_positions_keep_their_own_activations(model: Any, evaluator: Evaluator, site: Site) -> None:
    """What reaches the model after the splice: x̂ where a row is, x elsewhere."""
    seen: dict[str, Tensor] = {}
    sae = make_sae(seed=3)
    tokens_BT = evaluator.slices[0]
    assert site.layer is not None
    layer = model.gpt_neox.layers[site.layer]
    clean = layer.register_forward_hook(lambda _m, _a, output: seen.update(clean=output))
    with torch.no_grad():
        model(tokens_BT)
    clean.remove()
    following = model.gpt_neox.layers[1] if site.layer == 0 else model.gpt_neox.final_layer_norm
    fresh = Evaluator(model, tokens_BT, kept, batch=len(tokens_BT))
    fresh.passes.logits(0, layers_before(model, site), {})  # it looks first whether layers can be left out
    inputs: list[Tensor] = []
    after = following.register_forward_pre_hook(lambda _m, args: inputs.append(args[0].clone()))
    fresh.evaluate(site, sae)
    after.remove()
    spliced = [x for x in inputs if not torch.equal(x, seen["clean"]) and not (x[kept(tokens_BT)] == 0).all()]
    zeroed = [x for x in inputs if (x[kept(tokens_BT)] == 0).all()]
    assert len(spliced) == len(zeroed) == 1
    for x_BTn in (*spliced, *zeroed):
        assert torch.equal(x_BTn[~kept(tokens_BT)], seen["clean"][~kept(tokens_BT)])
    with torch.no_grad():
        torch.testing.assert_close(spliced[0][kept(tokens_BT)], sae(seen["clean"][kept(tokens_BT)]))


def test_padding_is_neither_read_nor_scored(model: Any, tokens_ET: Tensor) -> None:
    sae, site, short = make_sae(seed=6), SITES[0], 7
    padded_ET = tokens_ET.clone()
    padded_ET[:, short:] = PADDING
    alone = Evaluator(model, tokens_ET[:, :short], kept, batch=4).evaluate(site, sae)
    padded = Evaluator(model, padded_ET, kept, batch=4).evaluate(site, sae)
    assert padded.metrics == pytest.approx(alone.metrics, rel=1e-5)
    for name, sums in alone.sequences.items():
        assert padded.sequences[name] == pytest.approx(sums, rel=1e-5, abs=1e-6), name


def test_an_sae_of_another_width_and_a_site_that_is_not_there_are_one_line(evaluator: Evaluator) -> None:
    sae = make_sae(seed=1)
    with pytest.raises(UserError, match=r"^sites.layers: 2 is out of range; this model has layers 0 to 1$"):
        evaluator.evaluate(Site.of_point(2, "resid_post"), sae)
    neurons = Site.of_point(1, "mlp_post")
    for pursuit_l0 in (None, 4):
        with pytest.raises(UserError) as caught:
            evaluator.evaluate(neurons, sae, pursuit_l0)
        assert str(caught.value) == (
            f"site: the activations at {neurons} have 32 coordinates, and this SAE takes {N} (its d_in); evaluate it "
            "at the site, and with the model, that it was trained on"
        )


def test_rows_of_another_width_than_the_saes_are_one_line() -> None:
    site = MLP_OUT
    rows = HeldOutRows(1, lambda _site: [(torch.ones(4, N + 1), torch.zeros(4, dtype=torch.long))])
    sae = make_sae(seed=1)
    sae.cfg = sae.cfg.model_copy(update={"site": "blocks.9.hook_mlp_out"})
    with pytest.raises(UserError, match=rf"^site: .* at {site} have {N + 1} .*SAE, trained at .*blocks.9.* takes {N} "):
        RowEvaluator(rows, torch.device("cpu"), None).evaluate(site, sae)


# ---- rows of massive norm -------------------------------------------------------------------------------------------

SINK = 9
MAX_NORM = 10.0


@pytest.fixture(scope="module")
def with_sinks(model: GPTNeoXForCausalLM) -> GPTNeoXForCausalLM:
    """One token's rows of the residual stream are of massive norm."""
    sinks = copy.deepcopy(model)
    with torch.no_grad():
        sinks.get_input_embeddings().weight[SINK] *= 3000
    return sinks


@at_both_layers
@pytest.mark.parametrize("architecture", ["standard", "gated"])
def test_every_metric_leaves_out_the_rows_of_massive_norm_and_they_keep_their_activations(
    with_sinks: Any, tokens_ET: Tensor, site: Site, architecture: str
) -> None:
    def not_massive(tokens_BT: Tensor) -> Tensor:
        return kept(tokens_BT) & (tokens_BT != SINK)

    assert ((tokens_ET == SINK) & kept(tokens_ET)).any()
    sae = make_sae(architecture, seed=3)
    by_token = Evaluator(with_sinks, tokens_ET, not_massive, batch=4).evaluate(site, sae)
    by_norm = Evaluator(with_sinks, tokens_ET, kept, batch=4, max_norm=MAX_NORM).evaluate(site, sae)
    assert by_norm == by_token
    assert by_norm.metrics == pytest.approx(
        slow_evaluation(with_sinks, tokens_ET, site.layer or 0, sae, {SPECIAL, SINK}), rel=1e-4, abs=1e-5
    )
    every = Evaluator(with_sinks, tokens_ET, kept, batch=4, max_norm=None).evaluate(site, sae).metrics
    assert every["rows"] > by_norm.metrics["rows"]
    assert every == pytest.approx(slow_evaluation(with_sinks, tokens_ET, site.layer or 0, sae), rel=1e-4, abs=1e-5)


@at_both_layers
def test_without_max_norm_an_sae_is_measured_on_the_sinks_alone(with_sinks: Any, tokens_ET: Tensor, site: Site) -> None:
    """Half of every ordinary row is missing from the reconstructions, and nothing of the massive ones."""
    sae = perfect_sae()

    def encode(x_RD: Tensor) -> Tensor:
        massive_R = x_RD.norm(dim=1) > MAX_NORM * x_RD.norm(dim=1).median()
        return type(sae).encode(sae, x_RD) * torch.where(massive_R, 1.0, 0.5)[:, None]

    sae.encode = encode  # type: ignore[method-assign,assignment]
    every, without = (
        Evaluator(with_sinks, tokens_ET, kept, CONTEXTS, max_norm).evaluate(site, sae).metrics
        for max_norm in (None, MAX_NORM)
    )
    assert every["fvu"] < 1e-3
    assert every["gamma"] == pytest.approx(1, abs=1e-3)
    assert without["fvu"] > 0.25
    assert without["gamma"] == pytest.approx(0.5)


def test_which_rows_are_massive_is_a_question_of_each_site(with_sinks: Any, tokens_ET: Tensor) -> None:
    evaluator = Evaluator(with_sinks, tokens_ET, kept, batch=4, max_norm=MAX_NORM)
    rows = [evaluator.evaluate(site, make_sae(seed=4)).metrics["rows"] for site in (SITES[1], MLP_OUT)]
    assert rows == [(kept(tokens_ET) & (tokens_ET != SINK)).sum(), kept(tokens_ET).sum()]


@at_both_layers
def test_where_no_row_is_massive_max_norm_changes_nothing(
    model: Any, tokens_ET: Tensor, evaluator: Evaluator, site: Site
) -> None:
    sae = make_sae("gated", seed=5)
    assert Evaluator(model, tokens_ET, kept, 4, MAX_NORM).evaluate(site, sae) == evaluator.evaluate(site, sae)


# ---- what is not finite ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_activations_that_are_not_finite_on_held_out_text_are_named_with_their_site(
    model: Any, tokens_ET: Tensor, dtype: str
) -> None:
    """And the likely cause: they do not end as a row that the frontier leaves out."""
    broken = copy.deepcopy(model).to(getattr(torch, dtype))
    with torch.no_grad():
        broken.gpt_neox.embed_in.weight[tokens_ET[5, 4]] = math.inf
    with pytest.raises(NumericError) as caught:
        Evaluator(broken, tokens_ET, kept, batch=4).evaluate(SITES[0], make_sae(seed=1))
    message = str(caught.value)
    assert message.startswith(f"activations at {SITES[0]} are not finite in the held-out text; ")
    assert f"model.dtype: {dtype}" in message and ("bfloat16" in message) == (dtype == "float16")


def test_losses_that_are_not_finite_beyond_the_site_are_named(model: Any, tokens_ET: Tensor) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.get_output_embeddings().weight[3] = math.nan
    with pytest.raises(NumericError, match="the model's own losses are not finite in the held-out text"):
        Evaluator(broken, tokens_ET, kept, batch=4).evaluate(SITES[0], make_sae(seed=1))
