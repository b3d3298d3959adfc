"""What sections of a sweep file say that does not go together, as (key, what is wrong with it)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gsae_ray.config.explain import Key
from gsae_ray.config.recipe import TrainingSettings
from gsae_ray.config.sae_settings import SAESettings
from gsae_ray.config.sections import ReferenceSettings
from gsae_ray.config.site import Site, SiteSettings
from gsae_ray.config.transcoders import target_problems
from gsae_ray.errors import shown, suggest


def device_problems(settings: TrainingSettings, gpus: float | str) -> Iterator[tuple[str, str]]:
    """What of an entry's training does not run where its trials do, as (key, text).

    Args:
        settings: of the entry.
        gpus: `trials.gpus`.
    """
    engine, precision = settings.engine, settings.precision
    if engine == "sparse-cpu" and gpus != 0:
        yield (
            "engine",
            f"{engine} is for trials on CPUs, and trials.gpus is {gpus}; engine: dense or sparse-cuda runs there, "
            "or set trials.gpus to 0",
        )
    if engine == "sparse-cuda" and gpus == 0:
        yield (
            "engine",
            f"{engine} is for trials on GPUs, and trials.gpus is 0; engine: sparse-cpu or dense runs there, or set "
            "trials.gpus",
        )
    if precision == "float32":
        return
    if gpus == 0:
        yield (
            "precision",
            f"{precision} is for trials on GPUs, and trials.gpus is 0; precision: float32 runs there, or set "
            "trials.gpus",
        )
    elif engine not in ("dense", "auto"):  # auto is dense on GPUs
        yield (
            "precision",
            f"{precision} is for engine: dense, and engine is {engine}; take engine: dense, or precision: float32",
        )


def site_problems(
    sites: SiteSettings, every: Sequence[Site], saes: Sequence[SAESettings], references: Sequence[ReferenceSettings]
) -> list[tuple[Key, str]]:
    """What is wrong with filters of entries and sites of references, once it is known which layers are meant.

    Args:
        sites: of the sweep.
        every: the sites that there are.
        saes: the entries.
        references: SAEs from elsewhere.
    """
    found: list[tuple[Key, str]] = []
    for index, entry in enumerate(saes):
        selected = [site for site in every if entry.selects(site)]
        if entry.target is not None:
            found += [(("saes", index, "target"), text) for text in target_problems(entry.target, selected)]
        if not selected:
            found.append((("saes", index, "sites"), "this filter leaves none of the sweep's sites"))
        elif entry.sites is not None:
            for key in ("layers", "points", "modules"):
                missing = [value for value in getattr(entry.sites, key) if value not in getattr(sites, key)]
                found += [
                    (("saes", index, "sites", key), f"{shown(value)} is not among the sweep's own sites")
                    for value in missing
                ]
    if not found:
        own = [entry.site_of(site).name for site in every for entry in saes if entry.selects(site)]
        found += [
            (
                ("references", index, "site"),
                f"no SAE of this sweep is at {shown(given.site)}; {suggest(given.site, own)}",
            )
            for index, given in enumerate(references)
            if given.site not in own
        ]
    return found
