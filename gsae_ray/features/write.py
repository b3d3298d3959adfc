"""Dashboards of SAEs as a folder: a page of all of them, and one of each, which open from disk."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from gsae_ray import saes
from gsae_ray.features.chosen import Chosen
from gsae_ray.features.folder import replaced
from gsae_ray.features.matching import Matches, Survival, matches, survival
from gsae_ray.features.neuronpedia import write_neuronpedia
from gsae_ray.features.page import Other, data_of, page_of, rendered, script_of
from gsae_ray.names import folder_name
from gsae_ray.results.comparison import quality_of
from gsae_ray.version import __version__

INDEX = "index.html"


@dataclasses.dataclass(frozen=True)
class _Known:
    """What all of a site's pages take of one of its SAEs."""

    row: pd.Series[Any]
    label: str
    folder: str
    alive: npt.NDArray[np.bool_]


def write_dashboards(
    chosen: Chosen, out: Path, neuronpedia: bool = False, say: Callable[[str], None] = lambda _: None
) -> Path:
    """Writes the pages of SAEs that have tables of features.

    Args:
        chosen: the SAEs.
        out: the folder; dashboards of before are replaced, at the end and at once.
        neuronpedia: also write each SAE's features in Neuronpedia's import format.
        say: is told what is done.

    Returns:
        the page of all of them.

    Raises:
        UserError: an SAE has no tables, or `out` holds something else.
    """
    quality = quality_of(chosen.rows)
    with replaced(out) as folder:
        sites = []
        for site, rows in chosen.rows.groupby("site"):
            known = _told_apart([_known(chosen, row) for _, row in rows.iterrows()])
            if len(known) > 1:
                say(f"comparing the features of {len(known)} SAEs at {site}")
            found = _all_matches(chosen, known)
            for place, sae in enumerate(known):
                say(f"writing {sae.label} at {site}")
                _write_sae(chosen, known, place, found, folder / sae.folder, neuronpedia)
            sites.append(
                {
                    "name": site,
                    "saes": [_told(sae, float(quality.of(rows).iloc[place])) for place, sae in enumerate(known)],
                    "survival": [[_survival(found, a, b) for b in range(len(known))] for a in range(len(known))],
                }
            )
        told = {
            **{
                "experiment": chosen.experiment,
                "launch": ", ".join(sorted(set(chosen.rows["launch"]))),
                "sites": sites,
            },
            **{"chosen": chosen.why, "quality": quality.name, "version": __version__},
        }
        (folder / INDEX).write_text(rendered("index.html", told), "utf-8")
    return out / INDEX


def _known(chosen: Chosen, row: pd.Series[Any]) -> _Known:
    tables = chosen.tables(row)
    alive = tables.features["fired"].to_numpy() > 0
    return _Known(row, tables.about["label"], folder_name(str(row["trial"])), alive)


def _told_apart(known: list[_Known]) -> list[_Known]:
    """SAEs of one label, as seeds may be, are called by their trials."""
    counts = Counter(sae.label for sae in known)
    return [s if counts[s.label] == 1 else dataclasses.replace(s, label=str(s.row["trial"])) for s in known]


def _all_matches(chosen: Chosen, known: list[_Known]) -> dict[tuple[int, int], Matches]:
    """The nearest features of each two SAEs of a site; two decoders are in memory at a time."""
    found: dict[tuple[int, int], Matches] = {}
    for a, first in enumerate(known[:-1]):
        a_FD = _decoder(chosen, first)
        for b, second in enumerate(known[a + 1 :], start=a + 1):
            found[a, b], found[b, a] = matches(a_FD, _decoder(chosen, second), first.alive, second.alive)
    return found


def _decoder(chosen: Chosen, known: _Known) -> Any:
    with chosen.folder(known.row) as folder:
        return saes.load(folder).W_dec.detach()


def _write_sae(
    chosen: Chosen,
    known: list[_Known],
    place: int,
    found: dict[tuple[int, int], Matches],
    folder: Path,
    neuronpedia: bool,
) -> None:
    sae = known[place]
    tables = chosen.tables(sae.row)
    others = [
        Other(other.label, f"../{other.folder}/{INDEX}", found[place, n]) for n, other in enumerate(known) if n != place
    ]
    (folder / "data").mkdir(parents=True)
    for name, value in data_of(tables, others):
        (folder / "data" / f"{name}.js").write_text(script_of(name, value), "utf-8")
    (folder / INDEX).write_text(page_of(tables, str(sae.row["trial"]), others, f"../{INDEX}"), "utf-8")
    if neuronpedia:
        with chosen.folder(sae.row) as saved:
            write_neuronpedia(tables, str(sae.row["trial"]), saved, folder / "neuronpedia")


def _survival(found: dict[tuple[int, int], Matches], a: int, b: int) -> Survival | None:
    return survival(found[a, b]) if a != b else None


def _told(sae: _Known, quality: float) -> dict[str, Any]:
    return {
        **{"label": sae.label, "trial": str(sae.row["trial"]), "href": f"{sae.folder}/{INDEX}"},
        **{"l0": f"{sae.row['l0']:.4g}", "quality": f"{quality:.4f}"},
        **{"features": len(sae.alive), "alive": int(sae.alive.sum())},
    }
