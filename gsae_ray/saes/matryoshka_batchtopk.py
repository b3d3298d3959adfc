"""The Matryoshka BatchTopK SAE."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from torch import Tensor

from gsae_ray.fields import AtMost
from gsae_ray.saes.base import Losses, Objective, SAEConfig
from gsae_ray.saes.batchtopk import BatchTopKSAE
from gsae_ray.saes.registry import register

HALVINGS = 4
"""By default the prefixes are of the whole width, of half of it, and so on: so often halved."""

Width = Annotated[int, Field(gt=0), AtMost(10**9, "an SAE's weights are in memory")]
Widths = Annotated[tuple[Width, ...], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]


@register("matryoshka_batchtopk")
class MatryoshkaBatchTopKSAE(BatchTopKSAE):
    """Bussmann et al. 2025, "Learning multi-level features with Matryoshka sparse autoencoders", section 3.

    A BatchTopK SAE whose first m features have to reconstruct by themselves, for each prefix width m ∈ M:

    L = E[ Σ_{m ∈ M} ‖x − x̂_m‖² + α ‖e − ê‖² ],  x̂_m = Σ_{i ≤ m} f_i d_i + b_dec

    The largest m is the width of the SAE; of its error is the auxiliary term, as of the TopK SAE. A finished one
    computes what a BatchTopK SAE does. (The paper also draws prefixes at random; here they are fixed.)
    """

    class Hyperparameters(BatchTopKSAE.Hyperparameters):
        prefix_widths: Widths | None = Field(
            None,
            description="M, numbers of features that reconstruct by themselves: rising, the last one the width; a list "
            "of lists is a grid; default: the width and it halved up to four times",
        )

    def __init__(self, cfg: SAEConfig) -> None:
        given = cfg.hyperparameters.get("prefix_widths")
        widths = default_widths(cfg.d_sae) if given is None else given
        # They are a part of the SAE, which its file says also where they are the default.
        named = {**cfg.hyperparameters, "prefix_widths": list(widths)}
        super().__init__(cfg.model_copy(update={"hyperparameters": named}))
        self.prefix_widths: tuple[int, ...] = tuple(widths)

    @classmethod
    def check_width(cls, hyperparameters: Mapping[str, Any], d_in: int, d_sae: int) -> None:
        super().check_width(hyperparameters, d_in, d_sae)
        widths = hyperparameters.get("prefix_widths")
        if widths is None:
            return
        if not widths or any(a >= b for a, b in itertools.pairwise(widths)):
            raise ValueError(f"prefix_widths: {list(widths)}; they have to rise")
        if widths[-1] != d_sae:
            raise ValueError(f"prefix_widths: the last one is {widths[-1]:,}; it has to be the width, {d_sae:,}")

    @classmethod
    def canonical(cls, hyperparameters: dict[str, Any], objective: Objective, d_sae: int) -> dict[str, Any]:
        given = hyperparameters.get("prefix_widths")
        is_default = given is not None and tuple(given) == default_widths(d_sae)
        return {**hyperparameters, "prefix_widths": None} if is_default else hyperparameters

    def losses(
        self, x_BD: Tensor, coefficient: float, objective: Objective = "unit_norm", y_BD: Tensor | None = None
    ) -> Losses:
        y_BD = self._decoder_target(x_BD, y_BD)
        all_BF, acts_BF = self._all_and_kept(x_BD)
        error_BD = y_BD - self.b_dec
        errors = []
        sizes = [end - first for first, end in itertools.pairwise((0, *self.prefix_widths))]
        for acts_BG, W_dec_GD in zip(acts_BF.split(sizes, 1), self.W_dec.split(sizes), strict=True):
            error_BD = error_BD - acts_BG.to(W_dec_GD.dtype) @ W_dec_GD
            errors.append(error_BD.square().sum() / len(x_BD))
        *of_prefixes, reconstruction = errors
        further = sum(of_prefixes, self._auxiliary(all_BF, acts_BF, error_BD))
        return Losses(reconstruction + further, reconstruction, x_BD.new_zeros(()), further.detach(), acts_BF.detach())


def default_widths(d_sae: int) -> tuple[int, ...]:
    """The width, and it halved up to `HALVINGS` times, rising."""
    return tuple(sorted({max(1, d_sae >> times) for times in range(HALVINGS + 1)}))
