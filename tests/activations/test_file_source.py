"""Activations on disk as a source: every row once, in the order of the seed, and of what was collected, bit for bit."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from row_files import CONTEXT, SITE, N, random_rows, write_cache, write_safetensors
from torch import Tensor

from gsae_ray.activation_files.find import find_files
from gsae_ray.activation_files.held_out import held_out_by_hash
from gsae_ray.activation_files.opened import ForeignFiles
from gsae_ray.activations.file_source import FileRows, FileSource, FileSpec
from gsae_ray.activations.layout import Layout
from gsae_ray.activations.producer import Producer, ProducerSpec
from gsae_ray.errors import UserError
from gsae_ray.language_model.source import HeldOutRows

ROWS, BLOCK = 1000, 300


def numbered(rows: int = ROWS) -> Tensor:
    """Rows whose first coordinate is their number."""
    x_Rn = random_rows(rows)
    x_Rn[:, 0] = torch.arange(rows)
    return x_Rn


def spec_of(path: Path, blocks: tuple[int, ...], group_column: str | None = None, **changes: Any) -> FileSpec:
    """`changes`: of its `FileRows`."""
    format_, files = find_files(str(path), None, "activations.path")
    train = ForeignFiles(format_, tuple(files), None, group_column, 7, skip_positions=1, key="activations.path")
    rows = FileRows(
        train=train,
        heldout=None,
        fraction=0.2,
        sites=(SITE,),
        seed=0,
        as_they_lie=False,
        drawn=False,
        heldout_tokens=50,
    )
    return FileSpec(
        rows=dataclasses.replace(rows, **changes),
        blocks=blocks,
        collected=None,
        max_norm=None,
        gpus=0,
        spliced=None,
        sizes={str(file): file.stat().st_size for file in files if file.is_file()},
    )


def rows_a_pass(source: FileSource) -> int:
    return source.rows.order(()).rows_a_pass


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for number, rows in enumerate(numbered().split(333)):
        write_safetensors(tmp_path / f"{number}.safetensors", rows)
    return tmp_path


def read(source: FileSource, block: int) -> list[int]:
    """The numbers of a block's rows."""
    batches = [batch.rows[SITE][:, 0].long() for batch in source.block(block, [SITE])]
    return torch.cat(batches).tolist()


def held_out(source: FileSource) -> tuple[list[int], list[int]]:
    """Numbers of the held-out rows, and the groups that they are of."""
    heldout = source.heldout()
    assert isinstance(heldout, HeldOutRows)
    batches = list(heldout.batches(SITE))
    assert {int(group) for _, group_R in batches for group in group_R} == set(range(heldout.groups))
    return (
        torch.cat([x_Rn[:, 0].long() for x_Rn, _ in batches]).tolist(),
        torch.cat([group_R for _, group_R in batches]).tolist(),
    )


def test_a_pass_has_every_row_once_but_those_that_are_held_out(files: Path) -> None:
    a_pass = rows_a_pass(spec_of(files, (1,)).open())
    assert 700 < a_pass < 900
    source = spec_of(files, (BLOCK, BLOCK, a_pass - 2 * BLOCK), heldout_tokens=ROWS).open()
    rows = [read(source, block) for block in range(3)]
    assert [len(block) for block in rows] == [BLOCK, BLOCK, a_pass - 2 * BLOCK]
    apart, groups = held_out(source)
    assert sorted([*sum(rows, []), *apart]) == list(range(ROWS))
    assert len(apart) == source.rows.evaluated_rows == ROWS - a_pass
    for number, group in zip(apart, groups, strict=True):
        same_group = [other for other, of in zip(apart, groups, strict=True) if of == group]
        file = number // 333
        start = file * 333 + (number - file * 333) // 7 * 7
        assert same_group == list(range(start, min(start + 7, (file + 1) * 333, ROWS)))


def test_groups_are_shuffled_over_all_files_by_the_seed(files: Path) -> None:
    blocks = [read(spec_of(files, (BLOCK, BLOCK), seed=seed).open(), 0) for seed in (0, 0, 1)]
    assert blocks[0] == blocks[1] != blocks[2]
    for block in blocks:
        assert block == sorted(block), "files are read from their beginning to their end"
        assert min(np.bincount(np.array(block) // 333, minlength=3)) > 50, "rows of all files in every block"
    held = {tuple(held_out(spec_of(files, (BLOCK,), seed=seed).open())[0]) for seed in (0, 1)}
    assert len(held) == 1, "held-out rows do not depend on the seed"


def test_the_producer_permutes_a_block_by_seed_and_block(files: Path) -> None:
    layout = Layout((BLOCK, BLOCK), {SITE: N}, "float32", chunk_bytes=100 * N * 4)
    producer = Producer(ProducerSpec(spec_of(files, layout.rows), layout, seed=0, threads=1))
    statistics, chunks = producer.produce(0, [SITE])
    order = np.random.RandomState([0, 0]).permutation(BLOCK)
    found = np.concatenate(chunks)[order]
    assert found[:, 0].tolist() == read(spec_of(files, layout.rows).open(), 0)
    assert torch.equal(torch.from_numpy(found), numbered()[found[:, 0]])
    assert statistics[SITE].mean == pytest.approx(found.mean(0), rel=1e-5)


def test_further_passes_have_other_orders(files: Path) -> None:
    a_pass = rows_a_pass(spec_of(files, (1,)).open())
    source = spec_of(files, (a_pass, a_pass, a_pass // 2, a_pass)).open()
    rows = [read(source, block) for block in range(4)]
    assert rows[0] == rows[1] == sorted(set(rows[0])), "each a whole pass"
    assert len(set(rows[2])) == a_pass // 2
    twice = np.bincount(rows[3], minlength=ROWS)
    assert twice.max() == 2 and twice.sum() == a_pass, "half of one pass and half of the next"


def test_groups_with_one_key_are_held_out_together(tmp_path: Path) -> None:
    keys = torch.arange(ROWS) // 5 % 40
    write_safetensors(tmp_path / "a.safetensors", numbered(), image=keys)
    options: Any = {"group_column": "image", "heldout_tokens": ROWS}
    source = spec_of(tmp_path, (BLOCK,), **options).open()
    apart, groups = held_out(source)
    trained = read(spec_of(tmp_path, (rows_a_pass(source),), **options).open(), 0)
    assert {int(keys[row]) for row in apart}.isdisjoint(int(keys[row]) for row in trained)
    assert len(apart) + len(trained) == ROWS and len(set(groups)) == len({int(keys[row]) for row in apart})
    assert all(int(keys[a]) == int(keys[b]) for a, g in zip(apart, groups) for b, h in zip(apart, groups) if g == h)  # noqa: B905


def test_the_held_out_share_is_as_large_as_was_asked_for() -> None:
    share = held_out_by_hash(np.arange(100_000), 0.01).mean()
    assert share == pytest.approx(0.01, abs=0.001)
    assert (held_out_by_hash(np.arange(1000), 0.2) <= held_out_by_hash(np.arange(1000), 0.5)).all()


def test_held_out_files_may_stand_apart(files: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    apart_path = tmp_path_factory.mktemp("apart")
    write_safetensors(apart_path / "h.safetensors", numbered(400)[300:])
    other = spec_of(apart_path, (1,)).rows.train
    source = spec_of(files, (ROWS,), heldout=other).open()
    assert read(source, 0) == list(range(ROWS))
    apart, groups = held_out(source)
    assert len(apart) >= 50 and all(300 <= number < 400 for number in apart) and len(set(groups)) == 8
    assert apart == held_out(spec_of(files, (10,), heldout=other, seed=5).open())[0]


def test_contexts_of_saelens_are_groups_without_their_first_positions(tmp_path: Path) -> None:
    x_CTn = numbered(100 * CONTEXT).reshape(100, CONTEXT, N)
    folder = write_cache(tmp_path / "cache", x_CTn)
    source = spec_of(folder, (200,), heldout_tokens=10**6).open()
    rows = read(source, 0)
    assert all(number % CONTEXT for number in rows)
    apart, groups = held_out(source)
    assert all(np.bincount(groups) == CONTEXT - 1) and not set(rows) & set(apart)
    (batch,) = source.block(0, [SITE])
    assert batch.position_R.tolist() == [number % CONTEXT for number in rows]


def test_files_that_are_gone_or_have_changed_are_told_of(files: Path) -> None:
    spec = spec_of(files, (BLOCK,))
    write_safetensors(files / "1.safetensors", numbered(10))
    with pytest.raises(UserError, match="1.safetensors has changed while the sweep began"):
        spec.open()
    (files / "0.safetensors").unlink()
    with pytest.raises(UserError, match="0.safetensors is not there; producers need the files on their nodes"):
        spec.open()


def test_what_is_open_does_not_travel(files: Path) -> None:
    spec = spec_of(files, (BLOCK,))
    expected = read(spec.open(), 0)
    sent = pickle.dumps(spec)
    assert len(sent) < 3000 and read(pickle.loads(sent).open(), 0) == expected
