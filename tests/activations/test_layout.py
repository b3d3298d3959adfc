"""The row stream's geometry covers every row once, whatever the sizes."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gsae_ray.activations.layout import DTYPE_BYTES, Layout

layouts = st.builds(
    Layout,
    rows=st.lists(st.integers(0, 300), min_size=1, max_size=12).map(tuple),
    widths=st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(1, 100), min_size=1),
    dtype=st.sampled_from(sorted(DTYPE_BYTES)),
    chunk_bytes=st.integers(1, 20_000),
)


def test_bytes_of_a_number_are_torchs() -> None:
    assert {name: getattr(torch, name).itemsize for name in DTYPE_BYTES} == DTYPE_BYTES


@given(layouts)
def test_every_row_of_the_stream_is_in_exactly_one_block(layout: Layout) -> None:
    owners = [block for block, rows in enumerate(layout.rows) for _ in range(rows)]
    assert layout.starts[0] == 0 and layout.starts[-1] == len(owners)
    assert [b - a for a, b in itertools.pairwise(layout.starts)] == list(layout.rows)
    assert [layout.block_of(row) for row in range(len(owners))] == owners


@given(layouts)
def test_a_row_outside_the_stream_is_refused(layout: Layout) -> None:
    for row in (-1, layout.starts[-1], layout.starts[-1] + 7):
        with pytest.raises(IndexError, match=f"row {row} of a stream of {layout.starts[-1]} rows"):
            layout.block_of(row)


@given(layouts, st.data())
def test_blocks_for_is_the_shortest_prefix_that_holds_the_rows(layout: Layout, data: st.DataObject) -> None:
    needed = data.draw(st.integers(0, layout.starts[-1]))
    blocks = layout.blocks_for(needed)
    assert sum(layout.rows[:blocks]) >= needed
    assert blocks == 0 or sum(layout.rows[: blocks - 1]) < needed


@given(layouts)
def test_chunks_cover_a_block_exactly_in_order_and_stay_within_their_size(layout: Layout) -> None:
    for (block, rows), (site, width) in itertools.product(enumerate(layout.rows), layout.widths.items()):
        chunks = layout.chunks(block, site)
        assert [row for start, end in chunks for row in range(start, end)] == list(range(rows))
        sizes = [end - start for start, end in chunks]
        assert all(size * width * DTYPE_BYTES[layout.dtype] <= layout.chunk_bytes or size == 1 for size in sizes)
        assert len(set(sizes[:-1])) <= 1 and all(size >= sizes[-1] for size in sizes)  # only the last is shorter


@given(layouts)
def test_bytes_of_a_block_are_the_bytes_of_its_chunks(layout: Layout) -> None:
    for block in range(len(layout.rows)):
        of_sites = {
            site: sum((end - start) * width for start, end in layout.chunks(block, site)) * DTYPE_BYTES[layout.dtype]
            for site, width in layout.widths.items()
        }
        assert {site: layout.nbytes(block, (site,)) for site in of_sites} == of_sites
        assert layout.nbytes(block, tuple(of_sites)) == sum(of_sites.values())
        assert layout.nbytes(block, ()) == 0


@given(layouts, st.integers(0, 300))
def test_further_blocks_leave_the_first_ones_as_they_are(layout: Layout, rows: int) -> None:
    longer = dataclasses.replace(layout, rows=(*layout.rows, rows))
    assert longer.starts[:-1] == layout.starts
    assert all(longer.chunks(b, s) == layout.chunks(b, s) for b in range(len(layout.rows)) for s in layout.widths)
    assert all(longer.block_of(row) == layout.block_of(row) for row in range(layout.starts[-1]))
