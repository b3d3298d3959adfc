"""Evaluation of an SAE as saved: the model runs clean, with the site zero-ablated, and with the SAE spliced in.

A transcoder is spliced in at its target, computed from what the same pass has at its source; it is its target that is
zero-ablated.

Only kept positions are replaced; the others keep their own activations, rows of massive norm (`massive_norms`) among
them. All losses average over the same positions of a site: the kept ones that have a next token in the context. Sums
are float64, one a context, in the order of fixed slices, so that the same SAE gives the same numbers in any process of
the same kind of machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsae_ray.config.site import Site
from gsae_ray.data.tokens import PADDING, model_input
from gsae_ray.errors import not_finite
from gsae_ray.evaluation.density import Firing
from gsae_ray.evaluation.metrics import SUMS, Evaluation
from gsae_ray.evaluation.reconstruction import check_width, reconstruct
from gsae_ray.language_model.hooks import Edit, capture
from gsae_ray.language_model.massive_norms import square_norm_limit, square_norms, takes_part
from gsae_ray.language_model.partial_pass import PartialPasses, layers_before
from gsae_ray.saes import SAE

CLEAN_CACHE_BYTES = 2**30
"""Log-probabilities of the clean model are kept up to this size, all or none."""
STATES_BYTES = 2**30
"""What layers before sites give is kept up to this size, and what the last one gives where no log-probabilities are."""
PIECE_BYTES = 4 * 2**20
"""Log-probabilities are computed so many bytes at a time."""
FLOAT = 4
"""Bytes of a log-probability."""


class _Ablated(NamedTuple):
    """What the pass with a site's target zero-ablated gives."""

    nll_E: Tensor
    """−ln p(next token) summed over the scored positions of each context."""
    mean_D: Tensor
    """Mean of the target's rows, float64."""
    d_in: int
    """Coordinates of the source's rows."""


Replace = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Gets the rows [R, n] of a site's source and of its target, the same ones but for transcoders, and the activations
[B, T, n] of the target; returns what takes the place of these."""


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
        self.batch = batch
        self.slices = tokens_ET.to(self.device).split(batch)
        self.kept = kept
        self.max_norm = max_norm
        self.passes = PartialPasses(model, [model_input(tokens_BT) for tokens_BT in self.slices], STATES_BYTES)
        self._rows: dict[Site, list[Tensor]] = {}
        self._clean: dict[int, list[Tensor]] = {}
        self._ablated: dict[Site, _Ablated] = {}

    @torch.no_grad()
    def evaluate(self, site: Site, sae: SAE, pursuit_l0: int | None = None, share: float = 1.0) -> Evaluation:
        """Evaluates `sae`, spliced in at `site`.

        Args:
            site: where the SAE was trained.
            sae: as saved: it takes raw activations.
            pursuit_l0: the SAE's decoder with at most so many features a row, found by gradient pursuit, in place of
                its own encoder.
            share: of the contexts, the first ones, in whole slices; the rest is left out.

        Raises:
            NumericError: the site's activations, or the model's losses without the SAE, are not finite.
            UserError: the model has no such site, or the SAE is none for it.
        """
        ablated = self._zero_ablated(site)
        check_width(sae.cfg, site, {site.source: ablated.d_in, site.target: len(ablated.mean_D)})
        self._check_finite(f"activations at {site}", ablated.mean_D)
        contexts = sum(map(len, self.slices))
        firing = Firing(sae.cfg.d_sae, contexts, self.device)
        context_E = torch.arange(contexts, device=self.device)
        sums: dict[str, list[Tensor]] = {name: [] for name in SUMS}

        slices = self.rows(site)[: max(1, math.ceil(share * len(self.slices)))]
        for index, kept_BT in enumerate(slices):
            context_R = context_E[index * self.batch :][: len(kept_BT)].repeat_interleave(kept_BT.sum(1))

            def splice(
                x_Rn: Tensor,
                y_Rm: Tensor,
                y_BTm: Tensor,
                kept_BT: Tensor = kept_BT,
                context_R: Tensor = context_R,
            ) -> Tensor:
                kept_BT = kept_BT.to(y_BTm.device)  # of a model on several GPUs, not always the tokens' device
                sae.to(y_BTm.device)
                found = reconstruct(sae, x_Rn.float(), y_Rm.float(), ablated.mean_D, pursuit_l0)
                firing.add(found.active_RF, context_R)
                for name, values_R in found.values.items():
                    sums[name].append(_by_context(values_R, kept_BT).to(self.device))
                edited_BTm = y_BTm.clone()
                edited_BTm[kept_BT] = found.y_hat_RD.to(y_BTm.dtype)
                return edited_BTm

            sums["rows"].append(kept_BT.sum(1))
            for name, values_B in self._losses(index, site, splice).items():
                sums[name].append(values_B)

        sums["nll_zero"].append(ablated.nll_E[: sum(map(len, slices))])
        self._check_finite("the model's own losses", torch.cat(sums["nll_clean"]))
        self._check_finite(f"losses with 0 in place of {site}", ablated.nll_E)
        sequences = {name: torch.cat(values).double().tolist() for name, values in sums.items()}
        return Evaluation.of(sequences, **firing.metrics())._replace(ends=firing.ends())

    def notices(self) -> list[str]:
        """Lines that the user should know about the evaluations so far."""
        return self.passes.notices()

    def forget(self) -> None:
        """Drops what makes evaluations quick and takes memory: log-probabilities, and what layers have given."""
        self._clean.clear()
        self.passes = PartialPasses(self.model, self.passes.slices, STATES_BYTES)

    def _check_finite(self, what: str, values: Tensor) -> None:
        """Raises NumericError where the model's own values are not finite: no SAE of the site can be measured."""
        if not values.isfinite().all():
            dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")
            raise not_finite(what, "the held-out text", dtype)

    def _losses(self, index: int, site: Site, splice: Replace) -> dict[str, Tensor]:
        """Returns what a slice's predictions sum to, context by context [B], with an SAE spliced in."""
        tokens_BT = self.slices[index]
        scored_BT = _scored(tokens_BT, self.rows(site)[index])
        losses: dict[str, list[Tensor]] = {"nll_clean": [], "nll_spliced": [], "kl": []}
        logits_BTV = self._logits(index, site, splice)
        clean = self._clean_log_probs(index, site, logits_BTV.shape[-1])
        for (spliced_PV, next_P), clean_PV in zip(_log_probs(logits_BTV, tokens_BT), clean, strict=True):
            losses["nll_clean"].append(_nll(clean_PV, next_P))
            losses["nll_spliced"].append(_nll(spliced_PV, next_P))
            losses["kl"].append(F.kl_div(spliced_PV, clean_PV, reduction="none", log_target=True).sum(-1))
        sums = {name: _by_context(torch.cat(values)[scored_BT.flatten()], scored_BT) for name, values in losses.items()}
        return {"positions": scored_BT.sum(1), **sums}

    def _logits(self, index: int, site: Site, replace: Replace) -> Tensor:
        """Returns the logits [B, T, vocabulary] of a slice with a site's target replaced."""
        edits = _edits(site, self.rows(site)[index], replace)
        return self.passes.logits(index, layers_before(self.model, site.source), edits)

    def _clean_log_probs(self, index: int, site: Site, vocabulary: int) -> Iterable[Tensor]:
        """Returns the log-probabilities of the unedited model, piece by piece as `_log_probs`.

        They are kept where those of all slices fit in memory; else what the last layer gives is, as far as that fits.

        Args:
            index: the slice.
            site: that is being evaluated: what the layers before it give is kept already.
            vocabulary: size of it.
        """
        if index in self._clean:
            return self._clean[index]
        fits = FLOAT * vocabulary * sum(tokens.numel() for tokens in self.slices) <= CLEAN_CACHE_BYTES
        skip = layers_before(self.model, site.source) if fits else len(self.passes.layers)
        logits_BTV = self.passes.logits(index, skip, {})
        pieces = (log_probs_PV for log_probs_PV, _ in _log_probs(logits_BTV, self.slices[index]))
        if not fits:
            return pieces
        self._clean[index] = list(pieces)
        return self._clean[index]

    def rows(self, site: Site) -> list[Tensor]:
        """Which positions of each slice [B, T] are replaced and measured: the rows without those of massive norm.

        Of a transcoder's site those are left out that are of massive norm at either place.
        """
        self.find_rows([site])
        return self._rows[site]

    @torch.no_grad()
    def find_rows(self, sites: Sequence[Site]) -> None:
        """Finds the `rows` of sites, in one pass over the contexts where they are not known yet."""
        sites = [site for site in dict.fromkeys(sites) if site not in self._rows]
        kept = [self.kept(tokens_BT) for tokens_BT in self.slices]
        places = tuple(dict.fromkeys(place for site in sites for place in site.places))
        found: dict[Site, list[Tensor]] = {place: [] for place in places}
        if sites and self.max_norm is not None:
            for tokens_BT, kept_BT in zip(self.slices, kept, strict=True):
                for place, x_Rn in capture(self.model, model_input(tokens_BT), places, kept_BT).items():
                    found[place].append(square_norms(x_Rn).to(self.device))
        for site in sites:
            self._rows[site] = [kept_BT.clone() for kept_BT in kept]
            if self.max_norm is not None:
                norms = [found[place] for place in site.places]
                limits = [square_norm_limit(torch.cat(norms_of), self.max_norm) for norms_of in norms]
                for kept_BT, *norms_R in zip(self._rows[site], *norms, strict=True):
                    parts = [takes_part(norms_R, limit) for norms_R, limit in zip(norms_R, limits, strict=True)]
                    kept_BT[kept_BT.clone()] = torch.stack(parts).all(0)

    def _zero_ablated(self, site: Site) -> _Ablated:
        """Runs the model with the site's target zero-ablated at the kept positions."""
        if site not in self._ablated:
            nll: list[Tensor] = []
            sums: list[Tensor] = []
            rows = d_in = 0
            for index, (tokens_BT, kept_BT) in enumerate(zip(self.slices, self.rows(site), strict=True)):

                def ablate(x_Rn: Tensor, y_Rm: Tensor, y_BTm: Tensor, kept_BT: Tensor = kept_BT) -> Tensor:
                    nonlocal d_in
                    d_in = x_Rn.shape[1]
                    sums.append(y_Rm.sum(0, dtype=torch.float64).to(self.device))
                    return y_BTm.masked_fill(kept_BT.to(y_BTm.device)[..., None], 0)

                pieces = _log_probs(self._logits(index, site, ablate), tokens_BT)
                scored_BT = _scored(tokens_BT, kept_BT)
                nll_N = torch.cat([_nll(log_probs_PV, next_P) for log_probs_PV, next_P in pieces])
                nll.append(_by_context(nll_N[scored_BT.flatten()], scored_BT))
                rows += int(kept_BT.sum())
            self._ablated[site] = _Ablated(torch.cat(nll), torch.stack(sums).sum(0) / rows, d_in)
        return self._ablated[site]


def _edits(site: Site, kept_BT: Tensor, replace: Replace) -> dict[Site, Edit]:
    """The edits of a forward pass that replace the activations of a site's target, from rows of the same pass."""

    def rows(x_BTn: Tensor) -> Tensor:
        return x_BTn[kept_BT.to(x_BTn.device)]  # a copy, see `Edit`

    def edit_one(x_BTn: Tensor) -> Tensor:
        x_Rn = rows(x_BTn)
        return replace(x_Rn, x_Rn, x_BTn)

    if not site.is_transcoders:
        return {site: edit_one}
    seen: list[Tensor] = []

    def see(x_BTn: Tensor) -> None:
        seen.append(rows(x_BTn))

    def edit_target(y_BTm: Tensor) -> Tensor:
        return replace(seen.pop().to(y_BTm.device), rows(y_BTm), y_BTm)

    return {site.source: see, site.target: edit_target}


def _scored(tokens_BT: Tensor, kept_BT: Tensor) -> Tensor:
    """Which positions [B, T] are scored: the kept ones that have a next token."""
    scored_BT = kept_BT.clone()
    scored_BT[:, :-1] &= tokens_BT[:, 1:] != PADDING
    scored_BT[:, -1] = False
    return scored_BT


def _log_probs(logits_BTV: Tensor, tokens_BT: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Log-probabilities [P, vocabulary] and the next token [P], piece by piece of all positions, context by context.

    So that a large vocabulary takes memory once, and passes over a small one stay in the processor's cache. What has no
    next token gets the first one of its context, and is not scored.
    """
    next_BT = model_input(tokens_BT).roll(-1, dims=1).to(logits_BTV.device)
    positions = max(1, PIECE_BYTES // (FLOAT * logits_BTV.shape[-1]))
    pieces = logits_BTV.flatten(0, 1).split(positions), next_BT.flatten().split(positions)
    for logits_PV, next_P in zip(*pieces, strict=True):
        yield F.log_softmax(logits_PV.float(), dim=-1), next_P


def _nll(log_probs_PV: Tensor, next_P: Tensor) -> Tensor:
    """−log p(next token) of each position."""
    return -log_probs_PV.gather(-1, next_P[:, None]).squeeze(-1)


def _by_context(values_R: Tensor, kept_BT: Tensor) -> Tensor:
    """Sums values of rows over the kept positions of each context, in float64 [B]."""
    values_BT = torch.zeros(kept_BT.shape, dtype=torch.float64, device=values_R.device)
    values_BT[kept_BT] = values_R.double()
    return values_BT.sum(1)
