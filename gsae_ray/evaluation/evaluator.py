"""Evaluation of an SAE as saved: the model runs clean, with the site zero-ablated, and with the SAE spliced in.

Only kept positions are replaced; the others keep their own activations, rows of massive norm (`massive_norms`) among
them. All losses average over the same positions of a site: the kept ones that have a next token in the context. Sums
are float64, one a context, in the order of fixed slices, so that the same SAE gives the same numbers in any process of
the same kind of machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsae_ray.config.site import Site
from gsae_ray.data.tokens import PADDING, model_input
from gsae_ray.errors import not_finite
from gsae_ray.evaluation.metrics import SUMS, Evaluation
from gsae_ray.evaluation.reconstruction import check_width, reconstruct
from gsae_ray.language_model.hooks import Edit, capture, edited
from gsae_ray.language_model.massive_norms import square_norm_limit, square_norms, takes_part
from gsae_ray.saes import SAE

CLEAN_CACHE_BYTES = 2**30
"""Log-probabilities of the clean model are kept up to this size."""


class _Ablated(NamedTuple):
    """What the pass with a site zero-ablated gives."""

    nll_E: Tensor
    """−ln p(next token) summed over the scored positions of each context."""
    mean_D: Tensor
    """Mean of the site's rows, float64."""


class Evaluator:
    """Evaluates SAEs on the same contexts; passes without an SAE are made once a site."""

    def __init__(
        self,
        model: nn.Module,
        tokens_ET: Tensor,
        kept: Callable[[Tensor], Tensor],
        batch: int,
        max_norm: float | None = None,
    ) -> None:
        """Runs no forward pass yet.

        Args:
            model: the language model.
            tokens_ET: held-out contexts [E, T].
            kept: token ids -> which positions are rows.
            batch: contexts of a forward pass.
            max_norm: as `DatasetSettings.max_norm`. The limit is that of the held-out rows: whatever an SAE was trained
                on, it is measured on the same ones as every other.
        """
        self.model = model
        self.device = next(model.parameters()).device
        self.slices = tokens_ET.to(self.device).split(batch)
        self.kept = kept
        self.max_norm = max_norm
        self._rows: dict[Site, list[Tensor]] = {}
        self._clean: dict[int, Tensor] = {}
        self._ablated: dict[Site, _Ablated] = {}

    @torch.no_grad()
    def evaluate(self, site: Site, sae: SAE, pursuit_l0: int | None = None) -> Evaluation:
        """Evaluates `sae`, spliced in at `site`.

        Args:
            site: where the SAE was trained.
            sae: as saved: it takes raw activations.
            pursuit_l0: the SAE's decoder with at most so many features a row, found by gradient pursuit, in place of
                its own encoder.

        Raises:
            NumericError: the site's activations, or the model's losses without the SAE, are not finite.
            UserError: the model has no such site, or the SAE takes activations of another width.
        """
        ablated = self._zero_ablated(site)
        check_width(sae.cfg, site, len(ablated.mean_D))
        self._check_finite(f"activations at {site}", ablated.mean_D)
        active_F = torch.zeros(sae.cfg.d_sae, dtype=torch.float64, device=self.device)
        sums: dict[str, list[Tensor]] = {name: [] for name in SUMS}

        for index, (tokens_BT, kept_BT) in enumerate(zip(self.slices, self.rows(site), strict=True)):

            def splice(x_BTn: Tensor, kept_BT: Tensor = kept_BT) -> Tensor:
                kept_BT = kept_BT.to(x_BTn.device)  # of a model on several GPUs, not always the tokens' device
                sae.to(x_BTn.device)
                found = reconstruct(sae, x_BTn[kept_BT].float(), ablated.mean_D, pursuit_l0)
                active_F.add_(found.active_RF.sum(0).to(self.device))
                for name, values_R in found.values.items():
                    sums[name].append(_by_context(values_R, kept_BT).to(self.device))
                edited_BTn = x_BTn.clone()
                edited_BTn[kept_BT] = found.x_hat_RD.to(x_BTn.dtype)
                return edited_BTn

            clean_BTV = self._clean_log_probs(index, tokens_BT)
            spliced_BTV = self._log_probs(tokens_BT, (site, splice))
            scored_BT = _scored(tokens_BT, kept_BT)
            kl_BT = F.kl_div(spliced_BTV, clean_BTV, reduction="none", log_target=True).sum(-1)
            sums["rows"].append(kept_BT.sum(1))
            sums["positions"].append(scored_BT.sum(1))
            sums["nll_clean"].append(_nll(clean_BTV, tokens_BT, scored_BT))
            sums["nll_spliced"].append(_nll(spliced_BTV, tokens_BT, scored_BT))
            sums["kl"].append(_by_context(kl_BT[:, :-1][scored_BT], scored_BT))

        sums["nll_zero"].append(ablated.nll_E)
        self._check_finite("the model's own losses", torch.cat(sums["nll_clean"]))
        self._check_finite(f"losses with 0 in place of {site}", ablated.nll_E)
        sequences = {name: torch.cat(values).double().tolist() for name, values in sums.items()}
        return Evaluation.of(sequences, alive_fraction=(active_F > 0).double().mean().item())

    def _check_finite(self, what: str, values: Tensor) -> None:
        """Raises NumericError where the model's own values are not finite: no SAE of the site can be measured."""
        if not values.isfinite().all():
            dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")
            raise not_finite(what, "the held-out text", dtype)

    def _log_probs(self, tokens_BT: Tensor, edit: tuple[Site, Edit] | None = None) -> Tensor:
        """Returns the log-probabilities [B, T, vocabulary] of each next token."""
        with edited(self.model, dict([edit] if edit else [])):
            logits_BTV = self.model(model_input(tokens_BT), use_cache=False).logits
        return F.log_softmax(logits_BTV.float(), dim=-1)

    def _clean_log_probs(self, index: int, tokens_BT: Tensor) -> Tensor:
        """Log-probabilities of the unedited model.

        They are kept where those of all slices fit in memory: that saves each further SAE one of its two passes.
        """
        if index in self._clean:
            return self._clean[index]
        log_probs_BTV = self._log_probs(tokens_BT)
        contexts = sum(len(tokens) for tokens in self.slices)
        if log_probs_BTV[0].nbytes * contexts <= CLEAN_CACHE_BYTES:
            self._clean[index] = log_probs_BTV
        return log_probs_BTV

    @torch.no_grad()
    def rows(self, site: Site) -> list[Tensor]:
        """Which positions of each slice [B, T] are replaced and measured: the rows without those of massive norm."""
        if site not in self._rows:
            kept = [self.kept(tokens_BT) for tokens_BT in self.slices]
            if self.max_norm is not None:
                norms = []
                for tokens_BT, kept_BT in zip(self.slices, kept, strict=True):
                    x_Rn = capture(self.model, model_input(tokens_BT), [site], kept_BT)[site]
                    norms.append(square_norms(x_Rn).to(self.device))
                limit = square_norm_limit(torch.cat(norms), self.max_norm)
                for kept_BT, norms_R in zip(kept, norms, strict=True):
                    kept_BT[kept_BT.clone()] = takes_part(norms_R, limit)
            self._rows[site] = kept
        return self._rows[site]

    def _zero_ablated(self, site: Site) -> _Ablated:
        """Runs the model with the site zero-ablated at the kept positions."""
        if site not in self._ablated:
            nll: list[Tensor] = []
            sums: list[Tensor] = []
            rows = 0
            for tokens_BT, kept_BT in zip(self.slices, self.rows(site), strict=True):

                def ablate(x_BTn: Tensor, kept_BT: Tensor = kept_BT) -> Tensor:
                    kept_BT = kept_BT.to(x_BTn.device)
                    sums.append(x_BTn[kept_BT].sum(0, dtype=torch.float64).to(self.device))
                    return x_BTn.masked_fill(kept_BT[..., None], 0)

                log_probs_BTV = self._log_probs(tokens_BT, (site, ablate))
                nll.append(_nll(log_probs_BTV, tokens_BT, _scored(tokens_BT, kept_BT)))
                rows += int(kept_BT.sum())
            self._ablated[site] = _Ablated(torch.cat(nll), torch.stack(sums).sum(0) / rows)
        return self._ablated[site]


def _scored(tokens_BT: Tensor, kept_BT: Tensor) -> Tensor:
    """Which positions [B, T − 1] are scored: the kept ones that have a next token."""
    return kept_BT[:, :-1] & (tokens_BT[:, 1:] != PADDING)


def _nll(log_probs_BTV: Tensor, tokens_BT: Tensor, scored_BT: Tensor) -> Tensor:
    """−log p(next token), summed over the scored positions [B, T − 1] of each context."""
    next_BT = log_probs_BTV[:, :-1].gather(-1, model_input(tokens_BT)[:, 1:, None]).squeeze(-1)
    return _by_context(-next_BT[scored_BT], scored_BT)


def _by_context(values_R: Tensor, kept_BT: Tensor) -> Tensor:
    """Sums values of rows over the kept positions of each context, in float64 [B]."""
    values_BT = torch.zeros(kept_BT.shape, dtype=torch.float64, device=values_R.device)
    values_BT[kept_BT] = values_R.double()
    return values_BT.sum(1)
