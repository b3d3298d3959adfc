"""A snapshot is the finished SAE of a training that stops there; that goes on as if none had been taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from trainers import BATCH, ROWS, make, run, same, sparse_rows, through_files, weights

from gsae_ray.saes import SAE, to_bytes
from gsae_ray.training.trainer import Trainer

STEPS = (7, 20, 33)
AT = [BATCH * 7, BATCH * 20 + 5, BATCH * 33]
CASES: dict[str, dict[str, Any]] = {
    "gated": {"architecture": "gated"},
    "sparse engine": {"architecture": "gated", "engine": "sparse-cpu"},
    "paper": {"architecture": "standard", "schedule": "paper", "resampling": {"at_steps": [18]}},
    "topk": {"architecture": "topk", "options": {"k": 4}},
    "batchtopk": {"architecture": "batchtopk", "options": {"k": 4}},
    "jumprelu": {"architecture": "jumprelu", "options": {"l0_coefficient": 0.01}},
    "target L0": {"architecture": "standard", "l1": None, "options": {"target_l0": 10}, "tokens": 5000},
}


def taken(trainer: Trainer, intervals: int | None = None) -> dict[int, SAE]:
    """The snapshots of a training, or of its next intervals, by their tokens."""
    found: dict[int, SAE] = {}
    while not trainer.done and intervals != 0:
        trainer.train_interval(lambda tokens: found.update({tokens: trainer.finished_sae({})}))
        intervals = None if intervals is None else intervals - 1
    return found


def made(case: str, **training: Any) -> Trainer:
    return make(**{"tokens": 40 * BATCH, **CASES[case], **training})


@pytest.mark.parametrize("case", CASES)
def test_snapshots_leave_training_as_it_is_and_are_what_is_finished_there(case: str) -> None:
    quiet = made(case)
    run(quiet)
    trainer = made(case, snapshots_at=AT)
    found = taken(trainer)
    assert same(weights(trainer), weights(quiet))
    assert list(found) == AT
    stepwise = made(case, log_every_tokens=BATCH)
    for step, tokens in zip(STEPS, AT, strict=True):
        while stepwise.step < step:
            stepwise.train_interval()
        assert to_bytes(found[tokens]) == to_bytes(stepwise.finished_sae({}))


@pytest.mark.parametrize("case", ["gated", "batchtopk"])
@pytest.mark.parametrize(("log", "stop"), [(10, 1), (10, 2), (3, 9), (50, 0)])
def test_they_depend_neither_on_intervals_nor_on_where_training_was_interrupted(case: str, log: int, stop: int) -> None:
    """Whatever was taken after the checkpoint before is taken again, the same."""
    expected = {tokens: to_bytes(sae) for tokens, sae in taken(made(case, snapshots_at=AT)).items()}
    first = made(case, snapshots_at=AT, log_every_tokens=log * BATCH)
    found = taken(first, stop)
    state = through_files(first.state())
    found |= taken(first, 1)  # lost: the successor begins at the state before it
    second = made(case, snapshots_at=AT, log_every_tokens=log * BATCH)
    second.restore(*state)
    again = taken(second)
    assert found.keys() | again.keys() == set(AT)
    for tokens, sae in (*found.items(), *again.items()):
        assert to_bytes(sae) == expected[tokens]


def test_a_snapshot_of_rescale_and_shift_has_the_parent_s_weights() -> None:
    parent = make("standard", tokens=20 * BATCH)
    run(parent)
    finished = parent.finished_sae({})
    trainer = make("rescale_shift", parent=finished, tokens=20 * BATCH, snapshots_at=[7 * BATCH])
    (snapshot,) = taken(trainer).values()
    assert torch.equal(snapshot.W_dec, finished.W_dec)


def test_a_snapshot_of_batchtopk_has_about_k_features_a_row_before_its_threshold_is_calibrated() -> None:
    """It is the running mean of the smallest activations that were kept."""
    rows_RD = torch.cat([sparse_rows(), sparse_rows()])[:ROWS]
    trainer = make("batchtopk", rows_RD, options={"k": 4}, snapshots_at=[20 * BATCH, 50 * BATCH])

    def l0(sae: SAE) -> float:
        acts_RF: Tensor = sae.encode(rows_RD)
        return (acts_RF > 0).sum(1).double().mean().item()

    early, late = (l0(sae) for sae in taken(trainer).values())
    assert early == pytest.approx(4, rel=0.25) and late == pytest.approx(4, rel=0.15)
