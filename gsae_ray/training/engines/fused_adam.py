"""The update of a step in two passes over memory: projection and the norm of the gradient, then Adam and norms.

With PyTorch's operations they are five and more, which took longer than all else of a sparse step. Compiled by Numba.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor, nn

from gsae_ray.saes import SAE
from gsae_ray.training.engines.base import Update
from gsae_ray.training.engines.compiled import kernel
from gsae_ray.training.engines.workspace import Array, Workspace
from gsae_ray.training.optimiser import EPSILON, Adam

CLIP_EPSILON = 1e-6
"""As in `torch.nn.utils.clip_grad_norm_`."""


class _Learnt:
    """A learnt parameter, as rows in memory."""

    def __init__(self, parameter: nn.Parameter, is_decoder: bool) -> None:
        self.parameter = parameter
        self.is_decoder = is_decoder
        self.rows = as_rows(parameter, is_decoder)
        self.squares = np.empty(0, np.float32)
        """Squared norms of its gradient's rows."""
        self.measured = False
        """Whether the step has found them already, for the next update."""
        self.mean_tensor: Tensor | None = None
        """Of Adam's state, by which one that was replaced is known."""
        self.step = self.mean = self.square = np.empty(0, np.float32)
        """Memory of that state."""

    def use(self, state: dict[str, Tensor]) -> None:
        """Takes the moments of a state of Adam's."""
        if state["exp_avg"] is not self.mean_tensor:
            self.mean_tensor, self.step = state["exp_avg"], state["step"].numpy()
            self.mean, self.square = (as_rows(state[name], self.is_decoder) for name in ("exp_avg", "exp_avg_sq"))


class FusedAdam:
    """Updates the learnt parameters of an SAE, as `DenseEngine.update` does."""

    def __init__(self, workspace: Workspace, sae: SAE) -> None:
        """Makes it for parameters that lie in memory as they will."""
        self.workspace = workspace
        self.learnt = {name: _Learnt(p, p is sae.W_dec) for name, p in sae.learnt_parameters().items()}
        ends = np.cumsum([len(learnt.rows) for learnt in self.learnt.values()]).tolist()
        self._all_squares = np.empty(ends[-1], np.float32)
        for learnt, end in zip(self.learnt.values(), ends, strict=True):
            learnt.squares = self._all_squares[end - len(learnt.rows) : end]

    def forget(self) -> None:
        """Begins a step: no squares are known."""
        for learnt in self.learnt.values():
            learnt.measured = False

    def update(self, optimiser: Adam, how: Update) -> None:
        """Updates parameters by their gradients."""
        gradients = [as_rows(learnt.parameter.grad, learnt.is_decoder) for learnt in self.learnt.values()]
        for learnt, gradient in zip(self.learnt.values(), gradients, strict=True):
            projected = how.unit_norm and learnt.is_decoder
            if projected or (how.clip and not learnt.measured):
                unit = learnt.rows if projected else learnt.rows[:0]
                self.workspace.over(len(learnt.rows), project_and_measure, gradient, unit, learnt.squares)
        factor = np.float32(1)
        if how.clip:
            norm = math.sqrt(self._all_squares.sum(dtype=np.float64))
            # NaN stays, as it does in PyTorch.
            factor = np.float32(1.0 if norm + CLIP_EPSILON < how.clip else how.clip / (norm + CLIP_EPSILON))
        beta1, beta2 = optimiser.betas
        decays = np.float32(beta1), np.float32(1 - beta1), np.float32(beta2), np.float32(1 - beta2)
        for learnt, gradient in zip(self.learnt.values(), gradients, strict=True):
            learnt.use(optimiser.state_of(learnt.parameter))
            learnt.step[...] += 1
            steps = learnt.step.item()
            step_size = how.lr * optimiser.factors[learnt.parameter] / (1 - beta1**steps)
            self.workspace.over(
                len(learnt.rows),
                adam,
                *(learnt.rows, gradient, learnt.mean, learnt.square, factor, *decays),
                *(np.float32(step_size), np.float32((1 - beta2**steps) ** -0.5), np.float32(EPSILON)),
                how.unit_norm and learnt.is_decoder,
            )


def as_rows(tensor: Any, is_decoder: bool) -> Array:
    """The memory of a parameter, or of what lies as it does: features are rows, a vector is one row."""
    array: Array = tensor.detach().numpy()
    if array.ndim == 1:
        return array.reshape(1, -1)
    array = array if is_decoder else array.T
    assert array.flags.c_contiguous, "laid out by the engine"
    return array


@kernel
def project_and_measure(first: int, end: int, gradient_RD: Any, unit_RD: Any, squares_R: Any) -> None:
    """Takes out of the gradient of rows what would change their norm, and adds up its squares.

    Args:
        first: row to begin with.
        end: row to end before.
        gradient_RD: changed in place.
        unit_RD: rows of norm 1; without rows: nothing is taken out.
        squares_R: gets the squared norms of the gradient.
    """
    for r in range(first, end):
        gradient_D = gradient_RD[r]
        if len(unit_RD) > 0:
            along = np.float32(0)
            for k in range(len(gradient_D)):
                along += gradient_D[k] * unit_RD[r, k]
            for k in range(len(gradient_D)):
                gradient_D[k] -= along * unit_RD[r, k]
        square = np.float32(0)
        for k in range(len(gradient_D)):
            square += gradient_D[k] * gradient_D[k]
        squares_R[r] = square


@kernel
def adam(
    first: int,
    end: int,
    parameter_RD: Any,
    gradient_RD: Any,
    mean_RD: Any,
    square_RD: Any,
    factor: float,
    beta1: float,
    rest1: float,
    beta2: float,
    rest2: float,
    step_size: float,
    correction: float,
    epsilon: float,
    unit_norm: bool,
) -> None:
    """Adam's update of rows (Kingma & Ba 2015, algorithm 1), as PyTorch computes it.

    Args:
        first: row to begin with.
        end: row to end before.
        parameter_RD: changed in place, as are the moments.
        gradient_RD: its gradient.
        mean_RD: running mean of gradients.
        square_RD: running mean of their squares.
        factor: of the gradient, by which it is clipped.
        beta1: β₁, decay of the mean.
        rest1: 1 − β₁, which float32 holds better than their difference.
        beta2: β₂, decay of that of squares.
        rest2: 1 − β₂.
        step_size: learning rate ÷ (1 − β₁ᵗ).
        correction: 1 ÷ √(1 − β₂ᵗ).
        epsilon: added to the root.
        unit_norm: whether rows get norm 1 then.
    """
    for r in range(first, end):
        parameter_D, gradient_D, mean_D, square_D = parameter_RD[r], gradient_RD[r], mean_RD[r], square_RD[r]
        size = np.float32(0)
        for k in range(len(parameter_D)):
            gradient = factor * gradient_D[k]
            mean = beta1 * mean_D[k] + rest1 * gradient
            square = beta2 * square_D[k] + rest2 * gradient * gradient
            value = parameter_D[k] - step_size * mean / (np.sqrt(square) * correction + epsilon)
            mean_D[k] = mean
            square_D[k] = square
            parameter_D[k] = value
            size += value * value
        if unit_norm:
            norm = np.sqrt(size)
            for k in range(len(parameter_D)):
                parameter_D[k] /= norm
