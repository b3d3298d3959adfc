"""Files are made ready for producers once: looked through, Parquet unpacked, what was collected compared."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from row_files import SITE, N, random_rows, write_parquet, write_safetensors

from gsae_ray.activation_files import ready
from gsae_ray.activation_files.find import find_files
from gsae_ray.activation_files.opened import ForeignFiles
from gsae_ray.activation_files.ready import Ready, ready_foreign
from gsae_ray.errors import UserError

KEY = "activations.path"


def foreign(path: Path, column: str | None = None, group_column: str | None = None) -> ForeignFiles:
    format_, files = find_files(str(path), None, KEY)
    return ForeignFiles(format_, tuple(files), column, group_column, 7, skip_positions=1, key=KEY)


def made_ready(files: ForeignFiles, kept_in: Path) -> Ready:
    return ready_foreign(files, [SITE], kept_in, lambda *_: None)


def test_parquet_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x_Rn = random_rows(100)
    for number, rows in enumerate(x_Rn.split(60)):
        write_parquet(tmp_path / f"in/{number}.parquet", rows, doc=[f"d{row // 10}" for row in range(len(rows))])
    files = foreign(tmp_path / "in", "acts", "doc")
    monkeypatch.setattr("gsae_ray.activation_files.parquet_files.PART_BYTES", 30 * N * 4)
    first = made_ready(files, tmp_path / "kept")
    found = first.files.open([SITE])
    assert torch.equal(found.tables[SITE].take(torch.arange(100).numpy()), x_Rn)
    assert found.groups.rows_G.tolist() == [10] * 10 and len(first.hashes) == 2
    (unpacked,) = (tmp_path / "kept").glob("rows-*")
    parts = sorted(unpacked.glob("*.safetensors"))
    assert len(parts) > 1 and set(first.sizes) == {str(path) for path in parts}

    with monkeypatch.context() as patch:
        patch.setattr(ready, "unpack", lambda *_: pytest.fail("unpacked again"))
        assert made_ready(files, tmp_path / "kept").hashes == first.hashes
    parts[0].write_bytes(parts[0].read_bytes()[:-4] + b"oops")
    again = made_ready(files, tmp_path / "kept").files.open([SITE])
    assert torch.equal(again.tables[SITE].take(torch.arange(100).numpy()), x_Rn)
    assert {path.name for path in (tmp_path / "kept").glob("*-*")} == {unpacked.name}, "nothing is left of the attempt"

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match="Parquet is unpacked to storage, which takes 0.00 GiB"):
        made_ready(foreign(tmp_path / "in", "acts"), tmp_path / "kept")


def test_parquet_that_is_not_finite_is_not_unpacked(tmp_path: Path) -> None:
    x_Rn = random_rows(100)
    x_Rn[77, 3] = torch.nan
    write_parquet(tmp_path / "in/a.parquet", x_Rn[:50])
    write_parquet(tmp_path / "in/b.parquet", x_Rn[50:])
    with pytest.raises(UserError, match="row 27 of b.parquet is not finite"):
        made_ready(foreign(tmp_path / "in", "acts"), tmp_path / "kept")
    assert not [*(tmp_path / "kept").glob("*-*")]


def test_hashes_tell_contents_and_their_order_not_names(tmp_path: Path) -> None:
    a, b = random_rows(10, 1), random_rows(10, 2)
    for folder, (first, second) in {"x": (a, b), "y": (a, b), "z": (b, a)}.items():
        name = "part" if folder == "x" else "other"
        write_safetensors(tmp_path / folder / f"{name}-0.safetensors", first)
        write_safetensors(tmp_path / folder / f"{name}-1.safetensors", second)
    x, y, z = (made_ready(foreign(tmp_path / folder), tmp_path / "kept").hashes for folder in "xyz")
    assert x == y == tuple(reversed(z)) and x != z
