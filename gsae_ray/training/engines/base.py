"""What the trainer asks of an engine."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from gsae_ray.errors import UserError
from gsae_ray.saes import SAE, Objective
from gsae_ray.training.optimiser import Adam

LOSSES = ("loss", "reconstruction_loss", "sparsity_loss", "auxiliary_loss")
"""Names of a step's losses, as metrics have them; `saes.base.Losses` says what each is."""
LARGE_BATCH = 2**23
"""Entries of a batch, rows × features, beyond which sparse engines bound what its arrays take."""
BYTES_AN_ENTRY = 6
"""What they take then, where a processor has bfloat16: dense steps are made in parts for that."""


class StepResult(NamedTuple):
    """What a training step found, on the device of the SAE and without a graph."""

    losses_4: Tensor
    """Those that `LOSSES` names, in its order."""
    fired_F: Tensor
    """Number of rows of the batch that each feature fired on, int64; their sum ÷ rows is L0."""


class Update(NamedTuple):
    """How a step changes the parameters once their gradient is known."""

    lr: float
    """Learning rate of weights."""
    clip: float | None
    """Greatest norm of the whole gradient; None: any."""
    unit_norm: bool
    """Whether decoder rows are kept at norm 1: the gradient is projected before, and rows are normalised after."""


class Engine(Protocol):
    """Computes losses and gradients, and updates. How it represents activations is its own affair."""

    @property
    def torch_threads(self) -> int | None:
        """How many of PyTorch's threads a trainer uses besides it; None: as many as it may.

        Those of an engine that has threads of its own would compete with them: PyTorch's wait for the next operation in
        a busy loop.
        """

    def prepare(self, sae: SAE) -> None:
        """Lays out the parameters in memory as steps need them, before the first one. Their values stay.

        Raises:
            UserError: it cannot train on their device, or has no transcoders.
        """

    def step(
        self, sae: SAE, x_BD: Tensor, coefficient: float, objective: Objective, y_BD: Tensor | None = None
    ) -> StepResult:
        """Computes the losses of a batch, and their gradient, which it leaves in `.grad` of each learnt parameter.

        Before, no parameter has a `.grad`. Parameters stay as they are; buffers may change.

        Args:
            sae: in training mode.
            x_BD: scaled activations, float32, at least one row.
            coefficient: of the sparsity penalty, at this step.
            objective: what is minimised.
            y_BD: scaled activations that a transcoder is to compute from those, row by row; None: it is an SAE.
        """

    def update(self, sae: SAE, optimiser: Adam, update: Update) -> None:
        """Learns from the gradients that `step` left, and lets them go."""


def refuse_transcoder(sae: SAE, engine: str) -> None:
    """Refuses a transcoder, in an engine that has none.

    Raises:
        UserError: it is one.
    """
    if sae.cfg.is_transcoder:
        raise UserError(f"training.engine: {engine} has no transcoders; engine: dense has")
