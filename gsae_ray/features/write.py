"""Dashboards of SAEs as a folder: a page of all of them, and one of each, which open from disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gsae_ray.errors import UserError
from gsae_ray.features.chosen import AtHand, Chosen
from gsae_ray.features.folder import replaced
from gsae_ray.features.neuronpedia import write_neuronpedia
from gsae_ray.features.page import Other, data_of, page_of, rendered, script_of
from gsae_ray.features.survival import Known, compare, known_of
from gsae_ray.results.comparison import quality_of
from gsae_ray.version import __version__

INDEX = "index.html"


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
    with replaced(out) as folder, chosen.at_hand() as at_hand:
        sites = known_of(chosen, at_hand)
        compared = compare(sites, at_hand, folder, say)
        shown = []
        for site, known in sites.items():
            for place, sae in enumerate(known):
                say(f"writing {sae.label} at {site}")
                others = [
                    Other(other.label, f"../{other.folder}/{INDEX}", compared.matches(site, place, n, len(sae.alive)))
                    for n, other in enumerate(known)
                    if n != place
                ]
                try:
                    _write_sae(at_hand, sae, others, folder / sae.folder, neuronpedia)
                except ValueError as error:  # a number that is not finite, which no page can have
                    raise UserError(f"features: the page of {sae.trial} cannot be written: {error}") from error
            values = quality.of(pd.DataFrame([sae.row for sae in known]))
            shown.append(
                {
                    "name": site,
                    "saes": [_told(sae, float(value)) for sae, value in zip(known, values, strict=True)],
                    "survival": [[compared.survival(site, a, b) for b in range(len(known))] for a in range(len(known))],
                }
            )
        told = {
            **{
                "experiment": chosen.experiment,
                "launch": ", ".join(sorted(set(chosen.rows["launch"]))),
                "sites": shown,
            },
            **{"chosen": chosen.why, "quality": quality.name, "version": __version__},
        }
        (folder / INDEX).write_text(rendered("index.html", told), "utf-8")
    return out / INDEX


def _write_sae(at_hand: AtHand, sae: Known, others: Sequence[Other], folder: Path, neuronpedia: bool) -> None:
    tables = at_hand.tables(sae.row)
    (folder / "data").mkdir(parents=True)
    for name, value in data_of(tables, others):
        (folder / "data" / f"{name}.js").write_text(script_of(name, value), "utf-8")
    (folder / INDEX).write_text(page_of(tables, sae.trial, others, f"../{INDEX}"), "utf-8")
    if neuronpedia:
        write_neuronpedia(tables, sae.trial, at_hand.sae(sae.row), folder / "neuronpedia")


def _told(sae: Known, quality: float) -> dict[str, Any]:
    return {
        **{"label": sae.label, "trial": sae.trial, "href": f"{sae.folder}/{INDEX}"},
        **{"l0": f"{sae.row['l0']:.4g}", "quality": f"{quality:.4f}"},
        **{"features": len(sae.alive), "alive": int(sae.alive.sum())},
    }
