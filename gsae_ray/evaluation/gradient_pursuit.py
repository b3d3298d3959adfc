"""Gradient pursuit: sparse coefficients from the decoder alone, as a yardstick for an SAE's encoder."""

from __future__ import annotations

import torch
from torch import Tensor

SLICE_BYTES = 2**28
"""Approximate working memory: as many rows are pursued at a time as fit."""


@torch.no_grad()
def gradient_pursuit(x_RD: Tensor, W_dec_FD: Tensor, b_dec_D: Tensor, l0: int) -> Tensor:
    """Non-negative coefficients [R, F], at most `l0` of a row, such that f W_dec + b_dec is near x.

    Blumensath & Davies 2008 ("Gradient Pursuits", IEEE Transactions on Signal Processing 56), made non-negative as in
    Rajamanoharan et al. 2024, appendix A. For each row, with r = x − b_dec and f = 0 at the start, `l0` times:

        select   the feature not yet selected with the largest ⟨r, d⟩, if that is positive
        g      = ⟨r, d⟩ on the selected features        α = ⟨r, gD⟩ / ‖gD‖²
        step   = max(f + α g, 0) − f                    β = min(1, ⟨r, step D⟩ / ‖step D‖²)
        f     += β step                                 r = x − b_dec − f D

    β is 1 unless the clamp bent the step so far that the whole of it would overshoot; it keeps ‖r‖ from growing.
    Directions are unit vectors: the coefficients of features of another norm are divided by it in the end.

    Args:
        x_RD: activations, float32.
        W_dec_FD: a feature a row. Those of an SAE that was trained here have norm 1.
        b_dec_D: the decoder's bias.
        l0: most active features of a row; fewer where no feature has a positive inner product with what is left.
    """
    norms_F = W_dec_FD.norm(dim=1).clamp_min(torch.finfo(W_dec_FD.dtype).tiny)
    if torch.allclose(norms_F, torch.ones_like(norms_F), rtol=0, atol=1e-5):
        return _pursue_slices(x_RD - b_dec_D, W_dec_FD, l0)
    return _pursue_slices(x_RD - b_dec_D, W_dec_FD / norms_F[:, None], l0) / norms_F


def _pursue_slices(r_RD: Tensor, W_dec_FD: Tensor, l0: int) -> Tensor:
    """Pursues rows, a slice at a time; `r_RD` is what is to be explained, by rows of W_dec of norm 1."""
    n_features, width = W_dec_FD.shape
    row_bytes = W_dec_FD.element_size() * (3 * n_features + (l0 + 4) * width)  # products, mask and result; atoms
    return torch.cat([_pursue(r_RD, W_dec_FD, l0) for r_RD in r_RD.split(max(1, SLICE_BYTES // row_bytes))])


def _pursue(r_RD: Tensor, W_dec_FD: Tensor, l0: int) -> Tensor:
    """Pursues one slice of rows; `r_RD` is what remains to be explained."""
    rows, width = r_RD.shape
    free_RF = torch.ones(rows, len(W_dec_FD), dtype=torch.bool, device=r_RD.device)
    index_RK = torch.zeros(rows, l0, dtype=torch.long, device=r_RD.device)
    found_RK = torch.zeros(rows, l0, dtype=torch.bool, device=r_RD.device)
    f_RK = r_RD.new_zeros(rows, l0)
    # The selected features' directions are gathered once: a full product with the dictionary an iteration, not three.
    atoms_RKD = r_RD.new_empty(rows, l0, width)
    for k in range(l0):
        products_RF = r_RD @ W_dec_FD.T
        best_R, index_R = products_RF.masked_fill(~free_RF, -torch.inf).max(dim=1)
        found_R = best_R > 0  # elsewhere this slot's coefficient stays 0
        free_RF.scatter_(1, index_R[:, None], ~found_R[:, None])
        index_RK[:, k], found_RK[:, k], atoms_RKD[:, k] = index_R, found_R, W_dec_FD[index_R]
        f_Rk, atoms_RkD = f_RK[:, : k + 1], atoms_RKD[:, : k + 1]
        g_Rk = products_RF.gather(1, index_RK[:, : k + 1]) * found_RK[:, : k + 1]
        step_Rk = (f_Rk + _line_search(r_RD, _combine(g_Rk, atoms_RkD)) * g_Rk).clamp_min(0) - f_Rk
        change_RD = _combine(step_Rk, atoms_RkD)
        beta_R1 = _line_search(r_RD, change_RD).clamp(0, 1)
        f_Rk += beta_R1 * step_Rk
        r_RD = r_RD - beta_R1 * change_RD
    acts_RF = r_RD.new_zeros(rows, len(W_dec_FD))
    return acts_RF.scatter_add_(1, index_RK, f_RK)  # the coefficients of slots without a feature add 0


def _combine(f_Rk: Tensor, atoms_RkD: Tensor) -> Tensor:
    """Σ_k f_k d_k of each row: [R, D]."""
    return (f_Rk[:, None, :] @ atoms_RkD).squeeze(1)


def _line_search(r_RD: Tensor, direction_RD: Tensor) -> Tensor:
    """Step along its direction at which each row's ‖r‖ is least [R, 1]; 0 where there is no direction."""
    squares_R1 = direction_RD.square().sum(1, keepdim=True)
    return torch.where(squares_R1 > 0, (r_RD * direction_RD).sum(1, keepdim=True) / squares_R1, 0)
