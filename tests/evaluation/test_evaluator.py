"""Evaluation on a tiny random GPT-NeoX, against a slow independent one: one context a forward, hand-written hooks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from gsae_ray.config.site import Site
from gsae_ray.data.tokens import PADDING, kept_mask
from gsae_ray.errors import NumericError
from gsae_ray.evaluation import evaluator as evaluator_module
from gsae_ray.evaluation.evaluator import Evaluator
from gsae_ray.evaluation.gradient_pursuit import gradient_pursuit
from gsae_ray.evaluation.metrics import METRICS, SUMS, resampled
from gsae_ray.saes import SAE, SAEConfig, build

N, VOCABULARY, CONTEXTS, LENGTH = 16, 64, 10, 12
SPECIAL = 5
SITES = [Site.of_point(layer, "resid_post") for layer in (0, 1)]
MLP_OUT = Site.of_point(1, "mlp_out")
at_both_layers = pytest.mark.parametrize("site", SITES, ids=str)


@pytest.fixture(scope="module")
def model() -> GPTNeoXForCausalLM:
    """Weights large enough that its predictions hang on every layer."""
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=N,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPTNeoXForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokens_ET() -> Tensor:
    tokens = torch.randint(VOCABULARY, (CONTEXTS, LENGTH), generator=torch.Generator().manual_seed(1))
    tokens[0, 3] = tokens[4, LENGTH - 1] = tokens[7, 6] = tokens[7, 7] = SPECIAL
    return tokens


def kept(tokens_BT: Tensor) -> Tensor:
    """Position 0 and the special token are no rows."""
    return kept_mask(tokens_BT, {SPECIAL}, skip_positions=1)


def make_sae(architecture: str = "standard", d_sae: int = 2 * N, seed: int | None = None) -> SAE:
    """All weights zero, or random ones."""
    cfg = SAEConfig(architecture=architecture, d_in=N, d_sae=d_sae, hyperparameters={"l1_coefficient": 1.0})
    sae = build(cfg)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.zero_()
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            sae.initialise(generator, torch.randn(N, generator=generator))
            for name, parameter in sae.named_parameters():
                if name not in ("W_enc", "W_dec"):
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return sae


def perfect_sae() -> SAE:
    """Gives x = Σ ReLU(x_i) e_i + Σ ReLU(−x_i) (−e_i)."""
    sae = make_sae()
    with torch.no_grad():
        sae.W_dec.copy_(torch.cat([torch.eye(N), -torch.eye(N)]))
        sae.W_enc.copy_(sae.W_dec.T)
    return sae


@pytest.fixture(scope="module")
def evaluator(model: GPTNeoXForCausalLM, tokens_ET: Tensor) -> Evaluator:
    return Evaluator(model, tokens_ET, kept, batch=4)


# ---- the slow, independent evaluation -------------------------------------------------------------------------------


def slow_evaluation(
    model: Any, tokens_ET: Tensor, layer: int, sae: SAE, no_rows: Collection[int] = (SPECIAL,)
) -> dict[str, float]:
    """Three forward passes a context, with a hook that replaces one position after the other."""
    rows: list[tuple[Tensor, Tensor, Tensor]] = []  # x, features, x̂
    ce = dict.fromkeys(("clean", "spliced", "zero"), 0.0)
    kl, positions = 0.0, 0

    def replace(tokens_T: Tensor, edit: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            x_1Tn = (output[0] if isinstance(output, tuple) else output).clone()
            for t in range(1, len(tokens_T)):
                if int(tokens_T[t]) not in no_rows:
                    x_1Tn[0, t] = edit(x_1Tn[0, t])
            return (x_1Tn, *output[1:]) if isinstance(output, tuple) else x_1Tn

        return hook

    def splice(x_n: Tensor) -> Tensor:
        features = sae.encode(x_n[None])[0]
        x_hat = sae.decode(features[None])[0]
        rows.append((x_n.double(), features, x_hat.double()))
        return x_hat

    def log_probs(tokens_T: Tensor, edit: Callable[[Tensor], Tensor] | None) -> Tensor:
        module = model.gpt_neox.layers[layer]
        handle = None if edit is None else module.register_forward_hook(replace(tokens_T, edit))
        with torch.no_grad():
            logits_TV = model(tokens_T[None], use_cache=False).logits[0].double()
        if handle is not None:
            handle.remove()
        return logits_TV - logits_TV.logsumexp(1, keepdim=True)

    for tokens_T in tokens_ET:
        passes = {"clean": log_probs(tokens_T, None), "spliced": log_probs(tokens_T, splice)}
        passes["zero"] = log_probs(tokens_T, torch.zeros_like)
        for t in range(1, LENGTH - 1):
            if int(tokens_T[t]) in no_rows:
                continue
            positions += 1
            for name, log_p_TV in passes.items():
                ce[name] -= log_p_TV[t, tokens_T[t + 1]].item()
            clean_V, spliced_V = passes["clean"][t], passes["spliced"][t]
            kl += (clean_V.exp() * (clean_V - spliced_V)).sum().item()

    x, features, x_hat = (torch.stack(column) for column in zip(*rows, strict=True))
    ce = {name: total / positions for name, total in ce.items()}
    return {
        "l0": (features > 0).sum(1).double().mean().item(),
        "loss_recovered": 1 - (ce["spliced"] - ce["clean"]) / (ce["zero"] - ce["clean"]),
        "gamma": (x_hat.square().sum() / (x_hat * x).sum()).item(),
        "fvu": ((x - x_hat).square().sum() / (x - x.mean(0)).square().sum()).item(),
        "kl": kl / positions,
        "ce_clean": ce["clean"],
        "ce_spliced": ce["spliced"],
        "ce_zero": ce["zero"],
        "alive_fraction": (features > 0).any(0).double().mean().item(),
        "rows": float(len(x)),
    }


@at_both_layers
@pytest.mark.parametrize("architecture", ["standard", "gated"])
def test_every_metric_is_that_of_a_slow_independent_evaluation(
    model: Any, tokens_ET: Tensor, evaluator: Evaluator, site: Site, architecture: str
) -> None:
    sae = make_sae(architecture, d_sae=40, seed=2)
    assert site.layer is not None
    expected = slow_evaluation(model, tokens_ET, site.layer, sae)
    actual = evaluator.evaluate(site, sae).metrics
    assert set(actual) == set(METRICS)
    assert actual == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert abs(expected["ce_zero"] - expected["ce_clean"]) > 0.05  # the comparison means something
    assert expected["kl"] > 0.05


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
    inputs: list[Tensor] = []
    after = following.register_forward_pre_hook(lambda _m, args: inputs.append(args[0].clone()))
    Evaluator(model, tokens_BT, kept, batch=len(tokens_BT)).evaluate(site, sae)
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
    metrics, sequences, _ = evaluator.evaluate(SITES[0], make_sae("gated", d_sae=40, seed=2))
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
    metrics, sequences, _ = evaluator.evaluate(site, sae, pursuit_l0=5)
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
