"""What an SAE is, beside its weights."""

from __future__ import annotations

import re
from typing import Any

import pydantic
from pydantic import BaseModel, ConfigDict, Field


class SAEConfig(BaseModel):
    """The configuration of an SAE; `config_file` has its form on disk."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    architecture: str = Field(description="key of the registry")
    d_in: int = Field(gt=0, lt=2**31, description="n, coordinates of an activation")
    d_sae: int = Field(gt=0, lt=2**31, description="M, number of features")
    hyperparameters: dict[str, Any] = Field({}, description="the architecture's own, e.g. l1_coefficient")
    site: str = Field("", description="where in the model it reads, e.g. blocks.2.hook_resid_post")
    d_out: int | None = Field(
        None, gt=0, lt=2**31, description="of a transcoder: coordinates of what it computes; null: an SAE"
    )
    target: str = Field("", description="of a transcoder: where in the model that is, e.g. blocks.2.hook_mlp_out")
    skip: bool = Field(False, description="of a transcoder: whether it has an affine skip connection, W_skip x")
    metadata: dict[str, Any] = Field({}, description="model, data and training settings that it came from")

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> SAEConfig:
        if self.d_out is None and (self.target or self.skip):
            raise ValueError("target and skip are of transcoders, which have d_out")
        return self

    @property
    def is_transcoder(self) -> bool:
        """Whether it computes other activations than those that it reads."""
        return self.d_out is not None

    @property
    def width_out(self) -> int:
        """Coordinates of what it computes."""
        return self.d_in if self.d_out is None else self.d_out

    @property
    def place(self) -> str:
        """Where in the model it is, as sweeps name sites; of a transcoder both places. Empty: it is not known."""
        if not self.target:
            return self.site
        layer = re.match(r"blocks\.\d+\.", self.site)
        if layer and self.target.startswith(layer[0]):
            return f"{self.site}:{self.target.removeprefix(layer[0])}"
        return f"{self.site} to {self.target}"

    def section(self, name: str) -> dict[str, Any]:
        """A mapping of the metadata; empty where an SAE that no sweep saved has something else there."""
        section = self.metadata.get(name)
        return section if isinstance(section, dict) else {}
