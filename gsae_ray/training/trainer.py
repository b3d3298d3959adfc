"""The trainer: one SAE on one row stream. No Ray, no MLflow."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from gsae_ray.activations.reader import RowStream
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import NumericError, not_finite
from gsae_ray.evaluation.metrics import DENSE_SHARE
from gsae_ray.language_model.massive_norms import square_norms, takes_part
from gsae_ray.saes import SAE, SAEConfig, build
from gsae_ray.training.engines import make_engine
from gsae_ray.training.engines.base import LOSSES, Engine, Update
from gsae_ray.training.l1_units import UNITS, Scale
from gsae_ray.training.optimiser import Adam
from gsae_ray.training.resampling import Resampler
from gsae_ray.training.schedules import lr_factor, sparsity_factor
from gsae_ray.training.target_l0 import TargetL0
from gsae_ray.training.threads import torch_threads

EXPLODED = 1e4
"""Training has diverged where the mean reconstruction loss is this many times E‖x‖², that of reconstructing nothing."""


class Trainer:
    """Trains one SAE on `scale`·x, where `scale` is 1, or makes E‖scale·x‖² = n on block 0 (`input_scaling`).

    A transcoder learns to compute `target_scale`·y, which has a scale of its own, from that.
    """

    def __init__(
        self,
        trial: TrialSpec,
        stream: RowStream,
        device: torch.device | str = "cpu",
        parent: SAE | None = None,
        engine: Engine | None = None,
    ) -> None:
        """Makes a trainer that stands at the first step.

        Args:
            trial: the SAE to train.
            stream: the activations of its site, of a transcoder's with its target; at row 0.
            device: where it is trained.
            parent: the finished SAE that training starts from, for architectures that have one.
            engine: what computes losses and gradients; default: the one that the trial names.

        Raises:
            NumericError: the activations of block 0 are all zero, or not finite.
            UserError: this process or its device cannot run the engine.
        """
        of_block_0 = stream.source.statistics()
        for site in stream.sites:
            if not math.isfinite(mean_square_norm := of_block_0[site].mean_square_norm):
                raise not_finite(f"activations at {site}", "the first block", stream.layout.dtype)
            if mean_square_norm == 0:
                raise NumericError(f"all activations at {site} are zero")
        source, target = of_block_0[stream.sites[0]], of_block_0[stream.sites[-1]]
        self.trial = trial
        self.norms = target.norms
        """Of what it computes."""
        self._limits = [of_block_0[site].norms.limit for site in stream.sites]
        self.settings = trial.training
        self.stream = stream
        self.device = torch.device(device)
        self.parent = parent
        self.engine = engine or make_engine(self.settings.engine, torch.get_num_threads(), self.settings.precision)
        self.scale = math.sqrt(trial.d_in / source.mean_square_norm) if self.settings.input_scaling else 1.0
        n = trial.d_in if trial.d_out is None else trial.d_out
        self.target_scale = math.sqrt(n / target.mean_square_norm) if self.settings.input_scaling else 1.0
        """Of what it computes; of an SAE, the same scale."""
        self.trivial_loss = self.target_scale**2 * target.mean_square_norm
        """E‖target_scale·y‖²"""
        self.step = 0
        self.sae = self._initial_sae(torch.tensor(target.mean)).to(self.device).train()
        self.engine.prepare(self.sae)
        self.unit_norm = self.settings.objective != "norm_weighted" and self.sae.W_dec.requires_grad
        """Whether decoder rows are kept at norm 1."""
        # Features are of what is computed: f_i d_i is a part of it.
        self._units = Scale(n, target.mean_square_norm)
        given, self.controller = self.sae.sparsity_coefficient, None
        if given is None:
            self.controller = TargetL0(self.sae, self.settings, self.trivial_loss, self._scaled_coefficient(1.0))
        self._given = 0.0 if given is None else self._scaled_coefficient(given)
        # Adam's steps have the size of lr, whatever the size of the gradient. Biases have the units of x and weights
        # have none, so that one lr fits both only where E‖x‖² = 1; elsewhere that of biases is multiplied by its root.
        bias_factor = math.sqrt(self.trivial_loss) if self.settings.unit_biases else 1.0
        self.optimiser = Adam(self.sae, self.settings.adam_betas, bias_factor, math.sqrt(self.trivial_loss))
        # Rescale & shift keeps the features of its parent, silent ones too.
        resampling = self.settings.resampling if self.sae.W_dec.requires_grad else None
        self.resampler = (
            Resampler(resampling, self.settings.batch_size, self.settings.seed, self.sae, self._centre(source.mean))
            if resampling
            else None
        )
        self._last_finite = "none since this attempt began"
        self._rates: dict[str, float] = {}
        self._reset_means()

    @property
    def coefficient(self) -> float:
        """The coefficient of the sparsity penalty, but for its warm-up, in the units of scaled activations."""
        return self._given if self.controller is None else self.controller.coefficient

    def _scaled_coefficient(self, value: float) -> float:
        """A coefficient of the sweep file in units of scale·x: λ/(m·k) is the same in all units (see `l1_units`)."""
        if self.sae.sparsity_units == "l1":
            return value / UNITS[self.settings.l1_units](self._units) * self.target_scale
        return value * self.trivial_loss if self.sae.sparsity_units == "square_norm" else value

    def _centre(self, mean: NDArray[Any]) -> Tensor | None:
        """The mean of the scaled activations that a transcoder reads; None of an SAE, which has b_dec for it."""
        return torch.tensor(mean * self.scale, device=self.device) if self.sae.cfg.is_transcoder else None

    def _initial_sae(self, mean_D: Tensor) -> SAE:
        """The SAE before the first step, for scaled activations; `mean_D` is that of raw ones that it computes."""
        trial = self.trial
        site, *target = trial.sites
        sae = build(
            SAEConfig(
                architecture=trial.architecture,
                d_in=trial.d_in,
                d_sae=trial.d_sae,
                hyperparameters=trial.hyperparameters,
                site=site,
                d_out=trial.d_out,
                target=target[0] if target else "",
                skip=trial.skip,
            )
        )
        sae.prepare_training(math.sqrt(self.trivial_loss), self.settings.steps, self.settings.batch_size)
        if sae.parent_architecture is None:
            generator = torch.Generator().manual_seed(self.settings.seed)
            sae.initialise(generator, mean_D * self.target_scale, self.settings.objective)
        else:
            assert self.parent is not None, f"a {trial.architecture} trial starts from its parent"
            sae.adopt(self.parent, start=True)
            sae.fold_scale(1 / self.scale)
        return sae

    @property
    def tokens(self) -> int:
        """Rows trained on."""
        return self.step * self.settings.batch_size

    @property
    def learning_steps(self) -> int:
        """Steps that change the weights: all but those of calibration, at the end."""
        return self.settings.steps - (self.controller or self.sae).calibration_steps

    @property
    def done(self) -> bool:
        return self.step >= self.settings.steps

    def train_interval(self, keep: Callable[[int], None] | None = None) -> dict[str, float]:
        """Trains to the next multiple of `log_every_tokens`, or to the end. Returns the interval's means.

        Args:
            keep: is called, with the tokens of a snapshot, after the step at which the SAE is to be kept; it may take
                `finished_sae` then, which leaves what is trained as it is.

        Raises:
            NumericError: activations or the loss became NaN or infinite, or the loss exploded.
        """
        started, waited = time.perf_counter(), self.stream.wait_seconds
        steps_per_interval = self.settings.log_every_tokens // self.settings.batch_size
        first, snapshots = self.step, self.settings.snapshot_steps
        target = min(self.settings.steps, (self.step // steps_per_interval + 1) * steps_per_interval)
        with torch_threads(self.engine.torch_threads):
            while self.step < target:
                self._train_step()
                if keep is not None and (tokens := snapshots.get(self.step)) is not None:
                    keep(tokens)
        losses_S4 = torch.stack(self._losses).double()
        self._check(losses_S4, first)
        metrics = self._take_means(losses_S4)
        seconds = time.perf_counter() - started
        waited = self.stream.wait_seconds - waited
        metrics["tokens_per_s"] = (target - first) * self.settings.batch_size / seconds
        metrics["step_ms"] = 1000 * (seconds - waited) / (target - first)
        metrics["data_wait_fraction"] = waited / seconds
        return metrics

    def _train_step(self) -> None:
        """Resamples if it is time, then reads a batch and learns from it."""
        settings = self.settings
        learning = self.step < self.learning_steps
        if self.resampler is not None and learning:
            self._resampled += self.resampler.resample(self.step, self.sae, self.optimiser, settings.objective)
        x_BD, y_BD = self._next_batch()
        progress = (self.step, self.learning_steps)
        lr = settings.lr * lr_factor(*progress, settings.lr_warmup, settings.lr_decay, *self._restarts)
        coefficient = self.coefficient * sparsity_factor(*progress, settings.l1_warmup)
        self._rates = {"lr": lr if learning else 0.0, "sparsity_coefficient": coefficient}
        self.sae.begin_step(self.step)
        if not len(x_BD):
            self._losses.append(torch.zeros(len(LOSSES), device=self.device))
        elif learning:
            self._learn(x_BD, y_BD, lr, coefficient)
        else:
            self._calibrate(x_BD, y_BD, coefficient)
        if self.controller is not None:
            self.controller.end_step(self.step, self.sae)
        self.step += 1

    def _next_batch(self) -> tuple[Tensor, Tensor | None]:
        """The rows of the next batch that take part, scaled, and of a transcoder what it is to compute from them.

        Nothing here waits for a GPU.
        """
        size = self.settings.batch_size
        if self.stream.target is None:
            return self._scaled(self._taking_part(self.stream.read(size))[0], self.scale), None
        x_BD, y_BD = self._taking_part(*self.stream.read_pairs(size))
        return self._scaled(x_BD, self.scale), self._scaled(y_BD, self.target_scale)

    def _scaled(self, x_BD: Tensor, scale: float) -> Tensor:
        """Rows as they are trained on, on the device."""
        if self.device.type == "cuda":  # from pinned memory it is copied while the host goes on
            x_BD = x_BD.pin_memory().to(self.device, non_blocking=True)
        return x_BD.to(torch.float32) * scale

    def _learn(self, x_BD: Tensor, y_BD: Tensor | None, lr: float, coefficient: float) -> None:
        """Updates the SAE with a batch of scaled activations."""
        losses_4, fired_F = self.engine.step(self.sae, x_BD, coefficient, self.settings.objective, y_BD)
        if self.controller is not None:
            self.controller.observe(fired_F, len(x_BD))
        if self.resampler is not None:
            self.resampler.observe(self.step, x_BD, fired_F, self.sae, y_BD)
        self.engine.update(self.sae, self.optimiser, Update(lr, self.settings.gradient_clip, self.unit_norm))
        self.sae.constrain()
        self._note(losses_4, fired_F, len(x_BD))

    @torch.no_grad()
    def _calibrate(self, x_BD: Tensor, y_BD: Tensor | None, coefficient: float) -> None:
        """Fits to the weights, which stay, what the SAE has to fit to them with a batch of scaled activations."""
        self.sae.eval()
        losses = self.sae.losses(x_BD, coefficient, self.settings.objective, y_BD)
        fired_F = (losses.acts_BF > 0).sum(0)
        if self.sae.calibration_steps:
            self.sae.calibrate(x_BD)
        elif self.controller is not None:
            fired_F = self.controller.calibrate(self.sae, x_BD)
        self.sae.train()
        self._note(torch.stack(losses[:4]), fired_F, len(x_BD))

    def _note(self, losses_4: Tensor, fired_F: Tensor, rows: int) -> None:
        """Adds a step to the interval's means."""
        self._losses.append(losses_4)
        self._fired_F += fired_F
        self._rows += rows

    def _taking_part(self, *batch: Tensor) -> tuple[Tensor, ...]:
        """The rows of a batch that training uses: those that are not of massive norm, at the site or at the target."""
        parts = [
            takes_part(square_norms(x_BD), limit)
            for x_BD, limit in zip(batch, self._limits, strict=True)
            if not _all_below(x_BD, limit)
        ]
        if not parts or (part_B := torch.stack(parts).all(0)).all():
            return batch
        return tuple(x_BD[part_B] for x_BD in batch)

    @property
    def _restarts(self) -> tuple[tuple[int, ...], int]:
        """The steps at which the learning rate rises again, and over how many steps."""
        resampling = self.resampler.settings if self.resampler else None
        return (resampling.at_steps, resampling.rewarm_steps) if resampling else ((), 0)

    def _check(self, losses_S4: Tensor, first_step: int) -> None:
        """Checks by the losses of an interval's steps that training makes sense.

        Raises:
            NumericError: it does not.
        """
        if not self._rows:
            raise NumericError(
                f"no row between steps {first_step + 1} and {self.step} takes part: all norms are above "
                f"dataset.max_norm times the median of block 0 ({math.sqrt(self.norms.median_square_norm):.4g}), whose "
                "rows are not like them; raise max_norm, or set it to null"
            )
        finite_S = losses_S4.isfinite().all(dim=1)
        if not finite_S.all():
            bad = int((~finite_S).nonzero()[0])
            if bad:
                self._last_finite = _describe(first_step + bad, losses_S4[bad - 1])
            raise NumericError(
                f"the loss is not finite at step {first_step + bad + 1} (token "
                f"{(first_step + bad + 1) * self.settings.batch_size}); last finite: {self._last_finite}; a lower lr "
                "may help"
            )
        self._last_finite = _describe(self.step, losses_S4[-1])
        reconstruction = losses_S4[:, 1].mean().item()
        if reconstruction > EXPLODED * self.trivial_loss:
            raise NumericError(
                f"the loss exploded: between steps {first_step + 1} and {self.step} the mean reconstruction loss is "
                f"{reconstruction:.3g}, {reconstruction / self.trivial_loss:.3g} times that of reconstructing nothing; "
                f"last: {self._last_finite}; a lower lr may help"
            )

    def _reset_means(self) -> None:
        self._losses: list[Tensor] = []
        self._fired_F = torch.zeros(self.trial.d_sae, dtype=torch.int64, device=self.device)
        self._rows = 0
        self._resampled = 0
        self._rates = {}

    def _take_means(self, losses_S4: Tensor) -> dict[str, float]:
        """Means since the last call, in the units of scaled activations.

        dead_fraction: the share of features that were silent in this interval; dense_fraction: of those that were
        active on more than a tenth of its rows; left_out_fraction: the share of rows of massive norm, which were left
        out.
        """
        metrics = dict(zip(LOSSES, losses_S4.mean(0).tolist(), strict=True))
        metrics["l0"] = self._fired_F.sum().item() / self._rows
        metrics["dead_fraction"] = (self._fired_F == 0).double().mean().item()
        metrics["dense_fraction"] = (self._fired_F > DENSE_SHARE * self._rows).double().mean().item()
        metrics["left_out_fraction"] = 1 - self._rows / (len(losses_S4) * self.settings.batch_size)
        if self.resampler is not None:
            metrics["resampled_features"] = float(self._resampled)
        if self.controller is not None:
            metrics["found_coefficient"] = self.controller.found
        metrics |= self._rates
        self._reset_means()
        return metrics

    def finished_sae(self, metadata: dict[str, Any]) -> SAE:
        """A copy of the SAE on the CPU that takes raw activations; `metadata` goes to its `cfg.json`.

        Raises:
            NumericError: the last steps, which no loss has seen yet, made it not finite.
        """
        sae = build(self.sae.cfg.model_copy(update={"metadata": metadata}))
        sae.load_state_dict({name: tensor.cpu() for name, tensor in self.sae.state_dict().items()})
        sae.fold_scale(self.scale, self.target_scale if sae.cfg.is_transcoder else None)
        if self.parent is not None:
            sae.adopt(self.parent, start=False)  # to the last bit, which folding may have rounded
        elif not self.unit_norm:
            sae.fold_norms()
        if (name := sae.not_finite()) is not None:
            raise NumericError(f"{name} is not finite after step {self.step}; a lower lr may help")
        return sae.eval()

    # ---- state: between intervals, so that the running means are empty ----

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, the rest): all that a successor needs to go on bit for bit.

        The tensors are those that are trained, and no copies: they are to be written before training goes on.
        """
        tensors = {f"sae.{name}": tensor.detach() for name, tensor in self.sae.training_state().items()}
        tensors |= {f"adam.{name}": tensor for name, tensor in self.optimiser.tensors().items()}
        if self.resampler is not None:
            tensors |= {f"resampling.{name}": tensor for name, tensor in self.resampler.state().items()}
        if self.controller is not None:
            tensors |= {f"target_l0.{name}": tensor for name, tensor in self.controller.state().items()}
        rest = {"step": self.step, "position": self.stream.position, "scale": self.scale}
        return tensors, {**rest, **({"target_scale": self.target_scale} if self.sae.cfg.is_transcoder else {})}

    def restore(self, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
        """Goes back to what `state` returned."""
        self.sae.load_training_state(_beginning_with("sae.", tensors))
        self.optimiser.restore(_beginning_with("adam.", tensors))
        if self.resampler is not None:
            self.resampler.restore(_beginning_with("resampling.", tensors))
        if self.controller is not None:
            self.controller.restore(_beginning_with("target_l0.", tensors))
        self.step = rest["step"]
        self.stream.position = rest["position"]
        self.scale = rest["scale"]
        self.target_scale = rest.get("target_scale", self.scale)
        self._reset_means()


def _all_below(x_BD: Tensor, limit: float) -> bool:
    """Whether it is certain that no row is of massive norm: the sooner answer of most batches."""
    # Where squares do not vanish in float32.
    return math.isinf(limit) or (limit > 1e-30 and bool(square_norms(x_BD, torch.float32).max() < 0.99 * limit))


def _beginning_with(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _describe(steps: int, losses_4: Tensor) -> str:
    """The losses of a step as text."""
    values = ", ".join(f"{name} {value:.4g}" for name, value in zip(LOSSES, losses_4.tolist(), strict=True))
    return f"step {steps}: {values}"
