"""The labelled data on which sparse probes are fitted (`evaluation.probes`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic.functional_validators import AfterValidator

from gsae_ray.errors import shown
from gsae_ray.fields import AtMost, Settings

BUILTIN = "builtin"
"""The tasks of the package's own text: Python source."""


class ProbeSettings(Settings):
    """A labelled data set: whether a few features of an SAE tell its labels. `probes: builtin` is the package's own."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$",
        description="what its tasks are called by: letters, digits, _, . and -",
    )
    data: str = Field(
        min_length=1,
        description="`builtin`: the tasks of the built-in text; or a .jsonl file, a document a line (relative to the "
        'working directory; .gz, .bz2 and .xz too): {"text", "label"}, a label of the whole text, or {"text", "spans": '
        "[[start, end, label], ...]}, labels of tokens, in characters",
    )
    tokens: Annotated[int, Field(ge=100), AtMost(1_000_000, "their activations are in memory")] = Field(
        20_000, description="rows of documents to take, of which one half is fitted and the other scored"
    )


def _listed(value: object) -> object:
    if isinstance(value, str):
        if value != BUILTIN:
            raise ValueError(f"{shown(value)}; give builtin, or a list of labelled data sets")
        return ({"name": "python", "data": BUILTIN},)
    return tuple(value) if isinstance(value, list) else value


def _distinct(probes: tuple[ProbeSettings, ...] | None) -> tuple[ProbeSettings, ...] | None:
    names = [probe.name for probe in probes or ()]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two of the data sets have the name {shown(twice[0])}")
    if probes == ():
        raise ValueError("an empty list; give a labelled data set, builtin, or leave it out")
    return probes


Probes = Annotated[tuple[ProbeSettings, ...] | None, BeforeValidator(_listed), AfterValidator(_distinct)]
