"""A transcoder is spliced in at its target, computed from its source in the same pass: as a slow evaluation says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from slow_evaluation import LENGTH, MLP_OUT, SITES, N, kept, make_sae
from torch import Tensor, nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from gsae_ray.config.site import Site
from gsae_ray.errors import UserError
from gsae_ray.evaluation.evaluator import Evaluator
from gsae_ray.saes import SAE, SAEConfig, build

MLP_WIDTH = 32
BOTH = [Site.of_transcoder(Site.of_point(layer, "mlp_in"), "mlp_out") for layer in (0, 1)]
at_both_layers = pytest.mark.parametrize("site", BOTH, ids=str)


def make_transcoder(architecture: str = "standard", skip: bool = False, d_out: int = N, seed: int = 2) -> SAE:
    sizes: dict[str, Any] = {"d_in": N, "d_sae": MLP_WIDTH, "d_out": d_out, "skip": skip}
    sae = build(SAEConfig(architecture=architecture, hyperparameters={"l1_coefficient": 1.0}, **sizes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return sae.eval()


class Replaced(nn.Module):
    """An MLP whose outputs are others at the rows of a context."""

    def __init__(self, mlp: nn.Module, compute: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.mlp, self.compute = mlp, compute
        self.rows: list[tuple[Tensor, Tensor]] = []
        self.kept_T = torch.empty(0)

    def forward(self, x_1Tn: Tensor) -> Tensor:
        y_1Tn = self.mlp(x_1Tn).clone()
        for t in self.kept_T.nonzero()[:, 0]:
            x_n, y_n = x_1Tn[0, t].clone(), y_1Tn[0, t].clone()
            y_1Tn[0, t] = self.compute(x_n)
            self.rows.append((x_n, y_n))
        return y_1Tn


def losses(model: Any, tokens_ET: Tensor, layer: int, compute: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Log-probabilities [scored positions, vocabulary] with another MLP at the rows, and (x, y) of these."""
    other = copy.deepcopy(model)
    replaced = Replaced(other.gpt_neox.layers[layer].mlp, compute)
    other.gpt_neox.layers[layer].mlp = replaced
    parts = []
    for tokens_T in tokens_ET:
        replaced.kept_T = kept(tokens_T[None])[0]
        with torch.no_grad():
            log_p_TV = other(tokens_T[None], use_cache=False).logits[0].double().log_softmax(-1)
        parts.append(log_p_TV[: LENGTH - 1][replaced.kept_T[: LENGTH - 1]])
    x_y = torch.stack([torch.stack(pair) for pair in replaced.rows]).double()
    return torch.cat(parts), x_y


@at_both_layers
@pytest.mark.parametrize("architecture", ["standard", "gated"])
@pytest.mark.parametrize("skip", [False, True])
def test_every_metric_is_that_of_a_model_whose_mlp_is_replaced(
    model: Any, tokens_ET: Tensor, evaluator: Evaluator, site: Site, architecture: str, skip: bool
) -> None:
    sae, layer = make_transcoder(architecture, skip), site.layer or 0

    def compute(x_n: Tensor) -> Tensor:
        y_hat_n = sae.W_dec.T @ sae.encode(x_n) + sae.b_dec
        return y_hat_n + sae.W_skip @ x_n if skip else y_hat_n

    clean_PV, _ = losses(model, tokens_ET, layer, lambda x_n: model.gpt_neox.layers[layer].mlp(x_n))
    spliced_PV, x_y = losses(model, tokens_ET, layer, compute)
    zero_PV, _ = losses(model, tokens_ET, layer, torch.zeros_like)
    kept_ET = kept(tokens_ET)
    next_P = tokens_ET[:, 1:][kept_ET[:, :-1]]
    ce = {
        name: -log_p_PV.gather(1, next_P[:, None]).mean().item()
        for name, log_p_PV in (("clean", clean_PV), ("spliced", spliced_PV), ("zero", zero_PV))
    }
    x_RD, y_RD = x_y.unbind(1)
    with torch.no_grad():
        acts_RF = sae.encode(x_RD.float())
        y_hat_RD = torch.stack([compute(x_n) for x_n in x_RD.float()]).double()
    expected = {
        "l0": (acts_RF > 0).sum(1).double().mean().item(),
        "loss_recovered": 1 - (ce["spliced"] - ce["clean"]) / (ce["zero"] - ce["clean"]),
        "gamma": (y_hat_RD.square().sum() / (y_hat_RD * y_RD).sum()).item(),
        "fvu": ((y_RD - y_hat_RD).square().sum() / (y_RD - y_RD.mean(0)).square().sum()).item(),
        "kl": (clean_PV.exp() * (clean_PV - spliced_PV)).sum(1).mean().item(),
        **{f"ce_{name}": value for name, value in ce.items()},
        "alive_fraction": (acts_RF > 0).any(0).double().mean().item(),
        "dead_heldout": (acts_RF <= 0).all(0).double().mean().item(),
        "dense_heldout": ((acts_RF > 0).double().mean(0) > 0.1).double().mean().item(),
        "rows": float(len(y_RD)),
    }
    assert evaluator.evaluate(site, sae).metrics == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert abs(ce["zero"] - ce["clean"]) > 0.02 and expected["kl"] > 0.02  # the comparison means something


@at_both_layers
def test_the_mlp_itself_as_a_transcoder_recovers_the_whole_loss(model: Any, tokens_ET: Tensor, site: Site) -> None:
    """An MLP of ReLUs is a standard transcoder, with its neurons as features."""
    config = GPTNeoXConfig(**{**model.config.to_dict(), "hidden_act": "relu"})
    relu = GPTNeoXForCausalLM(config).eval().requires_grad_(False)
    relu.load_state_dict(model.state_dict())
    mlp, sae = relu.gpt_neox.layers[site.layer or 0].mlp, make_transcoder()
    with torch.no_grad():
        sae.W_enc.copy_(mlp.dense_h_to_4h.weight.T)
        sae.get_parameter("b_enc").copy_(mlp.dense_h_to_4h.bias)
        sae.W_dec.copy_(mlp.dense_4h_to_h.weight.T)
        sae.b_dec.copy_(mlp.dense_4h_to_h.bias)
    found = Evaluator(relu, tokens_ET, kept, batch=4).evaluate(site, sae)
    assert found.metrics["loss_recovered"] == pytest.approx(1, abs=1e-6)
    assert found.metrics["fvu"] == pytest.approx(0, abs=1e-10)
    assert found.metrics["gamma"] == pytest.approx(1, abs=1e-6)
    at_target = Evaluator(relu, tokens_ET, kept, batch=4).evaluate(site.target, make_sae(seed=3))
    for name in ("rows", "x_sq", "centred_sq", "nll_clean", "nll_zero"):
        assert found.sequences[name] == at_target.sequences[name], "what is measured is the target"


def test_masked_rows_keep_their_activations_also_those_of_massive_norm_at_either_place(
    model: Any, tokens_ET: Tensor
) -> None:
    """Token 9 has a massive output of the MLP, of an input like any other: its first neurons say so."""
    sink, site, massive = 9, BOTH[0], copy.deepcopy(model)
    mlp = massive.gpt_neox.layers[0].mlp

    def blow_up(_mlp: nn.Module, args: tuple[Tensor], y_BTn: Tensor) -> Tensor:
        of_sink_BT = (args[0] - x_of_sink_n).norm(dim=-1) < 1e-3
        return torch.where(of_sink_BT[..., None], 1000 * y_BTn, y_BTn)

    seen: list[Tensor] = []
    look = mlp.register_forward_pre_hook(lambda _mlp, args: seen.append(args[0]))
    with torch.no_grad():
        massive(torch.tensor([[sink, sink]]))
    look.remove()
    x_of_sink_n = seen[0][0, 1]  # the residual stream is parallel: the MLP sees nothing of attention
    mlp.register_forward_hook(blow_up)
    sae, is_sink_ET = make_transcoder(skip=True), tokens_ET == sink
    assert (is_sink_ET & kept(tokens_ET)).any()
    by_norm = Evaluator(massive, tokens_ET, kept, batch=4, max_norm=10.0).evaluate(site, sae)
    by_token = Evaluator(massive, tokens_ET, lambda tokens: kept(tokens) & (tokens != sink), batch=4).evaluate(
        site, sae
    )
    assert by_norm == by_token
    assert by_norm.metrics["rows"] == (kept(tokens_ET) & ~is_sink_ET).sum()


@at_both_layers
def test_an_evaluation_repeats_exactly_whatever_was_evaluated_before(model: Any, tokens_ET: Tensor, site: Site) -> None:
    sae = make_transcoder("gated", skip=True)
    fresh = Evaluator(model, tokens_ET, kept, batch=4, max_norm=10.0).evaluate(site, sae)
    used = Evaluator(model, tokens_ET, kept, batch=4, max_norm=10.0)
    for other in (*BOTH, SITES[0], site.target):
        used.evaluate(other, make_transcoder() if other.is_transcoders else make_sae(seed=6))
    assert [used.evaluate(site, sae) for _ in range(2)] == [fresh, fresh]


def test_widths_of_source_and_target_may_differ(evaluator: Evaluator) -> None:
    site = Site.of_transcoder(Site.of_point(1, "mlp_in"), "mlp_post")
    assert evaluator.evaluate(site, make_transcoder(skip=True, d_out=32)).metrics["fvu"] > 0
    with pytest.raises(UserError, match="at blocks.1.mlp.hook_post have 32 coordinates, and this .* computes 16"):
        evaluator.evaluate(site, make_transcoder())


def test_a_transcoder_at_one_place_and_an_sae_at_two_are_one_line(evaluator: Evaluator) -> None:
    with pytest.raises(UserError, match=r"^site: blocks.1.hook_mlp_out is of one place, and this is a transcoder;"):
        evaluator.evaluate(MLP_OUT, make_transcoder())
    with pytest.raises(
        UserError, match="from one point of a layer to another, and this is an SAE; give a site for one"
    ):
        evaluator.evaluate(BOTH[1], make_sae(seed=1))
