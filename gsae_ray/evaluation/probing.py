"""Sparse probing of an SAE: do a few of its features tell what text is, as all coordinates of the activations do?

For each task of a probe set, probes (`probe_fit`) are fitted on the SAE's features and, as baselines, on the
activations that it reads: k columns of either, and a logistic regression on all coordinates of the activations. What
is shown is the mean over tasks; its interval is a bootstrap over the scored documents (`evaluation.bootstrap`).

The language model runs over the probe sets once a site; rows are kept in the host's memory up to `KEPT_BYTES`, those of
the sites that were used last. Features are made batch by batch, twice: to choose columns, and to have these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsae_ray.config.site import Site
from gsae_ray.data.probe_set import KEPT_BYTES, NO_PART, ProbeSet, ProbeSets
from gsae_ray.data.tokens import model_input
from gsae_ray.errors import not_finite
from gsae_ray.evaluation.bootstrap import DRAWS, PART, SEED, draw_contexts, ends_of, low_and_high
from gsae_ray.evaluation.metrics import Array, Evaluation, schema_version
from gsae_ray.evaluation.probe_fit import Scored, fit_and_score, strongest
from gsae_ray.language_model.hooks import capture
from gsae_ray.language_model.massive_norms import square_norm_limit, square_norms, takes_part
from gsae_ray.language_model.source import HeldOutContexts
from gsae_ray.saes import SAE

SPARSE = (1, 5)
"""How many columns a sparse probe has."""
COLUMNS = {1: "_1", 5: ""}
"""What is added to the name of a metric by such a number."""
ALL = 0
"""In place of a number: all columns."""

AUC, F1 = Scored._fields.index("auc_N"), Scored._fields.index("f1_N")

Encode = Callable[[Tensor], Tensor]
"""Rows [R, n] -> columns [R, F], on one device."""
Probes = dict[int, list[Scored]]
"""Number of columns -> the probe of each task."""


class _SetRows(NamedTuple):
    """The rows of a probe set at a site, but for those of massive norm, and what is labelled: rows, or documents."""

    x_RD: Tensor
    """In the model's dtype, on the CPU."""
    context_R: NDArray[np.int64]
    labels: NDArray[np.int8]
    """[tasks, U] of each unit: row or, of a pooled set, context."""
    fitted_U: NDArray[np.bool_]
    document_U: NDArray[np.int64]


@dataclasses.dataclass
class _SiteRows:
    sets: list[_SetRows]
    baselines: list[Probes]
    """Of each set: probes on the activations themselves."""

    @property
    def nbytes(self) -> int:
        return sum(found.x_RD.nbytes for found in self.sets)


class Prober:
    """Probes SAEs on the same rows; passes over the probe sets, and baselines, are made once a site."""

    def __init__(
        self, heldout: HeldOutContexts, max_norm: float | None, probes: ProbeSets, device: torch.device
    ) -> None:
        """Runs no forward pass yet.

        Args:
            heldout: the language model, and how many contexts a pass has.
            max_norm: as `DatasetSettings.max_norm`, of the rows of each probe set.
            probes: what is probed.
            device: of SAEs.
        """
        self.heldout = heldout
        self.max_norm = max_norm
        self.probes = probes
        self.device = device
        self._sites: dict[Site, _SiteRows] = {}

    @torch.no_grad()
    def measure(self, site: Site, sae: SAE) -> Evaluation:
        """The `probe_…` metrics of an SAE and, as `{metric}/{task}`, those of each task; it has no sums of contexts.

        Args:
            site: where the SAE was trained; of a transcoder's, what it reads is probed.
            sae: as saved: it takes raw activations.

        Raises:
            NumericError: the site's activations are not finite.
        """
        rows = self._rows(site)
        own = [self._fit(one, found, sae.cfg.d_sae, SPARSE, sae.encode) for one, found in self._pairs(rows)]
        metrics: dict[str, float] = {}
        ends: dict[str, float] = {}
        for name, statistic in (("probe_auc", AUC), ("probe_f1", F1)):
            for k, suffix in COLUMNS.items():
                self._add(f"{name}{suffix}", [found[k] for found in own], statistic, metrics, ends)
            for k in (ALL, *SPARSE):
                raw = f"{name}_raw" if k == ALL else f"{name}_raw_{k}"
                self._add(raw, [found[k] for found in rows.baselines], statistic, metrics, ends)
        return Evaluation(metrics, {}, schema_version(), ends)

    def _add(
        self,
        name: str,
        probes: Sequence[Sequence[Scored]],
        statistic: int,
        metrics: dict[str, float],
        ends: dict[str, float],
    ) -> None:
        """Adds a metric, of each task and as their mean, and the ends of the mean's interval."""
        values: list[Array] = []  # of each task, of all documents and of each draw
        for one, found in zip(self.probes.sets, probes, strict=True):
            for task, scored in zip(one.tasks, found, strict=True):
                values.append(scored[statistic])
                metrics[f"{name}/{task}"] = float(values[-1][0])
        means = np.mean(values, axis=0)
        metrics[name] = float(means[0])
        ends |= zip(low_and_high(name), ends_of(means[1:]), strict=True)

    def _pairs(self, rows: _SiteRows) -> Iterator[tuple[ProbeSet, _SetRows]]:
        return zip(self.probes.sets, rows.sets, strict=True)

    def _rows(self, site: Site) -> _SiteRows:
        """The rows at a site, which count as those that were used last."""
        found = self._sites.pop(site, None)
        if found is None:
            # Before the others go, so that never more than the bound and one site are in memory.
            self._keep(KEPT_BYTES)
            found = _SiteRows([self._run(site, one) for one in self.probes.sets], [])
            for one, rows in self._pairs(found):
                width = rows.x_RD.shape[1]
                found.baselines.append(self._fit(one, rows, width, (ALL, *SPARSE), lambda x_RD: x_RD))
        self._keep(KEPT_BYTES - found.nbytes)
        self._sites[site] = found
        return found

    def _keep(self, limit: int) -> None:
        """Lets rows of the sites go that have not been used for longest, down to a size."""
        while self._sites and sum(rows.nbytes for rows in self._sites.values()) > limit:
            del self._sites[next(iter(self._sites))]

    def _run(self, site: Site, one: ProbeSet) -> _SetRows:
        """Runs the model over a probe set."""
        tokens_CT, kept_CT = torch.tensor(one.tokens_CT).long(), torch.tensor(one.kept_CT)
        batch, model = self.heldout.batch, self.heldout.model
        device = next(model.parameters()).device
        parts = []
        for tokens_BT, kept_BT in zip(tokens_CT.split(batch), kept_CT.split(batch), strict=True):
            captured = capture(model, model_input(tokens_BT).to(device), [site.source], kept_BT.to(device))
            parts.append(captured[site.source].cpu())
        x_RD = torch.cat(parts)
        norms_R = square_norms(x_RD)
        if not norms_R.isfinite().all():
            raise not_finite(
                f"activations at {site.source}", "the text of probes", str(x_RD.dtype).removeprefix("torch.")
            )
        part_R = takes_part(norms_R, square_norm_limit(norms_R, self.max_norm))
        context_R, taken_R = kept_CT.nonzero()[:, 0][part_R].numpy(), part_R.numpy()
        of_C = one.document_C.astype(np.int64)
        if not one.pooled:
            labels, document_U = one.labels[:, one.kept_CT][:, taken_R], of_C[context_R]
        else:
            has_C = np.bincount(context_R, minlength=len(of_C)) > 0
            labels, document_U = np.where(has_C, one.labels, NO_PART).astype(np.int8), of_C
        return _SetRows(
            x_RD[part_R] if not part_R.all() else x_RD, context_R, labels, one.fitted_M[document_U], document_U
        )

    def _fit(self, one: ProbeSet, rows: _SetRows, width: int, sizes: Sequence[int], encode: Encode) -> Probes:
        """Fits and scores probes of each task, on columns of what `encode` makes of rows."""
        difference_KF = self._differences(one, rows, width, encode)
        sparse = [k for k in sizes if k != ALL]
        chosen = [strongest(difference_F, max(sparse)) for difference_F in difference_KF]
        columns = np.arange(width) if ALL in sizes else np.unique(np.concatenate(chosen))
        values_UC = self._columns(one, rows, columns, encode)
        place = {column: index for index, column in enumerate(columns.tolist())}
        probes: Probes = {k: [] for k in sizes}
        counts_NM = _draws(one)
        for labels_U, own in zip(rows.labels, chosen, strict=True):
            part_U = labels_U != NO_PART
            task = labels_U[part_U], rows.fitted_U[part_U], rows.document_U[part_U], counts_NM
            for k in sizes:
                taken = [place[column] for column in own[:k].tolist()]
                x_UK = values_UC[part_U] if k == ALL else values_UC[:, taken][part_U]
                probes[k].append(fit_and_score(x_UK, *task))
        return probes

    def _differences(self, one: ProbeSet, rows: _SetRows, width: int, encode: Encode) -> Array:
        """Mean of class 1 − mean of class 0 of each column [tasks, F], over what is fitted."""
        fitted = [(rows.labels == label) & rows.fitted_U for label in (1, 0)]
        sums = [torch.zeros(len(one.tasks), width, dtype=torch.float64) for _ in fitted]
        for units, values_UF in self._batches(one, rows, encode):
            for sums_KF, which_KU in zip(sums, fitted, strict=True):
                which_KB = torch.tensor(which_KU[:, units]).to(values_UF)
                sums_KF += (which_KB @ values_UF).cpu().double()
        means = [s.numpy() / np.maximum(which.sum(1), 1)[:, None] for s, which in zip(sums, fitted, strict=True)]
        return np.asarray(means[0] - means[1])

    def _columns(self, one: ProbeSet, rows: _SetRows, columns: NDArray[np.int64], encode: Encode) -> Array:
        """Some columns of all units [U, columns], float64."""
        values_UC = np.empty((rows.labels.shape[1], len(columns)))
        index_C = torch.tensor(columns)
        for units, values_UF in self._batches(one, rows, encode):
            values_UC[units] = values_UF[:, index_C.to(values_UF.device)].cpu().double().numpy()
        return values_UC

    def _batches(self, one: ProbeSet, rows: _SetRows, encode: Encode) -> Iterator[tuple[slice, Tensor]]:
        """Which units, and what `encode` makes of them, float32: as many contexts at a time as evaluations have."""
        contexts = len(one.tokens_CT)
        starts = np.searchsorted(rows.context_R, np.arange(0, contexts + self.heldout.batch, self.heldout.batch))
        for index, (start, stop) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
            values_RF = encode(rows.x_RD[start:stop].to(self.device).float())
            if not one.pooled:
                yield slice(int(start), int(stop)), values_RF
                continue
            first = index * self.heldout.batch
            units = slice(first, min(first + self.heldout.batch, contexts))
            of_R = torch.tensor(rows.context_R[start:stop] - first).to(self.device)
            member_BR = (of_R == torch.arange(units.stop - first, device=self.device)[:, None]).float()
            yield units, (member_BR @ values_RF) / member_BR.sum(1, keepdim=True).clamp(min=1)


def _draws(one: ProbeSet) -> Array:
    """How often each document is taken [1 + draws, M]: the scored ones each once, then as in each draw of them."""
    random, scored = np.random.RandomState(SEED), np.flatnonzero(~one.fitted_M)
    drawn = [draw_contexts(len(scored), PART, random) for _ in range(DRAWS // PART)]
    counts = np.zeros((1 + DRAWS, len(one.fitted_M)))
    counts[:, scored] = np.concatenate([drawn[0][:1], *(part[1:] for part in drawn)])
    return counts
