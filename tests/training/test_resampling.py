"""Resampling: which features, towards which inputs, with which norms and moments; and that it costs no data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from trainers import BATCH, M, make, run, same, sparse_rows, through_files, weights

from gsae_ray.config.recipe import Resampling
from gsae_ray.saes import SAE, Losses, Objective, SAEConfig, build
from gsae_ray.training.optimiser import Adam
from gsae_ray.training.resampling import Resampler
from gsae_ray.training.trainer import Trainer

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("standard", {}),
    "gated": ("gated", {}),
    "untied": ("gated", {"tied": False}),
}
kinds = pytest.mark.parametrize("kind", KINDS)
objectives = pytest.mark.parametrize("objective", ["paper", "norm_weighted"])
EVENT = 24
SETTINGS = {"at_steps": [EVENT], "window_steps": 12, "inputs": 5 * BATCH, "rewarm_steps": 6}


def trainer(
    kind: str, objective: Objective = "paper", resampling: Any = None, dead: int = 5, **training: Any
) -> Trainer:
    """The first features have a bias that no step mends: they are silent, unless they are resampled."""
    architecture, options = KINDS[kind]
    values: dict[str, Any] = {
        "tokens": 36 * BATCH,
        "log_every_tokens": 4 * BATCH,
        "lr": 1e-2,
        "l1_warmup": 0.0,
        "lr_decay": 0.0,
    }
    values |= {"lr_warmup": 0.0, **training}
    resampling = SETTINGS if resampling is None else resampling
    made = make(architecture, options=options, objective=objective, resampling=resampling, **values)
    with torch.no_grad():
        made.sae.get_parameter("b_enc" if kind == "standard" else "b_gate")[:dead] = -1e3
    return made


def to_event(trainer: Trainer) -> None:
    """Trains every step before the event."""
    while trainer.step < EVENT:
        trainer.train_interval()


def resample(trainer: Trainer) -> int:
    assert trainer.resampler is not None
    return trainer.resampler.resample(trainer.step, trainer.sae, trainer.optimiser, trainer.settings.objective)


def rows_first(name: str, tensor: Tensor) -> Tensor:
    return tensor if name == "W_dec" else tensor.movedim(-1, 0)


def by_feature(sae: SAE) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, p) for name, p in sae.named_parameters() if name != "b_dec")


def silent_features(kind: str, objective: Objective) -> tuple[Tensor, list[Tensor]]:
    """(features that were silent in the window, inputs of the window's steps), watched from outside."""
    watched = trainer(kind, objective)
    seen_F = torch.zeros(M, dtype=torch.bool)
    inputs = []
    original = watched.sae.losses

    def watch(x_BD: Tensor, coefficient: float, objective: Objective = "paper", y_BD: Tensor | None = None) -> Losses:
        losses = original(x_BD, coefficient, objective, y_BD)
        if EVENT - 12 <= watched.step < EVENT:
            seen_F.logical_or_((watched.sae.encode(x_BD) > 0).any(0))
            inputs.append(x_BD)
        return losses

    watched.sae.losses = watch  # type: ignore[method-assign]
    to_event(watched)
    return ~seen_F, inputs


# ---- which features, and what they become ---------------------------------------------------------------------------


@kinds
@objectives
def test_exactly_the_features_that_were_silent_in_the_window_are_resampled(kind: str, objective: Objective) -> None:
    silent_F, _ = silent_features(kind, objective)
    assert 0 < silent_F.sum() < M
    t = trainer(kind, objective)
    to_event(t)
    before = {name: p.detach().clone() for name, p in t.sae.named_parameters()}
    moments = {
        (name, key): t.optimiser.state[p][key].clone()
        for name, p in t.sae.named_parameters()
        for key in ("exp_avg", "exp_avg_sq")
    }
    assert resample(t) == silent_F.sum()
    for name, parameter in by_feature(t.sae):
        changed_F = (rows_first(name, parameter) != rows_first(name, before[name])).reshape(M, -1).any(1)
        if parameter.dim() == 2:
            assert torch.equal(changed_F, silent_F), name
        assert not changed_F[~silent_F].any(), name
        for key in ("exp_avg", "exp_avg_sq"):  # the others' moments stay
            now = rows_first(name, t.optimiser.state[parameter][key])
            assert torch.equal(now[~silent_F], rows_first(name, moments[name, key])[~silent_F])
    assert torch.equal(t.sae.b_dec, before["b_dec"])


@kinds
@objectives
@pytest.mark.parametrize("direction", ["centred", "input"])
def test_a_new_feature_points_at_an_input_of_the_window(kind: str, objective: Objective, direction: str) -> None:
    silent_F, inputs = silent_features(kind, objective)
    t = trainer(kind, objective, {**SETTINGS, "direction": direction})
    to_event(t)
    alive = {name: rows_first(name, p.detach())[~silent_F].clone() for name, p in by_feature(t.sae)}
    resample(t)
    x_RD = torch.cat(inputs[-5:])  # the last 5 batches: `inputs`
    candidates_RD = x_RD - t.sae.b_dec.detach() if direction == "centred" else x_RD
    candidates_RD = candidates_RD / candidates_RD.norm(dim=1, keepdim=True)
    new_KD = t.sae.W_dec.detach()[silent_F]
    directions_KD = new_KD / new_KD.norm(dim=1, keepdim=True)
    nearest_K = (directions_KD @ candidates_RD.T).max(1)
    torch.testing.assert_close(nearest_K.values, torch.ones(len(new_KD)), atol=1e-6, rtol=0)
    assert len(set(nearest_K.indices.tolist())) == len(new_KD)  # without replacement

    norm = 1.0 if objective == "paper" else alive["W_dec"].norm(dim=1).mean().item()
    torch.testing.assert_close(new_KD.norm(dim=1), torch.full((len(new_KD),), norm))
    for name, parameter in by_feature(t.sae):
        rows = rows_first(name, parameter.detach())[silent_F]
        if name in ("W_enc", "W_mag"):
            torch.testing.assert_close(rows, directions_KD * 0.2 * alive[name].norm(dim=1).mean())
        elif name != "W_dec":
            assert not rows.any(), name  # biases and r_mag


@kinds
@objectives
def test_moments_of_new_features_are_those_of_an_ordinary_alive_one(kind: str, objective: Objective) -> None:
    silent_F, _ = silent_features(kind, objective)
    t = trainer(kind, objective)
    to_event(t)
    resample(t)
    for name, parameter in by_feature(t.sae):
        state = t.optimiser.state[parameter]
        assert not rows_first(name, state["exp_avg"])[silent_F].any()
        second = rows_first(name, state["exp_avg_sq"])
        expected = second[~silent_F].mean(0).expand_as(second[silent_F])
        torch.testing.assert_close(second[silent_F], expected)
        assert (second[silent_F] > 0).all(), name


@kinds
@objectives
def test_the_first_update_after_an_event_is_an_ordinary_one(
    kind: str, objective: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second moment of 0 would make it 31.6 × lr once Adam's bias correction is over."""
    silent_F, _ = silent_features(kind, objective)
    t = trainer(kind, objective, {**SETTINGS, "rewarm_steps": 0})
    to_event(t)
    for state in t.optimiser.state.values():
        state["exp_avg_sq"].div_(1 - 0.999**EVENT)  # as late in a run, when the correction of the bias is over
        state["step"].fill_(1e6)
    after: dict[str, Tensor] = {}
    update = t.optimiser.step

    def look_and_update(lr: float) -> None:
        after.update({n: p.detach().clone() for n, p in t.sae.named_parameters()})
        update(lr)

    monkeypatch.setattr(t.optimiser, "step", look_and_update)
    t._train_step()
    steps = {
        name: (rows_first(name, p.detach()) - rows_first(name, after[name]))[silent_F].abs() / t.settings.lr
        for name, p in by_feature(t.sae)
        if name != "W_dec" or objective == "norm_weighted"  # else it is renormalised as well
    }
    assert max(step.max().item() for step in steps.values()) < 8
    assert max(step.mean().item() for step in steps.values()) < 3
    assert max(step.max().item() for step in steps.values()) > 0.01  # they are learning


# ---- the draw -------------------------------------------------------------------------------------------------------


def drawn(rows_RD: Tensor, silent: int, seed: int, batches: int = 1) -> Tensor:
    """Directions that `silent` features get from rows that a zero SAE reconstructs as 0: the loss is ‖x‖²."""
    sae = build(SAEConfig(architecture="standard", d_in=rows_RD.shape[1], d_sae=silent + 1))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.zero_()
    optimiser = Adam(sae, (0.9, 0.999), 1.0)
    sum(p.sum() for p in sae.parameters()).backward()  # type: ignore[union-attr]
    optimiser.step(1e-3)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.zero_()
    settings = Resampling(at_steps=(9,), window_steps=9, inputs=len(rows_RD), direction="input", rewarm_steps=0)
    resampler = Resampler(settings, len(rows_RD) // batches, seed, sae)
    acts_BF = torch.zeros(len(rows_RD) // batches, silent + 1)
    acts_BF[:, 0] = 1  # one feature is alive
    for step, x_BD in zip(range(9 - batches, 9), rows_RD.chunk(batches), strict=True):
        resampler.observe(step, x_BD, acts_BF.sum(0), sae)
    assert resampler.resample(9, sae, optimiser, "paper") == silent
    return sae.W_dec.detach()[1:]


@pytest.mark.parametrize("batches", [1, 2])
def test_inputs_are_drawn_in_proportion_to_their_loss_squared(batches: int) -> None:
    """Rows i of norm √(i + 1): loss i + 1, weight (i + 1)². 500 draws with fixed seeds; five standard deviations."""
    rows_RD = torch.diag(torch.arange(1.0, 7.0).sqrt())
    weight_R = torch.arange(1.0, 7.0).square()
    probability_R = weight_R / weight_R.sum()
    draws = torch.stack([drawn(rows_RD, 1, seed, batches)[0].round() for seed in range(500)])
    frequency_R = draws.mean(0)
    deviation_R = (probability_R * (1 - probability_R) / 500).sqrt()
    assert ((frequency_R - probability_R).abs() < 5 * deviation_R).all()
    wrong_R = torch.arange(1.0, 7.0) / 21  # ∝ the loss itself would not pass
    assert ((frequency_R - wrong_R).abs() > 5 * deviation_R).any()


def test_two_inputs_are_drawn_without_replacement_in_proportion_to_their_loss_squared() -> None:
    rows_RD = torch.diag(torch.arange(1.0, 5.0).sqrt())
    w = torch.arange(1.0, 5.0).square().tolist()
    total = sum(w)
    inclusion = [w[i] / total + sum(w[j] / total * w[i] / (total - w[j]) for j in range(4) if j != i) for i in range(4)]
    draws = torch.stack([drawn(rows_RD, 2, seed).round() for seed in range(500)])
    assert (draws.sum(1) <= 1).all()
    expected_R = torch.tensor(inclusion)
    deviation_R = (expected_R * (1 - expected_R) / 500).sqrt()
    assert ((draws.sum(1).mean(0) - expected_R).abs() < 5 * deviation_R).all()


def test_a_perfect_reconstruction_is_drawn_last() -> None:
    rows_RD = torch.diag(torch.tensor([0.0, 1e-12, 1e12]))  # losses of 0, 1e-24 and 1e24
    assert drawn(rows_RD, 2, seed=0).round().sum(0).tolist() == [0, 1, 1]


# ---- the trial around it --------------------------------------------------------------------------------------------


@kinds
def test_no_row_of_the_stream_is_consumed(kind: str) -> None:
    with_, without = trainer(kind), trainer(kind, resampling=False)
    rows = run(with_)
    run(without)
    batches = [t.stream.batches for t in (with_, without)]  # type: ignore[attr-defined]
    assert len(batches[0]) == len(batches[1]) == 36
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))
    assert torch.equal(torch.cat(batches[0]), sparse_rows()[: 36 * BATCH])
    assert sum(row["resampled_features"] for row in rows) > 0
    assert not same(weights(with_), weights(without))


def test_resampled_features_are_reported_in_the_interval_of_the_event() -> None:
    rows = run(trainer("gated"))
    silent_F, _ = silent_features("gated", "paper")
    expected = {row["tokens"]: 0.0 for row in rows} | {(EVENT + 4) * BATCH: float(silent_F.sum())}
    assert {row["tokens"]: row["resampled_features"] for row in rows} == expected
    assert all("resampled_features" not in row for row in run(trainer("gated", resampling=False)))


def test_the_lr_rises_again_after_each_event() -> None:
    resampling = {"at_steps": [12, 24], "window_steps": 6, "rewarm_steps": 8}
    t = trainer("gated", resampling=resampling, log_every_tokens=BATCH)
    rates = [row["lr"] / 1e-2 for row in run(t)]
    rise = [0.1, *([None] * 3), 0.55, *([None] * 3)]  # a cosine: 0.1 at the event, half-way after 4 steps
    expected = [*([1.0] * 12), *rise, *([1.0] * 4), *rise, *([1.0] * 4)]
    assert len(rates) == len(expected) == 36
    assert all(e is None or r == pytest.approx(e) for r, e in zip(rates, expected, strict=True))
    assert rates[12:20] == sorted(rates[12:20]) == rates[24:32]


@kinds
@objectives
def test_resampling_is_decided_by_the_seed(kind: str, objective: Objective) -> None:
    first, second = trainer(kind, objective), trainer(kind, objective)
    torch.manual_seed(5)  # the global generator plays no part
    assert run(first) == run(second)
    assert same(weights(first), weights(second))


@kinds
@objectives
def test_a_checkpoint_in_the_window_and_amid_collecting_goes_on_bit_for_bit(kind: str, objective: Objective) -> None:
    """Window: steps 12 to 24; collecting: 19 to 24. Checkpoints at 4, 8 (before), 16 (in), 20 (amid), 24, 28."""
    whole = trainer(kind, objective)
    states, expected = [], []
    while not whole.done:
        states.append(through_files(whole.state()))
        expected.append({k: v for k, v in whole.train_interval().items() if k in ("loss", "resampled_features", "lr")})
    assert sum(row["resampled_features"] for row in expected) > 0
    for index in (2, 4, 5, 6, 7):
        restored = trainer(kind, objective)
        restored.restore(*states[index])
        rows = [{k: row[k] for k in expected[0]} for row in run(restored)]
        assert rows == expected[index:], index
        assert same(weights(restored), weights(whole)), index


def test_a_trainer_restored_in_the_window_trains_in_tensors_of_its_own() -> None:
    t = trainer("gated")
    while t.step < 12:  # the window begins: features fire from now on
        t.train_interval()
    tensors, rest = t.state()
    taken = {name: tensor.clone() for name, tensor in tensors.items()}
    another = trainer("gated")
    another.restore(tensors, rest)
    run(another)
    assert same(tensors, taken)


@kinds
def test_decoder_norms_are_one_after_every_step_and_through_resampling(kind: str) -> None:
    t = trainer(kind, log_every_tokens=BATCH)
    while not t.done:
        t.train_interval()
        torch.testing.assert_close(t.sae.W_dec.norm(dim=1), torch.ones(M), atol=1e-6, rtol=0)


def test_a_resampling_that_finds_every_feature_silent_goes_on() -> None:
    t = trainer("standard", dead=M)
    rows = run(t)
    assert sum(row["resampled_features"] for row in rows) == M
    assert all(parameter.isfinite().all() for parameter in t.sae.parameters())


def test_fewer_inputs_than_silent_features_resample_as_many_as_there_are() -> None:
    t = trainer("standard", dead=M, batch_size=2, tokens=72, log_every_tokens=8, resampling={**SETTINGS, "inputs": 6})
    assert sum(row["resampled_features"] for row in run(t)) == 6


def test_rescale_and_shift_resamples_nothing() -> None:
    """Its features are the parent's: a silent one keeps the parent's bias, and so does the learning rate its course."""
    t = trainer("standard", resampling=False)
    run(t)
    parent = t.finished_sae({})
    child = make("rescale_shift", parent=parent, tokens=36 * BATCH, resampling=SETTINGS, lr_warmup=0.0, lr_decay=0.0)
    alone = make("rescale_shift", parent=parent, tokens=36 * BATCH, resampling=False, lr_warmup=0.0, lr_decay=0.0)
    rows = [run(t)[-1]["loss"] for t in (child, alone)]
    assert rows[0] == rows[1]
    assert child.resampler is None
    assert same(weights(child), weights(alone))


def test_an_input_without_a_direction_does_no_harm() -> None:
    """Rows of zeros, with direction input: nothing to point at, and nothing may become NaN."""
    rows_RD = sparse_rows().clone()
    rows_RD[19 * BATCH : EVENT * BATCH - 2] = 0
    t = make(
        "standard",
        rows_RD=rows_RD,
        tokens=36 * BATCH,
        objective="paper",
        log_every_tokens=4 * BATCH,
        resampling={**SETTINGS, "direction": "input"},
    )
    with torch.no_grad():
        t.sae.get_parameter("b_enc")[:5] = -1e3
    rows = run(t)
    assert sum(row["resampled_features"] for row in rows) <= 2  # of 5 inputs that were drawn
    torch.testing.assert_close(t.sae.W_dec.norm(dim=1), torch.ones(M), atol=1e-6, rtol=0)
    assert all(parameter.isfinite().all() for parameter in t.sae.parameters())
