"""The controller of a trial that asks for an L0: it finds the coefficient of the sparsity penalty while training.

In the place of λ the sweep file has `target_l0`. λ follows from the L0 of the training steps so far, and those are
looked at after steps that follow from the number of steps alone: neither metric rows nor checkpoints change it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gsae_ray.config.recipe import TrialTraining
from gsae_ray.errors import NumericError
from gsae_ray.saes import SAE
from gsae_ray.saes.architecture import TARGET_L0
from gsae_ray.saes.calibration import calibration_steps
from gsae_ray.training.margins import MarginCalibration
from gsae_ray.training.schedules import lr_factor

WINDOWS, WINDOW_ROWS, FEWEST_WINDOWS = 200, 1024, 40
"""λ changes so often in a run, after windows of equally many steps; less often where they had fewer rows, which L0 is
too uncertain on, but so often at least."""
START = 0.05
"""The share of the run before λ changes first; or that of the warm-up of the penalty, where it is larger."""
FIRST_L1, FIRST_SQUARE_NORM = 0.7, 0.1
"""λ at the start: of an L1 penalty 0.7 √(E‖x‖² / L0), for an activation of k equal ones is about √(E‖x‖² / k); of
others 0.1 E‖x‖² / L0. Either was within a factor of 3 of what was found for L0 8 to 96 on the built-in model."""
GAIN = 0.3
"""What log λ changes by where log L0 does, at once. log L0 changes by 1 to 1.5 times as much as log λ, in time; were it
1 / GAIN times as much and at once, as it may be in long windows, λ would swing."""
INTEGRAL_SHARE, INTEGRAL_STEPS = 0.03, 12
"""The share of the run, at least so many steps, in which a lasting deviation changes log λ by as much once more."""
LARGEST = 1.0
"""The deviation of log L0 beyond which a larger one counts no more."""
EARLY, EARLY_END = 0.4, 0.8
"""At a constant λ L0 falls while features are learnt, at 5 % of a run from three times what it is in the end. So early
on more is aimed at: the target times (0.8 / share of the run)^0.4, and the less of it the nearer the target is to n,
from where L0 hardly falls. To ask for the target from the start takes a λ that features do not recover from: FVU was
9 % larger at L0 8 in 781 steps."""
MISSED = 1.5
"""Calibration mends what remains at the end of training, but no L0 that is so many times the target, or less."""
STATE = ("integral", "log_l0", "deviation", "lowest", "highest")
"""Numbers that a checkpoint holds, in this order."""


class TargetL0:
    """A controller with a proportional and an integral part, of log λ by log(L0 / target).

    The integral follows the learning rate, so that it comes to rest as the weights do.
    """

    def __init__(self, sae: SAE, settings: TrialTraining, mean_square_norm: float, unit: float) -> None:
        """Begins with a λ that has no units.

        Args:
            sae: ready to be trained; its hyperparameters have the target.
            settings: how it is trained.
            mean_square_norm: E‖x‖² of the activations that it is trained on.
            unit: the coefficient that is 1 in the sweep file, in units of those activations.
        """
        self.target = float(sae.cfg.hyperparameters[TARGET_L0])
        own = calibration_steps(settings.steps, settings.batch_size) if sae.has_thresholds else 0
        self.calibration_steps = sae.calibration_steps or own
        """The run's last steps, which leave the weights as they are."""
        self._steps = settings.steps - self.calibration_steps
        self._settings, self._unit, self._name = settings, unit, sae.sparsity_hyperparameter
        enough = min(math.ceil(WINDOW_ROWS / settings.batch_size), self._steps // FEWEST_WINDOWS)
        self._window = max(1, self._steps // WINDOWS, enough)
        self._start = max(START, settings.l1_warmup) * self._steps
        self._integral_steps = max(INTEGRAL_SHARE * self._steps, INTEGRAL_STEPS)
        self._early = EARLY * max(0.0, 1 - self.target / min(sae.cfg.width_out, sae.cfg.d_sae))
        is_l1 = sae.sparsity_units == "l1"
        share = mean_square_norm / self.target
        self._first = math.log(FIRST_L1 * math.sqrt(share) if is_l1 else FIRST_SQUARE_NORM * share)
        self.integral = self.deviation = 0.0
        """The parts of log λ, beside that of the start."""
        self.log_l0 = 0.0
        """Of the last window; in the end of the rows of calibration, before it."""
        self.lowest, self.highest = math.inf, -math.inf
        """log L0 of the windows in the second half of training."""
        self._fired = torch.zeros((), dtype=torch.int64, device=sae.W_dec.device)
        self._rows = 0
        self._margins = MarginCalibration(self.target, mean_square_norm, sae.W_dec.device)

    @property
    def coefficient(self) -> float:
        """λ of the next step, but for its warm-up, in units of the activations that training sees."""
        return math.exp(self._first + self.integral + GAIN * self.deviation)

    @property
    def found(self) -> float:
        """What λ has settled at so far, in the units of the sweep file."""
        return math.exp(self._first + self.integral) / self._unit

    def observe(self, fired_F: Tensor, rows: int) -> None:
        """Counts the features that fired on the rows of a training step."""
        self._fired += fired_F.sum()
        self._rows += rows

    def calibrate(self, sae: SAE, x_BD: Tensor) -> Tensor:
        """Looks at a batch of training rows, at frozen weights. Returns how many rows each feature is to fire on."""
        return self._margins.observe(sae, x_BD)

    def end_step(self, step: int, sae: SAE) -> None:
        """Changes λ where a window ends with this step, counted from 0, and thresholds where calibration does.

        Raises:
            NumericError: the run has ended, and L0 is far from the target.
        """
        done = step + 1
        if done <= self._steps and done % self._window == 0 and self._rows:
            self._end_window(done)
        if done < self._settings.steps:
            return
        shift, calibrated = None, bool(self._margins.rows)
        if calibrated:
            self.log_l0, shift = _log(self._margins.l0), self._margins.shift()
        missed = abs(self.log_l0 - math.log(self.target)) > math.log(MISSED)
        if missed or (calibrated and shift is None):
            raise self._out_of_reach()
        if shift is not None:
            with torch.no_grad():
                sae.raise_thresholds(shift)

    def _end_window(self, done: int) -> None:
        self.log_l0 = _log(self._fired.item() / self._rows)
        self._fired.zero_()
        self._rows = 0
        if 2 * done > self._steps:
            self.lowest, self.highest = min(self.lowest, self.log_l0), max(self.highest, self.log_l0)
        if done < self._start:
            return
        aim = math.log(self.target) + self._early * math.log(max(1.0, EARLY_END * self._steps / done))
        self.deviation = max(-LARGEST, min(LARGEST, self.log_l0 - aim))
        lr = lr_factor(done, self._steps, self._settings.lr_warmup, self._settings.lr_decay)
        self.integral += lr * GAIN * self.deviation * self._window / self._integral_steps

    def _out_of_reach(self) -> NumericError:
        """The error that ends a trial which did not come to its target."""
        low, high, last = (math.exp(value) for value in (self.lowest, self.highest, self.log_l0))
        return NumericError(
            f"target_l0: {self.target:g} was not reached: L0 was {low:.3g} to {high:.3g} in the second half of "
            f"training, and {last:.3g} at its end, with {self._name} {self.found:.3g}; ask for an L0 within what was "
            "reached, or take another width or more tokens"
        )

    # ---- state ----

    def state(self) -> dict[str, Tensor]:
        """All that a successor needs, as tensors by name."""
        numbers = torch.tensor([getattr(self, name) for name in STATE], dtype=torch.float64)
        return {
            "numbers": numbers,
            "fired": self._fired.clone(),
            "rows": torch.tensor(self._rows),
            **self._margins.state(),
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Goes back to what `state` returned."""
        for name, value in zip(STATE, tensors["numbers"].tolist(), strict=True):
            setattr(self, name, value)
        self._fired.copy_(tensors["fired"])
        self._rows = int(tensors["rows"])
        self._margins.restore(tensors)


def _log(l0: float) -> float:
    """The logarithm of an L0, which is 0 where nothing fires."""
    return math.log(max(l0, 1e-6))
