"""Sums over the batch for each feature, from the active entries of a step; see `triton_kernels`. For Triton."""

# ruff: noqa: D417 (as there)
from __future__ import annotations

import triton
import triton.language as tl

from gsae_ray.training.engines.triton_kernels import UNFROZEN, _rows_of


@triton.jit
def feature_gradients(
    centred_BD,
    error_BD,
    auxiliary_error_BD,
    W_dec,
    scale_F,
    decoder_norms_F,
    feature_starts,
    entries,
    rows,
    pre_A,
    pi_A,
    acts_A,
    d_gate_A,
    d_mag_A,
    fired_F,
    d_gate_F,
    d_mag_F,
    d_log_scale_F,
    d_W_enc_FD,
    d_W_mag_FD,
    d_W_dec,
    two_over_rows,
    penalty,
    n_in,
    WEIGHTS: tl.constexpr,
    UNTIED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    AUXILIARY: tl.constexpr,
    ENTRIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Computes the gradients of a feature's parameters: a program for each feature and each range of coordinates.

    Args:
        feature_starts: place of each feature's first entry in `entries`, [d_sae + 1].
        entries: indices of active entries, feature by feature, in the order of rows.
        fired_F: gets the number of rows on which the feature is above 0, int64.
        d_gate_F: gets the gradient of the gate's bias.
        d_mag_F: gets that of the magnitude's.
        d_log_scale_F: gets that of r_mag.
        d_W_enc_FD: gets that of the encoder; without `WEIGHTS` only numbers of a feature are computed.
        d_W_mag_FD: gets that of a magnitude encoder of its own (`UNTIED`).
        d_W_dec: gets that of the decoder; `WEIGHTED`: with that of its norms in the penalty.
        two_over_rows: 2 ÷ rows of the batch.
        penalty: its coefficient ÷ rows of the batch.
    """
    j, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    k = chunk * BLOCK + tl.arange(0, BLOCK)
    first, end = tl.load(feature_starts + j), tl.load(feature_starts + j + 1)
    scale = tl.load(scale_F + j)
    zeros_E, zeros_D = tl.zeros([ENTRIES], tl.float32), tl.zeros([BLOCK], tl.float32)
    gates, mags, log_scales, pis, fired = zeros_E, zeros_E, zeros_E, zeros_E, tl.zeros([ENTRIES], tl.int32)
    d_enc, d_own, d_dec = zeros_D, zeros_D, zeros_D
    for start in range(first, end, ENTRIES):
        place = start + tl.arange(0, ENTRIES)
        inside = place < end
        at = tl.load(entries + place, mask=inside, other=0)
        pi = tl.load(pi_A + at, mask=inside, other=0.0)
        acts = tl.load(acts_A + at, mask=inside, other=0.0)
        d_gate = tl.load(d_gate_A + at, mask=inside, other=0.0)
        d_mag = tl.load(d_mag_A + at, mask=inside, other=0.0)
        gates += d_gate
        mags += d_mag
        log_scales += d_mag * tl.load(pre_A + at, mask=inside, other=0.0)
        pis += pi
        fired += (acts > 0).to(tl.int32)
        if WEIGHTS:
            b = tl.load(rows + at, mask=inside, other=0).to(tl.int64)
            x = _rows_of(centred_BD, b, inside, k, n_in)
            if UNTIED:
                d_enc += tl.sum(d_gate[:, None] * x, 0)
                d_own += tl.sum(d_mag[:, None] * x, 0)
            else:
                d_enc += tl.sum((d_gate + d_mag * scale)[:, None] * x, 0)
            d_dec += tl.sum(acts[:, None] * _rows_of(error_BD, b, inside, k, n_in), 0)
            if AUXILIARY == UNFROZEN:
                d_dec += tl.sum(pi[:, None] * _rows_of(auxiliary_error_BD, b, inside, k, n_in), 0)
    if chunk == 0:
        tl.store(d_gate_F + j, tl.sum(gates, 0))
        tl.store(d_mag_F + j, tl.sum(mags, 0))
        tl.store(d_log_scale_F + j, tl.sum(log_scales, 0) * scale)
        tl.store(fired_F + j, tl.sum(fired, 0).to(tl.int64))
    if WEIGHTS:
        inside_k = k < n_in
        d_dec = two_over_rows * d_dec
        if WEIGHTED:
            norm = tl.load(decoder_norms_F + j)
            own = tl.where(norm > 0, penalty * tl.sum(pis, 0) / tl.where(norm > 0, norm, 1.0), 0.0)
            d_dec += own * tl.load(W_dec + j * n_in + k, mask=inside_k, other=0.0)
        tl.store(d_W_enc_FD + j * n_in + k, d_enc, mask=inside_k)
        tl.store(d_W_dec + j * n_in + k, d_dec, mask=inside_k)
        if UNTIED:
            tl.store(d_W_mag_FD + j * n_in + k, d_own, mask=inside_k)
