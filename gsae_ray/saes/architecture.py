"""What is known of an architecture without an SAE of it: its keys in a sweep file, its objectives, what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from gsae_ray.saes.gated_relu import GatedReLU
from gsae_ray.saes.objective import CHOICES, Objective, SparsityUnits

TARGET_L0 = "target_l0"
"""The hyperparameter that is in the place of the coefficient of the penalty where training finds that, for an L0."""


class _Finished(BaseModel):
    """Hyperparameters that a finished SAE of any architecture may have besides its own."""

    model_config = ConfigDict(strict=True)

    subtract_b_dec: bool = Field(True, description="false: the encoder takes x, not x − b_dec")
    target_l0: float | None = Field(None, gt=0, description="instead of a coefficient: the L0 that it was found for")


class Architecture:
    """The part of `SAE` that sweep files, `plan` and the frontier ask."""

    architecture: ClassVar[str]
    parent_architecture: ClassVar[str | None] = None
    """The architecture of the finished SAE that training starts from; None: training starts from random weights."""
    objectives: ClassVar[tuple[Objective, ...]] = CHOICES
    """What its training may minimise; where that is one thing alone, sweep files name none."""
    sparsity_hyperparameter: ClassVar[str | None] = "l1_coefficient"
    """The hyperparameter that sets how sparse features are; None: no such."""
    sparsity_units: ClassVar[SparsityUnits | None] = "l1"
    """Units of `sparsity_coefficient`; None: there is no penalty, or the coefficient is a number without units."""
    training_arrays: ClassVar[int] = 4
    """Number of arrays [batch, d_sae] that are in memory at once in a training step; measured."""
    evaluation_arrays: ClassVar[int] = 4
    """The same in an evaluation."""

    class Hyperparameters(BaseModel):
        """The architecture's own keys of an entry of `saes`; each may be a grid."""

        model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def gated_relu(cls, hyperparameters: Mapping[str, Any], objective: Objective) -> GatedReLU | None:
        """How such SAEs are of that form, which engines that skip inactive features need; None: they are not."""
        return None

    @classmethod
    def training_products(cls, hyperparameters: Mapping[str, Any], objective: Objective) -> int:
        """Number of dense products of a batch with an n × M matrix in a training step, each of 2nM FLOPs a row.

        Five where one encoder and one decoder are learnt: both forward, the gradients of both, and that of f.
        """
        return 5

    @classmethod
    def check_hyperparameters(cls, hyperparameters: dict[str, Any], trained_here: bool = True) -> None:
        """Checks the hyperparameters of a finished SAE.

        Args:
            hyperparameters: of its `cfg.json`.
            trained_here: false: the coefficient of its penalty may be missing, which nobody knows in our units.

        Raises:
            ValidationError: they are not those of a finished SAE of this architecture.
        """
        has_penalty = cls.sparsity_units is not None and cls.sparsity_hyperparameter is not None
        unknown = has_penalty and (not trained_here or hyperparameters.get(TARGET_L0) is not None)
        own = {key: value for key, value in hyperparameters.items() if key not in _Finished.model_fields}
        cls.Hyperparameters.model_validate({**({cls.sparsity_hyperparameter: 0.0} if unknown else {}), **own})
        _Finished.model_validate(hyperparameters)

    @classmethod
    def check_width(cls, hyperparameters: Mapping[str, Any], d_in: int, d_sae: int) -> None:
        """Checks that an SAE of that shape can be trained with these hyperparameters.

        Raises:
            ValueError: it cannot; the message begins with the hyperparameter's name.
        """

    @classmethod
    def sparsity_key(cls, hyperparameters: Mapping[str, Any]) -> str | None:
        """The hyperparameter whose value the frontier lists as `sparsity`."""
        return cls.sparsity_hyperparameter

    @classmethod
    def canonical(cls, hyperparameters: dict[str, Any], objective: Objective, d_sae: int) -> dict[str, Any]:
        """The one form of hyperparameters that mean the same, so that the same SAE has the same identity."""
        return hyperparameters
