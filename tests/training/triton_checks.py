"""The engine sparse-cuda against float64, on a GPU or, without one, in Triton's interpreter (TRITON_INTERPRET=1).

Not collected by itself: `test_triton_kernels.py` runs it where there is no GPU, `tests/test_gpu.py` where there is one.
Shapes are small, for the interpreter takes a millisecond for what a GPU does in one millionth of it.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from trainers import make, run, same, through_files, weights

from gsae_ray.saes import SAE, Objective, SAEConfig, build
from gsae_ray.training.engines.base import StepResult, Update
from gsae_ray.training.engines.dense import DenseEngine
from gsae_ray.training.engines.sparse_cuda import BLOCK, ENTRIES, SparseCUDAEngine
from gsae_ray.training.optimiser import Adam
from gsae_ray.training.trainer import Trainer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS, N, M = 11, 21, 19
LAMBDA = 0.7
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("standard", {}),
    "r_mag-0": ("gated", {"learn_r_mag": False}),
    "frozen": ("gated", {"auxiliary": "frozen"}),
    "unfrozen": ("gated", {"auxiliary": "unfrozen"}),
    "no-auxiliary": ("gated", {"auxiliary": "none"}),
    "untied": ("gated", {"tied": False, "auxiliary": "frozen"}),
    "untied-unfrozen": ("gated", {"tied": False, "auxiliary": "unfrozen"}),
    "rescale_shift": ("rescale_shift", {}),
}
objectives = pytest.mark.parametrize("objective", ["paper", "norm_weighted"])
precisions = pytest.mark.parametrize("bfloat16", [True, False])


class Counting(SparseCUDAEngine):
    """Knows how many steps its kernels have computed."""

    def __init__(self, dense_above: float = 1.0, bfloat16: bool = True) -> None:
        super().__init__(dense_above, bfloat16)
        self.sparse = 0

    def _sparse_step(self, *arguments: Any) -> StepResult:
        self.sparse += 1
        return super()._sparse_step(*arguments)


def batch(rows: int = ROWS, n: int = N, seed: int = 0) -> Tensor:
    return torch.randn(rows, n, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def random_sae(variant: str, n: int = N, m: int = M) -> SAE:
    """In training; every parameter random."""
    architecture, options = VARIANTS[variant]
    hyperparameters = {"l1_coefficient": 1.0, **options}
    sae = build(SAEConfig(architecture=architecture, d_in=n, d_sae=m, hyperparameters=hyperparameters)).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return sae.to(DEVICE)


def step(engine: SparseCUDAEngine, sae: SAE, x_BD: Tensor, objective: Objective) -> dict[str, Tensor]:
    """All that a step finds."""
    engine.prepare(sae)
    sae.zero_grad()
    losses_4, fired_F = engine.step(sae, x_BD, LAMBDA, objective)
    gradients = {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None}
    for name, parameter in sae.named_parameters():
        if parameter.grad is not None and min(parameter.shape) > 1:
            assert parameter.grad.stride() == parameter.stride(), name
    return {"losses": losses_4, "fired": fired_F, **gradients}


def in_float64(sae: SAE, x_BD: Tensor, objective: Objective) -> dict[str, Tensor]:
    sae = copy.deepcopy(sae).double()
    losses_4, fired_F = DenseEngine().step(sae, x_BD.double(), LAMBDA, objective)
    gradients = {name: p.grad for name, p in sae.named_parameters() if p.grad is not None}
    return {"losses": losses_4, "fired": fired_F, **gradients}


def assert_same_step(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """As far as sums in float32 are: by the norm of what is compared."""
    assert set(found) == set(expected)
    assert torch.equal(found["fired"], expected["fired"])
    for name, tensor in expected.items():
        error = (found[name].double() - tensor).norm() / tensor.double().norm().clamp_min(1e-30)
        assert error < 2e-6, f"{name}: {error:.2e}"


@pytest.mark.parametrize("variant", VARIANTS)
@objectives
@precisions
def test_a_step_is_that_of_float64(variant: str, objective: Objective, bfloat16: bool) -> None:
    engine, sae, x_BD = Counting(bfloat16=bfloat16), random_sae(variant), batch()
    assert_same_step(step(engine, sae, x_BD, objective), in_float64(sae, x_BD, objective))
    assert engine.sparse == 1


@pytest.mark.parametrize("variant", ["unfrozen", "untied-unfrozen"])
def test_rows_may_be_longer_than_a_block_and_lists_too(variant: str) -> None:
    rows, n, m = 3 * ENTRIES + 1, BLOCK + 44, 2 * ENTRIES + 3
    engine, sae, x_BD = Counting(), random_sae(variant, n, m), batch(rows, n)
    found = step(engine, sae, x_BD, "norm_weighted")
    assert_same_step(found, in_float64(sae, x_BD, "norm_weighted"))
    assert engine.sparse == 1 and found["fired"].max() > ENTRIES


@pytest.mark.parametrize(("rows", "n", "m"), [(1, N, M), (ROWS, 1, M), (ROWS, N, 1), (1, 1, 1)])
def test_there_may_be_one_row_one_coordinate_or_one_feature(rows: int, n: int, m: int) -> None:
    sae, x_BD = random_sae("untied", n, m), batch(rows, n)
    with torch.no_grad():
        sae.get_parameter("b_gate").fill_(3.0)  # so that something is active
    assert_same_step(step(Counting(), sae, x_BD, "paper"), in_float64(sae, x_BD, "paper"))


def test_rows_without_features_and_features_without_rows() -> None:
    sae, x_BD = random_sae("unfrozen"), batch()
    x_BD[3:6] = 0
    with torch.no_grad():
        sae.b_dec.zero_()
        sae.get_parameter("b_gate").fill_(-0.1)
        sae.get_parameter("b_gate")[[0, 5, M - 1]] = -1e3
    found = step(Counting(), sae, x_BD, "norm_weighted")
    assert_same_step(found, in_float64(sae, x_BD, "norm_weighted"))
    assert not found["fired"][[0, 5, M - 1]].any() and found["fired"].any()


@precisions
def test_a_batch_may_have_no_active_entry(bfloat16: bool) -> None:
    engine, sae = Counting(bfloat16=bfloat16), random_sae("unfrozen")
    with torch.no_grad():
        sae.get_parameter("b_gate").fill_(-1e3)
    found, expected = step(engine, sae, batch(), "paper"), in_float64(sae, batch(), "paper")
    assert engine.sparse == 1
    assert not found["fired"].any() and not found["W_enc"].any() and not found["W_dec"].any()
    named = ("losses", "fired", "b_dec")
    assert_same_step({name: found[name] for name in named}, {name: expected[name] for name in named})


@pytest.mark.parametrize("variant", ["standard", "unfrozen", "untied"])
def test_bits_depend_neither_on_the_scores_nor_on_memory_that_is_used_again(variant: str) -> None:
    sae, used = random_sae(variant), Counting()
    for rows, seed in ((ROWS, 1), (ROWS, 2), (ROWS - 4, 3), (ROWS + 5, 4)):
        x_BD = batch(rows, seed=seed)
        found = [
            step(engine, sae, x_BD, "norm_weighted") for engine in (used, used, Counting(), Counting(bfloat16=False))
        ]
        assert all(same(found[0], other) for other in found[1:])
    assert used.sparse == 8


@pytest.mark.parametrize("distance", [0.0, 1e-6, 4e-3])
@pytest.mark.parametrize("sizes", [(1.0,), (1e-3, 1.0, 1e3), (1e-12, 1e9), (1e-24, 1e-38)])
@pytest.mark.parametrize("weight_size", [1.0, 1e-20, 1e3])
@pytest.mark.parametrize("worst", [False, True])
def test_what_is_active_is_so_in_float64_but_within_rounding(
    distance: float, sizes: tuple[float, ...], weight_size: float, worst: bool
) -> None:
    """Gates are set so that π of a row is as near to 0 as said, on either side of it, relative to its terms."""
    generator = torch.Generator().manual_seed(len(sizes))
    n, rows, m = 33, 8, 10
    x_BD, W_DF = torch.randn(rows, n, generator=generator), torch.randn(n, m, generator=generator)
    near_F = torch.randint(rows, (m,), generator=generator)
    if worst:  # just above a power of two bfloat16 takes the most away, and here from all terms of a sum alike
        x_BD, W_DF = (torch.sign(t) * 2.0 ** torch.log2(t.abs()).floor() * (1 + 2**-8 - 2**-20) for t in (x_BD, W_DF))
        W_DF = W_DF.abs() * x_BD[near_F].sign().T
    x_BD *= torch.tensor(sizes)[torch.randint(len(sizes), (rows, 1), generator=generator)]
    W_DF *= weight_size
    sae = random_sae("unfrozen", n, m)
    with torch.no_grad():
        sae.W_enc.copy_(W_DF)
        sae.b_dec.zero_()
        sae.get_parameter("r_mag").zero_()
        terms_F = (x_BD[near_F].abs() * W_DF.T.abs()).sum(1)
        signs_F = torch.randint(-1, 2, (m,), generator=generator)
        sae.get_parameter("b_gate").copy_(-(x_BD[near_F] * W_DF.T).sum(1) + distance * signs_F * terms_F)
    sae, x_BD = sae.to(DEVICE), x_BD.to(DEVICE)
    form = sae.gated_relu(sae.cfg.hyperparameters, "paper")
    assert form is not None
    found = []
    for bfloat16 in (True, False):
        engine = SparseCUDAEngine(1.0, bfloat16)
        engine.prepare(sae)
        with torch.no_grad():
            active = engine._active(sae, form, *engine._terms(sae, form, x_BD), 0.0)
        assert active is not None
        found.append(torch.zeros(rows, m, dtype=torch.bool, device=DEVICE))
        for b, (first, end) in enumerate(zip(active.row_starts[:-1].tolist(), active.row_ends.tolist(), strict=True)):
            found[-1][b, active.columns[first:end].long()] = True
    assert torch.equal(*found)
    x, W, gate = (t.detach().double() for t in (x_BD, sae.W_enc, sae.get_parameter("b_gate")))
    pi_BF = x @ W + gate
    margin_BF = (n + 4) * 2.0**-23 * (x.norm(dim=1)[:, None] * W.norm(dim=0) + gate.abs()) + 1e-36
    decided_BF = pi_BF.abs() > margin_BF
    assert (found[0] == (pi_BF > 0))[decided_BF].all()
    assert decided_BF.double().mean() > 0.5 or min(sizes) * weight_size < 1e-30


def test_whether_a_step_is_dense_follows_from_what_is_active() -> None:
    """Not from how many entries the rounding of scores leaves open: here all of them."""
    sae, x_BD = random_sae("standard"), batch()
    with torch.no_grad():
        sae.b_dec.zero_()
        sae.W_enc.mul_(1e-3)
        sae.W_enc[0] = 0
        sae.W_enc[0, : M // 2] = 1e-3
        x_BD[:, 0] = 1e3
        sae.get_parameter("b_enc").fill_(-0.5)
    active = int(step(Counting(), sae, x_BD, "paper")["fired"].sum())
    for share in (active, active - 1):
        for bfloat16 in (True, False):
            engine = Counting((share + 0.5) / (ROWS * M), bfloat16)
            found = step(engine, sae, x_BD, "paper")
            assert engine.sparse == (share == active)
            assert_same_step(found, in_float64(sae, x_BD, "paper"))


BAD = [math.nan, math.inf, -math.inf, 3e38, 1e25]


def outcome(engine: SparseCUDAEngine | DenseEngine, sae: SAE, x_BD: Tensor) -> dict[str, bool]:
    """What of a step is finite."""
    engine.prepare(sae)
    losses_4, _ = engine.step(sae, x_BD, LAMBDA, "norm_weighted")
    gradients = {name: bool(p.grad.isfinite().all()) for name, p in sae.named_parameters() if p.grad is not None}
    return {**gradients, **{f"loss {i}": loss for i, loss in enumerate(losses_4.isfinite().tolist())}}


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("variant", ["standard", "unfrozen", "untied"])
def test_what_is_not_finite_is_found_at_the_same_step(variant: str, value: float) -> None:
    """Also where the dense engine multiplies it by the zero of an inactive feature."""
    for name in ("x", *(name for name, _ in random_sae(variant).named_parameters())):
        x_BD, saes = batch(), [random_sae(variant) for _ in range(2)]
        with torch.no_grad():
            for tensor in [x_BD] if name == "x" else [sae.get_parameter(name) for sae in saes]:
                tensor.view(-1)[5] = value
        engine = Counting()
        assert outcome(engine, saes[0], x_BD) == outcome(DenseEngine(), saes[1], x_BD)
        if not math.isfinite(value) and (name, value) != ("r_mag", -math.inf):  # whose exponential is 0
            assert engine.sparse == 0


@pytest.mark.parametrize("factor", [1e8, 1e17, 3e18, 1e20, 1e30])
@pytest.mark.parametrize("name", ["x", "W_enc", "W_dec", "b_dec", "b_gate"])
def test_what_overflows_on_the_way_is_found_at_the_same_step(name: str, factor: float) -> None:
    x_BD, saes = batch(), [random_sae("unfrozen") for _ in range(2)]
    with torch.no_grad():
        for tensor in [x_BD] if name == "x" else [sae.get_parameter(name) for sae in saes]:
            tensor.mul_(factor)
    assert outcome(Counting(), saes[0], x_BD) == outcome(DenseEngine(), saes[1], x_BD)


@pytest.mark.parametrize("variant", ["standard", "unfrozen"])
@objectives
def test_steps_and_updates_go_where_the_dense_engine_goes(variant: str, objective: Objective) -> None:
    """Sparse steps and dense ones; projection, clipping, Adam and norms."""
    found = []
    for engine in (DenseEngine(), Counting(dense_above=1.0), Counting(dense_above=0.0)):
        sae = random_sae(variant)
        engine.prepare(sae)
        if objective == "paper":
            sae.normalise_decoder()
        optimiser = Adam(sae, (0.9, 0.999), bias_factor=2.0)
        for number in range(3):
            engine.step(sae, batch(seed=number), LAMBDA, objective)
            engine.update(sae, optimiser, Update(1e-2, 0.5, objective == "paper"))
            if isinstance(engine, Counting):
                engine.dense_above = 1 - engine.dense_above
        for parameter, state in optimiser.state.items():
            assert {state[moment].stride() for moment in ("exp_avg", "exp_avg_sq")} == {parameter.stride()}
        found.append({name: p.detach().clone() for name, p in sae.named_parameters()})
    for other in found[1:]:
        for name, tensor in found[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("architecture", ["standard", "gated"])
def test_a_trial_that_was_killed_goes_on_bit_for_bit(architecture: str) -> None:
    settings: dict[str, Any] = {"tokens": 6 * 8, "batch_size": 8, "log_every_tokens": 8, "checkpoint_every_tokens": 8}

    def trainer() -> Trainer:
        return make(architecture, engine=Counting(), device=DEVICE, **settings)

    whole, killed, successor = trainer(), trainer(), trainer()
    rows = run(whole)
    for _ in range(3):
        killed.train_interval()
    successor.restore(*through_files(killed.state()))
    assert run(successor) == rows[3:]
    assert same(weights(successor), weights(whole))
    dense = make(architecture, device=DEVICE, **settings)
    for row, other in zip(rows, run(dense), strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-4)
