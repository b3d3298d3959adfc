"""Rows of others' files are read as they were written, and what is wrong with them is said in one line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from row_files import CONTEXT, SITE, N, random_rows, write_cache, write_parquet, write_safetensors
from safetensors.torch import save_file
from torch import Tensor

from gsae_ray.activation_files.find import Format, collected_folder, find_files
from gsae_ray.activation_files.opened import ForeignFiles, OpenRows
from gsae_ray.activation_files.parquet_files import parquet_column, row_count, unpack, width_and_dtype
from gsae_ray.activation_files.scan import scan
from gsae_ray.errors import UserError

KEY = "activations.path"


def opened(path: Path | str, format_: Format | None = None, sites: Sequence[str] = (SITE,), **options: Any) -> OpenRows:
    found, files = find_files(str(path), format_, KEY)
    settings = {"column": None, "group_column": None, "group_rows": 7, "skip_positions": 1, **options}
    if found == "parquet":
        folder = Path(files[0]).parent / "unpacked"
        folder.mkdir(exist_ok=True)
        settings["column"] = parquet_column(files, sites[0], settings["column"], KEY)
        unpack(files, settings["column"], settings["group_column"], folder, KEY, lambda _: None)
        settings["unpacked"] = folder
    return ForeignFiles(found, tuple(files), key=KEY, **settings).open(sites)


def rows_of(found: OpenRows, site: str = SITE) -> Tensor:
    """All rows, group after group."""
    return found.tables[site].take(found.groups.locate(np.arange(len(found.groups.rows_G))).index_R)


def complaint(path: Path | str, format_: Format | None = None, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        opened(path, format_, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_safetensors_files_are_one_table(tmp_path: Path, dtype: torch.dtype) -> None:
    x_Rn = random_rows(100, dtype=dtype)
    for number, rows in enumerate(x_Rn.split([40, 0, 33, 27])):
        write_safetensors(tmp_path / f"deep/part-{number}.safetensors", rows, ids=torch.arange(len(rows)))
    found = opened(tmp_path)
    expected = x_Rn.float() if dtype == torch.float64 else x_Rn
    assert torch.equal(rows_of(found), expected) and found.dtype == str(expected.dtype).removeprefix("torch.")
    table = found.tables[SITE]
    assert table.width == N and len(table) == 100
    some = np.array([0, 3, 39, 40, 72, 73, 99])
    assert torch.equal(table.take(some), expected[some])
    assert found.groups.rows_G.tolist() == [7] * 5 + [5] + [7] * 4 + [5] + [7] * 3 + [6], "none spans two files"
    for pattern in ("deep/*.safetensors", "**/part-*", "deep/part-[0123].safetensors"):
        assert len(opened(f"{tmp_path}/{pattern}").tables[SITE]) == 100
    assert len(opened(tmp_path / "deep/part-2.safetensors").tables[SITE]) == 33


def test_nothing_of_a_table_is_in_memory_until_it_is_asked_for(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "large.safetensors", torch.zeros(2**20, N))  # 48 MiB

    def anonymous_kib() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])

    before = anonymous_kib()
    table = opened(tmp_path).tables[SITE]
    for start in range(0, 2**20, 2**16):
        table.take(np.arange(start, start + 2**16))
    assert anonymous_kib() - before < 24 * 1024


def test_tensors_are_told_by_name_or_by_being_the_only_one(tmp_path: Path) -> None:
    a, b = random_rows(20, 1), random_rows(20, 2)
    save_file(
        {"a": a, "b": b, SITE: a.clone(), "blocks.2.hook_resid_post": b.clone(), "n": torch.zeros(3)},
        tmp_path / "x.safetensors",
    )
    assert torch.equal(rows_of(opened(tmp_path)), a)
    assert torch.equal(rows_of(opened(tmp_path, column="b")), b)
    both = opened(tmp_path, sites=[SITE, "blocks.2.hook_resid_post"])
    assert torch.equal(rows_of(both, "blocks.2.hook_resid_post"), b)
    assert "it has 4 (a, b, blocks.1.hook_resid_post" in complaint(tmp_path, sites=["blocks.3.hook_resid_post"])
    assert "did you mean 'b'" in complaint(tmp_path, column="bb") and "'n' is no 2-D" in complaint(tmp_path, column="n")
    assert "and so on for all 2 sites" in complaint(tmp_path, sites=[SITE, "blocks.3.hook_resid_post"])


def test_groups_may_stand_beside_the_rows(tmp_path: Path) -> None:
    keys = torch.tensor([5, 5, 5, 2, 2, 9, 5, 5])
    write_safetensors(tmp_path / "a.safetensors", random_rows(8), doc=keys[:], wide=random_rows(8)[:, 0].contiguous())
    found = opened(tmp_path, group_column="doc")
    assert found.groups.rows_G.tolist() == [3, 2, 1, 2] and found.groups.key_G.tolist() == [5, 2, 9, 5]
    assert found.groups.locate(np.array([2, 0])).index_R.tolist() == [5, 0, 1, 2]
    assert "no tensor 'docs'" in complaint(tmp_path, group_column="docs")
    assert "not one whole number a row" in complaint(tmp_path, group_column="wide")


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_parquet_files_are_one_table(tmp_path: Path, fixed: bool, dtype: torch.dtype) -> None:
    x_Rn = random_rows(100, dtype=dtype)
    documents = [f"document {row // 9}" for row in range(100)]
    for number, rows in enumerate((slice(0, 64), slice(64, 64), slice(64, 100))):
        write_parquet(tmp_path / f"{number}.parquet", x_Rn[rows], fixed, row_group=25, doc=documents[rows])
    expected = x_Rn.float() if dtype == torch.float64 else x_Rn
    found = opened(tmp_path, "parquet", group_column="doc")
    assert torch.equal(rows_of(found), expected) and found.groups.rows_G.tolist() == [9] * 11 + [1]
    assert len(set(found.groups.key_G)) == 12
    assert opened(tmp_path, "parquet").groups.rows_G.tolist() == [7] * 14 + [2]
    files = find_files(str(tmp_path), "parquet", KEY)[1]
    assert row_count(files, KEY) == 100
    assert width_and_dtype(files, "acts", KEY) == (N, str(expected.dtype).removeprefix("torch."))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_cache_of_saelens_is_contexts(tmp_path: Path, dtype: torch.dtype) -> None:
    x_CTn = random_rows(23 * CONTEXT, dtype=dtype).reshape(23, CONTEXT, N)
    folder = write_cache(tmp_path / "cache", x_CTn)
    (folder / "cache-0123.arrow").write_bytes(b"what `Dataset.shuffle` leaves")
    found = opened(folder, skip_positions=2)
    assert torch.equal(rows_of(found), x_CTn[:, 2:].flatten(0, 1)) and found.groups.rows_G.tolist() == [8] * 23
    located = found.groups.locate(np.array([3]))
    assert located.index_R.tolist() == [*range(32, 40)] and located.position_R.tolist() == [*range(2, 10)]
    tokens = found.tokens()
    assert tokens is not None and np.array_equal(tokens, np.arange(230).reshape(23, 10))
    assert opened(write_cache(tmp_path / "bare", x_CTn, tokens=False)).tokens() is None
    assert "of the hook 'blocks.1.hook_resid_post', and" in complaint(folder, sites=["blocks.2.hook_resid_post"])
    renamed = opened(folder, sites=["blocks.2.hook_resid_post"], column=SITE)
    assert torch.equal(rows_of(renamed, "blocks.2.hook_resid_post"), x_CTn[:, 1:].flatten(0, 1))
    assert "is no column of activations" in complaint(folder, column="token_ids")
    assert "leaves nothing of contexts of 10" in complaint(folder, skip_positions=10)


def test_what_is_not_there_or_damaged_is_one_line(tmp_path: Path) -> None:
    assert "no file of activations" in complaint(tmp_path / "none") and "no .parquet file" in complaint(
        tmp_path, "parquet"
    )
    (tmp_path / "a.safetensors").write_bytes(b"\x10")
    assert "cannot be read as safetensors" in complaint(tmp_path)
    (tmp_path / "b.parquet").write_bytes(b"\x10")
    assert "several formats; say which: activations.format: safetensors or parquet" in complaint(tmp_path)
    assert "cannot be read as Parquet" in complaint(tmp_path, "parquet")
    assert "no folder that SAELens" in complaint(tmp_path, "saelens")
    folder = write_cache(tmp_path / "cache", random_rows(40).reshape(4, CONTEXT, N))
    arrow, state = sorted(folder.glob("*.arrow"))[1], folder / "state.json"
    whole = arrow.read_bytes()
    for damage in (b"", whole[:100], b"x" * len(whole)):
        arrow.write_bytes(damage)
        assert "cannot be read as Arrow" in complaint(folder)
    arrow.unlink()
    assert "cannot be read as Arrow" in complaint(folder)
    state.write_text(json.dumps({"files": []}))
    assert "is not as `save_to_disk` writes it" in complaint(folder)
    (folder / "dataset_info.json").unlink()
    assert "dataset_info.json is missing" in complaint(folder)
    (tmp_path / "acts.unfinished").mkdir()
    with pytest.raises(UserError, match="is not finished .*the same `gsae-ray collect` goes on"):
        collected_folder(str(tmp_path / "acts"), KEY)


def test_rows_of_several_widths_or_dtypes_are_refused(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "s/a.safetensors", random_rows(5))
    write_safetensors(tmp_path / "s/b.safetensors", random_rows(5)[:, :8])
    assert "rows are 12 wide in a.safetensors, 8 wide in b.safetensors; give files of one width" in complaint(
        tmp_path / "s"
    )
    write_safetensors(tmp_path / "s/b.safetensors", random_rows(5).half())
    assert "rows are float32 in a.safetensors, float16 in b.safetensors; give files of one dtype" in complaint(
        tmp_path / "s"
    )
    write_safetensors(tmp_path / "e/a.safetensors", random_rows(0))
    assert "there are no rows" in complaint(tmp_path / "e")
    write_safetensors(tmp_path / "e/a.safetensors", random_rows(5)[:, :0])
    assert "rows are 0 wide in a.safetensors" in complaint(tmp_path / "e")
    write_parquet(tmp_path / "p/a.parquet", random_rows(5))
    write_parquet(tmp_path / "p/b.parquet", random_rows(5)[:, :8])
    assert "12 wide in float32 at first, 8 in float32 in b.parquet" in complaint(tmp_path / "p")
    ragged = {"acts": pa.array([[1.0, 2.0], [1.0]], type=pa.list_(pa.float32()))}
    pa.parquet.write_table(pa.table(ragged), tmp_path / "p/a.parquet")
    assert "row 1 of a.parquet has 1 numbers, those before it 2" in complaint(tmp_path / "p/a.parquet")
    missing = {"acts": pa.array([[1.0, None], [1.0, 2.0]], type=pa.list_(pa.float32()))}
    pa.parquet.write_table(pa.table(missing), tmp_path / "p/a.parquet")
    assert "missing, or a number in it" in complaint(tmp_path / "p/a.parquet")
    empty = {"acts": pa.array([[], []], type=pa.list_(pa.float32()))}
    pa.parquet.write_table(pa.table(empty), tmp_path / "p/a.parquet")
    assert "rows are 0 wide in a.parquet" in complaint(tmp_path / "p/a.parquet")
    pa.parquet.write_table(pa.table({"text": ["a"], "ids": [[1]]}), tmp_path / "p/a.parquet")
    assert "one column of lists of floats; it has text, ids" in complaint(tmp_path / "p/a.parquet")
    assert "'ids' is list<" in complaint(tmp_path / "p/a.parquet", column="ids")
    write_parquet(tmp_path / "p/a.parquet", random_rows(5), doc=["a"] * 5)
    assert "'docs' is not there" in complaint(tmp_path / "p/a.parquet", group_column="docs")
    # pandas makes floats of whole numbers where one is missing, which then have other hashes
    write_parquet(tmp_path / "p/a.parquet", random_rows(5), doc=[1, 1, None, 2, 2])
    assert "'doc' of a row of a.parquet is missing (null)" in complaint(tmp_path / "p/a.parquet", group_column="doc")


@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_that_are_not_finite_are_named(tmp_path: Path, dtype: torch.dtype, bad: float) -> None:
    largest = torch.full((30, N), torch.finfo(dtype).max).to(dtype)
    write_safetensors(tmp_path / "a.safetensors", largest)
    rows = random_rows(30, dtype=dtype)
    rows[17, 3] = bad
    write_safetensors(tmp_path / "b.safetensors", rows)
    files = sorted(tmp_path.glob("*.safetensors"))
    with pytest.raises(UserError, match=f"{KEY}: row 17 of b.safetensors is not finite .* of {SITE}"):
        scan(files, opened(tmp_path).tables, KEY, tmp_path / "kept", lambda *_: None)
    scan(files[:1], opened(files[0]).tables, KEY, tmp_path / "kept", lambda *_: None)


def test_float64_that_float32_cannot_hold_is_not_finite(tmp_path: Path) -> None:
    rows = random_rows(30, dtype=torch.float64)
    rows[17, 3] = -1e200
    tables = opened(write_safetensors(tmp_path / "b.safetensors", rows)).tables
    with pytest.raises(UserError, match="row 17 of b.safetensors is not finite .*too large for float32"):
        scan([tmp_path / "b.safetensors"], tables, KEY, tmp_path / "kept", lambda *_: None)
    assert "row 17 of b.parquet is not finite" in complaint(write_parquet(tmp_path / "b.parquet", rows))


def test_another_column_of_the_same_files_is_looked_at_too(tmp_path: Path) -> None:
    clean, bad = random_rows(30), random_rows(30)
    bad[7, 3] = torch.nan
    path = write_safetensors(tmp_path / "a.safetensors", clean, bad=bad)
    scan([path], opened(path, column="acts").tables, KEY, tmp_path / "kept", lambda *_: None)
    with pytest.raises(UserError, match="row 7 of a.safetensors is not finite"):
        scan([path], opened(path, column="bad").tables, KEY, tmp_path / "kept", lambda *_: None)


def test_a_file_with_brackets_in_its_name_is_no_glob(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "f[5]/a.safetensors", random_rows(30))
    assert len(opened(path).tables[SITE]) == 30


def test_files_are_looked_at_once_until_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_safetensors(tmp_path / "a.safetensors", random_rows(30))

    def look(site: str = SITE) -> dict[Path, str]:
        tables = {site: opened(path).tables[SITE]}
        return scan([path], tables, KEY, tmp_path / "kept", lambda *_: None)

    first = look()
    with monkeypatch.context() as patch:
        patch.setattr("gsae_ray.activation_files.scan._hashes", lambda *_: pytest.fail("looked at again"))
        assert look() == first
    write_safetensors(path, random_rows(30, seed=1))
    assert look().keys() == first.keys() and look() != first
