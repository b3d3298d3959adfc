"""The model card of published SAEs: front matter that the hub reads, how to load them, their frontier, their recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import yaml

from gsae_ray.config.recipe import show
from gsae_ray.config.synthetic import SYNTHETIC
from gsae_ray.evaluation.metrics import METRICS
from gsae_ray.results.comparison import labels, quality_of, table_metrics
from gsae_ray.results.intervals import Interval
from gsae_ray.saes import SAEConfig
from gsae_ray.saes.hub import is_repository

PICTURE = "frontier.png"
LIBRARY = "saelens"
"""The library that the hub names for the repository: every folder is one of SAELens'."""
TAGS = ["sparse-autoencoder", "mechanistic-interpretability", "gsae-ray"]
SECTIONS = ("model", "dataset", "training")
"""What of an SAE's metadata is its recipe, beside its hyperparameters."""


_OURS = {"builtin": "the built-in model of gsae-ray", SYNTHETIC: "synthetic activations of gsae-ray"}
"""What a model of a sweep file is, where its name is none of the hub."""


@dataclasses.dataclass(frozen=True)
class PublishedSAE:
    """An SAE of a frontier, as it is published."""

    row: pd.Series[Any]
    """Its row of `gsae_ray.frontier`."""
    cfg: SAEConfig
    in_saelens: bool
    """Whether SAELens has a form of it."""
    folder: str
    """Its folder in the repository."""
    intervals: Mapping[str, Interval]
    """Of those metrics of the table that have one."""
    contexts: int
    """Number of held-out contexts that they are over."""


def model_card(
    repository: str, experiment: str, saes: Sequence[PublishedSAE], notes: Sequence[str], license: str | None
) -> str:
    """The text of `README.md`.

    Args:
        repository: `owner/name` on the hub.
        experiment: the sweep.
        saes: in the order of the frontier's table.
        notes: what a reader of the frontier should know, as lines of text.
        license: as the hub writes it (`apache-2.0`); None: nothing is said about it.
    """
    models = _distinct(published.cfg.section("model").get("name") for published in saes)
    texts = _distinct(published.cfg.section("dataset").get("name") for published in saes)
    front: dict[str, Any] = {"library_name": LIBRARY, "tags": TAGS}
    front |= {"license": license} if license else {}
    front |= {key: found for key, names in (("base_model", models), ("datasets", texts)) if (found := _on_hub(names))}
    named = [_OURS.get(name, str(name)) for name in models if name is not None]
    quality = quality_of(pd.DataFrame([published.row for published in saes])).name
    of_models = f" of {' and '.join(named)}" if named else ""
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {repository.partition('/')[2]}",
        f"{len(saes)} {_kinds(saes)}{of_models}: those of the sweep `{experiment}` that no other of their site "
        f"beats in both L0 and {quality}.{_trained_with(saes)}",
        "## Load",
        _loading(repository, saes),
        "## Frontier",
        f"![L0 and {quality} of all SAEs of the sweep]({PICTURE})",
        *_tables(saes),
        _legend(saes),
        *(["\n".join(f"- {note}" for note in notes)] if notes else []),
        "## Recipe",
        "Where SAEs differ, it is `one or another`; the `cfg.json` of each has its own settings, under `gsae`.",
        f"```yaml\n{yaml.safe_dump(_recipe(saes), sort_keys=False, allow_unicode=True)}```",
    ]
    return "\n\n".join(parts) + "\n"


def _kinds(saes: Sequence[PublishedSAE]) -> str:
    kinds = {published.cfg.is_transcoder: None for published in saes}
    names = {False: "sparse autoencoders", True: "transcoders"}
    return " and ".join(name for is_transcoder, name in names.items() if is_transcoder in kinds)


def _trained_with(saes: Sequence[PublishedSAE]) -> str:
    """The versions of gsae-ray that trained them, as far as they say so."""
    versions = _distinct(published.cfg.section("versions").get("gsae-ray") for published in saes)
    told = [str(version) for version in versions if version is not None]
    return f" Trained with gsae-ray {' and '.join(told)}." if told else ""


def _loading(repository: str, saes: Sequence[PublishedSAE]) -> str:
    without = [published.folder for published in saes if not published.in_saelens]
    example = next((published.folder for published in saes if published.in_saelens), None)
    parts = ["Each folder has one of them. It takes raw activations of its site; its decoder rows have norm 1."]
    if any(published.cfg.is_transcoder for published in saes):
        parts.append(
            "A transcoder's site names two places, `blocks.L.<source>:<target>`: it takes activations of the first, "
            "and `decode` computes those of the second; of one with a skip connection (`skip`), `decode(features, "
            "activations)`."
        )
    if example is not None:
        parts += [
            "```python\nfrom sae_lens import SAE\n\n"
            f'sae = SAE.from_pretrained("{repository}", "{example}")\n'
            "features = sae.encode(activations)\n```"
        ]
    parts += [
        "```python\nimport gsae_ray\n\n"
        f'sae = gsae_ray.load("{repository}/{example or saes[0].folder}")\n'
        "features = sae.encode(activations)\n```"
    ]
    if without:
        parts += [f"SAELens has no form of {', '.join(f'`{folder}`' for folder in without)}."]
    return "\n\n".join(parts)


def _tables(saes: Sequence[PublishedSAE]) -> Iterable[str]:
    """For each site a title and a table of its SAEs."""
    rows = pd.DataFrame([published.row for published in saes])
    rows = rows.assign(architecture=labels(rows))
    names = ("recipe", "lr", "seed", "batch_size", "tokens", "snapshot")
    differing = [name for name in names if rows[name].nunique() > 1]
    settings = ["architecture", "d_sae", "sparsity", *differing]
    measured = table_metrics(rows)
    for site in _distinct(rows["site"]):
        lines = [_line(["folder", *(name.replace("_", " ") for name in (*settings, *measured))])]
        lines += [_line(["---"] * (1 + len(settings) + len(measured)))]
        for published, (_, row) in zip(saes, rows.iterrows(), strict=True):
            if row["site"] == site:
                cells = [*(show(row[name]) for name in settings), *(_measured(published, name) for name in measured)]
                lines.append(_line([f"`{published.folder}`", *cells]))
        yield f"### {site}"
        yield "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _measured(published: PublishedSAE, name: str) -> str:
    """A metric with its interval: `0.9644 [0.961, 0.968]`."""
    interval = published.intervals.get(name)
    return f"{published.row[name]:.4g}" + (f" [{interval.low:.4g}, {interval.high:.4g}]" if interval else "")


def _legend(saes: Sequence[PublishedSAE]) -> str:
    over = " and ".join(f"{count:,}" for count in _distinct(published.contexts for published in saes))
    rows = pd.DataFrame([published.row for published in saes])
    meanings = [f"- {name.replace('_', ' ')}: {METRICS[name].meaning}" for name in table_metrics(rows)]
    return "\n".join([f"In brackets: 95 % bootstrap intervals over the {over} held-out contexts.", "", *meanings])


def _recipe(saes: Sequence[PublishedSAE]) -> dict[str, Any]:
    """Section -> setting -> its value, or as text those that differ; settings that none has are left out."""
    recipe: dict[str, Any] = {}
    sections = {name: [published.cfg.section(name) for published in saes] for name in SECTIONS}
    sections["hyperparameters"] = [published.cfg.hyperparameters for published in saes]
    for section, found in sections.items():
        for key in _distinct(key for settings in found for key in settings):
            values = _distinct(settings[key] for settings in found if key in settings)  # not all architectures have it
            if values != [None]:
                recipe.setdefault(section, {})[key] = values[0] if len(values) == 1 else " or ".join(map(show, values))
    return recipe


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Different values in the order in which they come; dictionaries and lists among them."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def _on_hub(names: Iterable[Any]) -> list[str]:
    """Those that can be names of the hub, which refuses a card with others."""
    return [name for name in names if isinstance(name, str) and is_repository(name)]
