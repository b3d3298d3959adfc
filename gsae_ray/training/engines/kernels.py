"""Loops over the active entries of a batch, compiled by Numba.

A feature is active on a row where its gate π is above 0. Active entries are listed row by row (`columns`, `pi`, with
`row_starts`) and, for sums over the batch, feature by feature (`entries`, with `feature_starts`). Every kernel works on
a range of rows or of features and adds up each row or feature by itself, always in the same order: results do not
depend on how the ranges are spread over threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gsae_ray.training.engines.compiled import kernel

NONE, FROZEN, UNFROZEN = 0, 1, 2
"""The decoder of the auxiliary term."""


@kernel
def feature_terms(
    first: int,
    end: int,
    W_enc_FD: Any,
    W_mag_FD: Any,
    W_dec: Any,
    b_dec: Any,
    log_scale_F: Any,
    shift_F: Any,
    scale_F: Any,
    norms_F: Any,
    sizes_F: Any,
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
        shift_F: gets −W_enc b_dec.
        scale_F: gets exp(r_mag).
        norms_F: gets the norms of decoder rows.
        sizes_F: gets the sum of squares of the rows that no product with x has in it: not finite where they are not.
    """
    for j in range(first, end):
        shift = np.float32(0)
        square = np.float32(0)
        for k in range(W_enc_FD.shape[1]):
            shift -= W_enc_FD[j, k] * b_dec[k]
            square += W_dec[j, k] * W_dec[j, k]
        shift_F[j] = shift
        norms_F[j] = np.sqrt(square)
        if len(W_mag_FD) > 0:
            for k in range(W_mag_FD.shape[1]):
                square += W_mag_FD[j, k] * W_mag_FD[j, k]
        sizes_F[j] = square
        scale_F[j] = np.exp(log_scale_F[j]) if len(log_scale_F) > 0 else np.float32(1)


@kernel
def count_active(first: int, end: int, pre_BF: Any, shift_F: Any, gate_F: Any, counts_B: Any, sizes_B: Any) -> None:
    """Counts the active features of rows, and adds up |pre|: not finite where any of a row is not."""
    for b in range(first, end):
        n = 0
        size = np.float32(0)
        for j in range(pre_BF.shape[1]):
            pre = pre_BF[b, j] + shift_F[j]
            n += 1 if pre + gate_F[j] > 0 else 0
            size += abs(pre)
        counts_B[b] = n
        sizes_B[b] = size


@kernel
def list_active(
    first: int,
    end: int,
    pre_BF: Any,
    shift_F: Any,
    gate_F: Any,
    row_starts: Any,
    columns: Any,
    pre_A: Any,
    listed_B: Any,
) -> None:
    """Lists the active entries of rows: their features, and their `pre` with the shift; and counts them once more."""
    for b in range(first, end):
        at = row_starts[b]
        for j in range(pre_BF.shape[1]):
            pre = pre_BF[b, j] + shift_F[j]
            if pre + gate_F[j] > 0:
                if at < row_starts[b + 1]:
                    columns[at] = j
                    pre_A[at] = pre
                at += 1
        listed_B[b] = at - row_starts[b]


@kernel
def order_by_feature(columns: Any, row_starts: Any, feature_starts: Any, entries: Any, rows: Any) -> None:
    """Lists the active entries feature by feature, in the order of rows: a counting sort."""
    feature_starts[:] = 0
    for at in range(row_starts[-1]):
        feature_starts[columns[at] + 1] += 1
    for j in range(len(feature_starts) - 1):
        feature_starts[j + 1] += feature_starts[j]
    free = feature_starts[:-1].copy()
    for b in range(len(row_starts) - 1):
        for at in range(row_starts[b], row_starts[b + 1]):
            slot = free[columns[at]]
            entries[slot] = at
            rows[slot] = b
            free[columns[at]] = slot + 1


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
    columns: Any,
    pre_A: Any,
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
        columns: their features.
        pre_A: their pre-activations, without biases.
        acts_A: gets f̃.
        d_gate_A: gets ∂L/∂π_gate.
        d_mag_A: gets the gradient of the magnitude's pre-activation.
        error_BD: gets x̂ − x.
        auxiliary_error_BD: gets x̂(ReLU(π_gate)) − x.
        sums_B3: gets ‖x̂ − x‖², the penalty without its coefficient, and the auxiliary term.
    """
    n_in = centred_BD.shape[1]
    untied = len(W_mag_FD) > 0
    two = np.float32(2.0 / len(centred_BD))
    for b in range(first, end):
        error_D = error_BD[b]
        centred_D = centred_BD[b]
        for k in range(n_in):
            error_D[k] = -centred_D[k]
        penalty = 0.0
        for at in range(row_starts[b], row_starts[b + 1]):
            j = columns[at]
            pi = pre_A[at] + gate_F[j]
            mag = pre_A[at] * scale_F[j] + mag_F[j]
            if untied:
                mag = np.float32(0)
                for k in range(n_in):
                    mag += centred_D[k] * W_mag_FD[j, k]
                mag += mag_F[j]
            act = mag if mag > 0 else np.float32(0)
            acts_A[at] = act
            d_gate_A[at] = pi  # its gradient takes this place when it is no longer needed
            penalty += pi * norms_F[j]
            for k in range(n_in):
                error_D[k] += act * W_dec[j, k]
        reconstruction = np.float32(0)
        for k in range(n_in):
            reconstruction += error_D[k] * error_D[k]
        auxiliary_loss = np.float32(0)
        if auxiliary != NONE:
            auxiliary_D = auxiliary_error_BD[b]
            for k in range(n_in):
                auxiliary_D[k] = -centred_D[k]
            for at in range(row_starts[b], row_starts[b + 1]):
                pi = d_gate_A[at]
                j = columns[at]
                for k in range(n_in):
                    auxiliary_D[k] += pi * W_dec[j, k]
            for k in range(n_in):
                auxiliary_loss += auxiliary_D[k] * auxiliary_D[k]
        sums_B3[b, 0] = reconstruction
        sums_B3[b, 1] = penalty
        sums_B3[b, 2] = auxiliary_loss
        for at in range(row_starts[b], row_starts[b + 1]):
            j = columns[at]
            d_act = np.float32(0)
            d_pi = np.float32(0)
            if auxiliary != NONE:
                auxiliary_D = auxiliary_error_BD[b]
                for k in range(n_in):
                    d_act += error_D[k] * W_dec[j, k]
                    d_pi += auxiliary_D[k] * W_dec[j, k]
            else:
                for k in range(n_in):
                    d_act += error_D[k] * W_dec[j, k]
            d_mag_A[at] = two * d_act if acts_A[at] > 0 else np.float32(0)
            d_gate_A[at] = two * d_pi + coefficient * norms_F[j]


@kernel
def features_gradients(
    first: int,
    end: int,
    centred_BD: Any,
    W_dec: Any,
    gate_F: Any,
    scale_F: Any,
    norms_F: Any,
    coefficient: float,
    weighted: bool,
    auxiliary: int,
    feature_starts: Any,
    entries: Any,
    rows: Any,
    pre_A: Any,
    acts_A: Any,
    d_gate_A: Any,
    d_mag_A: Any,
    error_BD: Any,
    auxiliary_error_BD: Any,
    d_W_dec: Any,
    d_W_enc_FD: Any,
    d_W_mag_FD: Any,
    d_gate_F: Any,
    d_mag_F: Any,
    d_log_scale_F: Any,
    fired_F: Any,
) -> None:
    """Adds up the gradients of features: decoder rows, encoder rows (of x − b_dec), biases, log scale; and who fired.

    Arguments are as in `rows_forward_and_back`. d_W_dec and d_W_enc_FD are without rows where the weights are frozen,
    d_W_mag_FD where the encoders are tied; `weighted`: whether norms_F are those of W_dec, and learnt.
    """
    n_in = centred_BD.shape[1]
    learn = len(d_W_dec) > 0
    untied = len(d_W_mag_FD) > 0
    two = np.float32(2.0 / len(centred_BD))
    for j in range(first, end):
        if learn:
            for k in range(n_in):
                d_W_dec[j, k] = 0
                d_W_enc_FD[j, k] = 0
        if untied:
            for k in range(n_in):
                d_W_mag_FD[j, k] = 0
        gate = np.float32(0)
        mag = np.float32(0)
        log_scale = np.float32(0)
        gate_sum = np.float32(0)
        fired = 0
        for slot in range(feature_starts[j], feature_starts[j + 1]):
            at = entries[slot]
            b = rows[slot]
            pi = pre_A[at] + gate_F[j]
            gate += d_gate_A[at]
            mag += d_mag_A[at]
            log_scale += d_mag_A[at] * pre_A[at]
            gate_sum += pi
            fired += 1 if acts_A[at] > 0 else 0
            if learn:
                d_x_hat = two * acts_A[at]
                d_auxiliary = two * pi
                d_pre = d_gate_A[at] if untied else d_gate_A[at] + d_mag_A[at] * scale_F[j]
                if auxiliary == UNFROZEN:
                    for k in range(n_in):
                        d_W_dec[j, k] += d_x_hat * error_BD[b, k] + d_auxiliary * auxiliary_error_BD[b, k]
                        d_W_enc_FD[j, k] += d_pre * centred_BD[b, k]
                else:
                    for k in range(n_in):
                        d_W_dec[j, k] += d_x_hat * error_BD[b, k]
                        d_W_enc_FD[j, k] += d_pre * centred_BD[b, k]
            if untied:
                for k in range(n_in):
                    d_W_mag_FD[j, k] += d_mag_A[at] * centred_BD[b, k]
        if learn and weighted and norms_F[j] > 0:
            factor = coefficient * gate_sum / norms_F[j]
            for k in range(n_in):
                d_W_dec[j, k] += factor * W_dec[j, k]
        d_gate_F[j] = gate
        d_mag_F[j] = mag
        d_log_scale_F[j] = log_scale * scale_F[j]
        fired_F[j] = fired
