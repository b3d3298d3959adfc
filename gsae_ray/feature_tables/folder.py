"""The tables of one SAE's features, in a folder: three Parquet files and `about.json`, which is written last."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import NotRequired, TypedDict

from gsae_ray.errors import DamagedError, first_line
from gsae_ray.feature_tables.schema import CONTEXTS, FEATURES, TOKENS, VERSION
from gsae_ray.files import JSONFile

NAME = "about.json"
PAGE = "features.html"
"""Of a page that shows them, in the same folder."""
_REMEDY = "delete its folder and have the tables made again: gsae-ray features"


class About(TypedDict):
    """What the tables were made of."""

    version: int
    label: str
    """What people call the SAE: architecture, width, sparsity, L0."""
    site: str
    d_sae: int
    sae: str
    """Hash of its files (`saes.folder.content_hash`)."""
    heldout: str
    """Fingerprint of the held-out text."""
    rows: int
    """Held-out rows that were looked at."""
    contexts: int
    """Held-out contexts that these are of."""
    seed: int
    """Of what was drawn."""
    histogram_edges: list[float]
    """One more than there are numbers in a `histogram`."""
    position_edges: list[int]
    """One more than there are numbers in `positions`: each bin has those from its edge up to the next one."""
    logit_effects: str | None
    """How they were made, in a sentence; None where the site does not allow them."""
    asked: NotRequired[dict[str, int | None]]
    """How many pieces of text, of how many tokens, from how many rows were asked for (None: from all)."""


ABOUT = JSONFile(About, _REMEDY, sealed=True)
_SCHEMAS = {"features": FEATURES, "contexts": CONTEXTS, "tokens": TOKENS}


@dataclasses.dataclass(frozen=True)
class FeatureTables:
    """The tables of one SAE's features, with the columns of `feature_tables.schema`."""

    about: About
    features: pa.Table
    contexts: pa.Table
    tokens: pa.Table

    @functools.cached_property
    def _feature_P(self) -> npt.NDArray[np.int32]:
        """The feature of each piece, sorted."""
        column: npt.NDArray[np.int32] = self.contexts["feature"].to_numpy()
        return column

    def texts(self) -> dict[int, str]:
        """The text of each token that occurs, by its id."""
        ids, texts = (self.tokens[name].to_pylist() for name in ("token", "text"))
        return dict(zip(ids, texts, strict=True))

    def pieces(self, feature: int, features: int = 1) -> pa.Table:
        """The rows of `contexts` of a feature, or of so many from it on."""
        start, stop = np.searchsorted(self._feature_P, [feature, feature + features])
        return self.contexts.slice(start, stop - start)

    def write(self, folder: Path) -> None:
        """Writes them into a folder, which is made where it is missing.

        Raises:
            OSError: the disk is full, or nothing may be written there.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / NAME).unlink(missing_ok=True)  # what is there no longer counts
        for name, schema in _SCHEMAS.items():
            table = getattr(self, name).cast(schema).replace_schema_metadata(schema.metadata)
            pq.write_table(table, folder / f"{name}.parquet", compression="zstd")
        ABOUT.write(folder / NAME, self.about)


def read(folder: Path) -> FeatureTables | None:
    """The tables in a folder; None where there are none, or where they were not written to the end.

    Raises:
        DamagedError: a file is damaged or missing, or of another version than this one writes.
    """
    if (about := ABOUT.read(folder / NAME)) is None:
        return None
    if about["version"] != VERSION:
        raise DamagedError(f"{folder}: tables of features of version {about['version']}, not {VERSION}; {_REMEDY}")
    tables = {}
    for name, schema in _SCHEMAS.items():
        path = folder / f"{name}.parquet"
        try:
            tables[name] = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise DamagedError(f"{path}: this file is damaged ({first_line(error)}); {_REMEDY}") from error
        if not tables[name].schema.equals(schema):
            raise DamagedError(f"{path}: other columns than tables of features have; {_REMEDY}")
    return FeatureTables(about, **tables)


def are_of(folder: Path, sae: str, heldout: str) -> bool:
    """Whether a folder has tables of that SAE on that text, of this version, with all their files.

    Everything that asks whether an SAE has tables asks this. The tables are not looked through.

    Args:
        folder: where they would be.
        sae: as `About.sae`.
        heldout: as `About.heldout`.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return is_of(ABOUT.read_whole(folder / NAME), names, sae, heldout)


def is_of(about: About | None, names: Collection[str], sae: str, heldout: str) -> bool:
    """As `are_of`, of tables that lie elsewhere: what describes them, and the names of the files beside it."""
    if about is None or not {f"{name}.parquet" for name in _SCHEMAS}.issubset(names):
        return False
    return (about["version"], about["sae"], about["heldout"]) == (VERSION, sae, heldout)


def are_current(folder: Path, sae: str, heldout: str, asked: dict[str, int | None]) -> bool:
    """As `are_of`, and whether they are as they were asked for: `asked` as `About.asked`."""
    if not are_of(folder, sae, heldout):
        return False
    about = ABOUT.read_whole(folder / NAME)
    return about is not None and about.get("asked") == asked
