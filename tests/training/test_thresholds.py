"""What architectures with buffers keep while they are trained: counters and thresholds, their rules, and resumption."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from trainers import BATCH, N, make, run, same, sparse_rows, through_files, weights

from gsae_ray.saes import BatchTopKSAE, SAEConfig, build, from_bytes, to_bytes
from gsae_ray.saes.batchtopk import THRESHOLD_DECAY
from gsae_ray.training.trainer import Trainer

NEW: dict[str, dict[str, Any]] = {
    "topk": {"k": 4, "dead_after_tokens": 300},
    "batchtopk": {"k": 4, "dead_after_tokens": 300},
    "matryoshka_batchtopk": {"k": 4, "dead_after_tokens": 300, "prefix_widths": [8, 32]},
    "jumprelu": {"l0_coefficient": 0.01, "bandwidth": 0.1, "initial_threshold": 0.1},
    "p_anneal": {"l1_coefficient": 1.0},
}
every_architecture = pytest.mark.parametrize("architecture", NEW)


def trainer(architecture: str, **training: Any) -> Trainer:
    return make(architecture, options=NEW[architecture], **training)


@every_architecture
def test_a_trial_that_is_killed_goes_on_bit_for_bit_with_all_that_it_counted(architecture: str) -> None:
    whole = trainer(architecture)
    rows = run(whole)
    killed = trainer(architecture)
    for interval in range(len(rows)):
        if interval:  # every interval in a process of its own, also those of calibration
            state = through_files(killed.state())
            killed = trainer(architecture)
            killed.restore(*state)
        row = killed.train_interval()
        assert all(row[key] == rows[interval][key] for key in ("loss", "l0", "auxiliary_loss", "sparsity_loss"))
    assert killed.done
    assert same(dict(killed.sae.training_state()), dict(whole.sae.training_state()))
    assert rows[-1]["loss"] < rows[0]["loss"]


@every_architecture
def test_what_is_saved_has_the_function_and_nothing_of_the_training(architecture: str) -> None:
    trained = trainer(architecture)
    run(trained)
    sae = trained.finished_sae({})
    names = {"W_enc", "W_dec", "b_dec", "b_enc"}
    has_threshold = architecture in ("batchtopk", "matryoshka_batchtopk", "jumprelu")
    assert set(sae.state_dict()) == names | ({"threshold"} if has_threshold else set())
    loaded = from_bytes(*to_bytes(sae))
    assert torch.equal(loaded(sparse_rows()), sae(sparse_rows()))
    assert loaded.cfg == sae.cfg
    scaled = trained.sae.eval()(sparse_rows() * trained.scale) / trained.scale
    assert torch.allclose(sae(sparse_rows()), scaled, atol=1e-4), "it takes raw activations"
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(sae.cfg.d_sae), atol=1e-5)


@every_architecture
def test_the_same_sae_comes_out_on_activations_of_another_size(architecture: str) -> None:
    """Thresholds, bandwidth and λ are in units of the activations: a power of two changes nothing but exponents."""
    one, other = (make(architecture, factor * sparse_rows(), options=NEW[architecture]) for factor in (1.0, 64.0))
    assert run(one) == run(other)
    small, large = one.finished_sae({}), other.finished_sae({})
    assert torch.equal(small.W_dec, large.W_dec)
    assert torch.equal(64 * small(sparse_rows()), large(64 * sparse_rows()))


@pytest.mark.parametrize("unit_biases", [True, False])
def test_thresholds_learn_in_proportion_to_the_activations_whatever_biases_do(unit_biases: bool) -> None:
    moved = []
    for factor in (1.0, 64.0):
        training: dict[str, Any] = {"input_scaling": False, "unit_biases": unit_biases}
        trained = make("jumprelu", factor * sparse_rows(), options=NEW["jumprelu"], **training)
        start = trained.sae.get_parameter("threshold").clone()
        run(trained)
        moved.append(((trained.sae.get_parameter("threshold") - start).abs().mean() / factor).item())
    assert moved[0] > 0.01
    assert moved[1] == pytest.approx(moved[0], rel=0.0 if unit_biases else 0.3)


@pytest.mark.parametrize("architecture", ["jumprelu", "batchtopk", "topk"])
def test_so_it_does_where_training_does_not_scale(architecture: str) -> None:
    training: dict[str, Any] = {"input_scaling": False, "unit_biases": True, "gradient_clip": 0.0}
    one, other = (make(architecture, f * sparse_rows(), options=NEW[architecture], **training) for f in (1.0, 64.0))
    rows, others = run(one), run(other)
    assert [row["l0"] for row in rows] == [row["l0"] for row in others]
    assert rows[-1]["sparsity_coefficient"] * 64**2 == others[-1]["sparsity_coefficient"]


# ---- the threshold of BatchTopK SAEs --------------------------------------------------------------------------------


def batchtopk(k: int = 2, d_sae: int = 16) -> BatchTopKSAE:
    sae = build(SAEConfig(architecture="batchtopk", d_in=N, d_sae=d_sae, hyperparameters={"k": k}))
    assert isinstance(sae, BatchTopKSAE)
    sae.prepare_training(1.0, steps=100, batch_size=BATCH)
    sae.initialise(torch.Generator().manual_seed(0), torch.zeros(N), "unit_norm")
    return sae


def test_the_threshold_is_learnt_from_the_first_step_on() -> None:
    sae, smallest = batchtopk(), []
    for step in range(5):
        acts_BF = sae.losses(sparse_rows()[step * BATCH : (step + 1) * BATCH], 0.0, "unit_norm").acts_BF
        smallest.append(acts_BF[acts_BF > 0].min().item())
        weights_of = [THRESHOLD_DECAY ** (step - s) for s in range(step + 1)]
        mean = sum(w * s for w, s in zip(weights_of, smallest, strict=True)) / sum(weights_of)
        assert sae.threshold.tolist() == pytest.approx([mean] * 16, rel=1e-5)
    assert len(set(smallest)) == 5


def test_a_batch_in_which_nothing_is_active_leaves_the_threshold() -> None:
    sae = batchtopk()
    sae.losses(sparse_rows()[:BATCH], 0.0, "unit_norm")
    before = sae.threshold.clone()
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)
    losses = sae.losses(sparse_rows()[:BATCH], 0.0, "unit_norm")
    assert not losses.acts_BF.any() and losses.loss.isfinite()
    assert torch.equal(sae.threshold, before)
    assert sae.threshold_steps == 1


def test_calibration_puts_k_activations_a_row_above_the_threshold() -> None:
    sae, rows = batchtopk(k=3), torch.randn(20 * BATCH, N, generator=torch.Generator().manual_seed(0))
    for batch in rows.split(BATCH):
        sae.calibrate(batch)
    on = (sae.eval().encode(rows) > 0).sum().item()
    assert on / len(rows) == pytest.approx(3, rel=1e-3)
    few = batchtopk(k=16)
    few.calibrate(rows)
    assert not few.threshold.any(), "there are not so many activations"


def test_the_last_steps_of_a_run_calibrate_at_frozen_weights_on_training_rows() -> None:
    trained = trainer("batchtopk", log_every_tokens=BATCH)
    steps = trained.settings.steps
    assert trained.sae.calibration_steps == 1 == max(1, steps // 50)
    while trained.step < steps - 1:
        trained.train_interval()
    before = weights(trained)
    row = trained.train_interval()
    assert trained.done
    after = weights(trained)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"threshold"}
    assert row["l0"] == 4
    batch = trained.stream.batches[-1] * trained.scale  # type: ignore[attr-defined]
    on = (trained.sae.eval().encode(batch) > 0).sum().item()
    assert on == pytest.approx(4 * BATCH, abs=2)


def test_nothing_is_resampled_and_nothing_learnt_while_the_threshold_is_calibrated() -> None:
    """The schedule ends with the steps that learn."""
    resampling = {"at_steps": [60, 89], "window_steps": 1, "inputs": 5 * BATCH, "rewarm_steps": 0}
    trained = make("batchtopk", options={"k": 1}, log_every_tokens=BATCH, resampling=resampling, tokens=90 * BATCH)
    assert (trained.settings.steps, trained.learning_steps) == (90, 89)
    rows = run(trained)
    assert rows[-1]["lr"] == 0 < rows[-2]["lr"] < 0.1 * rows[50]["lr"]
    assert rows[60]["resampled_features"] > 0 == rows[-1]["resampled_features"]


@pytest.mark.parametrize(
    ("steps", "batch", "expected"), [(1, 128, 0), (2, 128, 1), (3125, 128, 62), (10**6, 4096, 16), (90, 70_000, 1)]
)
def test_calibration_takes_a_fiftieth_of_the_run_and_at_most_65536_rows(steps: int, batch: int, expected: int) -> None:
    sae = batchtopk()
    sae.prepare_training(1.0, steps, batch)
    assert sae.calibration_steps == expected


def test_a_feature_is_dead_after_a_tenth_of_the_run_and_then_the_auxiliary_term_begins() -> None:
    rows = run(make("topk", options={"k": 2}, lr=1e-2))
    first = next(row["tokens"] for row in rows if row["auxiliary_loss"] > 0)
    assert 499 < first < 4992
    without = run(make("topk", options={"k": 2, "auxiliary_coefficient": 0.0}, lr=1e-2))
    assert not any(row["auxiliary_loss"] for row in without)
    assert max(row["dead_fraction"] for row in without) > 0
