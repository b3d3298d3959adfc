"""The row stream: batch n is rows [nB, (n+1)B), whatever the blocks, chunks and batches; views are let go at once."""

from __future__ import annotations

import itertools
import warnings
import weakref
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsae_ray.activations import reader as stream_module
from gsae_ray.activations.layout import Layout
from gsae_ray.activations.reader import RowStream, to_array
from gsae_ray.activations.statistics import SiteStatistics
from gsae_ray.errors import NumericError

SITE, TARGET = "blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out"
CASES = settings(max_examples=150, deadline=None, database=None)


class ArraySource:
    """Blocks of rows [R, n] held in memory; every chunk is a new read-only view, as from an object store."""

    def __init__(self, rows_RD: torch.Tensor, layout: Layout) -> None:
        self.array = to_array(rows_RD).copy()
        self.layout = layout
        self.block = -1
        self.opened: list[int] = []
        self.views: list[weakref.ref[Any]] = []

    def statistics(self) -> dict[str, SiteStatistics]:
        raise NotImplementedError

    def open(self, block: int) -> None:
        self.block = block
        self.opened.append(block)

    def chunk(self, index: int) -> np.ndarray[Any, Any]:
        first, end = self.layout.chunks(self.block, SITE)[index]
        start = self.layout.starts[self.block]
        view = self.array[start + first : start + end]
        view.flags.writeable = False
        self.views.append(weakref.ref(view))
        return view


def make(
    blocks: list[int], chunk_rows: int = 3, n: int = 2, dtype: str = "float32", position: int = 0
) -> tuple[RowStream, ArraySource, torch.Tensor]:
    """A stream over numbered rows, its source, and the rows."""
    itemsize = torch.empty(0, dtype=getattr(torch, dtype)).element_size()
    layout = Layout(tuple(blocks), {SITE: n, TARGET: 3 * n}, dtype, chunk_bytes=chunk_rows * n * itemsize)
    rows_RD = torch.arange(sum(blocks) * n).view(-1, n).to(getattr(torch, dtype))
    source = ArraySource(rows_RD, layout)
    return RowStream(source, layout, SITE, position=position), source, rows_RD


@CASES
@given(
    blocks=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    chunk_rows=st.integers(1, 40),
    slab_rows=st.integers(1, 40),
    batch=st.integers(1, 40),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    data=st.data(),
)
def test_batch_n_is_rows_nB_to_n_plus_1_B(
    blocks: list[int], chunk_rows: int, slab_rows: int, batch: int, dtype: str, data: st.DataObject
) -> None:
    n = data.draw(st.integers(0, sum(blocks) // batch), label="first batch")
    stream, source, rows_RD = make(blocks, chunk_rows, dtype=dtype, position=n * batch)
    row_bytes = 2 * rows_RD.element_size()
    with mock.patch.object(stream_module, "SLAB_BYTES", slab_rows * row_bytes):
        while (n + 1) * batch <= sum(blocks):
            x_BD = stream.read(batch)
            assert x_BD.dtype == rows_RD.dtype
            assert torch.equal(x_BD, rows_RD[n * batch : (n + 1) * batch])
            n += 1
            assert stream.position == n * batch
    assert source.opened == sorted(set(source.opened))  # in order, none of them twice


@CASES
@given(blocks=st.lists(st.integers(1, 9), min_size=1, max_size=4), moves=st.lists(st.integers(0, 35), max_size=8))
def test_a_stream_can_be_put_at_any_position(blocks: list[int], moves: list[int]) -> None:
    stream, _, rows_RD = make(blocks)
    for move in moves:
        position = move % sum(blocks)
        stream.position = position
        count = min(2, sum(blocks) - position)
        x_BD = stream.read(count)
        assert torch.equal(x_BD, rows_RD[position : position + count])
        x_BD.fill_(-1)  # memory of the reader's own: nothing read later may show it


class PairSource(ArraySource):
    """The chunks of the target follow those of the site; its rows are three times as wide, and minus the site's."""

    def chunk(self, index: int) -> np.ndarray[Any, Any]:
        before = len(self.layout.chunks(self.block, SITE))
        if index < before:
            return super().chunk(index)
        first, end = self.layout.chunks(self.block, TARGET)[index - before]
        start = self.layout.starts[self.block]
        return np.repeat(-self.array[start + first : start + end], 3, axis=1)


@CASES
@given(
    blocks=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    chunk_rows=st.integers(1, 40),
    slab_rows=st.integers(1, 40),
    batch=st.integers(1, 40),
    data=st.data(),
)
def test_rows_of_a_target_are_read_in_step(
    blocks: list[int], chunk_rows: int, slab_rows: int, batch: int, data: st.DataObject
) -> None:
    n = data.draw(st.integers(0, sum(blocks) // batch), label="first batch")
    _, alone, rows_RD = make(blocks, chunk_rows)
    source = PairSource(rows_RD, alone.layout)
    stream = RowStream(source, alone.layout, SITE, TARGET, position=n * batch)
    with mock.patch.object(stream_module, "SLAB_BYTES", slab_rows * 8):
        while (n + 1) * batch <= sum(blocks):
            x_BD, y_BE = stream.read_pairs(batch)
            assert torch.equal(x_BD, rows_RD[n * batch : (n + 1) * batch])
            assert torch.equal(y_BE, -x_BD.repeat_interleave(3, dim=1))
            n += 1
    assert source.opened == sorted(set(source.opened))  # each block is leased once, for both


def test_a_row_that_is_not_finite_is_named_with_its_site() -> None:
    _, alone, rows_RD = make([6, 6])
    rows_RD[8, 1] = torch.inf
    with pytest.raises(NumericError, match=rf"activations at {SITE} .* row 8 of the stream \(block 1\)"):
        RowStream(PairSource(rows_RD, alone.layout), alone.layout, SITE, TARGET).read_pairs(12)

    class FiniteSite(PairSource):
        def chunk(self, index: int) -> np.ndarray[Any, Any]:
            return np.nan_to_num(super().chunk(index)) if index < 2 else super().chunk(index)

    with pytest.raises(NumericError, match=rf"activations at {TARGET} .* row 8 of the stream \(block 1\)"):
        RowStream(FiniteSite(rows_RD, alone.layout), alone.layout, SITE, TARGET).read_pairs(12)


def test_what_is_read_does_not_depend_on_the_sizes_of_the_reads() -> None:
    for pattern in ([1], [5], [1, 7, 2], [20]):
        stream, _, rows_RD = make([11, 4, 5])
        sizes, parts = itertools.cycle(pattern), []
        while stream.position < 20:
            parts.append(stream.read(min(next(sizes), 20 - stream.position)))
        assert torch.equal(torch.cat(parts), rows_RD)


def test_bfloat16_comes_through_the_int16_view_bit_for_bit() -> None:
    layout = Layout((5,), {SITE: 3}, "bfloat16", chunk_bytes=12)
    bits = np.random.RandomState(0).randint(-(2**15), 2**15, (5, 3)).astype(np.int16)
    source = ArraySource(torch.from_numpy(bits).view(torch.bfloat16), layout)
    assert source.array.dtype == np.int16
    x_BD = RowStream(source, layout, SITE).read(5)
    assert x_BD.dtype == torch.bfloat16
    assert np.array_equal(x_BD.view(torch.int16).numpy(), bits)  # NaN patterns too


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [1, 3, 7, 12])
def test_the_reader_may_write_into_what_it_gets(dtype: str, size: int) -> None:
    warn_always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # torch warns of arrays that are not writable once a process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            stream, source, rows_RD = make([8, 4], dtype=dtype)
            before = source.array.copy()
            while stream.position < 12:
                start = stream.position
                x_BD = stream.read(min(size, 12 - start))
                assert torch.equal(x_BD, rows_RD[start : stream.position])  # earlier writes are not seen
                x_BD.fill_(-1)
            stream.position = 0
            assert torch.equal(stream.read(12), rows_RD)
            assert np.array_equal(source.array, before)
    finally:
        torch.set_warn_always(warn_always)


@pytest.mark.parametrize("batch", [1, 4, 12])
def test_a_view_is_held_only_while_it_is_copied(batch: int) -> None:
    stream, source, _ = make([7, 5], chunk_rows=4)
    kept = []
    while stream.position + batch <= 12:
        kept.append(stream.read(batch))
        assert source.views
        assert not any(view() is not None for view in source.views)


def test_a_read_takes_one_view_for_each_chunk_that_it_enters() -> None:
    stream, source, _ = make([6, 6], chunk_rows=3)
    for _ in range(12):
        stream.read(1)
    assert len(source.views) == 4
    assert source.opened == [0, 1]


def test_a_large_chunk_is_copied_in_slabs() -> None:
    with mock.patch.object(stream_module, "SLAB_BYTES", 5 * 2 * 4):
        stream, source, rows_RD = make([20], chunk_rows=20)
        assert torch.equal(stream.read(1), rows_RD[:1])
        assert stream._slabs[0].rows_Rn.shape == (5, 2)
        assert torch.equal(stream.read(19), rows_RD[1:])
        assert len(source.views) == 4


def test_blocks_without_rows_are_passed_over() -> None:
    stream, source, rows_RD = make([2, 0, 3, 0])
    assert torch.equal(stream.read(5), rows_RD)
    assert source.opened == [0, 2]


@pytest.mark.parametrize(("position", "rows"), [(0, 13), (12, 1), (10, 3), (99, 1), (-1, 1)])
def test_reading_past_the_end_is_an_index_error(position: int, rows: int) -> None:
    stream, _, _ = make([7, 5], position=position)
    with pytest.raises(IndexError):
        stream.read(rows)


def test_waiting_time_is_counted() -> None:
    stream, _, _ = make([4])
    assert stream.wait_seconds == 0
    stream.read(4)
    assert 0 < stream.wait_seconds < 10
