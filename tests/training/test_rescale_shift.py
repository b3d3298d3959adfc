"""Training rescale & shift: it starts as its parent, and keeps all but r_mag and b_mag."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from trainers import BATCH, make, run, same, sparse_rows, through_files, weights

from gsae_ray.saes import SAE, Objective, RescaleShiftSAE, to_bytes


@cache
def parent_sae(objective: Objective = "paper") -> SAE:
    """A standard SAE with shrinkage."""
    trainer = make("standard", l1=4.0, objective=objective)
    run(trainer)
    return trainer.finished_sae({})


@pytest.mark.parametrize("objective", ["paper", "norm_weighted"])
@pytest.mark.parametrize("schedule", ["paper", "modern"])
def test_rescale_and_shift_starts_as_its_parent_and_gets_better(objective: Objective, schedule: str) -> None:
    parent = parent_sae(objective)
    child = make("rescale_shift", parent=parent, objective=objective, schedule=schedule, lr=2e-2)
    x_BD = sparse_rows()[-500:]
    start = child.finished_sae({})
    for name in ("W_enc", "W_dec", "b_dec"):
        assert torch.equal(start.get_parameter(name), parent.get_parameter(name))
    assert not start.get_parameter("r_mag").any()
    torch.testing.assert_close(start.get_parameter("b_mag"), parent.get_parameter("b_enc"))
    torch.testing.assert_close(start(x_BD), parent(x_BD), rtol=1e-5, atol=1e-5)
    rows = run(child)
    assert rows[-1]["reconstruction_loss"] < rows[0]["reconstruction_loss"]
    assert rows[0]["loss"] == rows[0]["reconstruction_loss"]
    finished = child.finished_sae({})
    error, parents = ((sae(x_BD) - x_BD).square().sum() for sae in (finished, parent))
    assert error < 0.9 * parents
    assert torch.equal(finished.encode(x_BD) > 0, (finished.encode(x_BD) > 0) & (parent.encode(x_BD) > 0))


def test_rescale_and_shift_keeps_its_parents_parameters_bit_for_bit() -> None:
    parent = parent_sae()
    before = to_bytes(parent)
    child = make("rescale_shift", parent=parent, tokens=30 * BATCH, log_every_tokens=BATCH)
    frozen = {name: p.clone() for name, p in weights(child).items() if name not in ("r_mag", "b_mag")}
    assert set(frozen) == {"W_enc", "W_dec", "b_dec", "b_gate"}
    while not child.done:
        child.train_interval()
        assert all(torch.equal(weights(child)[name], tensor) for name, tensor in frozen.items())
    finished = child.finished_sae({})
    for name in ("W_enc", "W_dec", "b_dec"):
        assert torch.equal(finished.get_parameter(name), parent.get_parameter(name)), name
    assert torch.equal(finished.get_parameter("b_gate"), parent.get_parameter("b_enc"))
    assert to_bytes(parent) == before
    assert finished.get_parameter("r_mag").any() and finished.get_parameter("b_mag").any()


def test_rescale_and_shift_goes_on_bit_for_bit() -> None:
    whole = make("rescale_shift", parent=parent_sae())
    whole.train_interval()
    state = through_files(whole.state())
    run(whole)
    restored = make("rescale_shift", parent=parent_sae())
    restored.restore(*state)
    run(restored)
    assert same(weights(restored), weights(whole))
    assert to_bytes(restored.finished_sae({})) == to_bytes(whole.finished_sae({}))


def test_a_finished_rescale_and_shift_sae_has_a_jumprelu_form() -> None:
    child = make("rescale_shift", parent=parent_sae())
    run(child)
    finished = child.finished_sae({}).double()
    assert isinstance(finished, RescaleShiftSAE)
    x_BD = sparse_rows()[-500:].double()
    torch.testing.assert_close(finished.to_jumprelu()(x_BD), finished(x_BD))
