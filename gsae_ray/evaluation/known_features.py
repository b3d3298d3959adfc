"""How well an SAE finds the true features of rows, where these are known: matching, detection, absorption, splitting.

Axis F counts the SAE's features, called latents here, and G the true ones. `cos` is of a decoder row and a direction.

    matching    latents that are alive (active on some held-out row) and true features, one to one, such that Σ |cos|
                is largest (the Hungarian algorithm)
    MCC         Σ over these pairs of |cos| ÷ number of true features: one that is left without a latent counts as 0
    detection   of each true feature that is active on some held-out row, how well its latent's activity tells its own:
                precision TP ÷ (TP + FP), recall TP ÷ (TP + FN), F1; 0 of one without a latent; means over the features
    absorption  of pairs (parent, child) that are found, that is, both matched with |cos| ≥ `FOUND`: on how many rows
                the child's latent is active and the parent's is not ÷ on how many the child is active (its parent then
                is, too)
    splitting   a latent belongs to the true feature with the largest |cos| if it is mostly active on that, that is, if
                that is active on more than half of the rows on which the latent is; latents that belong to one ÷ true
                features with any

MCC stands for mean correlation coefficient, though it is of cosines: so Song et al. 2025 ("Mechanistic interpretability
should prioritize feature consistency in SAEs") compare two dictionaries, and Chanin & Garriga-Alonso 2026
("SynthSAEBench") one with the truth. With the largest |cos| of each true feature in place of a matching it is the mean
max cosine similarity of Sharkey et al. 2022. SAELens (6.54) has the mean over pairs, by which an SAE of a few good
latents is a good one, and precision and recall as means over latents, each with the nearest true feature. Absorption is
that of Chanin et al. 2024 ("A is for absorption"), where the parent was a first letter and children were words: here it
is known which latent ought to be active, and none has to be found by probes.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gsae_ray.language_model.source import KnownFeatures

FOUND = 0.5
"""|cos| from which on a true feature counts as found, in absorption. A latent for a child that has absorbed a parent of
the same size has 0.7 with the child."""
NONE = -1


class Matching(NamedTuple):
    """Which latent stands for which true feature."""

    latent_G: Tensor
    """The latent that is matched to each true feature; NONE where there are fewer alive ones."""
    cosine_G: Tensor
    """|cos| of the two, 0 without a latent."""
    nearest_F: Tensor
    """The true feature with the largest |cos| of each latent; NONE of a dead one."""


def match(directions_GD: Tensor, W_dec_FD: Tensor, alive_F: Tensor) -> Matching:
    """Matches latents to true features.

    Args:
        directions_GD: of the true features; unit vectors.
        W_dec_FD: decoder rows of the latents, of any norm.
        alive_F: which of them are alive.
    """
    latent_A = alive_F.nonzero()[:, 0].cpu()
    d_AD = torch.nn.functional.normalize(W_dec_FD.detach().cpu().double()[latent_A], dim=1)
    cosine_GA = (directions_GD.cpu().double() @ d_AD.T).abs_()
    latent_G = torch.full((len(directions_GD),), NONE)
    cosine_G = torch.zeros(len(directions_GD), dtype=torch.float64)
    nearest_F = torch.full((len(W_dec_FD),), NONE)
    if len(latent_A):
        features, places = map(torch.from_numpy, linear_sum_assignment(cosine_GA.numpy(), maximize=True))
        latent_G[features], cosine_G[features] = latent_A[places], cosine_GA[features, places]
        nearest_F[latent_A] = cosine_GA.argmax(0)
    return Matching(latent_G, cosine_G, nearest_F)


@dataclasses.dataclass
class Detection:
    """Counts of a second pass over the held-out rows, once it is known which latents are alive."""

    known: KnownFeatures
    matching: Matching

    def __post_init__(self) -> None:
        latent_G, cosine_G, nearest_F = self.matching
        self._matched_G = latent_G != NONE
        self._of_latent_F = nearest_F != NONE
        parent_G = self.known.parent_G
        child_P = ((parent_G != NONE) & (cosine_G >= FOUND)).nonzero()[:, 0]
        self._child_P = child_P[cosine_G[parent_G[child_P]] >= FOUND]
        self._has_children = bool((parent_G != NONE).any())
        zeros_G, zeros_F = (torch.zeros(len(axis), dtype=torch.float64) for axis in (latent_G, nearest_F))
        self._true_G, self._detected_G, self._both_G = zeros_G, zeros_G.clone(), zeros_G.clone()
        self._active_F, self._on_nearest_F = zeros_F, zeros_F.clone()

    def add(self, latent_active_RF: Tensor, true_active_RG: Tensor) -> dict[str, Tensor]:
        """Counts a batch of rows.

        Args:
            latent_active_RF: which latents are active.
            true_active_RG: which true features are.

        Returns:
            name of `metrics.FEATURE_SUMS` -> what each row [R] adds to it.
        """
        latent_G, _, nearest_F = self.matching
        detected_RG = latent_active_RF[:, latent_G.clamp(min=0)] & self._matched_G
        self._true_G += true_active_RG.sum(0)
        self._detected_G += detected_RG.sum(0)
        self._both_G += (detected_RG & true_active_RG).sum(0)
        self._active_F += latent_active_RF.sum(0)
        self._on_nearest_F += (latent_active_RF & true_active_RG[:, nearest_F.clamp(min=0)]).sum(0)
        sums = {"true_active": true_active_RG.sum(1)}
        if self._has_children:
            child_RP = true_active_RG[:, self._child_P]
            parent_P = self.known.parent_G[self._child_P]
            absorbed_RP = child_RP & detected_RG[:, self._child_P] & ~detected_RG[:, parent_P]
            sums |= {"with_child": child_RP.sum(1), "absorbed": absorbed_RP.sum(1)}
        return sums

    def whole(self) -> dict[str, float]:
        """What is known of the SAE as a whole: name of `metrics.WHOLE` -> value."""
        occurs_G = self._true_G > 0
        precision_G, recall_G = (
            torch.where(of_G > 0, self._both_G / of_G, 0.0)[occurs_G] for of_G in (self._detected_G, self._true_G)
        )
        either_G = precision_G + recall_G
        f1_G = torch.where(either_G > 0, 2 * precision_G * recall_G / either_G, 0.0)
        belongs_F = self._of_latent_F & (self._on_nearest_F > self._active_F / 2)
        owners = self.matching.nearest_F[belongs_F]
        return {
            "mcc": self.matching.cosine_G.mean().item(),
            "feature_precision": precision_G.mean().item(),
            "feature_recall": recall_G.mean().item(),
            "feature_f1": f1_G.mean().item(),
            "splitting": len(owners) / len(owners.unique()) if len(owners) else float("nan"),
        }
