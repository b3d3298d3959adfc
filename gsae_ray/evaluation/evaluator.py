"""Evaluation of an SAE as saved: the model runs clean, with the site zero-ablated, and with the SAE spliced in.

Only kept positions are replaced; the others keep their own activations. All losses average over the same positions:
the kept ones that have a next token in the context. Sums are float64, in the order of fixed slices, so that the same
SAE gives the same numbers in any process of the same kind of machine.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsae_ray.activations.sites import Edit, Site, edited
from gsae_ray.saes import SAE

METRICS = {
    "l0": "mean number of active features of a row",
    "loss_recovered": "1 − (CE(x̂) − CE(clean)) / (CE(zero) − CE(clean)); may exceed 1 or be negative, never clipped",
    "gamma": "relative reconstruction bias E‖x̂‖² / E[x̂·x]; below 1 is shrinkage",
    "fvu": "fraction of variance unexplained, E‖x − x̂‖² / E‖x − E x‖²",
    "kl": "KL(clean ‖ spliced) in nats, mean over positions",
    "ce_clean": "next-token loss in nats",
    "ce_spliced": "next-token loss with x̂ in place of x",
    "ce_zero": "next-token loss with 0 in place of x",
    "alive_fraction": "share of features that were active on some held-out row",
    "rows": "rows evaluated",
}
"""Name -> meaning."""

CLEAN_CACHE_BYTES = 2**30
"""Log-probabilities of the clean model are kept up to this size."""


class Evaluator:
    """Evaluates SAEs on the same contexts; what does not depend on the SAE is computed once a site."""

    def __init__(self, model: nn.Module, tokens_ET: Tensor, kept: Callable[[Tensor], Tensor], batch: int) -> None:
        """
        Args:
            tokens_ET: held-out contexts [E, T].
            kept: token ids -> which positions are rows.
            batch: contexts of a forward pass.
        """
        self.model = model
        self.device = next(model.parameters()).device
        self.slices = tokens_ET.to(self.device).split(batch)
        self.kept = kept
        self._clean: dict[int, Tensor] = {}
        self._ce_zero: dict[Site, float] = {}

    @torch.no_grad()
    def evaluate(self, site: Site, sae: SAE) -> dict[str, float]:
        """Every metric of `METRICS` for `sae` spliced in at `site`."""
        n, n_features = sae.cfg.d_in, sae.cfg.d_sae
        zeros = {"dtype": torch.float64, "device": self.device}
        sum_x_D = torch.zeros(n, **zeros)  # type: ignore[call-overload]
        active_F = torch.zeros(n_features, **zeros)  # type: ignore[call-overload]
        x_sq = x_hat_sq = x_hat_x = error_sq = kl = spliced = clean = 0.0
        rows = positions = 0

        for index, tokens_BT in enumerate(self.slices):
            kept_BT = self.kept(tokens_BT)

            def splice(x_BTn: Tensor, kept_BT: Tensor = kept_BT) -> Tensor:
                nonlocal x_sq, x_hat_sq, x_hat_x, error_sq, rows
                kept_BT = kept_BT.to(x_BTn.device)  # of a model on several GPUs, not always the tokens' device
                x_RD = x_BTn[kept_BT].float()
                acts_RF = sae.to(x_BTn.device).encode(x_RD)
                x_hat_RD = sae.decode(acts_RF)
                active_F.add_((acts_RF > 0).sum(0).to(self.device))
                sum_x_D.add_(x_RD.sum(0, dtype=torch.float64).to(self.device))
                x, x_hat = x_RD.double(), x_hat_RD.double()
                x_sq += x.square().sum().item()
                x_hat_sq += x_hat.square().sum().item()
                x_hat_x += (x_hat * x).sum().item()
                error_sq += (x - x_hat).square().sum().item()
                rows += len(x_RD)
                edited_BTn = x_BTn.clone()
                edited_BTn[kept_BT] = x_hat_RD.to(x_BTn.dtype)
                return edited_BTn

            clean_BTV = self._clean_log_probs(index, tokens_BT)
            spliced_BTV = self._log_probs(tokens_BT, (site, splice))
            scored_BT = kept_BT[:, :-1]
            clean += _nll(clean_BTV, tokens_BT, scored_BT)
            spliced += _nll(spliced_BTV, tokens_BT, scored_BT)
            kl_BT = F.kl_div(spliced_BTV, clean_BTV, reduction="none", log_target=True).sum(-1)
            kl += kl_BT[:, :-1][scored_BT].sum(dtype=torch.float64).item()
            positions += int(scored_BT.sum())

        ce_clean, ce_spliced, ce_zero = clean / positions, spliced / positions, self._zero(site)
        variance = x_sq / rows - (sum_x_D / rows).square().sum().item()
        return {
            "l0": active_F.sum().item() / rows,
            "loss_recovered": 1 - _ratio(ce_spliced - ce_clean, ce_zero - ce_clean),
            "gamma": _ratio(x_hat_sq, x_hat_x),
            "fvu": _ratio(error_sq / rows, variance),
            "kl": kl / positions,
            "ce_clean": ce_clean,
            "ce_spliced": ce_spliced,
            "ce_zero": ce_zero,
            "alive_fraction": (active_F > 0).double().mean().item(),
            "rows": float(rows),
        }

    def _log_probs(self, tokens_BT: Tensor, edit: tuple[Site, Edit] | None = None) -> Tensor:
        """Log-probabilities [B, T, vocabulary] of each next token."""
        with edited(self.model, dict([edit] if edit else [])):
            logits_BTV = self.model(tokens_BT, use_cache=False).logits
        return F.log_softmax(logits_BTV.float(), dim=-1)

    def _clean_log_probs(self, index: int, tokens_BT: Tensor) -> Tensor:
        """Of the unedited model: kept between SAEs where all of them fit, since they take half of an evaluation."""
        if index in self._clean:
            return self._clean[index]
        log_probs_BTV = self._log_probs(tokens_BT)
        contexts = sum(len(tokens) for tokens in self.slices)
        if log_probs_BTV[0].nbytes * contexts <= CLEAN_CACHE_BYTES:
            self._clean[index] = log_probs_BTV
        return log_probs_BTV

    def _zero(self, site: Site) -> float:
        """CE with the site zero-ablated at the kept positions."""
        if site not in self._ce_zero:
            total, positions = 0.0, 0
            for tokens_BT in self.slices:
                kept_BT = self.kept(tokens_BT)

                def ablate(x_BTn: Tensor, kept_BT: Tensor = kept_BT) -> Tensor:
                    return x_BTn.masked_fill(kept_BT.to(x_BTn.device)[..., None], 0)

                total += _nll(self._log_probs(tokens_BT, (site, ablate)), tokens_BT, kept_BT[:, :-1])
                positions += int(kept_BT[:, :-1].sum())
            self._ce_zero[site] = total / positions
        return self._ce_zero[site]


def _nll(log_probs_BTV: Tensor, tokens_BT: Tensor, scored_BT: Tensor) -> float:
    """Sum of −log p(next token) over the scored positions [B, T − 1]."""
    next_BT = log_probs_BTV[:, :-1].gather(-1, tokens_BT[:, 1:, None]).squeeze(-1)
    return -next_BT[scored_BT].sum(dtype=torch.float64).item()


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("nan")
