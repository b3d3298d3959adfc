"""Training of transcoders on rows in memory: scales of both places, units, what takes part, going on bit for bit."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from trainers import BATCH, BLOCKS, ROWS, N, run, same, sparse_rows, through_files, weights

from gsae_ray.activations.accumulator import StatisticsAccumulator
from gsae_ray.activations.layout import Layout
from gsae_ray.activations.reader import RowStream
from gsae_ray.activations.statistics import SiteStatistics
from gsae_ray.config.recipe import TrainingSettings
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import NumericError, UserError
from gsae_ray.training.engines import make_engine
from gsae_ray.training.trainer import Trainer

SITE, TARGET = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
OUT, M = 10, 32
HYPERPARAMETERS: dict[str, dict[str, Any]] = {
    "standard": {"l1_coefficient": 0.3},
    "gated": {"l1_coefficient": 0.3},
    "topk": {"k": 4},
    "batchtopk": {"k": 4},
    "jumprelu": {"l0_coefficient": 1e-3},
}
every_architecture = pytest.mark.parametrize("architecture", HYPERPARAMETERS)


@cache
def computed_rows() -> Tensor:
    """Rows [ROWS, OUT] that a ReLU network with 16 neurons makes of `sparse_rows`, with a mean, on another scale."""
    generator = torch.Generator().manual_seed(5)
    W_in, W_out = torch.randn(N, 16, generator=generator), torch.randn(16, OUT, generator=generator)
    x_RD = sparse_rows() / sparse_rows().norm(dim=1).mean()
    return 0.05 * (torch.relu(x_RD @ W_in - 0.3) @ W_out + 0.2)


class PairSource:
    """Blocks of rows held in memory, of a site and of its target."""

    def __init__(self, rows: dict[str, Tensor], layout: Layout, max_norm: float | None) -> None:
        self.rows, self.layout, self.max_norm, self.block = rows, layout, max_norm, -1

    def statistics(self) -> dict[str, SiteStatistics]:
        found = {}
        for site, x_RD in self.rows.items():
            first_RD = x_RD[: self.layout.rows[0]]
            gathering, order = StatisticsAccumulator(first_RD.shape[1]), torch.arange(len(first_RD))
            gathering.add(first_RD)
            found[site] = gathering.statistics(first_RD, order, torch.ones_like(order), self.max_norm)
        return found

    def open(self, block: int) -> None:
        self.block = block

    def chunk(self, index: int) -> np.ndarray[Any, Any]:
        spans = [(site, *span) for site in self.rows for span in self.layout.chunks(self.block, site)]
        site, first, end = spans[index]
        start = self.layout.starts[self.block]
        return self.rows[site][start + first : start + end].numpy()


def make(
    architecture: str = "standard",
    skip: bool = False,
    x_RD: Tensor | None = None,
    y_RD: Tensor | None = None,
    hyperparameters: dict[str, Any] | None = None,
    max_norm: float | None = None,
    **training: Any,
) -> Trainer:
    """A trainer of a transcoder at the start; `training` overrides."""
    x_RD = sparse_rows() if x_RD is None else x_RD
    y_RD = computed_rows() if y_RD is None else y_RD
    settings: dict[str, Any] = {"tokens": 5000, "batch_size": BATCH, "log_every_tokens": 10 * BATCH, **training}
    has_objective = architecture in ("standard", "gated")
    lr, objective = (
        settings.pop("lr", 3e-3),
        settings.pop("objective", "norm_weighted" if has_objective else "unit_norm"),
    )
    trial = TrialSpec.make(
        identity={},
        site="blocks.1.mlp.hook_in:hook_mlp_out",
        architecture=architecture,
        d_in=N,
        d_out=y_RD.shape[1],
        d_sae=M,
        skip=skip,
        hyperparameters=hyperparameters or HYPERPARAMETERS[architecture],
        training=TrainingSettings.model_validate(settings).resolve(lr, 0, objective, "modern"),
    )
    layout = Layout(BLOCKS, {SITE: N, TARGET: y_RD.shape[1]}, "float32", chunk_bytes=170 * N * 4)
    source = PairSource({SITE: x_RD, TARGET: y_RD}, layout, max_norm)
    return Trainer(trial, RowStream.of(source, layout, trial.sites))


@torch.no_grad()
def unexplained(trainer: Trainer, y_RD: Tensor | None = None) -> float:
    """FVU of the finished transcoder on the last rows."""
    y_RD = (computed_rows() if y_RD is None else y_RD)[-1000:]
    error_RD = y_RD - trainer.finished_sae({})(sparse_rows()[-1000:])
    return (error_RD.square().sum() / (y_RD - y_RD.mean(0)).square().sum()).item()


# ---- what it learns -------------------------------------------------------------------------------------------------


@every_architecture
def test_it_learns_what_is_computed_from_its_input(architecture: str) -> None:
    trainer = make(architecture, lr=1e-2)
    before = unexplained(trainer)
    run(trainer)
    assert unexplained(trainer) < 0.4 < 0.9 < before


def test_a_skip_connection_learns_what_is_affine() -> None:
    A = torch.randn(N, OUT, generator=torch.Generator().manual_seed(1))
    affine_RD = sparse_rows() @ A + 5
    fvu = {}
    for skip in (False, True):
        trainer = make(skip=skip, y_RD=affine_RD, hyperparameters={"l1_coefficient": 4.0}, lr=1e-2)
        assert not skip or not trainer.sae.W_skip.any(), "it begins with none"
        run(trainer)
        fvu[skip] = unexplained(trainer, affine_RD)
    assert fvu[True] < 0.05 < 0.3 < fvu[False]


def test_it_begins_with_the_mean_of_what_it_computes_and_rows_that_are_not_tied() -> None:
    trainer = make()
    first_RD = computed_rows()[: BLOCKS[0]]
    torch.testing.assert_close(
        trainer.sae.b_dec.detach(), trainer.target_scale * first_RD.mean(0), rtol=1e-4, atol=1e-5
    )
    assert trainer.sae.W_enc.shape == (N, M) and trainer.sae.W_dec.shape == (M, OUT)


# ---- two scales -----------------------------------------------------------------------------------------------------


@every_architecture
@pytest.mark.parametrize("skip", [False, True])
def test_each_place_has_its_own_scale_and_the_finished_one_takes_raw_rows(architecture: str, skip: bool) -> None:
    trainer = make(architecture, skip)
    x_RD, y_RD = sparse_rows()[: BLOCKS[0]], computed_rows()[: BLOCKS[0]]
    assert (trainer.scale * x_RD).square().sum(1).mean().item() == pytest.approx(N, rel=1e-5)
    assert (trainer.target_scale * y_RD).square().sum(1).mean().item() == pytest.approx(OUT, rel=1e-5)
    trainer.train_interval()
    sae = trainer.finished_sae({})
    trainer.sae.eval()
    with torch.no_grad():
        expected_RD = trainer.sae(trainer.scale * x_RD) / trainer.target_scale
        torch.testing.assert_close(sae(x_RD), expected_RD, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(M))
    assert (sae.cfg.site, sae.cfg.target, sae.cfg.d_out, sae.cfg.skip) == (SITE, TARGET, OUT, skip)
    assert sae.cfg.place == trainer.trial.site


@every_architecture
def test_the_units_of_either_place_change_nothing(architecture: str) -> None:
    """Features are in the units of what is computed: with y in other units they are scaled, with x in others not."""
    finished = []
    for x_unit, y_unit in ((1.0, 1.0), (4.0, 1.0), (1.0, 0.25)):  # powers of two: bit for bit
        trainer = make(architecture, True, x_unit * sparse_rows(), y_unit * computed_rows(), tokens=20 * BATCH)
        run(trainer)
        finished.append((x_unit, y_unit, trainer.finished_sae({})))
    _, _, plain = finished[0]
    x_RD = sparse_rows()[-500:]
    with torch.no_grad():
        for x_unit, y_unit, sae in finished[1:]:
            assert torch.equal(sae.encode(x_unit * x_RD), y_unit * plain.encode(x_RD))
            assert torch.equal(sae(x_unit * x_RD), y_unit * plain(x_RD))


def test_the_papers_units_of_a_coefficient_are_those_of_what_is_computed() -> None:
    """λ of a mean over coordinates of raw y: the same sum, n times smaller."""
    raw: dict[str, Any] = {"input_scaling": False, "unit_biases": False, "tokens": 10 * BATCH, "objective": "paper"}
    paper = make(hyperparameters={"l1_coefficient": 0.5 / OUT}, l1_units="paper", **raw)
    assert paper.coefficient == pytest.approx(0.5)
    rms = computed_rows()[: BLOCKS[0]].square().sum(1).mean().sqrt().item()
    ours = make(hyperparameters={"l1_coefficient": 0.5}, l1_units="sum", **raw)
    assert ours.coefficient == pytest.approx(0.5 * rms / OUT**0.5)


# ---- which rows take part -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["site", "target"])
def test_rows_of_massive_norm_at_either_place_take_no_part(place: str) -> None:
    massive_R = torch.zeros(ROWS, dtype=torch.bool)
    massive_R[5::50] = True
    x_RD, y_RD = sparse_rows().clone(), computed_rows().clone()
    (x_RD if place == "site" else y_RD)[massive_R] *= 1e4
    trainer = make(x_RD=x_RD, y_RD=y_RD, max_norm=50.0)
    row = trainer.train_interval()
    assert row["left_out_fraction"] == pytest.approx(1 / 50, rel=0.05)
    assert row["reconstruction_loss"] < 2 * OUT, "none of them was seen"
    assert trainer.norms.left_out == (int(massive_R[: BLOCKS[0]].sum()) if place == "target" else 0)


@pytest.mark.parametrize("place", [SITE, TARGET])
def test_rows_of_zeros_or_that_are_not_finite_are_named_with_their_place(place: str) -> None:
    rows = {SITE: sparse_rows().clone(), TARGET: computed_rows().clone()}
    rows[place].zero_()
    with pytest.raises(NumericError, match=f"all activations at {place} are zero"):
        make(x_RD=rows[SITE], y_RD=rows[TARGET])
    rows[place][3] = torch.inf
    with pytest.raises(NumericError, match=f"activations at {place} are not finite in the first block"):
        make(x_RD=rows[SITE], y_RD=rows[TARGET])


# ---- going on -------------------------------------------------------------------------------------------------------

RESAMPLING = {"at_steps": [25, 50], "window_steps": 20, "inputs": 8 * BATCH, "rewarm_steps": 5}


@every_architecture
@pytest.mark.parametrize("resampling", [False, RESAMPLING])
def test_it_goes_on_bit_for_bit(architecture: str, resampling: Any) -> None:
    settings = {"skip": True, "resampling": resampling}
    whole = make(architecture, **settings)
    expected = run(whole)
    begun = make(architecture, **settings)
    rows = [{"tokens": begun.tokens} | begun.train_interval() for _ in range(3)]
    resumed = make(architecture, **settings)
    resumed.restore(*through_files(begun.state()))
    rest = run(resumed)
    assert len(rows) == 3 and rest == expected[3:]
    assert same(weights(resumed), weights(whole))


def test_silent_features_read_along_rows_that_are_computed_badly_and_write_what_is_missing() -> None:
    trainer = make(
        resampling={**RESAMPLING, "at_steps": [30]}, objective="paper", hyperparameters={"l1_coefficient": 1.0}
    )
    with torch.no_grad():
        trainer.sae.get_parameter("b_enc")[:5] = -1e3
    while trainer.step < 30:
        trainer._train_step()
    assert trainer.resampler is not None
    inputs_KD, errors_KD = trainer.resampler.inputs_KD.clone(), trainer.resampler.errors_KD.clone()
    silent_K = trainer.resampler.silent_F.nonzero()[:, 0]
    assert set(range(5)) <= set(silent_K.tolist())
    mean_D = trainer.scale * sparse_rows()[: BLOCKS[0]].mean(0)
    trainer.resampler.resample(30, trainer.sae, trainer.optimiser, "paper")
    read_KD = torch.nn.functional.normalize(inputs_KD[: len(silent_K)] - mean_D)
    written_KD = torch.nn.functional.normalize(errors_KD[: len(silent_K)])
    sae = trainer.sae
    with torch.no_grad():
        torch.testing.assert_close(torch.nn.functional.normalize(sae.W_enc.T[silent_K]), read_KD, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(sae.W_dec[silent_K], written_KD)
        assert not sae.get_parameter("b_enc")[silent_K].any()


# ---- engines --------------------------------------------------------------------------------------------------------


def test_a_sparse_engine_refuses_it_by_name() -> None:
    trainer = make(tokens=BATCH, log_every_tokens=BATCH)
    with pytest.raises(UserError, match="sparse-cpu has no transcoders; engine: dense has"):
        Trainer(trainer.trial, trainer.stream, engine=make_engine("sparse-cpu", 1))
