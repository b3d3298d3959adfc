"""Tables of features come back as they were written, and what is damaged or half-written is told apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from random_feature_tables import random_tables

from gsae_ray import feature_tables
from gsae_ray.errors import DamagedError
from gsae_ray.feature_tables.schema import CONTEXTS, FEATURES, TOKENS


def test_tables_come_back_as_they_were_written(tmp_path: Path) -> None:
    tables = random_tables(d_sae=12)
    tables.write(tmp_path / "features")
    back = feature_tables.read(tmp_path / "features")
    assert back is not None and back.about == tables.about
    assert back.features.equals(tables.features) and back.contexts.equals(tables.contexts)
    assert back.texts() == tables.texts()


def test_what_was_not_written_to_the_end_is_not_there(tmp_path: Path) -> None:
    assert feature_tables.read(tmp_path / "none") is None
    random_tables(d_sae=3).write(tmp_path)
    (tmp_path / "about.json").unlink()
    assert feature_tables.read(tmp_path) is None


@pytest.mark.parametrize("name", ["features", "contexts", "tokens"])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path, name: str) -> None:
    random_tables(d_sae=3).write(tmp_path)
    (tmp_path / f"{name}.parquet").write_bytes(b"PAR1")
    with pytest.raises(DamagedError, match=rf"{name}\.parquet: this file is damaged .*gsae-ray features"):
        feature_tables.read(tmp_path)


def test_other_columns_and_versions_are_refused(tmp_path: Path) -> None:
    tables = random_tables(d_sae=3)
    tables.write(tmp_path)
    (tmp_path / "contexts.parquet").write_bytes((tmp_path / "tokens.parquet").read_bytes())
    with pytest.raises(DamagedError, match="other columns"):
        feature_tables.read(tmp_path)
    tables.about["version"] += 1
    tables.write(tmp_path)
    with pytest.raises(DamagedError, match="of version 4, not 3"):
        feature_tables.read(tmp_path)


def test_pieces_are_those_of_a_feature_or_of_some_in_a_row() -> None:
    tables = random_tables(d_sae=6, contexts=4)
    assert tables.pieces(0).num_rows == 0, "it never fires"
    assert tables.pieces(3)["feature"].to_pylist() == [3] * 4
    assert tables.pieces(4, 100)["feature"].to_pylist() == [4] * 4 + [5] * 4


def test_every_column_says_what_it_means() -> None:
    for schema in (FEATURES, CONTEXTS, TOKENS):
        assert all(field.metadata[b"meaning"] for field in schema)
