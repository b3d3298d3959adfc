"""The trainer: one SAE on one row stream. No Ray, no MLflow."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from gsae_ray.activations.reader import RowStream
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import NumericError, not_finite
from gsae_ray.language_model.massive_norms import square_norms, takes_part
from gsae_ray.saes import SAE, SAEConfig, build
from gsae_ray.training.l1_units import UNITS, Scale
from gsae_ray.training.resampling import Resampler
from gsae_ray.training.schedules import lr_factor, sparsity_factor

EXPLODED = 1e4
"""A mean reconstruction loss of this many times E‖x‖², that of reconstructing nothing, will not come down again."""
PARTS = ("loss", "reconstruction_loss", "sparsity_loss", "auxiliary_loss")


class Trainer:
    """Trains an SAE on `scale`·x, where `scale` is 1, or makes E‖scale·x‖² = n on block 0 (`input_scaling`)."""

    def __init__(
        self, trial: TrialSpec, stream: RowStream, device: torch.device | str = "cpu", parent: SAE | None = None
    ) -> None:
        """
        Args:
            parent: the finished SAE that training starts from, for architectures that have one.
        """
        statistics = stream.source.statistics()
        if not math.isfinite(statistics.mean_square_norm):
            raise not_finite(f"activations at {trial.site}", "the first block", stream.layout.dtype)
        if statistics.mean_square_norm == 0:
            raise NumericError(f"all activations at {trial.site} are zero")
        self.trial = trial
        self.norms = statistics.norms
        self.settings = trial.training
        self.stream = stream
        self.device = torch.device(device)
        self.scale = math.sqrt(trial.d_in / statistics.mean_square_norm) if self.settings.input_scaling else 1.0
        self.trivial_loss = self.scale**2 * statistics.mean_square_norm
        """E‖scale·x‖²"""
        self.step = 0
        cfg = SAEConfig(
            architecture=trial.architecture,
            d_in=trial.d_in,
            d_sae=trial.d_sae,
            hyperparameters=trial.hyperparameters,
            site=trial.site,
        )
        self.sae: SAE = build(cfg)
        self.parent = parent
        if self.sae.parent_architecture is not None:
            assert parent is not None, f"a {trial.architecture} trial starts from its parent"
            self.sae.adopt(parent, start=True)
            self.sae.fold_scale(1 / self.scale)
        else:
            generator = torch.Generator().manual_seed(self.settings.seed)
            self.sae.initialise(generator, torch.tensor(statistics.mean) * self.scale, self.settings.objective)
        self.sae.to(self.device).train()
        self.unit_norm = self.settings.objective == "paper" and self.sae.W_dec.requires_grad
        units = Scale(trial.d_in, statistics.mean_square_norm)
        # λ/(m·k) is the same in both (see `l1_units`): from the file's units to those of scale·x.
        self.coefficient = self.sae.sparsity_coefficient / UNITS[self.settings.l1_units](units) * self.scale
        # Biases have the units of x, weights have none: Adam's steps, of the size of lr, are small for the ones where
        # they are right for the others, unless E‖x‖² = 1.
        biases = [p for name, p in self._learnt().items() if name in self.sae.scaled_parameters]
        weights = [p for name, p in self._learnt().items() if name not in self.sae.scaled_parameters]
        bias_lr = math.sqrt(self.trivial_loss) if self.settings.unit_biases else 1.0
        groups = [{"params": weights, "factor": 1.0}, {"params": biases, "factor": bias_lr}]
        self.optimiser = torch.optim.Adam(groups, lr=self.settings.lr, betas=self.settings.adam_betas, fused=True)
        # Rescale & shift keeps the features of its parent, silent ones too.
        resampling = self.settings.resampling if self.sae.W_dec.requires_grad else None
        self.resampler = (
            Resampler(resampling, self.settings.batch_size, self.settings.seed, self.sae) if resampling else None
        )
        self._last_finite = "none since this attempt began"
        self._rates: dict[str, float] = {}
        self._reset_means()

    def _learnt(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.sae.named_parameters() if p.requires_grad}

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
            NumericError: activations or the loss became NaN or infinite, or the loss exploded.
        """
        started, waited = time.perf_counter(), self.stream.wait_seconds
        steps_per_interval = self.settings.log_every_tokens // self.settings.batch_size
        first = self.step
        target = min(self.settings.steps, (self.step // steps_per_interval + 1) * steps_per_interval)
        while self.step < target:
            self._train_step()
        parts = torch.stack(self._parts).double()
        self._check(parts, first)
        metrics = self._take_means(parts)
        seconds = time.perf_counter() - started
        waited = self.stream.wait_seconds - waited
        metrics["tokens_per_s"] = (target - first) * self.settings.batch_size / seconds
        metrics["step_ms"] = 1000 * (seconds - waited) / (target - first)
        metrics["data_wait_fraction"] = waited / seconds
        return metrics

    def _train_step(self) -> None:
        settings = self.settings
        if self.resampler is not None:
            self._resampled += self.resampler.resample(self.step, self.sae, self.optimiser, settings.objective)
        x_BD = self._taking_part(self.stream.read(settings.batch_size).to(self.device)).to(torch.float32) * self.scale
        progress = (self.step, settings.steps)
        lr = settings.lr * lr_factor(*progress, settings.lr_warmup, settings.lr_decay, *self._restarts)
        coefficient = self.coefficient * sparsity_factor(*progress, settings.l1_warmup)
        self._rates = {"lr": lr, "sparsity_coefficient": coefficient}
        if len(x_BD):
            self._learn(x_BD, lr, coefficient)
        else:
            self._parts.append(torch.zeros(len(PARTS), device=self.device))
        self.step += 1

    def _learn(self, x_BD: Tensor, lr: float, coefficient: float) -> None:
        losses = self.sae.losses(x_BD, coefficient, self.settings.objective)
        if self.resampler is not None:
            self.resampler.observe(self.step, x_BD, losses.acts_BF, self.sae)
        losses.loss.backward()
        if self.unit_norm:
            self.sae.project_decoder_gradient()
        if self.settings.gradient_clip:
            torch.nn.utils.clip_grad_norm_(self._learnt().values(), self.settings.gradient_clip)
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group["factor"]
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.unit_norm:
            self.sae.normalise_decoder()
        self._parts.append(torch.stack([part.detach() for part in losses[:4]]))
        self._active_F += (losses.acts_BF > 0).sum(0)
        self._rows += len(x_BD)

    def _taking_part(self, x_BD: Tensor) -> Tensor:
        """The rows of a batch without those of massive norm, which weigh nothing."""
        if math.isinf(self.norms.limit):
            return x_BD
        part_B = takes_part(square_norms(x_BD), self.norms.limit)
        return x_BD if part_B.all() else x_BD[part_B]

    @property
    def _restarts(self) -> tuple[tuple[int, ...], int]:
        resampling = self.resampler.settings if self.resampler else None
        return (resampling.at_steps, resampling.rewarm_steps) if resampling else ((), 0)

    def _check(self, parts_S4: Tensor, first_step: int) -> None:
        """Whether training goes on, from the losses of the interval's steps."""
        if not self._rows:
            raise NumericError(
                f"no row between steps {first_step + 1} and {self.step} takes part: all norms are above "
                f"dataset.max_norm times the median of block 0 ({math.sqrt(self.norms.median_square_norm):.4g}), whose "
                "rows are not like them; raise max_norm, or set it to null"
            )
        finite_S = parts_S4.isfinite().all(dim=1)
        if not finite_S.all():
            bad = int((~finite_S).nonzero()[0])
            if bad:
                self._last_finite = _describe(first_step + bad, parts_S4[bad - 1])
            raise NumericError(
                f"the loss is not finite at step {first_step + bad + 1} (token "
                f"{(first_step + bad + 1) * self.settings.batch_size}); last finite: {self._last_finite}; a lower lr "
                "may help"
            )
        self._last_finite = _describe(self.step, parts_S4[-1])
        reconstruction = parts_S4[:, 1].mean().item()
        if reconstruction > EXPLODED * self.trivial_loss:
            raise NumericError(
                f"the loss exploded: between steps {first_step + 1} and {self.step} the mean reconstruction loss is "
                f"{reconstruction:.3g}, {reconstruction / self.trivial_loss:.3g} times that of reconstructing nothing; "
                f"last: {self._last_finite}; a lower lr may help"
            )

    def _reset_means(self) -> None:
        self._parts: list[Tensor] = []
        self._active_F = torch.zeros(self.trial.d_sae, dtype=torch.int64, device=self.device)
        self._rows = 0
        self._resampled = 0
        self._rates = {}

    def _take_means(self, parts_S4: Tensor) -> dict[str, float]:
        """Means since the last call, in the units of scaled activations.

        dead_fraction: of the features, silent in this interval; left_out_fraction: of the rows, of massive norm.
        """
        metrics = dict(zip(PARTS, parts_S4.mean(0).tolist(), strict=True))
        metrics["l0"] = self._active_F.sum().item() / self._rows
        metrics["dead_fraction"] = (self._active_F == 0).double().mean().item()
        metrics["left_out_fraction"] = 1 - self._rows / (len(parts_S4) * self.settings.batch_size)
        if self.resampler is not None:
            metrics["resampled_features"] = float(self._resampled)
        metrics |= self._rates
        self._reset_means()
        return metrics

    def finished_sae(self, metadata: dict[str, Any]) -> SAE:
        """A copy that takes raw activations, on the CPU; `metadata` goes to its `cfg.json`.

        Raises:
            NumericError: the last steps, which no loss has seen yet, made it not finite.
        """
        sae = build(self.sae.cfg.model_copy(update={"metadata": metadata}))
        sae.load_state_dict({name: tensor.cpu() for name, tensor in self.sae.state_dict().items()})
        sae.fold_scale(self.scale)
        if self.parent is not None:
            sae.adopt(self.parent, start=False)  # to the last bit, which folding may have rounded
        elif not self.unit_norm:
            sae.fold_norms()
        if (name := sae.not_finite()) is not None:
            raise NumericError(f"{name} is not finite after step {self.step}; a lower lr may help")
        return sae.eval()

    # ---- state: between intervals, so that the running means are empty ----

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, the rest): all that a successor needs to go on bit for bit."""
        tensors = {f"sae.{name}": p.detach().to("cpu", copy=True) for name, p in self.sae.named_parameters()}
        for name, p in self._learnt().items():
            for key, value in self.optimiser.state[p].items():
                tensors[f"adam.{key}.{name}"] = value.detach().to("cpu", copy=True)
        if self.resampler is not None:
            tensors |= {f"resampling.{name}": tensor for name, tensor in self.resampler.state().items()}
        return tensors, {"step": self.step, "position": self.stream.position, "scale": self.scale}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
        """Goes back to what `state` returned."""
        for name, p in self.sae.named_parameters():
            p.copy_(tensors[f"sae.{name}"])
        for name, p in self._learnt().items():
            keys = {key: key.split(".", 2) for key in tensors if key.startswith("adam.")}
            self.optimiser.state[p] = {
                moment: tensors[key].to(self.device, copy=True) for key, (_, moment, of) in keys.items() if of == name
            }
        if self.resampler is not None:
            self.resampler.restore({key: tensors[f"resampling.{key}"] for key in self.resampler.state()})
        self.step = rest["step"]
        self.stream.position = rest["position"]
        self.scale = rest["scale"]
        self._reset_means()


def _describe(steps: int, parts_4: Tensor) -> str:
    values = ", ".join(f"{name} {value:.4g}" for name, value in zip(PARTS, parts_4.tolist(), strict=True))
    return f"step {steps}: {values}"
