"""Activations on disk in a sweep file: where they lie, in the place of a language model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from gsae_ray.config.explain import Key
from gsae_ray.config.sections import EvaluationSettings, ProducerSettings
from gsae_ray.fields import Count, Finite32, Seed, Settings

GROUP_ROWS = 128
"""Rows of a group where nothing tells which rows belong together."""


class ActivationsSettings(Settings):
    """Activations on disk, in the place of a language model (docs/activations.md)."""

    path: str = Field(
        min_length=1,
        description="a folder that `gsae-ray collect` has written; or a file, a folder or a glob (relative to the "
        "working directory)",
    )
    format: Literal["safetensors", "parquet", "saelens"] | None = Field(
        None,
        description="safetensors, parquet, or saelens: a folder that SAELens has cached activations in; default: by "
        "what is there",
    )
    column: str | None = Field(
        None,
        min_length=1,
        description="the tensor or column of rows; default: the one that is named as the site, else the only one",
    )
    group_column: str | None = Field(
        None,
        min_length=1,
        description="what tells which rows belong together (a document, an image): in safetensors a tensor of one "
        "whole number a row, in Parquet a column of numbers or texts; a group is held out whole",
    )
    group_rows: Count | None = Field(
        None, description=f"without group_column: so many rows in order are a group; default {GROUP_ROWS}"
    )
    heldout: str | None = Field(
        None,
        min_length=1,
        description="held-out rows, as path; default: those that were collected, else evaluation.fraction of the "
        "groups",
    )


class FileRowSettings(Settings):
    """Which rows of the files, and in which order; this section may be left out."""

    seed: Seed | None = Field(
        None,
        description="order of groups and of rows; the same for every trial of the sweep; default: that of the sweep "
        "that they were collected for, whose blocks these are then, else 0",
    )
    shuffle_tokens: Count | None = Field(
        None,
        description="rows of a block, within which rows are shuffled; default: the blocks that were collected, else "
        "min(1e6, training.tokens / 4)",
    )
    repeat: bool = Field(False, description="start again when the rows end, instead of refusing")
    skip_positions: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="of what SAELens has cached: drop so many positions at the start of every context; default 1",
    )
    max_norm: Annotated[Finite32, Field(ge=1)] | None = Field(
        10.0,
        description="rows of more than so many times the median norm take no part in training and evaluation; "
        "null: all do",
    )


def problems_beside_files(
    activations: ActivationsSettings, has_model: bool, evaluation: EvaluationSettings, producers: ProducerSettings
) -> Iterator[tuple[Key, str]]:
    """What sections of a sweep on files say that does not apply to it, as (key, what is wrong with it)."""

    def given(section: EvaluationSettings | ProducerSettings, key: str) -> bool:
        return bool(getattr(section, key) != type(section).model_fields[key].default)

    if activations.group_column is not None and activations.group_rows is not None:
        yield ("activations", "group_rows"), "group_column says which rows belong together; leave one of the two out"
    if evaluation.split is not None:
        yield ("evaluation", "split"), "files have no splits; name held-out files with activations.heldout"
    if activations.heldout is not None and given(evaluation, "fraction"):
        yield ("evaluation", "fraction"), "activations.heldout names the held-out rows; leave one of the two out"
    if evaluation.probes is not None:
        yield ("evaluation", "probes"), "probes take a language model that reads their text; leave it out"
    if evaluation.features is not None:
        yield ("evaluation", "features"), "tables of features take a sweep on a language model's text; leave it out"
    if not has_model and given(evaluation, "batch"):
        yield ("evaluation", "batch"), "does not apply to rows without a model; leave it out"
    if given(producers, "batch"):
        yield ("producers", "batch"), "does not apply: rows are read from disk; leave it out"
