"""What a direction of the residual stream does to a model's logits: its final norm's scale, and its unembedding."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gsae_ray.config.site import Site
from gsae_ray.language_model.hooks import layers_of

RESIDUAL = ("resid_pre", "attn_out", "mlp_out", "resid_post")
"""The points whose activations are the residual stream's, or are added to it."""


@dataclasses.dataclass(frozen=True)
class Unembedding:
    """The end of a language model, from the residual stream to logits."""

    W_VD: Tensor
    """The unembedding, in the model's dtype, where the model has it."""
    gain_D: Tensor
    """What the final norm multiplies each coordinate with, float32 on the CPU."""
    centred: bool
    """Whether the final norm subtracts the mean over coordinates, as LayerNorm does."""

    @property
    def width(self) -> int:
        """Of the residual stream."""
        return self.W_VD.shape[1]

    def directions(self, rows_RD: Tensor) -> Tensor:
        """Directions of the residual stream as they reach the unembedding, but for the norm's division."""
        rows_RD = rows_RD.float()
        if self.centred:
            rows_RD = rows_RD - rows_RD.mean(1, keepdim=True)
        return rows_RD * self.gain_D.to(rows_RD.device)

    @property
    def described(self) -> str:
        """How effects on logits are made, in a sentence."""
        centred = ", less its mean" if self.centred else ""
        return (
            f"the decoder row{centred}, times the final norm's scale, times the unembedding: what is added to "
            "logits for each 1 of activation where the final norm divides by 1; layers in between are left out"
        )


def writes_to_residual_stream(site: Site) -> bool:
    """Whether what an SAE of this site reconstructs is the residual stream's, or is added to it."""
    return site.target.layer is not None and site.target.point in RESIDUAL


@torch.no_grad()
def unembedding_of(model: nn.Module) -> Unembedding | None:
    """The end of a model; None where it is not known: no unembedding, or no final norm after the layers.

    What the norm does is measured, not read off its weights, which families keep differently (Gemma adds 1 to them).
    """
    if not isinstance(model, PreTrainedModel):
        return None
    norm, weight = _final_norm(model), getattr(model.get_output_embeddings(), "weight", None)
    if norm is None or not isinstance(weight, Tensor) or weight.dim() != 2:
        return None
    width = weight.shape[1]
    parameter = next(norm.parameters(), weight)
    # Of mean 0 and mean square 1: a norm of either kind divides it by 1.
    probe_D = torch.ones(width, device=parameter.device, dtype=parameter.dtype)
    probe_D[1::2] = -1
    try:
        plus_D, minus_D, moved_D = (norm(x_D[None])[0].float() for x_D in (probe_D, -probe_D, probe_D + 1))
    except (RuntimeError, TypeError):  # a norm of other coordinates, or one that takes more than them
        return None
    gain_D = (plus_D - minus_D) / (2 * probe_D.float())
    centred = bool(torch.allclose(moved_D, plus_D, rtol=1e-2, atol=1e-2))
    return Unembedding(weight, gain_D.cpu(), centred)


def _final_norm(model: nn.Module) -> nn.Module | None:
    """The first norm after the list of layers, in the module that has both."""
    layers = layers_of(model)
    for parent in model.modules():
        children = list(parent.children())
        if layers is not None and any(child is layers for child in children):
            place = next(index for index, child in enumerate(children) if child is layers)
            norms = [child for child in children[place:] if "norm" in type(child).__name__.lower()]
            return norms[0] if norms else None
    return None
