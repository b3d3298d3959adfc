"""Rows of massive norm: found, told of, and without a part in what every trial and every evaluation starts from.

The built-in model with the embedding of one token made so large that its rows are what attention sinks are in large
models: a few positions that hold most of E‖x‖².
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from producers import model_of, tokens_of
from stores import WIDTHS, ArrayProducer, Store, layout_of, play, readers_of, train
from torch import Tensor
from trials import random_sae

from gsae_ray.activations.accumulator import StatisticsAccumulator, norms_of
from gsae_ray.activations.layout import Layout
from gsae_ray.activations.producer import Producer
from gsae_ray.activations.production_log import ProductionLog
from gsae_ray.activations.statistics import Norms, SiteStatistics
from gsae_ray.config.site import Site
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver.prepare import PreparedSweep, prepare, producer_spec
from gsae_ray.evaluation.task import Evaluate
from gsae_ray.language_model.hooks import capture
from gsae_ray.language_model.massive_norms import square_norms
from gsae_ray.saes import to_bytes

RESIDUAL, MLP = "blocks.1.hook_resid_post", "blocks.1.hook_mlp_out"


def plan_of(folder: Path, **dataset: float | None) -> PreparedSweep:
    sweep = Sweep.model_validate(
        {
            "name": "sinks",
            "model": {"name": "builtin", "context_size": 32},
            "dataset": {"name": "builtin", **dataset},
            "sites": {"layers": [1], "points": ["resid_post", "mlp_out"]},
            "saes": [{"architecture": "gated", "widths": [16], "l1_coefficient": 1.0}],
            "training": {"tokens": 16_000, "batch_size": 64, "lr": 1e-3},
            "evaluation": {"tokens": 4000},
        }
    )
    return prepare(sweep, folder)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> PreparedSweep:
    return plan_of(tmp_path_factory.mktemp("sinks"))


@pytest.fixture(scope="module")
def sink(plan: PreparedSweep) -> int:
    """A token of about 0.1 % of the rows of block 0."""
    tokens_ST = tokens_of(plan).block(0)
    counts = torch.bincount(tokens_ST[tokens_of(plan).kept(tokens_ST)])
    return int((counts - counts.sum() / 1000).abs().argmin())


def producer_of(plan: PreparedSweep, sink: int) -> Producer:
    producer = Producer(producer_spec(plan))
    with torch.no_grad():
        model_of(producer).get_input_embeddings().weight[sink] *= 3000
    return producer


@pytest.fixture(scope="module")
def producer(plan: PreparedSweep, sink: int) -> Producer:
    return producer_of(plan, sink)


def rows_by_hand(producer: Producer, plan: PreparedSweep, site: str, sink: int) -> tuple[Tensor, Tensor, Tensor]:
    """(rows of block 0 in float64, which of them are sinks, their positions)."""
    tokens_ST = tokens_of(plan).block(0)
    kept_ST = tokens_of(plan).kept(tokens_ST)
    x_STn = capture(model_of(producer), tokens_ST, [Site(site)])[Site(site)]
    positions_ST = torch.arange(tokens_ST.shape[1]).expand_as(tokens_ST)
    return x_STn[kept_ST].double(), (tokens_ST == sink)[kept_ST], positions_ST[kept_ST]


# ---- statistics -----------------------------------------------------------------------------------------------------


def test_the_scale_and_the_mean_are_those_of_the_rows_that_take_part(
    plan: PreparedSweep, producer: Producer, sink: int
) -> None:
    x_Rn, sink_R, _ = rows_by_hand(producer, plan, RESIDUAL, sink)
    statistics = producer.produce(0, [RESIDUAL])[0][RESIDUAL]
    rest_Rn = x_Rn[~sink_R]
    assert statistics.mean_square_norm == pytest.approx(rest_Rn.square().sum(1).mean().item(), rel=1e-6)
    np.testing.assert_allclose(statistics.mean, rest_Rn.mean(0), rtol=1e-4, atol=1e-4)
    assert statistics.mean_square_norm < 0.1 * x_Rn.square().sum(1).mean(), "the sinks would have set the scale"
    assert statistics.norms.left_out == sink_R.sum() > 0


def test_block_0_tells_the_median_the_share_of_the_largest_rows_and_where_they_lie(
    plan: PreparedSweep, producer: Producer, sink: int
) -> None:
    x_Rn, sink_R, positions_R = rows_by_hand(producer, plan, RESIDUAL, sink)
    squares_R = x_Rn.square().sum(1)
    norms = producer.produce(0, [RESIDUAL])[0][RESIDUAL].norms
    largest_R = squares_R.sort(descending=True).values[: len(squares_R) // 1000]
    assert norms.rows == len(squares_R)
    assert norms.median_square_norm == pytest.approx(squares_R.quantile(0.5, interpolation="lower").item(), rel=1e-6)
    assert norms.sink_share == pytest.approx((largest_R.sum() / squares_R.sum()).item(), rel=1e-5)
    assert norms.sink_share > 0.5
    assert norms.limit == pytest.approx(100 * norms.median_square_norm)
    assert set(norms.sink_positions) <= set(positions_R[sink_R].tolist())
    assert norms.sink_positions


def test_without_max_norm_all_rows_take_part(
    plan: PreparedSweep, producer: Producer, sink: int, tmp_path: Path
) -> None:
    every = plan_of(tmp_path, max_norm=None)
    x_Rn, *_ = rows_by_hand(producer, plan, RESIDUAL, sink)
    producer_of_every = producer_of(every, sink)
    statistics = producer_of_every.produce(0, [RESIDUAL])[0][RESIDUAL]
    assert statistics.mean_square_norm == pytest.approx(x_Rn.square().sum(1).mean().item(), rel=1e-6)
    np.testing.assert_allclose(statistics.mean, x_Rn.mean(0), rtol=1e-4, atol=1e-2)
    assert math.isinf(statistics.norms.limit)
    assert statistics.norms.left_out == 0
    assert statistics.norms.sink_share == producer.produce(0, [RESIDUAL])[0][RESIDUAL].norms.sink_share


def test_rows_that_take_no_part_keep_their_places_in_the_stream(plan: PreparedSweep, sink: int, tmp_path: Path) -> None:
    every = plan_of(tmp_path, max_norm=None)
    assert every.layout == plan.layout
    chunks = [producer_of(p, sink).produce(1, [RESIDUAL])[1] for p in (plan, every)]
    assert all(np.array_equal(a, b) for a, b in zip(*chunks, strict=True))


def test_the_builtin_model_has_no_row_of_massive_norm(plan: PreparedSweep) -> None:
    statistics, _ = Producer(producer_spec(plan)).produce(0, [RESIDUAL, MLP])
    for of_site in statistics.values():
        assert of_site.norms.left_out == 0
        assert of_site.norms.sink_share < 0.05


def test_what_is_not_finite_is_no_massive_row() -> None:
    squares_R = torch.ones(100, dtype=torch.float64)
    squares_R[7] = math.inf
    assert norms_of(squares_R, torch.arange(100), 10.0).left_out == 0


def test_where_most_rows_are_zero_the_others_take_part() -> None:
    squares_R = torch.zeros(100, dtype=torch.float64)
    squares_R[:7] = 1
    assert norms_of(squares_R, torch.arange(100), 10.0).left_out == 0


@pytest.mark.parametrize("norm", [1e3, 1e9, 1e12])
def test_a_row_of_any_norm_leaves_nothing_in_the_scale(norm: float) -> None:
    x_Rn = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
    expected = x_Rn[1:].double().square().sum(1).mean().item()
    x_Rn[0] = norm
    gathering = StatisticsAccumulator(4)
    gathering.add(x_Rn)
    statistics = gathering.statistics(x_Rn, torch.arange(1000), torch.arange(1000), 10.0)
    assert statistics.norms.left_out == 1
    assert statistics.mean_square_norm == pytest.approx(expected, rel=1e-12)


def test_norms_are_taken_in_float64() -> None:
    assert square_norms(torch.full((1, 4), 6e4, dtype=torch.float16)).item() == pytest.approx(4 * 6e4**2)


# ---- evaluation -----------------------------------------------------------------------------------------------------


def test_producers_evaluate_without_the_rows_of_massive_norm_of_each_site(
    plan: PreparedSweep, producer: Producer, sink: int
) -> None:
    tokens_ET = tokens_of(plan).heldout()
    kept_ET = tokens_of(plan).kept(tokens_ET)
    sinks_E = ((tokens_ET == sink) & kept_ET).sum(1)
    assert sinks_E.sum() > 0
    for trial, left_out_E in zip(plan.trials, (sinks_E, torch.zeros_like(sinks_E)), strict=True):
        sequences = producer.run(Evaluate(trial.site, *to_bytes(random_sae(trial)))).sequences
        assert sequences["rows"] == (kept_ET.sum(1) - left_out_E).tolist(), trial.site


# ---- what identifies a trial and an evaluation ----------------------------------------------------------------------


def test_max_norm_is_part_of_a_trials_identity_and_of_the_evaluations(plan: PreparedSweep, tmp_path: Path) -> None:
    others = [plan_of(tmp_path, max_norm=max_norm) for max_norm in (10.0, 20.0, None)]
    assert others[0].trials == plan.trials
    assert others[0].evaluation.fingerprint == plan.evaluation.fingerprint
    assert len({p.trials[0].identity for p in others}) == 3
    assert len({p.evaluation.fingerprint for p in others}) == 3
    assert len({tokens_of(p).fingerprint for p in others}) == 1, "the same tokens"


# ---- it is told -----------------------------------------------------------------------------------------------------


def norms(left_out: int = 0, share: float = 0.79, positions: tuple[int, ...] = (1, 3)) -> Norms:
    return Norms(25_400, 1.0, 100.0, left_out, share, positions)


def test_a_notice_says_where_the_rows_lie_and_what_can_be_done() -> None:
    assert norms(left_out=2).notice("blocks.12.hook_resid_post") == (
        "blocks.12.hook_resid_post: the largest 0.1% of the rows hold 79% of E||x||^2 (attention sinks, at positions "
        "1, 3 of their contexts); 2 of 25,400 rows are above dataset.max_norm and take no part"
    )
    remedy = norms(positions=tuple(range(10))).notice("site")
    assert remedy is not None
    assert "at positions 0, 1, 2, 3, 4, 5, 6, 7 and 2 more of" in remedy
    assert "dataset.max_norm" in remedy
    assert "dataset.skip_positions" in remedy


def test_a_share_below_a_fifth_is_not_told() -> None:
    assert norms(share=0.2).notice("site") is None
    assert norms(share=math.nan).notice("site") is None


class WithSinks(ArrayProducer):
    """At one of the two sites."""

    async def produce(self, block: int, sites: object) -> object:  # type: ignore[override]
        statistics, chunks = await super().produce(block, sites)  # type: ignore[arg-type]
        if "left" in statistics:
            of_site = statistics["left"]
            statistics["left"] = SiteStatistics(of_site.mean, of_site.mean_square_norm, norms(left_out=2))
        return statistics, chunks


def test_a_launch_tells_of_massive_rows_once_a_site_whatever_dies() -> None:
    layout: Layout = layout_of(6, 6)
    assert list(WIDTHS) == ["left", "right"]

    async def work() -> tuple[list[str], list[str]]:
        said: list[list[str]] = []
        record = ProductionLog()
        for _ in range(2):  # the second takes the place of the first, which has died
            store = Store(layout, [WithSinks(layout)], readers_of(layout, 2), record=record)
            for name in ("t0", "t1"):
                await train(store, name)
            look = store.report()
            record = look.record
            said.append([event for event in look.events if "max_norm" in event])
        return said[0], said[1]

    first, second = play(work())
    assert first == [norms(left_out=2).notice("left")]
    assert second == []
