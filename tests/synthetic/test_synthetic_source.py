"""Synthetic rows come through producers and the store as those of a language model do: the laws hold."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from store_blocks import Client, StoreBlocks
from synthetic_sweeps import SWEEP, sweep

from gsae_ray.activations.producer import LocalBlockReader, Producer
from gsae_ray.activations.reader import BlockReader, RowStream
from gsae_ray.activations.store import ActivationStore
from gsae_ray.activations.trial_positions import ReaderSpec
from gsae_ray.config.trial import TrialSpec
from gsae_ray.driver.prepare import PreparedSweep, prepare, producer_spec
from gsae_ray.evaluation.task import Evaluate
from gsae_ray.language_model.source import HeldOutRows
from gsae_ray.saes import SAE, to_bytes
from gsae_ray.training.trainer import Trainer

SITE = "synthetic"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> PreparedSweep:
    return prepare(sweep(), tmp_path_factory.mktemp("storage"))


def trained(plan: PreparedSweep, trial: TrialSpec, reader: BlockReader) -> SAE:
    trainer = Trainer(trial, RowStream(reader, plan.layout, SITE))
    while not trainer.done:
        trainer.train_interval()
    return trainer.finished_sae({})


def test_the_stream_has_the_rows_that_the_longest_trial_needs(plan: PreparedSweep) -> None:
    assert plan.layout.rows == (5000,) * 4 and plan.layout.widths == {SITE: 16}
    longer = {**SWEEP["training"], "tokens": 20_001}
    more = prepare(sweep(training=longer, dataset={"shuffle_tokens": 3000}), Path("unused"))
    assert more.layout.rows == (3000,) * 7


def test_law_1_a_block_is_the_same_by_any_producer(plan: PreparedSweep) -> None:
    one, other = Producer(producer_spec(plan)), Producer(producer_spec(plan))
    other.produce(2, [SITE])
    statistics, chunks = one.produce(0, [SITE])
    again, chunks_again = other.produce(0, [SITE])
    assert all(np.array_equal(a, b) for a, b in zip(chunks, chunks_again, strict=True))
    assert np.array_equal(statistics[SITE].mean, again[SITE].mean)


def test_laws_2_and_3_trials_that_share_the_rows_are_trained_as_alone_and_rows_are_made_once(
    plan: PreparedSweep,
) -> None:
    client, loop = Client(Producer(producer_spec(plan))), asyncio.new_event_loop()
    try:
        readers = {trial.name: ReaderSpec(SITE, trial.training.trained_tokens) for trial in plan.trials}
        everything = sum(plan.layout.nbytes(block, (SITE,)) for block in range(len(plan.layout.rows)))
        store = ActivationStore(plan.layout, [client], readers, everything, timeout_s=60)  # type: ignore[list-item]
        shared = {trial.name: trained(plan, trial, StoreBlocks(loop, store, trial.name)) for trial in plan.trials}
    finally:
        loop.close()
    assert sorted(client.produced) == list(range(4))
    for trial in plan.trials:
        alone = trained(plan, trial, LocalBlockReader(Producer(producer_spec(plan)), SITE))
        assert to_bytes(alone)[1] == to_bytes(shared[trial.name])[1], trial.name


def test_held_out_rows_are_those_that_were_asked_for_in_groups(plan: PreparedSweep) -> None:
    heldout = Producer(producer_spec(plan)).source.heldout()
    assert isinstance(heldout, HeldOutRows) and heldout.features is not None
    group_R = torch.cat([group_R for _, group_R in heldout.batches(SITE)])
    assert group_R.tolist() == [row // 128 for row in range(2000)] and heldout.groups == 16
    for (x_RD, _), (known_RD, _, active_RG) in zip(heldout.batches(SITE), heldout.features.batches(SITE), strict=True):
        assert torch.equal(x_RD, known_RD) and active_RG.shape == (len(x_RD), 24)


def test_an_evaluation_has_the_metrics_that_take_true_features_and_no_cross_entropies(plan: PreparedSweep) -> None:
    producer = Producer(producer_spec(plan))
    sae = trained(plan, plan.trials[0], LocalBlockReader(producer, SITE))
    metrics = producer.run(Evaluate(SITE, *to_bytes(sae))).metrics
    rows = {"l0", "gamma", "fvu", "alive_fraction", "dead_heldout", "dense_heldout", "rows"}
    features = {"mcc", "feature_precision", "feature_recall", "feature_f1", "absorption", "splitting", "true_l0"}
    assert set(metrics) == rows | features
    assert metrics["true_l0"] == pytest.approx(2, rel=0.1)
    again = Producer(producer_spec(plan)).run(Evaluate(SITE, *to_bytes(sae)))
    assert again.metrics == metrics
    assert producer.run(Evaluate(SITE, *to_bytes(sae), pursuit_l0=2)).metrics["l0"] <= 2


# ---- what identifies the rows ---------------------------------------------------------------------------------------


def identified(**sections: Any) -> tuple[list[str], str]:
    """Identities of the trials, and the fingerprint of the held-out rows."""
    found = prepare(sweep(**sections), Path("unused"))
    return [trial.identity for trial in found.trials], found.evaluation.fingerprint


@pytest.mark.parametrize(
    ("sections", "trials", "heldout"),
    [
        ({"model": {"seed": 1}}, True, True),
        ({"model": {"zipf": 0.5}}, True, True),
        ({"model": {"hierarchy": {"roots": 3}}}, True, True),
        ({"dataset": {"seed": 1}}, True, False),
        ({"dataset": {"shuffle_tokens": 4000}}, True, False),
        ({"dataset": {"max_norm": 10}}, True, True),
        ({"evaluation": {"tokens": 1000}}, False, True),
        ({"producers": {"count": 2}}, False, False),
    ],
)
def test_trials_and_held_out_rows_are_others_where_what_they_hang_on_is_another(
    sections: dict[str, Any], trials: bool, heldout: bool
) -> None:
    (before, fingerprint), (after, other) = identified(), identified(**sections)
    assert all((a != b) == trials for a, b in zip(before, after, strict=True))
    assert (fingerprint != other) == heldout
