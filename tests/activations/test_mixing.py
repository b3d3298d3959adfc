"""Shuffling, measured: a batch mixes the sequences of its block as well as a uniform draw from the block does.

How well rows are mixed is the entropy of "which sequence does a row of the batch come from". Rows carry no name, so
each is found again by its bytes among the rows in the order of the tokens. Two contexts that begin with the same tokens
have the same rows there: such rows are left out of the batches and of what the uniform draw takes from.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from producers import model_of, source_of
from torch import Tensor

from gsae_ray.activations.producer import LocalBlockReader, Producer
from gsae_ray.activations.reader import RowStream
from gsae_ray.config.site import Site
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver.prepare import prepare, producer_spec
from gsae_ray.language_model.hooks import capture

SITE = Site.of_point(2, "resid_post")  # deep: a row depends on all tokens before it
UNKNOWN = -1
DRAWS = 300
BATCH_SIZES = (128, 1024)


@dataclasses.dataclass
class Block:
    """Rows of a block: the sequence that each comes from, or UNKNOWN."""

    ordered: Tensor
    """In the order of the tokens."""
    streamed: Tensor
    """In the order in which trials read them."""


def rows_in_token_order(producer: Producer, block: int) -> tuple[Tensor, Tensor]:
    """The rows [R, n] of a block and their sequences [R]: the producer's forward passes, and nothing else."""
    spec = source_of(producer).spec
    tokens_ST = spec.tokens.block(block)
    kept_ST = spec.tokens.kept(tokens_ST)
    batches = zip(tokens_ST.split(spec.batch), kept_ST.split(spec.batch), strict=True)
    x_Rn = torch.cat([capture(model_of(producer), tokens_BT, [SITE])[SITE][kept_BT] for tokens_BT, kept_BT in batches])
    return x_Rn, torch.arange(len(tokens_ST)).repeat_interleave(kept_ST.sum(1))


def origins(streamed_Rn: Tensor, ordered_Rn: Tensor, sequences_R: Tensor) -> Block:
    """Finds the sequence of each row by the row's bytes."""
    found: dict[bytes, int] = {}
    for row, sequence in zip(ordered_Rn.numpy(), sequences_R.tolist(), strict=True):
        found[row.tobytes()] = sequence if found.get(row.tobytes(), sequence) == sequence else UNKNOWN
    ordered, streamed = ([found[row.tobytes()] for row in x_Rn.numpy()] for x_Rn in (ordered_Rn, streamed_Rn))
    assert sorted(ordered) == sorted(streamed), "the block's rows, each of them once"
    return Block(torch.tensor(ordered), torch.tensor(streamed))


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> list[Block]:
    """Two blocks of about 500 sequences each, as a trial reads them."""
    sweep = Sweep.model_validate(
        {
            "name": "mixing",
            "model": {"name": "builtin", "context_size": 33},
            "dataset": {"name": "builtin", "shuffle_tokens": 16_000},
            "sites": {"layers": [2], "points": ["resid_post"]},
            "saes": [{"architecture": "gated", "widths": [16], "l1_coefficient": 1.0}],
            "training": {"tokens": 31_000, "batch_size": 100, "lr": 1e-3},
            "evaluation": {"tokens": 256},
        }
    )
    torch.set_num_threads(1)
    plan = prepare(sweep, tmp_path_factory.mktemp("mixing"))
    producer = Producer(producer_spec(plan))
    stream = RowStream(LocalBlockReader(producer, SITE.name), plan.layout, SITE.name)
    return [
        origins(stream.read(rows), *rows_in_token_order(producer, block)) for block, rows in enumerate(plan.layout.rows)
    ]


def entropy(sequences: np.ndarray[Any, Any]) -> float:
    """Of the histogram of sequences, in nats."""
    _, counts = np.unique(sequences, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def mixing(stream_R: Tensor, batch_size: int) -> float:
    """Mean entropy of the stream's whole batches ÷ that of uniform draws, without replacement, of the same sizes."""
    batches = [batch[batch != UNKNOWN].numpy() for batch in stream_R.split(batch_size) if len(batch) == batch_size]
    known = stream_R[stream_R != UNKNOWN].numpy()
    draw = np.random.RandomState(0)
    sizes = draw.choice([len(batch) for batch in batches], DRAWS)
    uniform = np.mean([entropy(draw.choice(known, size, replace=False)) for size in sizes])
    return float(np.mean([entropy(batch) for batch in batches]) / uniform)


def shuffled_within(stream_R: Tensor, rows: int) -> Tensor:
    """As a shuffle buffer would have it: parts of `rows` rows, each permuted for itself."""
    generator = torch.Generator().manual_seed(0)
    return torch.cat([part[torch.randperm(len(part), generator=generator)] for part in stream_R.split(rows)])


def test_nearly_every_row_is_told_from_those_of_other_sequences(blocks: list[Block]) -> None:
    assert len(blocks) == 2
    for block in blocks:
        assert (block.streamed == UNKNOWN).float().mean() < 0.05
        assert len(block.streamed.unique()) > 450


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_a_batch_mixes_its_blocks_sequences_as_well_as_a_uniform_draw(blocks: list[Block], batch_size: int) -> None:
    for block in blocks:
        assert mixing(block.streamed, batch_size) >= 0.99


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_the_measure_of_mixing_falls_without_a_shuffle_and_with_a_smaller_one(
    blocks: list[Block], batch_size: int
) -> None:
    for block in blocks:
        assert mixing(block.ordered, batch_size) < 0.65
        assert mixing(shuffled_within(block.ordered, len(block.ordered) // 2), batch_size) < 0.98
