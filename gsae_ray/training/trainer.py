"""The trainer: one SAE on one row stream. No Ray, no MLflow."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from gsae_ray.activations.stream import RowStream
from gsae_ray.saes import SAE, SAEConfig
from gsae_ray.saes.io import build
from gsae_ray.sweep import TrialSpec
from gsae_ray.training.schedules import lr_factor, sparsity_factor


class NumericError(ArithmeticError):
    """The loss is not finite: the trial's final result, since the same rows would give the same again."""


class Trainer:
    """Trains an SAE on `scale`·x, where `scale` makes E‖scale·x‖² = n on block 0."""

    def __init__(self, trial: TrialSpec, stream: RowStream, device: torch.device | str = "cpu") -> None:
        statistics = stream.source.statistics()
        if not math.isfinite(statistics.mean_square_norm):
            raise NumericError(f"activations at {trial.site} are not finite")
        if statistics.mean_square_norm == 0:
            raise NumericError(f"all activations at {trial.site} are zero")
        self.trial = trial
        self.settings = trial.training
        self.stream = stream
        self.device = torch.device(device)
        self.scale = math.sqrt(trial.d_in / statistics.mean_square_norm)
        self.step = 0
        cfg = SAEConfig(
            architecture=trial.architecture,
            d_in=trial.d_in,
            d_sae=trial.d_sae,
            hyperparameters=trial.hyperparameters,
            site=trial.site,
        )
        self.sae: SAE = build(cfg)
        generator = torch.Generator().manual_seed(self.settings.seed)
        self.sae.initialise(generator, torch.tensor(statistics.mean) * self.scale)
        self.sae.to(self.device).train()
        self.optimiser = torch.optim.Adam(
            self.sae.parameters(), lr=self.settings.lr, betas=self.settings.adam_betas, fused=True
        )
        self._rates: dict[str, float] = {}
        self._reset_means()

    @property
    def tokens(self) -> int:
        """Rows trained on."""
        return self.step * self.settings.batch_size

    @property
    def done(self) -> bool:
        return self.step >= self.settings.steps

    def train_interval(self) -> dict[str, float]:
        """Trains to the next multiple of `log_every_tokens`, or to the end. Returns the interval's means.

        Raises:
            NumericError: the loss became NaN or infinite.
        """
        started, waited = time.perf_counter(), self.stream.wait_seconds
        steps_per_interval = self.settings.log_every_tokens // self.settings.batch_size
        target = min(self.settings.steps, (self.step // steps_per_interval + 1) * steps_per_interval)
        while self.step < target:
            self._train_step()
        metrics = self._take_means()
        seconds = time.perf_counter() - started
        metrics["tokens_per_s"] = metrics["rows"] / seconds
        metrics["data_wait_fraction"] = (self.stream.wait_seconds - waited) / seconds
        del metrics["rows"]
        if not math.isfinite(metrics["loss"]):
            raise NumericError(f"the loss is not finite after {self.tokens} tokens; a lower lr may help")
        return metrics

    def _train_step(self) -> None:
        settings = self.settings
        x_BD = self.stream.read(settings.batch_size).to(self.device, torch.float32) * self.scale
        progress = (self.step, settings.steps)
        lr = settings.lr * lr_factor(*progress, settings.lr_warmup, settings.lr_decay)
        coefficient = self.sae.sparsity_coefficient * sparsity_factor(*progress, settings.l1_warmup)
        losses = self.sae.losses(x_BD, coefficient)
        losses.loss.backward()
        self.sae.project_decoder_gradient()
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.sae.normalise_decoder()
        self.step += 1

        parts = torch.stack([part.detach() for part in losses[:4]])
        self._sums += parts.double()
        self._active_F += (losses.acts_BF > 0).sum(0)
        self._rows += len(x_BD)
        self._steps += 1
        self._rates = {"lr": lr, "sparsity_coefficient": coefficient}

    def _reset_means(self) -> None:
        self._sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        self._active_F = torch.zeros(self.trial.d_sae, dtype=torch.int64, device=self.device)
        self._rows = self._steps = 0
        self._rates = {}

    def _take_means(self) -> dict[str, float]:
        """Means since the last call, in the units of scaled activations. dead_fraction: silent in this interval."""
        names = ("loss", "reconstruction_loss", "sparsity_loss", "auxiliary_loss")
        metrics = dict(zip(names, (self._sums / self._steps).tolist(), strict=True))
        metrics["l0"] = self._active_F.sum().item() / self._rows
        metrics["dead_fraction"] = (self._active_F == 0).double().mean().item()
        metrics |= {**self._rates, "rows": float(self._rows)}
        self._reset_means()
        return metrics

    def finished_sae(self, metadata: dict[str, Any]) -> SAE:
        """A copy that takes raw activations, on the CPU; `metadata` goes to its `cfg.json`."""
        sae = build(self.sae.cfg.model_copy(update={"metadata": metadata}))
        sae.load_state_dict({name: tensor.cpu() for name, tensor in self.sae.state_dict().items()})
        sae.fold_scale(self.scale)
        return sae.eval()

    # ---- state: between intervals, so that the running means are empty ----

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, the rest): all that a successor needs to go on bit for bit."""
        tensors = {f"sae.{name}": p.detach().to("cpu", copy=True) for name, p in self.sae.named_parameters()}
        for name, p in self.sae.named_parameters():
            for key, value in self.optimiser.state[p].items():
                tensors[f"adam.{key}.{name}"] = value.detach().to("cpu", copy=True)
        return tensors, {"step": self.step, "position": self.stream.position, "scale": self.scale}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
        """Goes back to what `state` returned."""
        for name, p in self.sae.named_parameters():
            p.copy_(tensors[f"sae.{name}"])
            keys = {key: key.split(".", 2) for key in tensors if key.startswith("adam.")}
            self.optimiser.state[p] = {
                moment: tensors[key].to(self.device, copy=True) for key, (_, moment, of) in keys.items() if of == name
            }
        self.step = rest["step"]
        self.stream.position = rest["position"]
        self.scale = rest["scale"]
        self._reset_means()
