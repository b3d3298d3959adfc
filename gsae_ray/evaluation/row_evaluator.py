"""Evaluation of an SAE on held-out rows alone, where there is no language model to splice it into."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gsae_ray.config.site import Site
from gsae_ray.errors import not_finite
from gsae_ray.evaluation.density import Firing
from gsae_ray.evaluation.known_features import Detection, match
from gsae_ray.evaluation.metrics import Evaluation
from gsae_ray.evaluation.reconstruction import check_width, encode, reconstruct
from gsae_ray.language_model.massive_norms import square_norm_limit, square_norms, takes_part
from gsae_ray.language_model.source import HeldOutRows
from gsae_ray.saes import SAE


@dataclasses.dataclass(frozen=True)
class _SiteRows:
    """The held-out rows of a site that take part; of transcoders pairs of rows, one at each place."""

    limits: tuple[float, ...]
    """Rows whose ‖x‖² exceeds that of one of the site's places take no part."""
    d_in: int
    mean_D: Tensor
    """Mean, at the site's target, of those that do, float64."""


class RowEvaluator:
    """Evaluates SAEs on the same rows. Sums are float64, one a group of rows; cross-entropies have none."""

    def __init__(self, heldout: HeldOutRows, device: torch.device, max_norm: float | None) -> None:
        """Reads no rows yet.

        Args:
            heldout: the rows.
            device: of the SAEs.
            max_norm: as `DatasetSettings.max_norm`, of the held-out rows.
        """
        self.heldout = heldout
        self.device = device
        self.max_norm = max_norm
        self._sites: dict[Site, _SiteRows] = {}

    def notices(self) -> list[str]:
        """As of an `Evaluator`: there is nothing that the user should know."""
        return []

    @torch.no_grad()
    def evaluate(self, site: Site, sae: SAE, pursuit_l0: int | None = None, share: float = 1.0) -> Evaluation:
        """Evaluates `sae`; see `reconstruct`.

        Args:
            site: where the SAE was trained.
            sae: as saved.
            pursuit_l0: as of an `Evaluator`.
            share: of the groups of rows, the first ones; the rest is left out, and then no true features are looked at.

        Raises:
            NumericError: the site's rows are not finite.
            UserError: the SAE takes rows of another width.
        """
        if site not in self._sites:
            self._sites[site] = self._measure(site)
        rows = self._sites[site]
        check_width(sae.cfg, site, {site.source: rows.d_in, site.target: len(rows.mean_D)})
        firing = Firing(sae.cfg.d_sae, self.heldout.groups, self.device)
        sums: dict[str, Tensor] = {}
        groups = max(1, math.ceil(share * self.heldout.groups))
        for places, group_R in self._taking_part(site, rows.limits):
            if groups < self.heldout.groups:
                part_R = group_R < groups
                places, group_R = [x_RD[part_R] for x_RD in places], group_R[part_R]
                if not len(group_R):
                    continue
            x_RD, y_RD = places[0].float(), places[-1].float()
            found = reconstruct(sae, x_RD, y_RD, rows.mean_D, pursuit_l0)
            firing.add(found.active_RF, group_R)
            self._add(sums, group_R, {"rows": torch.ones_like(group_R), **found.values})
        detects = self.heldout.features is not None and groups == self.heldout.groups
        whole = self._detect(site, sae, pursuit_l0, firing.alive_F, sums) if detects else {}
        sequences = {name: sums_G[:groups].tolist() for name, sums_G in sums.items()}
        return Evaluation.of(sequences, **firing.metrics(), **whole)._replace(ends=firing.ends())

    def _detect(
        self, site: Site, sae: SAE, pursuit_l0: int | None, alive_F: Tensor, sums: dict[str, Tensor]
    ) -> dict[str, float]:
        """Compares an SAE with the true features of the rows, and adds to `sums`.

        A second pass: which latents stand for which true features is known once it is known which are alive.
        """
        known = self.heldout.features
        assert known is not None
        detection = Detection(known, match(known.directions_GD, sae.W_dec, alive_F))
        (limit,) = self._sites[site].limits  # there are no transcoders of them
        for x_RD, group_R, true_active_RG in known.batches(site.name):
            part_R = takes_part(square_norms(x_RD), limit)
            acts_RF = encode(sae, x_RD[part_R].float().to(self.device), pursuit_l0)
            found = detection.add((acts_RF > 0).cpu(), true_active_RG[part_R])
            self._add(sums, group_R[part_R].to(self.device), found)
        return detection.whole()

    def _add(self, sums: dict[str, Tensor], group_R: Tensor, values: dict[str, Tensor]) -> None:
        """Adds what rows add to sums of their groups."""
        for name, values_R in values.items():
            empty = torch.zeros(self.heldout.groups, dtype=torch.float64, device=self.device)
            sums.setdefault(name, empty).index_add_(0, group_R, values_R.to(self.device).double())

    def _measure(self, site: Site) -> _SiteRows:
        """Passes over the rows twice: for their norms, and for the mean of those that take part."""
        norms: list[list[Tensor]] = []
        for places, _ in self._taking_part(site, ()):
            norms.append([square_norms(x_RD) for x_RD in places])
            for place, x_RD, norms_R in zip(site.places, places, norms[-1], strict=True):
                if not norms_R.isfinite().all():
                    dtype = str(x_RD.dtype).removeprefix("torch.")
                    raise not_finite(f"activations at {place}", "the held-out rows", dtype)
        d_in = places[0].shape[1]
        limits = tuple(square_norm_limit(torch.cat(norms_B), self.max_norm) for norms_B in zip(*norms, strict=True))
        parts, rows = [], 0
        for places, group_R in self._taking_part(site, limits):
            parts.append(places[-1].sum(0, dtype=torch.float64))
            rows += len(group_R)
        return _SiteRows(limits, d_in, torch.stack(parts).sum(0) / rows)

    def _taking_part(self, site: Site, limits: Sequence[float]) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Batches of (rows at each of the site's places, their groups), without the rows of massive norm."""
        batches = zip(*(self.heldout.batches(place.name) for place in site.places), strict=True)
        for batch in batches:
            group_R = batch[0][1]
            part_R = torch.ones_like(group_R, dtype=torch.bool)
            for (x_RD, _), limit in zip(batch, limits or (torch.inf,) * len(batch), strict=True):
                part_R &= takes_part(square_norms(x_RD), limit)
            yield [x_RD[part_R].to(self.device) for x_RD, _ in batch], group_R[part_R].to(self.device)
