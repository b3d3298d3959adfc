"""What an SAE is, beside its weights."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class SAEConfig(BaseModel):
    """The configuration of an SAE; `config_file` has its form on disk."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    architecture: str = Field(description="key of the registry")
    d_in: int = Field(gt=0, lt=2**31, description="n, coordinates of an activation")
    d_sae: int = Field(gt=0, lt=2**31, description="M, number of features")
    hyperparameters: dict[str, Any] = Field({}, description="the architecture's own, e.g. l1_coefficient")
    site: str = Field("", description="where in the model, e.g. blocks.2.hook_resid_post")
    metadata: dict[str, Any] = Field({}, description="model, data and training settings that it came from")

    def section(self, name: str) -> dict[str, Any]:
        """A mapping of the metadata; empty where an SAE that no sweep saved has something else there."""
        section = self.metadata.get(name)
        return section if isinstance(section, dict) else {}
