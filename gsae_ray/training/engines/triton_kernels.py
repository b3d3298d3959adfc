"""The kernels of the sparse engine on GPUs, for Triton; `kernels` and `feature_sums` are those on CPUs.

Every program works on a row or a feature of its own and adds up in a fixed order, and none writes where another one
does: results are the same on every run. Arrays are contiguous, floats float32 unless said otherwise. Entries are listed
row by row: those of row b are from `row_starts[b]` to `row_ends[b]`.
"""

# ruff: noqa: D417 (arguments that several kernels share are described once, above or where they are made)
from __future__ import annotations

import triton
import triton.language as tl

NONE = tl.constexpr(0)
FROZEN = tl.constexpr(1)
UNFROZEN = tl.constexpr(2)
"""The decoder of the auxiliary term, as `kernels` numbers them."""


@triton.jit
def row_terms(
    x_BD,
    b_dec,
    centred_BD,
    rounded_BD,
    norms_B,
    rests_B,
    n_in,
    underflow,
    BFLOAT16: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Computes what a step needs of each row: a program a row.

    Args:
        x_BD: the batch.
        b_dec: bias of the decoder.
        centred_BD: gets x − b_dec.
        rounded_BD: gets x in bfloat16 (`BFLOAT16`), else nothing.
        norms_B: gets ‖x‖ + `underflow`.
        rests_B: gets the same of what rounding took; 0 without.
    """
    b = tl.program_id(0).to(tl.int64)
    squares, rests = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, n_in, BLOCK):
        k = start + tl.arange(0, BLOCK)
        inside = k < n_in
        x = tl.load(x_BD + b * n_in + k, mask=inside, other=0.0)
        tl.store(centred_BD + b * n_in + k, x - tl.load(b_dec + k, mask=inside, other=0.0), mask=inside)
        squares += x * x
        if BFLOAT16:
            rounded = x.to(tl.bfloat16)
            tl.store(rounded_BD + b * n_in + k, rounded, mask=inside)
            rest = x - rounded.to(tl.float32)
            rests += rest * rest
    tl.store(norms_B + b, tl.sqrt(tl.sum(squares, 0)) + underflow)
    tl.store(rests_B + b, tl.sqrt(tl.sum(rests, 0)) + underflow if BFLOAT16 else 0.0)


@triton.jit
def feature_terms(
    W_enc_FD,
    W_mag_FD,
    W_dec,
    b_dec,
    log_scale_F,
    gate_F,
    mag_F,
    largest_row,
    rounded_FD,
    shift_F,
    scale_F,
    norms_F,
    rests_F,
    decoder_norms_F,
    sizes_F,
    reach_F,
    n_in,
    underflow,
    SCALED: tl.constexpr,
    UNTIED: tl.constexpr,
    BFLOAT16: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Computes what a step needs of each feature: a program a feature.

    Args:
        W_enc_FD: encoder, a row per feature.
        W_mag_FD: magnitude encoder of its own (`UNTIED`).
        W_dec: decoder.
        b_dec: its bias.
        log_scale_F: r_mag (`SCALED`, else 0).
        gate_F: bias of the gate.
        mag_F: bias of the magnitude.
        largest_row: [1], the greatest of ‖x‖, and ‖b_dec‖.
        rounded_FD: gets W_enc in bfloat16 (`BFLOAT16`), else nothing.
        shift_F: gets −W_enc b_dec.
        scale_F: gets exp(r_mag).
        norms_F: gets norms of encoder rows + `underflow`.
        rests_F: gets the same of what rounding took; 0 without.
        decoder_norms_F: gets norms of decoder rows.
        sizes_F: gets the squared norms of the decoder row, and of that of a magnitude encoder, added up.
        reach_F: gets what no pre-activation of the batch exceeds, nor a partial sum of its products.
    """
    j = tl.program_id(0).to(tl.int64)
    zeros = tl.zeros([BLOCK], tl.float32)
    shifts, squares, rests, decoder_squares, mag_squares = zeros, zeros, zeros, zeros, zeros
    for start in range(0, n_in, BLOCK):
        k = start + tl.arange(0, BLOCK)
        inside = k < n_in
        w = tl.load(W_enc_FD + j * n_in + k, mask=inside, other=0.0)
        d = tl.load(W_dec + j * n_in + k, mask=inside, other=0.0)
        shifts += w * tl.load(b_dec + k, mask=inside, other=0.0)
        squares += w * w
        decoder_squares += d * d
        if UNTIED:
            m = tl.load(W_mag_FD + j * n_in + k, mask=inside, other=0.0)
            mag_squares += m * m
        if BFLOAT16:
            rounded = w.to(tl.bfloat16)
            tl.store(rounded_FD + j * n_in + k, rounded, mask=inside)
            rest = w - rounded.to(tl.float32)
            rests += rest * rest
    norm = tl.sqrt(tl.sum(squares, 0)) + underflow
    size, mag_size = tl.sum(decoder_squares, 0), tl.sum(mag_squares, 0)
    scale = tl.exp(tl.load(log_scale_F + j)) if SCALED else 1.0
    tl.store(shift_F + j, -tl.sum(shifts, 0))
    tl.store(scale_F + j, scale)
    tl.store(norms_F + j, norm)
    tl.store(rests_F + j, tl.sqrt(tl.sum(rests, 0)) + underflow if BFLOAT16 else 0.0)
    tl.store(decoder_norms_F + j, tl.sqrt(size))
    tl.store(sizes_F + j, size + mag_size)
    reach = tl.load(largest_row) * (norm * (1.0 + scale) + tl.sqrt(mag_size))
    tl.store(reach_F + j, reach + tl.abs(tl.load(gate_F + j)) + tl.abs(tl.load(mag_F + j)))


@triton.jit
def find_candidates(
    scores_BF,
    margins_B,
    norms_F,
    offsets_F,
    least_F,
    rounding,
    counts_B,
    surely_B,
    row_starts,
    candidates,
    n_features,
    LIST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Counts the entries of rows that may be active, or lists them (`LIST`): a program a row.

    One function for both, and launched without fused multiply-adds: what is counted is what is listed.

    Args:
        scores_BF: products of rows and encoder, rounded; float32 or bfloat16.
        margins_B: how far those of a row may be off, ÷ ‖w‖.
        norms_F: ‖w‖.
        offsets_F: what is added to products, with its rounding.
        least_F: the same, less its rounding.
        rounding: what a score may be off, ÷ its size.
        counts_B: gets how many may be above 0, int64.
        surely_B: gets how many certainly are, int64.
        row_starts: places for candidates of each row.
        candidates: gets their features, int32, in rising order.
    """
    b = tl.program_id(0).to(tl.int64)
    margin = tl.load(margins_B + b)
    counts, surely = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)
    at = tl.load(row_starts + b) if LIST else 0
    for start in range(0, n_features, BLOCK):
        j = start + tl.arange(0, BLOCK)
        inside = j < n_features
        score = tl.load(scores_BF + b * n_features + j, mask=inside, other=0.0).to(tl.float32)
        margins = margin * tl.load(norms_F + j, mask=inside, other=0.0)
        most = score + rounding * tl.abs(score) + (tl.load(offsets_F + j, mask=inside, other=0.0) + margins)
        possible = inside & (most > 0)
        if LIST:
            place = at + tl.cumsum(possible.to(tl.int32), 0) - 1
            tl.store(candidates + place, j, mask=possible)
            at += tl.sum(possible.to(tl.int32), 0)
        else:
            least = score - rounding * tl.abs(score) + (tl.load(least_F + j, mask=inside, other=0.0) - margins)
            counts += possible.to(tl.int32)
            surely += (inside & (least > 0)).to(tl.int32)
    if not LIST:
        tl.store(counts_B + b, tl.sum(counts, 0).to(tl.int64))
        tl.store(surely_B + b, tl.sum(surely, 0).to(tl.int64))


@triton.jit
def _rows_of(matrix_RD, rows_E, inside_E, k, n_in):  # [entries, coordinates], 0 where there is none
    inside = inside_E[:, None] & (k < n_in)[None, :]
    return tl.load(matrix_RD + rows_E[:, None] * n_in + k[None, :], mask=inside, other=0.0)


@triton.jit
def _products(row_D, matrix_FD, j_E, inside_E, n_in, ENTRIES: tl.constexpr, BLOCK: tl.constexpr):
    """Multiplies a row with those of these indices, each in the same order."""
    sums = tl.zeros([ENTRIES, BLOCK], tl.float32)
    for start in range(0, n_in, BLOCK):
        k = start + tl.arange(0, BLOCK)
        x = tl.load(row_D + k, mask=k < n_in, other=0.0)
        sums += x[None, :] * _rows_of(matrix_FD, j_E, inside_E, k, n_in)
    return tl.sum(sums, 1)


@triton.jit
def list_active(
    x_BD,
    centred_BD,
    W_enc_FD,
    W_mag_FD,
    shift_F,
    gate_F,
    scale_F,
    mag_F,
    row_starts,
    candidates,
    row_ends,
    columns,
    rows,
    pre_A,
    pi_A,
    acts_A,
    n_in,
    n_features,
    UNTIED: tl.constexpr,
    ENTRIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Computes the gates of candidates in float32, and lists those that are active: a program a row.

    Args:
        row_ends: gets the index after each row's last active entry.
        columns: gets their features, and `n_features` in the places of candidates that are none.
        rows: gets their row.
        pre_A: gets x · w + shift.
        pi_A: gets π_gate.
        acts_A: gets f̃.
    """
    b = tl.program_id(0).to(tl.int64)
    first, end = tl.load(row_starts + b), tl.load(row_starts + b + 1)
    at = first
    for start in range(first, end, ENTRIES):
        place = start + tl.arange(0, ENTRIES)
        inside = place < end
        feature = tl.load(candidates + place, mask=inside, other=0)
        j = feature.to(tl.int64)
        pre = _products(x_BD + b * n_in, W_enc_FD, j, inside, n_in, ENTRIES, BLOCK) + tl.load(shift_F + j)
        pi = pre + tl.load(gate_F + j)
        active = inside & (pi > 0)
        if UNTIED:
            mag = _products(centred_BD + b * n_in, W_mag_FD, j, active, n_in, ENTRIES, BLOCK)
        else:
            mag = pre * tl.load(scale_F + j)
        mag += tl.load(mag_F + j)
        found = at + tl.cumsum(active.to(tl.int32), 0) - 1
        tl.store(columns + found, feature, mask=active)
        tl.store(rows + found, b.to(tl.int32), mask=active)
        tl.store(pre_A + found, pre, mask=active)
        tl.store(pi_A + found, pi, mask=active)
        tl.store(acts_A + found, tl.where(mag > 0, mag, 0.0), mask=active)
        at += tl.sum(active.to(tl.int32), 0)
    tl.store(row_ends + b, at)
    for start in range(at, end, ENTRIES):
        place = start + tl.arange(0, ENTRIES)
        tl.store(columns + place, tl.zeros([ENTRIES], tl.int32) + n_features, mask=place < end)


@triton.jit
def decode_rows(
    centred_BD,
    W_dec,
    row_starts,
    row_ends,
    columns,
    pi_A,
    acts_A,
    error_BD,
    auxiliary_error_BD,
    squares_B2C,
    n_in,
    AUXILIARY: tl.constexpr,
    ENTRIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Decodes rows: a program for each row and each of C ranges of coordinates.

    Args:
        error_BD: gets x̂ − x.
        auxiliary_error_BD: gets x̂(ReLU(π_gate)) − x, where there is an auxiliary term.
        squares_B2C: gets the sums of their squares.
    """
    b, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    k = chunk * BLOCK + tl.arange(0, BLOCK)
    inside_k = k < n_in
    error = -tl.load(centred_BD + b * n_in + k, mask=inside_k, other=0.0)
    auxiliary_error = error
    end = tl.load(row_ends + b)
    for start in range(tl.load(row_starts + b), end, ENTRIES):
        place = start + tl.arange(0, ENTRIES)
        inside = place < end
        d = _rows_of(W_dec, tl.load(columns + place, mask=inside, other=0).to(tl.int64), inside, k, n_in)
        error += tl.sum(tl.load(acts_A + place, mask=inside, other=0.0)[:, None] * d, 0)
        if AUXILIARY != NONE:
            auxiliary_error += tl.sum(tl.load(pi_A + place, mask=inside, other=0.0)[:, None] * d, 0)
    tl.store(error_BD + b * n_in + k, error, mask=inside_k)
    squares = squares_B2C + b * 2 * tl.num_programs(1) + chunk
    tl.store(squares, tl.sum(error * error, 0))
    if AUXILIARY != NONE:
        tl.store(auxiliary_error_BD + b * n_in + k, auxiliary_error, mask=inside_k)
        tl.store(squares + tl.num_programs(1), tl.sum(auxiliary_error * auxiliary_error, 0))
    else:
        tl.store(squares + tl.num_programs(1), 0.0)


@triton.jit
def rows_back(
    error_BD,
    auxiliary_error_BD,
    W_dec,
    weights_F,
    row_starts,
    row_ends,
    columns,
    pi_A,
    acts_A,
    d_gate_A,
    d_mag_A,
    penalties_B,
    two_over_rows,
    penalty,
    n_in,
    AUXILIARY: tl.constexpr,
    ENTRIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Takes the gradient back from the errors to the pre-activations of active entries: a program a row.

    Args:
        d_gate_A: gets ∂L/∂π_gate.
        d_mag_A: gets the gradient of the magnitude's pre-activation.
        penalties_B: gets the penalty of a row without its coefficient, features weighted by `weights_F`.
        two_over_rows: 2 ÷ rows of the batch.
        penalty: its coefficient ÷ rows of the batch.
    """
    b = tl.program_id(0).to(tl.int64)
    end, penalties = tl.load(row_ends + b), tl.zeros([ENTRIES], tl.float32)
    for start in range(tl.load(row_starts + b), end, ENTRIES):
        place = start + tl.arange(0, ENTRIES)
        inside = place < end
        j = tl.load(columns + place, mask=inside, other=0).to(tl.int64)
        sums, auxiliary_sums = tl.zeros([ENTRIES, BLOCK], tl.float32), tl.zeros([ENTRIES, BLOCK], tl.float32)
        for first in range(0, n_in, BLOCK):
            k = first + tl.arange(0, BLOCK)
            d = _rows_of(W_dec, j, inside, k, n_in)
            sums += tl.load(error_BD + b * n_in + k, mask=k < n_in, other=0.0)[None, :] * d
            if AUXILIARY != NONE:
                auxiliary_sums += tl.load(auxiliary_error_BD + b * n_in + k, mask=k < n_in, other=0.0)[None, :] * d
        d_mag = tl.where(tl.load(acts_A + place, mask=inside, other=0.0) > 0, two_over_rows * tl.sum(sums, 1), 0.0)
        weight = tl.load(weights_F + j)
        penalties += tl.load(pi_A + place, mask=inside, other=0.0) * weight
        d_gate = penalty * weight
        if AUXILIARY != NONE:
            d_gate += two_over_rows * tl.sum(auxiliary_sums, 1)
        tl.store(d_mag_A + place, d_mag, mask=inside)
        tl.store(d_gate_A + place, d_gate, mask=inside)
    tl.store(penalties_B + b, tl.sum(penalties, 0))
