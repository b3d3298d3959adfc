"""How often features fire on the held-out rows: which are dead, and which fire too densely to mean one thing.

Counts are kept of GROUPS groups of consecutive contexts, not of each context, so that a wide SAE takes 256 bytes a
feature. The interval of the share of dense features is a bootstrap over these groups (`evaluation.bootstrap`, its
draws). Dead features have none: a draw lacks a third of the groups, in which features may fire that fire nowhere else,
so that every draw has more dead features than there are.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsae_ray.evaluation.bootstrap import DRAWS, PART, SEED, draw_contexts, ends_of, low_and_high
from gsae_ray.evaluation.metrics import DENSE_SHARE, Array

GROUPS = 32
"""Of the held-out contexts; fewer where there are fewer contexts."""


class Firing:
    """On how many rows each feature fires, by group of contexts."""

    def __init__(self, features: int, contexts: int, device: torch.device) -> None:
        """Begins at zero.

        Args:
            features: of the SAE.
            contexts: held-out contexts, or groups of rows.
            device: where the counts are.
        """
        self.contexts = contexts
        self.groups = min(GROUPS, contexts)
        self.rows_G = torch.zeros(self.groups, dtype=torch.int64, device=device)
        self.counts_GF = torch.zeros(self.groups, features, dtype=torch.int64, device=device)

    def add(self, active_RF: Tensor, context_R: Tensor) -> None:
        """Counts rows: which features fire on each, and which context it is of."""
        group_R = (context_R * self.groups // self.contexts).to(active_RF.device)
        for group in group_R.unique().tolist():  # contexts follow each other: mostly there is one
            of_group_R = group_R == group
            self.rows_G[group] += of_group_R.sum().to(self.rows_G.device)
            own_RF = active_RF if of_group_R.all() else active_RF[of_group_R]
            self.counts_GF[group] += own_RF.sum(0).to(self.counts_GF.device)

    @property
    def alive_F(self) -> Tensor:
        """Which features fire on some row."""
        return self.counts_GF.any(0)

    def metrics(self) -> dict[str, float]:
        """`alive_fraction` and `dense_heldout`, as in `WHOLE`."""
        dense_F = _dense(self.rows_G.sum().cpu().numpy(), self.counts_GF.sum(0).cpu().numpy())
        return {"alive_fraction": self.alive_F.double().mean().item(), "dense_heldout": float(dense_F.mean())}

    def ends(self) -> dict[str, float]:
        """The ends of the interval of `dense_heldout`."""
        return dict(zip(low_and_high("dense_heldout"), ends_of(self._drawn()), strict=True))

    def _drawn(self) -> Array:
        """The share of dense features in each draw of groups."""
        rows_G, counts_GF = self.rows_G.cpu().numpy(), self.counts_GF.cpu().numpy()
        dense_GF = _dense(rows_G[:, None], counts_GF)
        certain, features = int(dense_GF.all(0).sum()), counts_GF.shape[1]
        open_GO = counts_GF[:, dense_GF.any(0) & ~dense_GF.all(0)].astype(np.float64)  # of others no draw can differ
        random, shares = np.random.RandomState(SEED), []
        for _ in range(DRAWS // PART):
            taken = draw_contexts(self.groups, PART, random)[1:]
            shares.append((certain + _dense((taken @ rows_G)[:, None], taken @ open_GO).sum(1)) / features)
        return np.concatenate(shares)


def _dense(rows: Array, counts: Array) -> NDArray[np.bool_]:
    """Whether features fire on more than `DENSE_SHARE` of rows."""
    return counts > DENSE_SHARE * rows
