"""What is known of features from their decoder rows alone: their nearest neighbours, and their effects on logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gsae_ray.language_model.unembedding import Unembedding

NEIGHBOURS, LOGITS = 10, 10
"""How many are kept of each feature; of logits as many at either end."""
BLOCK_NUMBERS = 2**24
"""Numbers of a block of products: 64 MiB."""


class Nearest(NamedTuple):
    """Of each feature others, the best first [F, K]."""

    index_FK: Tensor
    value_FK: Tensor


def neighbours(W_dec: Tensor, kept: int = NEIGHBOURS) -> Nearest:
    """The features whose decoder rows have the largest cosine with a feature's own, without itself, on the CPU.

    Blocks of rows at a time: never a number for each pair of features.
    """
    unit_FD = torch.nn.functional.normalize(W_dec.float(), dim=1)
    features, kept = len(unit_FD), min(kept, len(unit_FD) - 1)
    size = max(1, BLOCK_NUMBERS // features)
    found = []
    for start in range(0, features, size):
        cosines_BF = unit_FD[start : start + size] @ unit_FD.T
        own = torch.arange(len(cosines_BF), device=cosines_BF.device)
        cosines_BF[own, own + start] = -torch.inf
        found.append(cosines_BF.topk(kept, dim=1))
    index_FK, value_FK = (torch.cat([getattr(part, name) for part in found]).cpu() for name in ("indices", "values"))
    return Nearest(index_FK, value_FK.clamp(-1, 1))


def logit_effects(W_dec: Tensor, unembedding: Unembedding, kept: int = LOGITS) -> tuple[Nearest, Nearest]:
    """The tokens whose logits a feature's decoder row raises most, and those that it lowers most, on the CPU.

    Blocks of the vocabulary and of features at a time. Of those that are lowered, values are below 0.
    """
    rows_FD = unembedding.directions(W_dec)
    features, vocabulary = len(rows_FD), len(unembedding.W_VD)
    kept = min(kept, vocabulary)
    in_block = max(kept, min(vocabulary, BLOCK_NUMBERS // rows_FD.shape[1]))
    size = max(1, BLOCK_NUMBERS // in_block)
    ends = [_Ends(features, kept, largest) for largest in (True, False)]
    for first in range(0, vocabulary, in_block):
        W_VD = unembedding.W_VD[first : first + in_block].to(rows_FD.device).float()
        for start in range(0, features, size):
            effects_BV = rows_FD[start : start + size] @ W_VD.T
            for end in ends:
                end.add(start, first, effects_BV)
    raised, lowered = (Nearest(end.token_FK, end.value_FK) for end in ends)
    return raised, lowered


class _Ends:
    """The tokens at one end of each feature's effects, as far as they have been seen."""

    def __init__(self, features: int, kept: int, largest: bool) -> None:
        self.largest = largest
        self.value_FK = torch.full((features, kept), -torch.inf if largest else torch.inf)
        self.token_FK = torch.zeros((features, kept), dtype=torch.long)

    def add(self, feature: int, token: int, effects_BV: Tensor) -> None:
        """Adds effects of consecutive features on consecutive tokens, which begin with these two."""
        kept, part = self.value_FK.shape[1], slice(feature, feature + len(effects_BV))
        values_BK, token_BK = effects_BV.topk(min(kept, effects_BV.shape[1]), dim=1, largest=self.largest)
        values_BN = torch.cat([self.value_FK[part], values_BK.cpu()], dim=1)
        token_BN = torch.cat([self.token_FK[part], token_BK.cpu() + token], dim=1)
        self.value_FK[part], place_BK = values_BN.topk(kept, dim=1, largest=self.largest)
        self.token_FK[part] = token_BN.gather(1, place_BK)
