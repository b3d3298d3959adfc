"""The sparse engine is the dense one in less time: the same SAEs, and the same failures at the same step.

That its losses and gradients are those of the equations, in tests/saes/test_losses.py.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from selection import quick
from torch import Tensor
from trainers import BATCH, M, N, make, run, same, sparse_rows, through_files, weights

from gsae_ray.config.recipe import EngineName
from gsae_ray.errors import NumericError
from gsae_ray.saes import SAE, Objective, SAEConfig, build
from gsae_ray.training.engines import dense
from gsae_ray.training.engines.base import Engine, StepResult, Update
from gsae_ray.training.engines.dense import DenseEngine
from gsae_ray.training.engines.sparse_cpu import SparseCPUEngine
from gsae_ray.training.optimiser import Adam
from gsae_ray.training.trainer import Trainer

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("standard", {}),
    "gated": ("gated", {}),
    "untied": ("gated", {"tied": False}),
    "r_mag-0": ("gated", {"learn_r_mag": False}),
    "no-auxiliary": ("gated", {"auxiliary": "none"}),
}
variants = pytest.mark.parametrize("variant", VARIANTS)
trained = pytest.mark.parametrize("variant", ["standard", "gated", "untied"])
objectives = pytest.mark.parametrize("objective", ["paper", "norm_weighted"])
RESAMPLING = {"at_steps": [40], "window_steps": 10, "inputs": 5 * BATCH, "rewarm_steps": 0}


def random_sae(variant: str, d_in: int, d_sae: int) -> SAE:
    architecture, options = VARIANTS[variant]
    hyperparameters = {"l1_coefficient": 1.0, **options}
    sae = build(SAEConfig(architecture=architecture, d_in=d_in, d_sae=d_sae, hyperparameters=hyperparameters)).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return sae


def trainer(variant: str, engine: Engine | EngineName = "dense", **training: Any) -> Trainer:
    """Of SAEs that are dense in their first steps, and sparse from some step on."""
    architecture, options = VARIANTS[variant]
    return make(architecture, options=options, engine=engine, l1=6.0, **training)


class Switching(SparseCPUEngine):
    """Goes from one kind of step to the other in these short runs, and counts them."""

    def __init__(self, threads: int = 1, bfloat16: bool | None = None) -> None:
        super().__init__(threads, dense_above=0.3, bfloat16=bfloat16)
        self.sparse = self.total = 0

    def step(self, *arguments: Any) -> StepResult:
        self.total += 1
        return super().step(*arguments)

    def _sparse_step(self, *arguments: Any) -> StepResult | None:
        self.sparse += 1
        return super()._sparse_step(*arguments)


@trained
@objectives
@pytest.mark.parametrize("resampling", [False, RESAMPLING])
def test_it_trains_the_sae_that_the_dense_engine_trains(variant: str, objective: Objective, resampling: Any) -> None:
    common = {"objective": objective, "resampling": resampling}
    engine = Switching()
    ours, dense = trainer(variant, engine, **common), trainer(variant, **common)
    for row, other in zip(run(ours), run(dense), strict=True):
        assert row == pytest.approx(other, rel=2e-3, abs=2e-3)
    assert 0 < engine.sparse < engine.total, "both kinds of steps"
    for name, tensor in weights(dense).items():
        torch.testing.assert_close(weights(ours)[name], tensor, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("variant", quick(["standard", "gated", "untied"], lambda variant: variant == "gated"))
def test_weights_do_not_depend_on_threads_intervals_or_a_kill_between_the_kinds_of_steps(variant: str) -> None:
    engine = Switching()
    expected = trainer(variant, engine)
    run(expected)
    first_sparse = engine.total - engine.sparse
    for threads in (2, 3):
        other = trainer(variant, Switching(threads), log_every_tokens=3 * BATCH)
        run(other)
        assert same(weights(other), weights(expected))
    for kill_after in (first_sparse // 2, first_sparse + 3):
        settings = {"log_every_tokens": BATCH, "checkpoint_every_tokens": BATCH}
        killed = trainer(variant, Switching(), **settings)
        while killed.step < kill_after:
            killed.train_interval()
        state = killed.state()
        successor = trainer(variant, Switching(), **settings)
        successor.restore(*through_files(state))
        run(successor)
        assert same(weights(successor), weights(expected))


@variants
@objectives
@pytest.mark.parametrize(("clip", "betas"), [(0.0, (0.9, 0.999)), (1e-2, (0.0, 0.999)), (1e6, (0.9, 0.5))])
def test_an_update_is_that_of_the_dense_engine(
    variant: str, objective: Objective, clip: float, betas: tuple[float, float]
) -> None:
    """Projection, clipping, Adam and norms; biases at a learning rate of their own, gradients of any size."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for engine in (DenseEngine(), SparseCPUEngine(1), SparseCPUEngine(3)):
        generator.manual_seed(0)
        sae = random_sae(variant, 13, 37)
        engine.prepare(sae)
        if objective == "paper":
            sae.normalise_decoder()
        optimiser = Adam(sae, betas, bias_factor=3.0)
        for step in range(5):
            for parameter in sae.learnt_parameters().values():
                gradient = torch.randn(parameter.shape, generator=generator) * 10.0 ** -(step % 3 * 4)
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
            engine.update(sae, optimiser, Update(1e-2 * (step + 1), clip, objective == "paper"))
        assert all(parameter.grad is None for parameter in sae.parameters())
        found.append(
            {**{f"sae.{name}": p.detach().clone() for name, p in sae.named_parameters()}, **optimiser.tensors()}
        )
    dense, one, three = found
    assert same(one, three), "whatever the number of threads"
    assert set(dense) == set(one)
    for name, tensor in dense.items():
        # Squares have no sign, so that no sum of them cancels.
        rtol, atol = (1e-5, 1e-13) if name.startswith("exp_avg_sq") else (1e-5, 1e-6)
        torch.testing.assert_close(one[name], tensor, rtol=rtol, atol=atol)


@variants
@objectives
def test_a_step_s_norms_clip_as_those_of_its_gradient(variant: str, objective: Objective) -> None:
    """What a sparse step has measured on the way, and after a dense one in between."""
    found = []
    for engine in (DenseEngine(), SparseCPUEngine(1, dense_above=1), SparseCPUEngine(1, dense_above=0)):
        sae = random_sae(variant, 13, 37)
        engine.prepare(sae)
        if objective == "paper":
            sae.normalise_decoder()
        optimiser = Adam(sae, (0.0, 0.999), bias_factor=1.0)
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            engine.step(sae, torch.randn(50, 13, generator=generator), 1.0, objective)
            engine.update(sae, optimiser, Update(1e-3, 0.5, objective == "paper"))
            if isinstance(engine, SparseCPUEngine):
                engine.dense_above = 1 - engine.dense_above
        found.append(optimiser.tensors())
    for other in found[1:]:
        for name, tensor in found[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(("d_in", "d_sae"), [(1, 6), (6, 1), (1, 1)])
def test_an_sae_may_have_one_feature_or_one_coordinate(d_in: int, d_sae: int) -> None:
    found = []
    for engine in (DenseEngine(), SparseCPUEngine(1, dense_above=1)):
        sae = random_sae("untied", d_in, d_sae)
        engine.prepare(sae)
        losses_4, _ = engine.step(sae, torch.linspace(-2, 2, 9 * d_in).reshape(9, d_in), 1.0, "norm_weighted")
        found.append({"losses": losses_4, **{name: p.grad for name, p in sae.named_parameters() if p.grad is not None}})
    assert set(found[0]) == set(found[1])
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor)


def float64_gates(sae: SAE, x_BD: Tensor) -> tuple[Tensor, Tensor]:
    """π, and how far float32 may be from it: a sum of n products of ‖x‖ ‖w‖ at most, and the additions of biases."""
    x, W, b_dec, gate = (t.detach().double() for t in (x_BD, sae.W_enc, sae.b_dec, sae.get_parameter("b_gate")))
    sizes = x.norm(dim=1)[:, None] * W.norm(dim=0) + b_dec.norm() * W.norm(dim=0) + gate.abs()
    return (x - b_dec) @ W + gate, (len(W) + 4) * 2.0**-23 * sizes + 1e-36  # below that numbers vanish


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    d_in=st.integers(2, 40),
    row_sizes=st.sampled_from([(1.0,), (1e-3, 1.0, 1e3), (1e-12, 1e9), (1e-24, 1e-38)]),
    weight_size=st.sampled_from([1.0, 1e-20, 1e16]),
    distance=st.sampled_from([0.0, 1e-6, 1e-3, 4e-3, 1e-2]),
    worst=st.booleans(),
)
def test_what_is_active_is_so_in_float64_but_within_rounding(
    seed: int, d_in: int, row_sizes: tuple[float, ...], weight_size: float, distance: float, worst: bool
) -> None:
    """Gates are set so that π of a row is as near to 0 as said, on either side of it, relative to its terms."""
    generator = torch.Generator().manual_seed(seed)
    n_rows, d_sae = 24, 30
    sae = random_sae("gated", d_in, d_sae)
    x_BD = torch.randn(n_rows, d_in, generator=generator)
    W_DF = torch.randn(d_in, d_sae, generator=generator)
    rows = torch.randint(n_rows, (d_sae,), generator=generator)
    if worst:  # just above a power of two bfloat16 takes the most away, and here from all terms of a sum alike
        x_BD, W_DF = (torch.sign(t) * 2.0 ** torch.log2(t.abs()).floor() * (1 + 2**-8 - 2**-20) for t in (x_BD, W_DF))
        W_DF = W_DF.abs() * x_BD[rows].sign().T
    x_BD *= torch.tensor(row_sizes)[torch.randint(len(row_sizes), (n_rows, 1), generator=generator)]
    W_DF *= weight_size
    with torch.no_grad():
        sae.W_enc.copy_(W_DF)
        sae.b_dec.zero_()
        terms_F = (x_BD[rows].abs() * W_DF.T.abs()).sum(1)
        signs_F = torch.randint(-1, 2, (d_sae,), generator=generator)
        sae.get_parameter("b_gate").copy_(-(x_BD[rows] * W_DF.T).sum(1) + distance * signs_F * terms_F)
    found = []
    for bfloat16 in (True, False):
        engine = SparseCPUEngine(1, dense_above=1, bfloat16=bfloat16)
        engine.prepare(sae)
        form = sae.gated_relu(sae.cfg.hyperparameters, "paper")
        assert form is not None
        active = engine._active(form, *engine._terms(form, x_BD.numpy()))
        assert active is not None
        found.append(torch.zeros(n_rows, d_sae, dtype=torch.bool))
        for b, (first, end) in enumerate(zip(active.row_starts[:-1], active.row_ends, strict=True)):
            found[-1][b, active.columns[first:end]] = True
    assert torch.equal(*found)
    pi_BF, margin_BF = float64_gates(sae, x_BD)
    decided_BF = pi_BF.abs() > margin_BF
    assert (found[0] == (pi_BF > 0))[decided_BF].all()
    assert decided_BF.double().mean() > 0.5 or min(row_sizes) * weight_size < 1e-30


@trained
def test_results_do_not_depend_on_how_the_encoders_product_is_computed(variant: str) -> None:
    found = [trainer(variant, Switching(bfloat16=bfloat16)) for bfloat16 in (True, False)]
    rows = [run(each) for each in found]
    assert same(weights(found[0]), weights(found[1]))
    assert rows[0] == rows[1]


def test_the_trial_names_its_engine() -> None:
    assert isinstance(make().engine, DenseEngine)
    named = make(engine="sparse-cpu")
    assert isinstance(named.engine, SparseCPUEngine)
    assert named.engine.workspace.threads == torch.get_num_threads()
    rows = run(named)
    given_engine = make(engine=SparseCPUEngine(1))
    assert run(given_engine) == rows
    assert same(weights(named), weights(given_engine))


BAD = [math.nan, math.inf, -math.inf, 3e38, -3e38, 1e25]


def outcome(engine: Engine, sae: SAE, x_BD: Tensor, objective: Objective) -> tuple[list[bool], dict[str, bool]]:
    """Which losses and which gradients are finite."""
    engine.prepare(sae)
    losses_4, _ = engine.step(sae, x_BD, 1.0, objective)
    gradients = {name: p.grad for name, p in sae.named_parameters() if p.grad is not None}
    return losses_4.isfinite().tolist(), {name: bool(g.isfinite().all()) for name, g in gradients.items()}


def assert_same_outcome(saes: list[SAE], x_BD: Tensor, objective: Objective) -> None:
    expected = outcome(DenseEngine(), saes[0], x_BD, objective)
    assert outcome(SparseCPUEngine(1, dense_above=1), saes[1], x_BD, objective) == expected


@variants
@objectives
@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_what_is_not_finite_is_found_at_the_same_step(variant: str, objective: Objective, data: st.DataObject) -> None:
    """Also where the dense engine multiplies it by the zero of an inactive feature."""
    x_BD = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    saes = [random_sae(variant, 5, 12) for _ in range(2)]
    names = ["x", *(name for name, _ in saes[0].named_parameters())]
    name = data.draw(st.sampled_from(names))
    shape = x_BD.shape if name == "x" else saes[0].get_parameter(name).shape
    place = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    bad = data.draw(st.sampled_from(BAD))
    closed = data.draw(st.booleans())  # all gates but one
    with torch.no_grad():
        for sae in saes:
            if closed:
                sae.get_parameter("b_enc" if variant == "standard" else "b_gate")[1:] = -50.0
            (x_BD if name == "x" else sae.get_parameter(name))[place] = bad
    assert_same_outcome(saes, x_BD, objective)


@variants
@objectives
@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_what_overflows_is_found_at_the_same_step(variant: str, objective: Objective, data: st.DataObject) -> None:
    """A whole parameter, or all rows, large: sums over a batch overflow before any number of it does."""
    x_BD = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    saes = [random_sae(variant, 5, 12) for _ in range(2)]
    name = data.draw(st.sampled_from(["x", *(name for name, _ in saes[0].named_parameters() if name != "r_mag")]))
    factor = data.draw(st.sampled_from([1e15, 1e17, 1e18, 3e18, 1e19, 3e19, 1e20, 1e30]))
    with torch.no_grad():
        for tensor in [x_BD] if name == "x" else [sae.get_parameter(name) for sae in saes]:
            tensor.mul_(factor)
    assert_same_outcome(saes, x_BD, objective)


@pytest.mark.parametrize("size", [5e18, 1e19, 1e30])
def test_an_sae_whose_training_ends_in_nan_ends_at_the_same_step_with_the_same_words(size: float) -> None:
    rows_RD = sparse_rows().clone()
    rows_RD[2500:2560] = rows_RD[2500:2560].sign() * size
    messages = []
    for engine in (DenseEngine(), SparseCPUEngine(1, dense_above=1)):
        with pytest.raises(NumericError, match="not finite at step 40") as caught:
            run(make(rows_RD=rows_RD, max_norm=None, engine=engine))
        messages.append(str(caught.value).split("; last finite")[0])
    assert messages[0] == messages[1]


def test_memory_that_is_used_again_changes_nothing() -> None:
    engine, sae = SparseCPUEngine(1, dense_above=1), random_sae("gated", N, M)
    for rows in (64, 64, 40, 100):  # fewer where rows of massive norm are left out
        x_BD = torch.randn(rows, N, generator=torch.Generator().manual_seed(rows))
        found = []
        for used in (engine, SparseCPUEngine(1, dense_above=1)):
            used.prepare(sae)
            sae.zero_grad()
            result = used.step(sae, x_BD, 1.0, "paper")
            gradients = {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None}
            found.append({**gradients, "losses": result.losses_4, "fired": result.fired_F})
        assert same(*found)


def test_parameters_gradients_and_moments_lie_alike_in_memory() -> None:
    """PyTorch's fused Adam goes through all of them in storage order."""
    successor = make("gated", engine=SparseCPUEngine(1))
    first = make("gated", engine=SparseCPUEngine(1))
    first.train_interval()
    successor.restore(*through_files(first.state()))
    for one in (first, successor):
        for parameter, name in one.optimiser.names.items():
            layout = parameter.stride()
            assert {one.optimiser.state[parameter][moment].stride() for moment in ("exp_avg", "exp_avg_sq")} == {layout}
            assert (name == "W_enc") == (layout == (1, N))
    for dense_above in (0, 1):
        sae = random_sae("gated", N, M)
        engine = SparseCPUEngine(1, dense_above)
        engine.prepare(sae)
        engine.step(sae, torch.randn(8, N), 1.0, "paper")
        assert all(p.grad is not None and p.grad.stride() == p.stride() for p in sae.parameters())


@pytest.mark.parametrize("architecture", ["standard", "gated"])
def test_dense_steps_of_large_batches_are_made_in_parts(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which do not change what a step finds; rows that do not divide evenly count alike."""
    monkeypatch.setattr(dense, "LARGE_BATCH", 20)
    sae = random_sae(architecture, N, M).train()
    x_BD = torch.randn(23, N, generator=torch.Generator().manual_seed(0))
    parts: list[int] = []

    class Counted(DenseEngine):
        def step(self, sae: SAE, x_BD: Tensor, *arguments: Any) -> StepResult:
            parts.append(len(x_BD))
            return super().step(sae, x_BD, *arguments)

    engine = SparseCPUEngine(1, dense_above=0)
    engine.dense = Counted()
    engine.prepare(sae)
    found = engine.step(sae, x_BD, 0.5, "norm_weighted")
    gradients = {name: parameter.grad for name, parameter in sae.learnt_parameters().items()}
    for parameter in sae.parameters():
        parameter.grad = None
    whole = DenseEngine().step(sae, x_BD, 0.5, "norm_weighted")
    assert sum(parts) == 23 and len(parts) == {"standard": 3, "gated": 6}[architecture]
    assert torch.equal(found.fired_F, whole.fired_F)
    torch.testing.assert_close(found.losses_4, whole.losses_4)
    for name, parameter in sae.learnt_parameters().items():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-5)
