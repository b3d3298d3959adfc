"""Sums over the batch for each feature, from the active entries of a step; see `kernels`. Compiled by Numba."""

from __future__ import annotations

from typing import Any

import numpy as np

from gsae_ray.training.engines.compiled import kernel
from gsae_ray.training.engines.kernels import add_rows


@kernel
def order_by_feature(
    columns: Any, row_starts: Any, row_ends: Any, feature_starts: Any, entries: Any, rows: Any
) -> None:
    """Lists the active entries feature by feature, in the order of rows: a counting sort."""
    feature_starts[:] = 0
    for b in range(len(row_ends)):
        for at in range(row_starts[b], row_ends[b]):
            feature_starts[columns[at] + 1] += 1
    for j in range(len(feature_starts) - 1):
        feature_starts[j + 1] += feature_starts[j]
    free = feature_starts[:-1].copy()
    for b in range(len(row_ends)):
        for at in range(row_starts[b], row_ends[b]):
            slot = free[columns[at]]
            entries[slot] = at
            rows[slot] = b
            free[columns[at]] = slot + 1


@kernel
def features_sums(
    first: int,
    end: int,
    scale_F: Any,
    norms_F: Any,
    coefficient: float,
    n_rows: int,
    tied: bool,
    feature_starts: Any,
    entries: Any,
    pre_A: Any,
    pi_A: Any,
    acts_A: Any,
    d_gate_A: Any,
    d_mag_A: Any,
    d_x_hat: Any,
    d_auxiliary: Any,
    d_pre: Any,
    d_pre_mag: Any,
    d_gate_F: Any,
    d_mag_F: Any,
    d_log_scale_F: Any,
    d_norm_F: Any,
    fired_F: Any,
) -> None:
    """Adds up the gradients of what features have one number of, and lists what `rows_sums` multiplies rows by.

    Args:
        first: feature to begin with.
        end: feature to end before.
        scale_F: exp(r_mag).
        norms_F: norms of decoder rows.
        coefficient: of the penalty, ÷ rows of the batch.
        n_rows: of the batch.
        tied: whether the magnitude's encoder is the scaled gate's.
        feature_starts: place of each feature's first entry in `entries`.
        entries: indices of active entries, feature by feature.
        pre_A: as `rows_forward_and_back` left them, as are the four that follow.
        pi_A: π_gate.
        acts_A: f̃.
        d_gate_A: ∂L/∂π_gate.
        d_mag_A: the gradient of the magnitude's pre-activation.
        d_x_hat: gets the factors of x̂ − x in the decoder's gradient, feature by feature.
        d_auxiliary: gets those of the auxiliary term's error.
        d_pre: gets those of x − b_dec in the encoder's gradient.
        d_pre_mag: gets those of x − b_dec in the gradient of a magnitude encoder of its own.
        d_gate_F: gets the gradient of the gate's bias.
        d_mag_F: gets that of the magnitude's.
        d_log_scale_F: gets that of r_mag.
        d_norm_F: gets the gradient of ‖d‖, ÷ ‖d‖: the factor of a decoder row in its own gradient.
        fired_F: gets the number of rows on which the feature is above 0.
    """
    two = np.float32(2.0 / n_rows)
    for j in range(first, end):
        gate = np.float32(0)
        mag = np.float32(0)
        log_scale = np.float32(0)
        gate_sum = np.float32(0)
        fired = 0
        for slot in range(feature_starts[j], feature_starts[j + 1]):
            at = entries[slot]
            gate += d_gate_A[at]
            mag += d_mag_A[at]
            log_scale += d_mag_A[at] * pre_A[at]
            gate_sum += pi_A[at]
            fired += 1 if acts_A[at] > 0 else 0
            d_x_hat[slot] = two * acts_A[at]
            d_auxiliary[slot] = two * pi_A[at]
            d_pre[slot] = d_gate_A[at] + d_mag_A[at] * scale_F[j] if tied else d_gate_A[at]
            d_pre_mag[slot] = d_mag_A[at]
        d_gate_F[j] = gate
        d_mag_F[j] = mag
        d_log_scale_F[j] = log_scale * scale_F[j]
        d_norm_F[j] = coefficient * gate_sum / norms_F[j] if norms_F[j] > 0 else np.float32(0)
        fired_F[j] = fired


@kernel
def _add_rows_of_two(
    sums_RD: Any,
    r: int,
    factors: Any,
    others: Any,
    indices: Any,
    start: int,
    end: int,
    rows_RD: Any,
    other_rows_RD: Any,
) -> None:
    """Adds to row r of sums the rows of these indices of two arrays, by factors of each."""
    zero = np.float32(0)
    for at in range(start, end, 2):
        i1 = min(at + 1, end - 1)
        a, b = factors[at], factors[i1] if i1 > at else zero
        c, d = others[at], others[i1] if i1 > at else zero
        j0, j1 = indices[at], indices[i1]
        for k in range(sums_RD.shape[1]):
            first, second = a * rows_RD[j0, k] + b * rows_RD[j1, k], c * other_rows_RD[j0, k] + d * other_rows_RD[j1, k]
            sums_RD[r, k] += first + second


@kernel
def rows_sums(
    first: int,
    end: int,
    feature_starts: Any,
    rows: Any,
    factors: Any,
    rows_BD: Any,
    other_factors: Any,
    other_rows_BD: Any,
    own_F: Any,
    own_FD: Any,
    sums_FD: Any,
    squares_F: Any,
) -> None:
    """Adds up, for each feature, rows of the batch on which it is active.

    Args:
        first: feature to begin with.
        end: feature to end before.
        feature_starts: place of each feature's first entry in `rows` and factors.
        rows: of the batch, feature by feature.
        factors: by which they are multiplied.
        rows_BD: what is added up.
        other_factors: by which others are multiplied.
        other_rows_BD: which are added too; without rows: none are.
        own_F: factors of a row that each feature has of its own; without entries: none is added.
        own_FD: those rows.
        sums_FD: gets the sums.
        squares_F: gets their squared norms.
    """
    n_in = sums_FD.shape[1]
    for j in range(first, end):
        start, stop = feature_starts[j], feature_starts[j + 1]
        if len(own_F) > 0:
            for k in range(n_in):
                sums_FD[j, k] = own_F[j] * own_FD[j, k]
        else:
            for k in range(n_in):
                sums_FD[j, k] = 0
        if len(other_rows_BD) > 0:
            _add_rows_of_two(sums_FD, j, factors, other_factors, rows, start, stop, rows_BD, other_rows_BD)
        else:
            add_rows(sums_FD, j, factors, rows, start, stop, rows_BD)
        square = np.float32(0)
        for k in range(n_in):
            square += sums_FD[j, k] * sums_FD[j, k]
        squares_F[j] = square
