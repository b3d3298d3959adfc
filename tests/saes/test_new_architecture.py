"""An architecture is one class, whatever it needs: this file adds one, and it goes all the way through a sweep."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field
from torch import Tensor
from trainers import BATCH, SITE, M, N, row_stream, run, same, sparse_rows, through_files, weights
from transformers import LlamaConfig, LlamaForCausalLM
from trials import FINGERPRINT, begin, finish

from gsae_ray.capacity import forecast, memory
from gsae_ray.config.reference import describe
from gsae_ray.config.site import Site
from gsae_ray.config.sweep import Sweep
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import UserError
from gsae_ray.evaluation.evaluator import Evaluator
from gsae_ray.language_model.hooks import capture
from gsae_ray.results.frontier import frontier
from gsae_ray.saes import REGISTRY, SAE, Losses, Objective, SAEConfig, build, from_bytes, load, register, to_bytes
from gsae_ray.storage import launch_directory
from gsae_ray.storage.trial_directory import TrialDirectory
from gsae_ray.training.trainer import Trainer

DEAD_AFTER = 5
"""Steps without an activation after which a feature helps with what the others leave over."""


class CountingTopK(SAE):
    """f(x) = the k largest of ReLU(z), z = W_enc (x − b_dec) + b_enc; finished: those above a threshold θ.

    θ is a running mean of the smallest kept activation, and features that were silent for long are trained on what
    the others leave over: state beside the parameters, which decides what training goes on with and how it ends.
    """

    sparsity_hyperparameter = "k"
    sparsity_units = None
    training_arrays = 6

    class Hyperparameters(SAE.Hyperparameters):
        k: int = Field(gt=0, description="number of active features; a grid")
        auxiliary: float = Field(0.03, description="weight of the auxiliary term")

    silent_steps_F: Tensor
    threshold_F: Tensor

    def __init__(self, cfg: SAEConfig) -> None:
        super().__init__(cfg)
        self.b_enc = torch.nn.Parameter(torch.zeros(cfg.d_sae))
        self.register_buffer("silent_steps_F", torch.zeros(cfg.d_sae, dtype=torch.int64))
        self.register_buffer("threshold_F", torch.zeros(cfg.d_sae))

    @property
    def scaled_tensors(self) -> tuple[str, ...]:
        return (*super().scaled_tensors, "threshold_F")

    def encode(self, x_BD: Tensor) -> Tensor:
        acts_BF = torch.relu(self._pre(x_BD, self.b_enc))
        if not self.training:
            return acts_BF * (acts_BF > self.threshold_F)
        values_BK, indices_BK = acts_BF.topk(self.cfg.hyperparameters["k"], dim=-1)
        return torch.zeros_like(acts_BF).scatter(-1, indices_BK, values_BK)

    def losses(
        self, x_BD: Tensor, coefficient: float, objective: Objective = "paper", y_BD: Tensor | None = None
    ) -> Losses:
        acts_BF = self.encode(x_BD)
        error_BD = self._decoder_target(x_BD, y_BD) - self._decode(acts_BF)
        reconstruction = error_BD.square().sum() / len(x_BD)
        dead_F = self.silent_steps_F > DEAD_AFTER
        help_BD = (torch.relu(self._pre(x_BD, self.b_enc)) * dead_F) @ self.W_dec
        auxiliary = (error_BD.detach() - help_BD).square().sum() / len(x_BD)
        with torch.no_grad():
            fired_F = (acts_BF > 0).any(0)
            self.silent_steps_F.add_(1).masked_fill_(fired_F, 0)
            smallest = acts_BF[acts_BF > 0].min()
            self.threshold_F.lerp_(smallest.expand_as(self.threshold_F), 0.1)
        loss = reconstruction + self.cfg.hyperparameters["auxiliary"] * auxiliary
        return Losses(loss, reconstruction, x_BD.new_zeros(()), auxiliary, acts_BF.detach())

    @torch.no_grad()
    def replace_features(
        self, features_K: Tensor, directions_KD: Tensor, alive_F: Tensor, objective: Objective
    ) -> None:
        super().replace_features(features_K, directions_KD, alive_F, objective)
        self.silent_steps_F[features_K] = 0


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register("counting_topk")(CountingTopK)
    yield
    REGISTRY.pop("counting_topk")


def sweep(**entry: Any) -> Sweep:
    return Sweep.model_validate(
        {
            "name": "new",
            "model": {"name": "builtin"},
            "dataset": {"name": "builtin"},
            "sites": {"layers": [1], "points": ["resid_post"]},
            "saes": [{"architecture": "counting_topk", "widths": [M], "k": [3, 6]} | entry],
            "training": {
                "tokens": 60 * BATCH,
                "batch_size": BATCH,
                "lr": 3e-3,
                "log_every_tokens": 5 * BATCH,
                "checkpoint_every_tokens": 10 * BATCH,
                "resampling": {"at_steps": [33], "window_steps": 10, "inputs": 5 * BATCH},
            },
        }
    )


def trials(**entry: Any) -> list[TrialSpec]:
    return sweep(**entry).expand({Site(SITE): N}, {"model": "m"})


def trainer(**entry: Any) -> Trainer:
    """At the start, with four features that are silent until they are resampled."""
    found = Trainer(trials(**entry)[0], row_stream())
    with torch.no_grad():
        found.sae.get_parameter("b_enc")[:4] = -1e3
    return found


def finished(**entry: Any) -> tuple[Trainer, SAE]:
    trained = trainer(**entry)
    run(trained)
    return trained, trained.finished_sae({})


# ---- the sweep file -------------------------------------------------------------------------------------------------


def test_a_sweep_file_has_its_keys_and_trials_are_named_after_what_sets_the_sparsity() -> None:
    three, six = trials(auxiliary=0.1)
    assert [trial.hyperparameters for trial in (three, six)] == [{"k": k, "auxiliary": 0.1} for k in (3, 6)]
    assert f"counting_topk_w{M}_k3_auxiliary-0.1_" in three.name
    assert (three.sparsity, three.variant) == (3, "auxiliary=0.1")
    assert three.identity != six.identity
    assert "k: number of active features; a grid (counting_topk)" in describe()


@pytest.mark.parametrize(("entry", "said"), [({"kk": 3}, "did you mean 'k'"), ({"k": 0}, "k"), ({"k": 2.5}, "k")])
def test_a_mistake_in_them_is_refused(entry: dict[str, Any], said: str) -> None:
    with pytest.raises((UserError, ValueError), match=said):
        sweep(**entry)


def test_an_engine_that_does_not_have_it_is_refused_with_what_has() -> None:
    with pytest.raises(UserError, match=r"saes\.0\.engine: sparse-cpu has no counting_topk SAEs; engine: dense"):
        trials(engine="sparse-cpu")


# ---- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["paper", "norm_weighted"])
def test_it_trains_and_every_buffer_is_used(objective: Objective) -> None:
    rows = run(trained := trainer(objective=objective))
    assert rows[-1]["reconstruction_loss"] < 0.8 * rows[0]["reconstruction_loss"]
    assert rows[-1]["l0"] <= 3
    assert rows[-1]["sparsity_coefficient"] == 0
    assert sum(row["resampled_features"] for row in rows) > 0
    assert max(row["auxiliary_loss"] for row in rows) > 0
    assert trained.sae.get_buffer("threshold_F").min() > 0
    assert trained.sae.get_buffer("silent_steps_F").any()


@pytest.mark.parametrize("objective", ["paper", "norm_weighted"])
@pytest.mark.parametrize("stop", [1, 3, 6, 7, 9])
def test_it_goes_on_bit_for_bit_buffers_too(objective: Objective, stop: int) -> None:
    whole = trainer(objective=objective)
    expected = run(whole)
    first = trainer(objective=objective)
    for _ in range(stop):
        first.train_interval()
    second = trainer(objective=objective)
    second.restore(*through_files(first.state()))
    assert run(second) == expected[stop:]
    assert same(weights(second), weights(whole))
    assert {"threshold_F", "silent_steps_F"} <= set(weights(second))
    assert to_bytes(second.finished_sae({})) == to_bytes(whole.finished_sae({}))


def test_without_its_buffers_training_would_go_another_way() -> None:
    """The test above would notice if they were lost."""
    whole, first, second = (trainer() for _ in range(3))
    run(whole)
    for _ in range(3):
        first.train_interval()
    second.restore(*through_files(first.state()))
    second.sae.get_buffer("silent_steps_F").zero_()
    run(second)
    assert not torch.equal(second.sae.W_dec, whole.sae.W_dec)


def test_a_trial_directory_keeps_its_checkpoint_and_the_finished_sae(tmp_path: Path) -> None:
    first, whole = trainer(), trainer()
    directory = TrialDirectory(tmp_path / first.trial.directory_name)
    directory.begin_attempt(first.trial)
    for trained in (first, whole):
        for _ in range(4):
            trained.train_interval()
    directory.append(first.tokens, {"train/loss": 1.0})
    directory.checkpoint(first.tokens, *first.state())
    successor = TrialDirectory(directory.path)
    successor.begin_attempt(first.trial)
    state = successor.newest_state()
    assert state is not None
    second = trainer()
    second.restore(*state)
    assert run(second) == run(whole)
    successor.finish(second.finished_sae({}))
    assert to_bytes(load(successor.path / "sae")) == to_bytes(whole.finished_sae({}))


# ---- the finished SAE -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["paper", "norm_weighted"])
def test_the_finished_sae_takes_raw_activations_and_its_threshold_moves_with_scale_and_norms(
    objective: Objective,
) -> None:
    trained, sae = finished(objective=objective)
    assert trained.scale != 1
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(M), atol=1e-6, rtol=0)
    x_BD = sparse_rows()[-500:]
    trained.sae.eval()
    acts_BF, expected_BF = sae.encode(x_BD), trained.sae.encode(x_BD * trained.scale)
    norms_F = trained.sae.W_dec.norm(dim=1)
    assert 0 < (acts_BF > 0).double().mean() < 0.5
    assert ((acts_BF > 0) == (expected_BF > 0)).double().mean() > 0.9999  # but for rounding at the threshold
    torch.testing.assert_close(sae(x_BD), trained.sae(x_BD * trained.scale) / trained.scale, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        sae.get_buffer("threshold_F"), trained.sae.get_buffer("threshold_F") / trained.scale * norms_F
    )


def test_it_is_saved_and_loaded_with_its_buffers(tmp_path: Path) -> None:
    _, sae = finished()
    sae.save(tmp_path)
    for loaded in (load(tmp_path), from_bytes(*to_bytes(sae))):
        assert type(loaded) is CountingTopK
        assert same(dict(loaded.state_dict()), dict(sae.state_dict()))
        assert torch.equal(loaded(sparse_rows()), sae(sparse_rows()))
    assert json.loads(to_bytes(sae)[0])["architecture"] == "none: SAELens has no counting_topk SAE"
    with torch.no_grad():
        sae.get_buffer("threshold_F")[3] = torch.nan
    with pytest.raises(ValueError, match="threshold_F is not finite"):
        from_bytes(*to_bytes(sae))


def test_it_is_evaluated() -> None:
    config = LlamaConfig(
        vocab_size=32, hidden_size=N, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, pad_token_id=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
    tokens_ET = torch.randint(1, 32, (6, 10), generator=torch.Generator().manual_seed(1))

    def kept(tokens_BT: Tensor) -> Tensor:
        kept_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
        kept_BT[:, 0] = False
        return kept_BT

    _, sae = finished()
    metrics = Evaluator(model, tokens_ET, kept, batch=3).evaluate(Site(SITE), sae).metrics
    acts_BF = sae.encode(capture(model, tokens_ET, [Site(SITE)])[Site(SITE)][:, 1:].flatten(0, 1))
    assert metrics["l0"] == pytest.approx((acts_BF > 0).sum(1).double().mean().item())


# ---- results and plan -----------------------------------------------------------------------------------------------


def test_the_frontier_lists_its_own_sparsity(tmp_path: Path) -> None:
    specs = trials()
    for trial, l0 in zip(specs, (3.0, 6.0), strict=True):
        finish(begin(tmp_path / "new" / "trials", trial, steps=1), trial, l0=l0, loss_recovered=0.1 * l0)
    folder = tmp_path / "new" / "launches" / "20260101-000000-000000"
    folder.mkdir(parents=True)
    identities = {trial.name: trial.identity for trial in specs}
    launch_directory.LAUNCH.write(folder / "launch.json", {"sweep": {"name": "new"}, "trials": identities})
    launch_directory.EVALUATED.write(folder / "evaluation.json", {"fingerprint": FINGERPRINT, "encoders": [None]})
    rows = frontier("new", storage=tmp_path)
    assert rows["sparsity"].tolist() == [3, 6]
    assert set(rows["l1_units"]) == {""}
    assert rows["on_frontier"].all()


def test_plan_counts_its_memory_and_its_flops() -> None:
    (trial, _) = trials()
    small = build(SAEConfig(architecture="counting_topk", d_in=N, d_sae=M, hyperparameters={"k": 3, "auxiliary": 0.0}))
    assert memory.sae_bytes(small) == 4 * (2 * N * M + N + M) + (4 + 8) * M
    assert memory.parameter_count(trial) == 2 * N * M + N + M
    assert forecast.flops_a_row(trial) == 5 * 2 * N * M
    plan = forecast.forecast(sweep(), slots=2)
    (kind,) = plan.kinds
    assert (kind.architecture, kind.d_sae, kind.trials) == ("counting_topk", M, 2)
    wide = forecast.forecast(sweep(widths=[4096]), slots=2)
    assert wide.trial.host > plan.trial.host


class OneThreshold(CountingTopK):
    """As it is, with one θ for all features."""

    def __init__(self, cfg: SAEConfig) -> None:
        super().__init__(cfg)
        self.register_buffer("threshold_F", torch.zeros(()))


def test_one_threshold_for_all_features_is_folded_with_the_scale_and_not_with_the_norms() -> None:
    cfg = SAEConfig(architecture="counting_topk", d_in=N, d_sae=M, hyperparameters={"k": 3})
    sae = OneThreshold(cfg)
    sae.threshold_F.fill_(6.0)
    with torch.no_grad():
        sae.W_dec.copy_(2 * torch.eye(M, N))
    assert sae.encoder_tensors == ("W_enc", "b_enc")
    assert CountingTopK(cfg).encoder_tensors == ("W_enc", "b_enc", "threshold_F")
    sae.fold_norms()
    sae.fold_scale(2.0)
    assert sae.threshold_F == 3.0
