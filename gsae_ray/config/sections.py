"""The sections of a sweep file that say what runs: the model, the text, evaluation, and the processes.

What is trained, and how, stands in `site`, `sae_settings` and `recipe`. Every field's description is documentation:
`gsae-ray run --help` prints these models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from gsae_ray.config.features import Features
from gsae_ray.config.probes import Probes
from gsae_ray.errors import shown
from gsae_ray.fields import (
    AtMost,
    Count,
    Finite32,
    Grid,
    InMemory,
    Positive,
    Processes,
    Seconds,
    Seed,
    Settings,
)

OWN = "own"
"""The origin of a sweep's own SAEs."""


class ModelSettings(Settings):
    """The language model."""

    name: str = Field(
        min_length=1,
        description="`builtin`, a local directory, or a model of the Hugging Face hub; TransformerLens checkpoints too",
    )
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    tokenizer: str | None = Field(
        None,
        description="tokenizer, where the model does not bring one: `builtin`, a directory or a hub name; default: the "
        "model's own, or the one that a TransformerLens checkpoint names",
    )
    context_size: InMemory = Field(128, ge=3, description="tokens of a context; documents are packed to it")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of the weights, the forward pass and the activations that trials receive"
    )
    attn_implementation: Literal["sdpa", "eager"] | None = Field(
        None, description="attention kernel of transformers; default: sdpa where the model has it, else eager"
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model or its tokenizer")


class DatasetSettings(Settings):
    """The text, and the rows that are made of it."""

    name: str = Field(
        min_length=1,
        description="`builtin`, a data set of the hub, or local: a .txt/.jsonl/.json/.parquet path or glob (.gz, .bz2, "
        ".xz or .zst too), or a folder, also of `save_to_disk` (relative to the working directory)",
    )
    data_files: Mapping[str, Grid[str]] | None = Field(
        None,
        description="split -> patterns of its files within the folder or hub data set; default: Hugging Face's "
        "convention, train, validation or test in the name of a file or folder",
    )
    subset: str | None = Field(None, description="the hub data set's configuration; like revision, for the hub only")
    split: str = Field("train", description="the split to train on")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    streaming: bool = Field(False, description="read from the hub while tokenising, without downloading it whole")
    text_column: str = Field("text", description="the column that holds a document's text")
    tokens_column: str | None = Field(
        None,
        description="pre-tokenised data: the column of token ids, instead of text; an attention_mask column beside it "
        "is honoured, and a model without a tokenizer will do",
    )
    tokens_are: Literal["contexts", "documents"] | None = Field(
        None,
        description="what a row of tokens_column is: a context as it is to be read, or a document to be packed with "
        "others; default: documents, but where rows have one length it has to be said",
    )
    seed: Seed = Field(0, description="order of documents and of rows; the same for every trial of the sweep")
    shuffle_tokens: Count | None = Field(
        None, description="rows of a block, within which rows are shuffled; default min(1e6, training.tokens / 4)"
    )
    repeat: bool = Field(False, description="start again when the data ends, instead of refusing")
    prepend_bos: bool | None = Field(
        None,
        description="begin each context with the BOS token, unless it does; default: as the tokenizer itself does, but "
        "not where tokens_are: contexts",
    )
    skip_positions: Annotated[int, Field(ge=0)] = Field(
        1, description="drop so many positions at the start of every context from the rows: attention sinks"
    )
    skip_special_tokens: bool = Field(True, description="drop the positions of special tokens from the rows")
    max_norm: Annotated[Finite32, Field(ge=1)] | None = Field(
        10.0,
        description="rows of more than so many times the median norm (at their site: of block 0, in evaluation of the "
        "held-out rows) take no part: they count as tokens, but neither training nor a metric sees them, and they keep "
        "their activations where an SAE is spliced in; null: all rows take part",
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _renamed(cls, value: object) -> object:
        if isinstance(value, Mapping) and "skip_first_position" in value:
            raise ValueError("skip_first_position is now skip_positions: 1 for true, 0 for false")
        return value

    @pydantic.model_validator(mode="after")
    def _tokens(self) -> DatasetSettings:
        if self.tokens_are and self.tokens_column is None:
            raise ValueError(f"tokens_are: {self.tokens_are} needs tokens_column, the column of token ids")
        return self


class RowSettings(Settings):
    """The rows that are drawn; this section may be left out."""

    seed: Seed = Field(0, description="of the rows; the same for every trial of the sweep")
    shuffle_tokens: Count | None = Field(
        None, description="rows of a block, the unit of production; default min(1e6, training.tokens / 4)"
    )
    max_norm: Annotated[Finite32, Field(ge=1)] | None = Field(
        None,
        description="rows of more than so many times the median norm take no part in training and evaluation, as those "
        "of a language model; default: all rows do",
    )


class EvaluationSettings(Settings):
    """What every SAE of a site is measured on: the same held-out tokens."""

    tokens: Count = Field(1_000_000, description="rows to evaluate on")
    split: str | None = Field(
        None, description="the data set's held-out split; default: `heldout` of the built-in text, else `fraction`"
    )
    fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.01, description="without a split: the share of documents, chosen by hash, that is held out of training"
    )
    every_tokens: Count | None = Field(None, description="evaluate during training too, every so many rows")
    batch: InMemory = Field(
        8, description="contexts of a forward pass; small, since all logits of a pass are in memory"
    )
    pursuit_l0: Grid[Count] | None = Field(
        None,
        description="evaluate each finished SAE again with gradient pursuit in its encoder's place, at these L0s "
        "(`frontier --encoder pursuit`); default: not",
    )
    probes: Probes = Field(
        None,
        description="fit sparse probes on each finished SAE's features (docs/probes.md): `builtin`, for Python source, "
        "or a list of labelled data sets, each with",
    )
    features: Features = Field(
        None,
        description="make tables of what each feature of finished SAEs fires on (docs/features.md): `true`, or a "
        "mapping with",
    )

    @property
    def encoders(self) -> tuple[int | None, ...]:
        """What each finished SAE is evaluated with: None for its own encoder, then the L0s of gradient pursuit."""
        return (None, *(self.pursuit_l0 or ()))


class ReferenceSettings(Settings):
    """An SAE from elsewhere to compare with, which is evaluated as the sweep's own are and shown beside them."""

    source: str = Field(
        min_length=1,
        description="a folder in any format that `gsae_ray.load` reads (relative to the working directory), a trial's "
        "directory, a run's id, or an SAE of the Hugging Face hub",
    )
    site: str = Field(description="one of the sweep's sites, as the frontier names it, e.g. blocks.2.hook_resid_post")
    name: str | None = Field(
        None,
        min_length=1,
        max_length=250,
        description="what the frontier and its picture call it; several may share one; default: the source",
    )

    @property
    def origin(self) -> str:
        """What the frontier calls it."""
        return self.name or self.source


def _whole_or_part(gpus: float) -> float:
    if gpus > 1 and not float(gpus).is_integer():
        raise ValueError(f"{gpus:g} GPUs; give a fraction up to 1, or a whole number")
    return gpus


def _number_or_auto(value: object) -> object:
    if value == "auto":
        return value
    if type(value) not in (int, float) or not 0 <= value <= _GPUS.limit:  # type: ignore[operator]
        raise ValueError(f"{shown(value)}; give a number of GPUs, {_GPUS}; or auto")
    return _whole_or_part(value)  # type: ignore[arg-type]


_GPUS = AtMost(10_000, "one cluster has no more")
GPUs = Annotated[float, Field(ge=0), _GPUS, pydantic.AfterValidator(_whole_or_part)]


class ProducerSettings(Settings):
    """The actors that run the language model."""

    count: Processes = Field(1, description="how many producers, each with a copy of the model")
    cpus: Processes = Field(1, description="threads of a producer; fixed, since the last bits of a sum depend on it")
    gpus: GPUs = Field(
        0.0, description="GPUs of a producer: 0 runs it on the CPU, several share the layers of one model"
    )
    batch: InMemory = Field(32, description="contexts of a forward pass; fixed for the same reason")
    chunk_mib: Annotated[Positive, AtMost(100_000, "they are in memory at once")] = Field(
        32, description="size of the chunks in which activations travel"
    )
    budget_gib: Annotated[float, Field(gt=0), AtMost(10**9, "no cluster has more memory")] | None = Field(
        None,
        description="for activations: two blocks that are being read, the rest kept for late trials; default: all, if "
        "60 % of the object store holds them",
    )
    timeout_s: Annotated[Seconds, Field(gt=0)] = Field(
        600, description="a block or an evaluation that takes longer means that the producer hangs, and is killed"
    )


class TrialSettings(Settings):
    """The processes that train SAEs, one SAE each."""

    cpus: Processes = Field(1, description="cores, and threads, of a trial")
    gpus: Annotated[float | Literal["auto"], pydantic.BeforeValidator(_number_or_auto)] = Field(
        0.0,
        description="GPUs, or a fraction of one, of a trial; auto: as many on a GPU as by prediction fit into its "
        "memory; 0: CPU",
    )
    max_concurrent: Processes | None = Field(None, description="trials at a time; default: as many as fit")
    hang_timeout_s: Annotated[Seconds, Field(ge=10)] = Field(
        120, description="a trial whose process is silent for longer is killed and goes on from its last checkpoint"
    )
    room_timeout_s: Annotated[Seconds, Field(ge=60)] = Field(
        3600,
        description="the sweep stops, and gives back what its producers hold, when the cluster has had no free "
        "resources for any trial for longer",
    )


class TrackingSettings(Settings):
    """What MLflow gets beside the runs."""

    registry: bool = Field(
        True,
        description="enter the SAEs of each frontier in MLflow's model registry: a registered model a site, with "
        "aliases best-l0-8 to best-l0-256 for the best with at most that L0",
    )
