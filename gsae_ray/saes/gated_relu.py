"""The form of an SAE that engines for sparse activations can compute."""

from __future__ import annotations

from typing import Literal, NamedTuple


class GatedReLU(NamedTuple):
    """The form f̃ = 1[π > 0] ⊙ ReLU(m), with losses whose gradient is exactly zero wherever π ≤ 0.

    π = pre + gate and m = exp(log_scale) pre + magnitude with pre = W_enc (x − b_dec); with `magnitude_weights`,
    m = W (x − b_dec) + magnitude. The loss is ‖x − x̂(f̃)‖², and where `penalised` λ ‖ReLU(π)‖₁ by the objective, and
    the auxiliary term. Parameters are given by their names.
    """

    gate: str
    magnitude: str
    log_scale: str | None = None
    """None: 0."""
    magnitude_weights: str | None = None
    """[d_in, d_sae]; None: those of the gate."""
    penalised: bool = True
    auxiliary: Literal["none", "frozen", "unfrozen"] = "none"
    """Decoder, with its bias, of ‖x − x̂(ReLU(π))‖²: none for no such term."""
