"""Which features of an SAE the other SAEs of its site have, as two Parquet files beside the dashboards."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from gsae_ray import saes
from gsae_ray.feature_tables.schema import described
from gsae_ray.features.chosen import AtHand, Chosen, choose_saes
from gsae_ray.features.matching import Matches, Survival, matches, survival
from gsae_ray.names import folder_name

VERSION = 1
"""Of these files; a change of what a column means raises it."""
SURVIVAL_FILE, MATCHES_FILE = "survival.parquet", "matches.parquet"
_PAIR = {
    "site": (pa.string(), "where both SAEs are"),
    "trial": (pa.string(), "the SAE whose features are looked for"),
    "other": (pa.string(), "the SAE in which they are looked for"),
}
SURVIVAL = described(
    {
        **_PAIR,
        "features": (pa.int64(), "features of the SAE that fire on held-out text, and so are looked for"),
        "mean": (pa.float64(), "of their largest cosines with a feature of the other that fires; null where none does"),
        "low": (pa.float64(), "the lower end of its 95 % bootstrap interval over features"),
        "high": (pa.float64(), "the upper end"),
    },
    {"gsae_ray.survival": str(VERSION)},
)
"""One row for each two SAEs of a site and each direction."""
MATCHES = described(
    {
        **_PAIR,
        "feature": (pa.int32(), "number of the feature: its row of W_dec"),
        "match": (pa.int32(), "the feature of the other SAE whose decoder row has the largest cosine with its own"),
        "cosine": (pa.float32(), "that cosine"),
    },
    {"gsae_ray.survival": str(VERSION)},
)
"""One row for each of these features and each other SAE of the site."""


@dataclasses.dataclass(frozen=True)
class Known:
    """What all of a site's pages take of one of its SAEs."""

    row: pd.Series[Any]
    label: str
    folder: str
    alive: npt.NDArray[np.bool_]

    @property
    def trial(self) -> str:
        return str(self.row["trial"])


class Compared:
    """What was found, read back from the files, so that no more is in memory than one SAE's page takes."""

    def __init__(self, files: Path, groups: Mapping[tuple[str, int, int], int], found: Mapping[Any, Survival]) -> None:
        self._file, self._groups, self._survival = pq.ParquetFile(files / MATCHES_FILE), groups, found

    def survival(self, site: str, a: int, b: int) -> Survival | None:
        """How much of the features of a site's SAE number `a` its SAE number `b` has."""
        return self._survival.get((site, a, b))

    def matches(self, site: str, a: int, b: int, width: int) -> Matches:
        """The nearest features of SAE `a`, which has `width`, in SAE `b`."""
        table = self._file.read_row_group(self._groups[site, a, b], ["feature", "match", "cosine"])
        feature, match, cosine = (table[name].to_numpy() for name in table.column_names)
        found = Matches(np.full(width, -1), np.zeros(width, np.float32))
        found.feature[feature], found.cosine[feature] = match, cosine
        return found


def known_of(chosen: Chosen, at_hand: AtHand) -> dict[str, list[Known]]:
    """The SAEs of each site.

    Raises:
        UserError: one has no tables of features, or they cannot be had.
    """
    return {
        str(site): _told_apart([_known(at_hand, row) for _, row in rows.iterrows()])
        for site, rows in chosen.rows.groupby("site")
    }


def _known(at_hand: AtHand, row: pd.Series[Any]) -> Known:
    tables = at_hand.tables(row)
    alive = tables.features["fired"].to_numpy() > 0
    return Known(row, tables.about["label"], folder_name(str(row["trial"])), alive)


def _told_apart(known: list[Known]) -> list[Known]:
    """SAEs of one label, as seeds may be, are called by their trials."""
    counts = Counter(sae.label for sae in known)
    return [s if counts[s.label] == 1 else dataclasses.replace(s, label=s.trial) for s in known]


def compare(
    sites: Mapping[str, Sequence[Known]], at_hand: AtHand, folder: Path, say: Callable[[str], None]
) -> Compared:
    """Compares each two SAEs of each site, and writes both files; two decoders are in memory at a time.

    Args:
        sites: their SAEs.
        at_hand: where these are.
        folder: to write to.
        say: is told what is done.

    Raises:
        UserError: an SAE cannot be had.
    """
    groups: dict[tuple[str, int, int], int] = {}
    found: dict[tuple[str, int, int], Survival] = {}
    pairs: list[dict[str, Any]] = []
    with pq.ParquetWriter(folder / MATCHES_FILE, MATCHES, compression="zstd") as writer:
        for site, known in sites.items():
            if len(known) > 1:
                say(f"comparing the features of {len(known)} SAEs at {site}")
            for a, first in enumerate(known[:-1]):
                a_FD = _decoder(at_hand, first)
                for b, second in enumerate(known[a + 1 :], start=a + 1):
                    both = matches(a_FD, _decoder(at_hand, second), first.alive, second.alive)
                    for one, other, here in ((a, b, both[0]), (b, a, both[1])):
                        pair = {"site": site, "trial": known[one].trial, "other": known[other].trial}
                        groups[site, one, other] = len(groups)
                        table = _table(pair, here)
                        writer.write_table(table, row_group_size=max(1, len(table)))
                        told = survival(here)
                        if told is not None:
                            found[site, one, other] = told
                        numbers = {} if told is None else told._asdict()
                        pairs.append({**pair, "features": int(known[one].alive.sum()), **numbers})
    pq.write_table(pa.Table.from_pylist(pairs, schema=SURVIVAL), folder / SURVIVAL_FILE)
    return Compared(folder, groups, found)


def _decoder(at_hand: AtHand, known: Known) -> Any:
    return saes.load(at_hand.sae(known.row)).W_dec.detach()


def _table(pair: Mapping[str, str], found: Matches) -> pa.Table:
    there = np.flatnonzero(found.feature >= 0)
    columns = {name: pa.array([text]).take(pa.array(np.zeros(len(there), np.int32))) for name, text in pair.items()}
    numbers = {"feature": there, "match": found.feature[there], "cosine": found.cosine[there]}
    return pa.table({**columns, **numbers}).cast(MATCHES)


def compare_features(
    experiment: str,
    site: str | None = None,
    *,
    trials: Sequence[str] = (),
    everything: bool = False,
    launch: str | None = None,
    tracking_uri: str | None = None,
    storage: str | Path | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Which features of SAEs the other SAEs of their site have, as `gsae-ray features` writes it beside dashboards.

    Args:
        experiment: as for `gsae_ray.frontier`.
        site: only this one.
        trials: whose SAEs; default: those on the frontier.
        everything: all SAEs that have tables of features.
        launch: its id; default: the newest.
        tracking_uri: of MLflow.
        storage: of the launch; default: `gsae_runs` in the working directory, where that has it and no `tracking_uri`
            is given; else MLflow is read.

    Returns:
        a row for each two SAEs and direction, and a row for each feature that fires and each other SAE: columns as
        `SURVIVAL` and `MATCHES` say.

    Raises:
        UserError: one of them has no tables of features, or cannot be had; or as `gsae_ray.frontier`.
    """
    where: Any = {"launch": launch, "tracking_uri": tracking_uri, "storage": storage}
    chosen = choose_saes(experiment, site, trials=trials, everything=everything, **where)
    with chosen.at_hand() as at_hand:
        compare(known_of(chosen, at_hand), at_hand, at_hand.scratch, lambda _: None)
        pairs, found = (pd.read_parquet(at_hand.scratch / name) for name in (SURVIVAL_FILE, MATCHES_FILE))
    return pairs, found
