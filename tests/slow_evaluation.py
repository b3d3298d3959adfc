"""SAEs with known weights, and an evaluation that is slow and independent: a context a forward, hand-written hooks."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gsae_ray.config.site import Site
from gsae_ray.data.tokens import kept_mask
from gsae_ray.saes import SAE, SAEConfig, build

N, VOCABULARY, CONTEXTS, LENGTH = 16, 64, 10, 12
SPECIAL = 5
SITES = [Site.of_point(layer, "resid_post") for layer in (0, 1)]
MLP_OUT = Site.of_point(1, "mlp_out")
at_both_layers = pytest.mark.parametrize("site", SITES, ids=str)


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
        "dead_heldout": (features <= 0).all(0).double().mean().item(),
        "dense_heldout": ((features > 0).double().mean(0) > 0.1).double().mean().item(),
        "rows": float(len(x)),
    }
