"""Another source of activations than a language model: rows of an array, in groups, defined in this file.

SAEs are trained on it through the producer and the store, and evaluated without the metrics that take a language model.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from store_blocks import Client, StoreBlocks
from torch import Tensor
from trainers import make, run, same, sparse_rows, weights

from gsae_ray.activations.layout import Layout
from gsae_ray.activations.producer import LocalBlockReader, Producer, ProducerSpec
from gsae_ray.activations.reader import BlockReader, RowStream
from gsae_ray.activations.store import ActivationStore
from gsae_ray.activations.trial_positions import ReaderSpec
from gsae_ray.errors import NumericError
from gsae_ray.evaluation.metrics import Evaluation
from gsae_ray.evaluation.task import Evaluate
from gsae_ray.language_model.source import HeldOutRows, RowBatch
from gsae_ray.saes import SAE, to_bytes
from gsae_ray.training.trainer import Trainer

SITE = "layer4"
ROWS, HELD_OUT, GROUP = 5000, 600, 50  # of `sparse_rows`; a group is some 50 consecutive rows, as of one image
BLOCK_ROWS = 1250


@dataclasses.dataclass(frozen=True)
class Images:
    """A source of rows, and its own spec: it holds nothing that could not travel."""

    max_norm: float | None = None
    device = torch.device("cpu")

    def open(self) -> Images:
        return self

    def block(self, block: int, sites: Sequence[str]) -> Iterator[RowBatch]:
        for x_Rn in sparse_rows()[block * BLOCK_ROWS : (block + 1) * BLOCK_ROWS].split(300):
            yield RowBatch(dict.fromkeys(sites, x_Rn), torch.zeros(len(x_Rn), dtype=torch.int64))

    def heldout(self) -> HeldOutRows:
        return HeldOutRows(HELD_OUT // GROUP, lambda _: self.batches())

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        rows = torch.arange(HELD_OUT)
        for rows_R in rows.split(170):  # a batch ends within a group
            yield sparse_rows()[ROWS + rows_R], rows_R // GROUP


def producer(source: Images | None = None) -> Producer:
    n = sparse_rows().shape[1]
    layout = Layout((BLOCK_ROWS,) * (ROWS // BLOCK_ROWS), {SITE: n}, "float32", chunk_bytes=2**13)
    return Producer(ProducerSpec(source or Images(), layout, seed=3, threads=1))


def trainer(reader: BlockReader, layout: Layout, l1: float = 1.0) -> Trainer:
    """As of `trainers`, which says the recipe, on these blocks."""
    spec = dataclasses.replace(make(l1=l1).trial, site=SITE)
    return Trainer(spec, RowStream(reader, layout, SITE))


def trained(reader: BlockReader, layout: Layout, l1: float = 1.0) -> Trainer:
    made = trainer(reader, layout, l1)
    run(made)
    return made


@pytest.fixture(scope="module")
def sae() -> SAE:
    plain = producer()
    return trained(LocalBlockReader(plain, SITE), plain.spec.layout).finished_sae({})


def evaluate(sae: SAE, on: Producer, pursuit_l0: int | None = None) -> Evaluation:
    evaluation: Evaluation = on.run(Evaluate(SITE, *to_bytes(sae), pursuit_l0))
    return evaluation


def test_trials_that_share_a_source_through_the_store_are_trained_as_alone() -> None:
    client = Client(producer())
    layout = client.producer.spec.layout
    names = {"weak": 1.0, "strong": 4.0}
    loop = asyncio.new_event_loop()
    try:
        readers = dict.fromkeys(names, ReaderSpec(SITE, ROWS))
        everything = sum(layout.nbytes(block, (SITE,)) for block in range(len(layout.rows)))
        store = ActivationStore(layout, [client], readers, everything, timeout_s=60)  # type: ignore[list-item]
        shared = {name: trained(StoreBlocks(loop, store, name), layout, l1) for name, l1 in names.items()}
        report = store.report()
    finally:
        loop.close()
    assert sorted(client.produced) == list(range(len(layout.rows))), "each block once for both"
    assert report.record.produced == dict.fromkeys(range(len(layout.rows)), 1)
    for name, l1 in names.items():
        alone = trained(LocalBlockReader(producer(), SITE), layout, l1)
        assert same(weights(shared[name]), weights(alone)), name


def test_an_evaluation_has_no_cross_entropies_and_its_sums_are_those_of_the_groups(sae: SAE) -> None:
    metrics, sequences, *_ = evaluate(sae, producer())
    assert set(metrics) == {"l0", "gamma", "fvu", "alive_fraction", "dead_heldout", "dense_heldout", "rows"}
    assert all(len(sums) == HELD_OUT // GROUP for sums in sequences.values())
    assert sequences["rows"] == [GROUP] * (HELD_OUT // GROUP)
    x = sparse_rows()[ROWS : ROWS + HELD_OUT]
    acts = sae.encode(x).detach()
    x_hat = sae.decode(acts).detach().double()
    x = x.double()
    by_hand = {
        "l0": (acts > 0).sum(1).double().mean(),
        "gamma": x_hat.square().sum() / (x_hat * x).sum(),
        "fvu": (x - x_hat).square().sum() / (x - x.mean(0)).square().sum(),
        "alive_fraction": (acts > 0).any(0).double().mean(),
        "dead_heldout": (acts <= 0).all(0).double().mean(),
        "dense_heldout": ((acts > 0).double().mean(0) > 0.1).double().mean(),
        "rows": torch.tensor(HELD_OUT),
    }
    assert metrics == pytest.approx({name: float(value) for name, value in by_hand.items()}, rel=1e-6)
    errors_G = (x - x_hat).square().sum(1).reshape(-1, GROUP).sum(1)
    np.testing.assert_allclose(sequences["error_sq"], errors_G, rtol=1e-6)


def test_gradient_pursuit_works_on_rows_too(sae: SAE) -> None:
    assert evaluate(sae, producer(), pursuit_l0=3).metrics["l0"] <= 3


def test_rows_of_massive_norm_take_no_part(sae: SAE, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sparse_rows().clone()
    monkeypatch.setattr("test_source.sparse_rows", lambda: rows)
    before = evaluate(sae, producer(Images(max_norm=10.0)))
    rows[ROWS + 7] *= 1e4
    after = evaluate(sae, producer(Images(max_norm=10.0)))
    assert after.metrics["rows"] == before.metrics["rows"] - 1
    assert after.sequences["error_sq"][1:] == pytest.approx(before.sequences["error_sq"][1:])
    assert evaluate(sae, producer()).metrics["rows"] == HELD_OUT


def test_rows_that_are_not_finite_are_named(sae: SAE, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sparse_rows().clone()
    rows[ROWS + 7, 0] = torch.inf
    monkeypatch.setattr("test_source.sparse_rows", lambda: rows)
    with pytest.raises(NumericError, match=f"activations at {SITE}.* float32 does not"):
        evaluate(sae, producer())
    monkeypatch.setattr("test_source.sparse_rows", lambda: rows.half())
    with pytest.raises(NumericError, match=f"activations at {SITE}.* float16 end at 65,504"):
        evaluate(sae, producer())


def test_a_source_whose_block_has_other_rows_than_the_layout_is_an_error() -> None:
    spec = producer().spec
    for rows in (BLOCK_ROWS - 1, BLOCK_ROWS + 1):
        other = dataclasses.replace(spec, layout=dataclasses.replace(spec.layout, rows=(rows,)))
        with pytest.raises(
            ValueError, match=f"block 0 has {BLOCK_ROWS} rows or more at its source, {rows} in the layout"
        ):
            Producer(other).produce(0, [SITE])
