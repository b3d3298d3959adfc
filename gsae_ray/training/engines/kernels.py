"""Losses of a step, and its gradient back to the pre-activations, from the active entries of its batch: by Numba.

A feature is active on a row where its gate π is above 0. Active entries are listed row by row (`columns`, `pi`, from
`row_starts` to `row_ends`); `feature_sums` has them feature by feature. Every kernel works on a range of rows or of
features and adds up each row or feature by itself, always in the same order: results do not depend on how the ranges
are spread over threads.

Arrays are indexed whole in loops: of a row that is taken out as an array Numba counts references, one thread at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gsae_ray.training.engines.bounds import UNDERFLOW
from gsae_ray.training.engines.candidates import products
from gsae_ray.training.engines.compiled import kernel

NONE, FROZEN, UNFROZEN = 0, 1, 2
"""The decoder of the auxiliary term."""


@kernel
def row_norms(first: int, end: int, x_BD: Any, b_dec: Any, centred_BD: Any, norms_B: Any) -> None:
    """Computes x − b_dec of rows, and a bound on ‖x‖, which is it but for rounding: not finite where a row is not."""
    for b in range(first, end):
        square = np.float32(0)
        for k in range(len(b_dec)):
            square += x_BD[b, k] * x_BD[b, k]
            centred_BD[b, k] = x_BD[b, k] - b_dec[k]
        norms_B[b] = np.sqrt(square) + np.float32(UNDERFLOW * np.sqrt(len(b_dec)))


@kernel
def feature_terms(
    first: int,
    end: int,
    W_enc_FD: Any,
    W_mag_FD: Any,
    W_dec: Any,
    b_dec: Any,
    log_scale_F: Any,
    gate_F: Any,
    mag_F: Any,
    shift_F: Any,
    scale_F: Any,
    encoder_norms_F: Any,
    norms_F: Any,
    sizes_F: Any,
    reach_F: Any,
) -> None:
    """Computes what a step needs of each feature.

    Args:
        first: feature to begin with.
        end: feature to end before.
        W_enc_FD: encoder, a row per feature.
        W_mag_FD: magnitude encoder of its own, or without rows.
        W_dec: decoder.
        b_dec: its bias.
        log_scale_F: r_mag, or without entries where it is 0.
        gate_F: bias of the gate.
        mag_F: bias of the magnitude.
        shift_F: gets −W_enc b_dec.
        scale_F: gets exp(r_mag).
        encoder_norms_F: gets bounds on the norms of encoder rows, which are them but for rounding.
        norms_F: gets those of decoder rows.
        sizes_F: gets ‖d‖² of the decoder row, with that of a magnitude encoder of its own: not finite where one is not.
        reach_F: gets d_in times what no pre-activation by W_enc of a row with ‖x‖ ≤ 1 exceeds, so that a sum of partial
            products does not either, in any order: not finite where an encoder or bias is not.
    """
    n_in = W_enc_FD.shape[1]
    for j in range(first, end):
        shift = np.float32(0)
        square = np.float32(0)
        encoder_square = np.float32(0)
        for k in range(n_in):
            shift -= W_enc_FD[j, k] * b_dec[k]
            encoder_square += W_enc_FD[j, k] * W_enc_FD[j, k]
            square += W_dec[j, k] * W_dec[j, k]
        shift_F[j] = shift
        encoder_norms_F[j] = np.sqrt(encoder_square) + np.float32(UNDERFLOW * np.sqrt(n_in))
        norms_F[j] = np.sqrt(square)
        if len(W_mag_FD) > 0:
            for k in range(n_in):
                square += W_mag_FD[j, k] * W_mag_FD[j, k]
        sizes_F[j] = square
        scale = np.exp(log_scale_F[j]) if len(log_scale_F) > 0 else np.float32(1)
        scale_F[j] = scale
        reach = n_in * encoder_norms_F[j] + abs(shift)
        reach_F[j] = reach + scale * reach + abs(gate_F[j]) + abs(mag_F[j])


@kernel
def add_rows(sums_RD: Any, r: int, factors: Any, indices: Any, start: int, end: int, rows_RD: Any) -> None:
    """Adds to row r of sums the rows of these indices, each times its factor; four in one pass over the sum."""
    zero = np.float32(0)
    for at in range(start, end, 4):
        # Where there are fewer, the last one is added again, times 0.
        i1, i2, i3 = min(at + 1, end - 1), min(at + 2, end - 1), min(at + 3, end - 1)
        a, b = factors[at], factors[i1] if i1 > at else zero
        c, d = factors[i2] if i2 > i1 else zero, factors[i3] if i3 > i2 else zero
        j0, j1, j2, j3 = indices[at], indices[i1], indices[i2], indices[i3]
        for k in range(sums_RD.shape[1]):
            sums_RD[r, k] += a * rows_RD[j0, k] + b * rows_RD[j1, k] + (c * rows_RD[j2, k] + d * rows_RD[j3, k])


@kernel
def _add_rows_to_two(
    sums_RD: Any,
    other_sums_RD: Any,
    r: int,
    factors: Any,
    others: Any,
    indices: Any,
    start: int,
    end: int,
    rows_RD: Any,
) -> None:
    """Adds to row r of two arrays of sums the rows of these indices, by factors of each."""
    zero = np.float32(0)
    for at in range(start, end, 4):
        i1, i2, i3 = min(at + 1, end - 1), min(at + 2, end - 1), min(at + 3, end - 1)
        a, b = factors[at], factors[i1] if i1 > at else zero
        c, d = factors[i2] if i2 > i1 else zero, factors[i3] if i3 > i2 else zero
        e, f = others[at], others[i1] if i1 > at else zero
        g, h = others[i2] if i2 > i1 else zero, others[i3] if i3 > i2 else zero
        j0, j1, j2, j3 = indices[at], indices[i1], indices[i2], indices[i3]
        for k in range(sums_RD.shape[1]):
            w0, w1, w2, w3 = rows_RD[j0, k], rows_RD[j1, k], rows_RD[j2, k], rows_RD[j3, k]
            sums_RD[r, k] += a * w0 + b * w1 + (c * w2 + d * w3)
            other_sums_RD[r, k] += e * w0 + f * w1 + (g * w2 + h * w3)


@kernel
def _multiply_with_two(
    one_RD: Any,
    other_RD: Any,
    r: int,
    indices: Any,
    start: int,
    end: int,
    rows_RD: Any,
    products: Any,
    other_products: Any,
) -> None:
    """Multiplies row r of two arrays with the rows of these indices, two of those in one pass."""
    for at in range(start, end, 2):
        second = min(at + 1, end - 1)
        j0, j1 = indices[at], indices[second]
        product_0 = np.float32(0)
        other_0 = np.float32(0)
        product_1 = np.float32(0)
        other_1 = np.float32(0)
        for k in range(one_RD.shape[1]):
            product_0 += one_RD[r, k] * rows_RD[j0, k]
            other_0 += other_RD[r, k] * rows_RD[j0, k]
            product_1 += one_RD[r, k] * rows_RD[j1, k]
            other_1 += other_RD[r, k] * rows_RD[j1, k]
        products[second], other_products[second] = product_1, other_1  # the last one's again, where it is alone
        products[at], other_products[at] = product_0, other_0


@kernel
def rows_forward_and_back(
    first: int,
    end: int,
    centred_BD: Any,
    W_dec: Any,
    W_mag_FD: Any,
    gate_F: Any,
    scale_F: Any,
    mag_F: Any,
    norms_F: Any,
    coefficient: float,
    auxiliary: int,
    row_starts: Any,
    row_ends: Any,
    columns: Any,
    pre_A: Any,
    pi_A: Any,
    acts_A: Any,
    d_gate_A: Any,
    d_mag_A: Any,
    error_BD: Any,
    auxiliary_error_BD: Any,
    sums_B3: Any,
) -> None:
    """Decodes rows, and takes the gradient back to the pre-activations of their active entries.

    Args:
        first: row to begin with.
        end: row to end before.
        centred_BD: x − b_dec.
        W_dec: decoder, [d_sae, d_in].
        W_mag_FD: magnitude encoder of its own, a row per feature; without rows where it is the scaled gate's.
        gate_F: bias of the gate.
        scale_F: exp(r_mag).
        mag_F: bias of the magnitude.
        norms_F: what the penalty weights features by.
        coefficient: of the penalty, ÷ rows of the batch.
        auxiliary: NONE, FROZEN or UNFROZEN.
        row_starts: index of each row's first active entry.
        row_ends: and of the one after its last.
        columns: their features.
        pre_A: their pre-activations, without biases.
        pi_A: gets π_gate.
        acts_A: gets f̃.
        d_gate_A: gets ∂L/∂π_gate.
        d_mag_A: gets the gradient of the magnitude's pre-activation.
        error_BD: gets x̂ − x.
        auxiliary_error_BD: gets x̂(ReLU(π_gate)) − x.
        sums_B3: gets ‖x̂ − x‖², the penalty without its coefficient, and the auxiliary term.
    """
    n_in = W_dec.shape[1]
    untied = len(W_mag_FD) > 0
    two = np.float32(2.0 / len(centred_BD))
    for b in range(first, end):
        row_start, row_end = row_starts[b], row_ends[b]
        penalty = 0.0
        for at in range(row_start, row_end):
            j = columns[at]
            pi = pre_A[at] + gate_F[j]
            mag = pre_A[at] * scale_F[j] + mag_F[j]
            if untied:
                mag = np.float32(0)
                for k in range(n_in):
                    mag += centred_BD[b, k] * W_mag_FD[j, k]
                mag += mag_F[j]
            acts_A[at] = mag if mag > 0 else np.float32(0)
            pi_A[at] = pi
            penalty += pi * norms_F[j]
        for k in range(n_in):
            error_BD[b, k] = -centred_BD[b, k]
        reconstruction = np.float32(0)
        auxiliary_loss = np.float32(0)
        if auxiliary != NONE:
            for k in range(n_in):
                auxiliary_error_BD[b, k] = -centred_BD[b, k]
            _add_rows_to_two(error_BD, auxiliary_error_BD, b, acts_A, pi_A, columns, row_start, row_end, W_dec)
            for k in range(n_in):
                auxiliary_loss += auxiliary_error_BD[b, k] * auxiliary_error_BD[b, k]
            _multiply_with_two(error_BD, auxiliary_error_BD, b, columns, row_start, row_end, W_dec, d_mag_A, d_gate_A)
        else:
            add_rows(error_BD, b, acts_A, columns, row_start, row_end, W_dec)
            products(error_BD, b, W_dec, columns, row_start, row_end, d_mag_A)
        for k in range(n_in):
            reconstruction += error_BD[b, k] * error_BD[b, k]
        sums_B3[b, 0] = reconstruction
        sums_B3[b, 1] = penalty
        sums_B3[b, 2] = auxiliary_loss
        for at in range(row_start, row_end):
            d_pi = two * d_gate_A[at] if auxiliary != NONE else np.float32(0)
            d_mag_A[at] = two * d_mag_A[at] if acts_A[at] > 0 else np.float32(0)
            d_gate_A[at] = d_pi + coefficient * norms_F[columns[at]]
