"""Finds the active entries of a batch on CPUs, by the bounds that `bounds` proves."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gsae_ray.training.engines.bounds import (
    NORM_ROUNDING,
    SCORE_ROUNDING,
    SMALL_NORM,
    SUM_ROUNDING,
    TINY,
    UNDERFLOW,
)
from gsae_ray.training.engines.compiled import kernel
from gsae_ray.training.engines.workspace import Array, Workspace


class Active(NamedTuple):
    """The active entries of a batch, row by row."""

    row_starts: Array
    """Index of each row's first entry, [batch + 1]."""
    row_ends: Array
    """Index after each row's last one, [batch]. What lists hold from there to the next row's start is not defined."""
    columns: Array
    """Their features."""
    pre: Array
    """Their x · w + shift."""


class Encoder(NamedTuple):
    """What decides which features are active."""

    W_FD: Array
    """A row per feature."""
    norms_F: Array
    """‖w‖."""
    shift_F: Array
    """What is added to products."""
    gate_F: Array
    """What is added to both, so that the feature is active above 0."""


class Bounds(NamedTuple):
    """How far scores may be from what they stand for."""

    margins_B: Array
    """Of a row, ÷ ‖w‖."""
    norms_F: Array
    """‖w‖."""
    offsets_F: Array
    """c, with its rounding."""
    score_rounding: np.float32
    """u."""


class _Scores(NamedTuple):
    """Products of rows and encoder, in one of two forms; the other has no rows."""

    float32_BF: Array
    bfloat16_BF: Array
    """As bits."""
    x_rests_B: Array
    """‖δx‖."""
    w_rests_F: Array
    """‖δw‖."""


def find_active(
    workspace: Workspace, encoder: Encoder, x_BD: Array, x_norms_B: Array, most_active: float, bfloat16: bool
) -> Active | None:
    """Finds the active entries of a batch; None where there are more than `most_active`.

    Args:
        workspace: threads and memory.
        encoder: finite.
        x_BD: the batch, finite.
        x_norms_B: ‖x‖.
        most_active: as many as there may be.
        bfloat16: whether scores are to be of bfloat16; what is found does not depend on it.
    """
    scores = _scores(workspace, encoder, x_BD, bfloat16)
    products = scores[:2]
    bounds = _bounds(1, encoder, x_norms_B, scores, bfloat16)
    counts_B = workspace.array("counts", (len(x_BD),), np.int64)
    workspace.over(len(x_BD), count, *products, *bounds, counts_B)
    if (n_candidates := int(counts_B.sum())) > most_active:
        # What is decided has to follow from what is active, not from how many the rounding of scores leaves open.
        surely_B = workspace.array("surely", (len(x_BD),), np.int64)
        lower = _bounds(-1, encoder, x_norms_B, scores, bfloat16)
        workspace.over(len(x_BD), count, *products, *lower, surely_B)
        if surely_B.sum() > most_active:
            return None
    row_starts, row_ends = workspace.array("row_starts", (len(x_BD) + 1,), np.int64), counts_B
    row_starts[0] = 0
    np.cumsum(counts_B, out=row_starts[1:])
    columns, pre = workspace.list("columns", n_candidates, np.int32), workspace.list("pre", n_candidates)
    active = Active(row_starts, row_ends, columns, pre)
    own = (x_BD, encoder.W_FD, encoder.shift_F, encoder.gate_F)
    workspace.over(row_starts, list_active, *products, *bounds, *own, *active)
    assert row_ends.min() >= 0, "one comparison, compiled twice, has come out differently"
    return active if n_candidates <= most_active or (row_ends - row_starts[:-1]).sum() <= most_active else None


def _scores(workspace: Workspace, encoder: Encoder, x_BD: Array, bfloat16: bool) -> _Scores:
    n_rows, d_sae = len(x_BD), len(encoder.W_FD)
    x_rests_B, w_rests_F = workspace.array("x_rests", (n_rows,)), workspace.array("w_rests", (d_sae,))
    if not bfloat16:
        x_rests_B[:] = w_rests_F[:] = 0
        products_BF = workspace.array("products", (n_rows, d_sae))
        workspace.over(n_rows, _multiply, x_BD, encoder.W_FD, products_BF)
        return _Scores(products_BF, np.empty((0, 0), np.uint16), x_rests_B, w_rests_F)
    x_bits_BD = workspace.array("x_bits", x_BD.shape, np.uint16)
    w_bits_FD = workspace.array("w_bits", encoder.W_FD.shape, np.uint16)
    product_bits_BF = workspace.array("product_bits", (n_rows, d_sae), np.uint16)
    workspace.over(d_sae, _round, encoder.W_FD, w_bits_FD, w_rests_F)
    workspace.over(n_rows, _round, x_BD, x_bits_BD, x_rests_B)
    workspace.over(n_rows, _multiply, x_bits_BD, w_bits_FD, product_bits_BF)
    return _Scores(np.empty((0, 0), np.float32), product_bits_BF, x_rests_B, w_rests_F)


def _bounds(sign: int, encoder: Encoder, x_norms_B: Array, scores: _Scores, bfloat16: bool) -> Bounds:
    """The bounds by which an entry may be active (`sign` 1), or surely is (−1)."""
    margins_B, offsets_F = np.empty_like(x_norms_B), np.empty_like(encoder.norms_F)
    norms = (x_norms_B, scores.x_rests_B, encoder.norms_F, scores.w_rests_F)
    add_up_bounds(sign, encoder.W_FD.shape[1], *norms, encoder.shift_F, encoder.gate_F, margins_B, offsets_F)
    return Bounds(margins_B, encoder.norms_F, offsets_F, np.float32(sign * SCORE_ROUNDING[bfloat16]))


def _round(first: int, end: int, rows_RD: Array, bits_RD: Array, rests_R: Array) -> None:
    """Rounds rows to bfloat16, and computes the norms of what is lost."""
    _tensor(bits_RD[first:end]).copy_(torch.from_numpy(rows_RD[first:end]))
    rest_norms(first, end, rows_RD, bits_RD, rests_R)


def _multiply(first: int, end: int, x_BD: Array, W_FD: Array, products_BF: Array) -> None:
    torch.mm(_tensor(x_BD[first:end]), _tensor(W_FD).T, out=_tensor(products_BF[first:end]))


def _tensor(array: Array) -> Tensor:
    """The same memory as a tensor; bits are those of bfloat16."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


@kernel
def rest_norms(first: int, end: int, rows_RD: Any, bits_RD: Any, rests_R: Any) -> None:
    """Computes the norms of what the copies of rows lack, which are the bits of bfloat16."""
    n = rows_RD.shape[1]
    wide_D = np.empty(n, np.int32)
    copy_D = wide_D.view(np.float32)
    for r in range(first, end):
        for k in range(n):
            wide_D[k] = np.int32(bits_RD[r, k]) << 16
        square = np.float32(0)
        for k in range(n):
            rest = rows_RD[r, k] - copy_D[k]
            square += rest * rest
        rests_R[r] = np.sqrt(square) + np.float32(UNDERFLOW * np.sqrt(n))


@kernel
def add_up_bounds(
    sign: int,
    n: int,
    x_norms_B: Any,
    x_rests_B: Any,
    w_norms_F: Any,
    w_rests_F: Any,
    shift_F: Any,
    gate_F: Any,
    margins_B: Any,
    offsets_F: Any,
) -> None:
    """Computes the margins of rows and the offsets of features, as in `Bounds`, of products of n terms."""
    rounding = NORM_ROUNDING + n * SUM_ROUNDING
    x_most = 0.0
    for b in range(len(x_norms_B)):
        x_most = max(x_most, x_norms_B[b])
    share = 0.0  # ‖δw‖ ≤ share ‖w‖ with one for all, so that a row and a feature have a number each
    for j in range(len(w_norms_F)):
        c = np.float64(shift_F[j]) + np.float64(gate_F[j])
        slack = SUM_ROUNDING * (abs(np.float64(shift_F[j])) + abs(np.float64(gate_F[j]))) + TINY
        if w_norms_F[j] > SMALL_NORM:
            share = max(share, w_rests_F[j] / w_norms_F[j])
        else:
            slack += 4 * x_most * SMALL_NORM
        offsets_F[j] = c + sign * slack
    share *= rounding
    for b in range(len(x_norms_B)):
        margin = (rounding + share) * x_rests_B[b] + (share + n * SUM_ROUNDING) * x_norms_B[b]
        margins_B[b] = sign * rounding * margin


@kernel
def _add_bounds(
    scores_BF: Any,
    bits_BF: Any,
    b: int,
    margins_B: Any,
    norms_F: Any,
    offsets_F: Any,
    score_rounding: float,
    bits_F: Any,
    row_F: Any,
    bounds_F: Any,
) -> None:
    """Computes the bounds of the gates of row b.

    Arguments are as in `count`; `row_F` is the memory of `bits_F` as float32, into which the scores go.
    """
    if len(bits_BF) > 0:
        for j in range(len(bits_F)):
            bits_F[j] = np.int32(bits_BF[b, j]) << 16
    else:
        for j in range(len(row_F)):
            row_F[j] = scores_BF[b, j]
    for j in range(len(row_F)):
        bounds_F[j] = row_F[j] + score_rounding * abs(row_F[j]) + (offsets_F[j] + margins_B[b] * norms_F[j])


@kernel
def count(
    first: int,
    end: int,
    scores_BF: Any,
    bits_BF: Any,
    margins_B: Any,
    norms_F: Any,
    offsets_F: Any,
    score_rounding: float,
    counts_B: Any,
) -> None:
    """Counts the entries of rows that are above 0 by some `Bounds`.

    Args:
        first: row to begin with.
        end: row to end before.
        scores_BF: products in float32, or without rows.
        bits_BF: products as the bits of bfloat16, or without rows.
        margins_B: as in `Bounds`.
        norms_F: as there.
        offsets_F: as there.
        score_rounding: as there.
        counts_B: gets the counts.
    """
    bits_F, bounds_F = np.empty(len(norms_F), np.int32), np.empty(len(norms_F), np.float32)
    row_F = bits_F.view(np.float32)
    for b in range(first, end):
        _add_bounds(scores_BF, bits_BF, b, margins_B, norms_F, offsets_F, score_rounding, bits_F, row_F, bounds_F)
        n = np.float32(0)  # exact below 2²⁴, and as wide as what is compared
        for j in range(len(bounds_F)):
            n += np.float32(1) if bounds_F[j] > 0 else np.float32(0)
        counts_B[b] = np.int64(n)


@kernel
def list_active(
    first: int,
    end: int,
    scores_BF: Any,
    bits_BF: Any,
    margins_B: Any,
    norms_F: Any,
    offsets_F: Any,
    score_rounding: float,
    x_BD: Any,
    W_enc_FD: Any,
    shift_F: Any,
    gate_F: Any,
    row_starts: Any,
    row_ends: Any,
    columns: Any,
    pre_A: Any,
) -> None:
    """Lists the active entries of rows: their features, and x · w + shift.

    Arguments are as in `count`; a row has its place from `row_starts` on, for as many as were counted, and `row_ends`
    gets where its active ones end, or −1 where there are more than were counted.
    """
    n_features = len(norms_F)
    bits_F, bounds_F = np.empty(n_features, np.int32), np.empty(n_features, np.float32)
    row_F, found_F = bits_F.view(np.float32), np.empty(n_features, np.int32)
    for b in range(first, end):
        _add_bounds(scores_BF, bits_BF, b, margins_B, norms_F, offsets_F, score_rounding, bits_F, row_F, bounds_F)
        n_found = 0
        for j in range(n_features):  # without a branch: which entries are found cannot be foreseen
            found_F[n_found] = j
            n_found += 1 if bounds_F[j] > 0 else 0
        start = row_starts[b]
        stop = min(start + n_found, row_starts[b + 1])
        for candidate in range(stop - start):
            columns[start + candidate] = found_F[candidate]
        products(x_BD, b, W_enc_FD, columns, start, stop, pre_A)
        at = start
        for candidate in range(start, stop):
            j = columns[candidate]
            pre = pre_A[candidate] + shift_F[j]
            if pre + gate_F[j] > 0:
                columns[at] = j
                pre_A[at] = pre
                at += 1
        row_ends[b] = at if n_found == stop - start else -1


@kernel
def products(x_BD: Any, b: int, W_FD: Any, columns: Any, start: int, stop: int, products_A: Any) -> None:
    """Multiplies row b with the rows of these indices, six in one pass over it; whichever six, with one result."""
    last = stop - 1
    for at in range(start, stop, 6):
        i1, i2, i3, i4, i5 = (
            min(at + 1, last),
            min(at + 2, last),
            min(at + 3, last),
            min(at + 4, last),
            min(at + 5, last),
        )
        j0, j1, j2, j3, j4, j5 = columns[at], columns[i1], columns[i2], columns[i3], columns[i4], columns[i5]
        sum_0 = sum_1 = sum_2 = np.float32(0)
        sum_3 = sum_4 = sum_5 = np.float32(0)
        for k in range(x_BD.shape[1]):
            x = x_BD[b, k]
            sum_0 += x * W_FD[j0, k]
            sum_1 += x * W_FD[j1, k]
            sum_2 += x * W_FD[j2, k]
            sum_3 += x * W_FD[j3, k]
            sum_4 += x * W_FD[j4, k]
            sum_5 += x * W_FD[j5, k]
        products_A[i5] = sum_5  # the last one's again, where there are fewer
        products_A[i4] = sum_4
        products_A[i3] = sum_3
        products_A[i2] = sum_2
        products_A[i1] = sum_1
        products_A[at] = sum_0
