"""Trainers on rows in memory, as tests of training use them."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from gsae_ray.activations.accumulator import StatisticsAccumulator
from gsae_ray.activations.layout import DTYPE_BYTES, Layout
from gsae_ray.activations.reader import RowStream
from gsae_ray.activations.statistics import SiteStatistics
from gsae_ray.config.recipe import EngineName, TrainingSettings
from gsae_ray.config.trial import TrialSpec
from gsae_ray.saes import REGISTRY, SAE
from gsae_ray.training.engines.base import Engine
from gsae_ray.training.trainer import Trainer

SITE = "blocks.1.hook_resid_post"
N, M, BATCH, ROWS = 12, 32, 64, 6000
BLOCKS = (2100, 1900, 2000)
WALL_CLOCK = {"tokens_per_s", "step_ms", "data_wait_fraction"}


@cache
def sparse_rows() -> Tensor:
    """Rows [ROWS, N]: few of 24 unit directions at a time, an offset, and a scale far from E‖x‖² = n."""
    rng = np.random.RandomState(0)
    directions = rng.randn(24, N)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    strengths = (rng.rand(ROWS, 24) < 0.1) * rng.exponential(size=(ROWS, 24))
    return torch.from_numpy(7 * (strengths @ directions + 0.3 * rng.randn(N))).float()


class ArraySource:
    """Blocks of rows held in memory, read-only as arrays from an object store are."""

    def __init__(self, rows_RD: Tensor, layout: Layout, max_norm: float | None = 10.0) -> None:
        self.max_norm = max_norm
        self.array = rows_RD.numpy().copy()
        self.array.flags.writeable = False
        self.layout = layout
        self.block = -1

    def statistics(self) -> dict[str, SiteStatistics]:
        first = torch.tensor(self.array[: self.layout.rows[0]])
        gathering, order = StatisticsAccumulator(first.shape[1]), torch.arange(len(first))
        gathering.add(first)
        statistics = gathering.statistics(first, order, torch.ones_like(order), self.max_norm)
        statistics.mean.flags.writeable = False
        return {SITE: statistics}

    def open(self, block: int) -> None:
        self.block = block

    def chunk(self, index: int) -> np.ndarray[Any, Any]:
        first, end = self.layout.chunks(self.block, SITE)[index]
        start = self.layout.starts[self.block]
        return self.array[start + first : start + end]


class RecordingStream(RowStream):
    """Remembers what it gave."""

    def read(self, rows: int) -> Tensor:
        self.batches = [*getattr(self, "batches", []), super().read(rows)]
        return self.batches[-1]


def row_stream(
    rows_RD: Tensor | None = None, chunk_rows: int = 170, dtype: str = "float32", max_norm: float | None = 10.0
) -> RecordingStream:
    """The stream of these rows, or of `sparse_rows`, from the start."""
    layout = Layout(BLOCKS, {SITE: N}, dtype, chunk_bytes=chunk_rows * N * DTYPE_BYTES[dtype])
    rows_RD = sparse_rows() if rows_RD is None else rows_RD
    return RecordingStream(ArraySource(rows_RD.to(getattr(torch, dtype)), layout, max_norm), layout, SITE)


def make(
    architecture: str = "gated",
    rows_RD: Tensor | None = None,
    chunk_rows: int = 170,
    l1: float | None = 1.0,
    options: dict[str, Any] | None = None,
    parent: SAE | None = None,
    dtype: str = "float32",
    max_norm: float | None = 10.0,
    engine: Engine | EngineName = "dense",
    device: str = "cpu",
    **training: Any,
) -> Trainer:
    """A trainer at the start; `training` overrides, with lr, seed, objective and schedule single values."""
    settings: dict[str, Any] = {"tokens": 5000, "batch_size": BATCH, "lr_warmup": 0.02, "log_every_tokens": 10 * BATCH}
    settings |= {"gradient_clip": 0.0, "unit_biases": False, "checkpoint_every_tokens": 20 * BATCH, **training}
    settings |= {"engine": engine} if isinstance(engine, str) else {}
    sae = REGISTRY[architecture]
    lr, seed = settings.pop("lr", 3e-3), settings.pop("seed", 0)
    objective, schedule = settings.pop("objective", sae.objectives[0]), settings.pop("schedule", "modern")
    given = {"l1_coefficient": l1} if sae.sparsity_units == "l1" and l1 is not None else {}
    trial = TrialSpec.make(
        identity={},
        site=SITE,
        architecture=architecture,
        d_in=N,
        d_sae=M,
        hyperparameters={**given, **(options or {})},
        training=TrainingSettings.model_validate(settings).resolve(lr, seed, objective, schedule),
    )
    return Trainer(
        trial,
        row_stream(rows_RD, chunk_rows, dtype, max_norm),
        device,
        parent=parent,
        engine=None if isinstance(engine, str) else engine,
    )


def run(trainer: Trainer) -> list[dict[str, float]]:
    """Trains to the end; the metric rows without what depends on the clock."""
    rows = []
    while not trainer.done:
        row = trainer.train_interval()
        rows.append({"tokens": trainer.tokens, **{k: v for k, v in row.items() if k not in WALL_CLOCK}})
    return rows


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """Parameters and buffers of its SAE, which stay as they are now."""
    return {name: tensor.clone() for name, tensor in trainer.sae.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def through_files(state: tuple[dict[str, Tensor], dict[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A state as it comes back from storage."""
    tensors, rest = state
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.load(safetensors.torch.save(tensors)), json.loads(json.dumps(rest))
