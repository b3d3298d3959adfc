"""What is looked at of the features of finished SAEs (`evaluation.features`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from gsae_ray.fields import AtMost, Count, Settings


class FeatureSettings(Settings):
    """Tables of what each feature of finished SAEs fires on, from held-out text. `features: true` is the defaults."""

    saes: Literal["frontier", "all"] = Field(
        "frontier", description="of which SAEs: those on the frontier of their site, or every one"
    )
    contexts: Annotated[int, Field(ge=2), AtMost(100, "they are in memory for every feature")] = Field(
        10,
        description="pieces of text that are shown of a feature: half with its largest activations, each of another "
        "context, half at quantiles of them",
    )
    window: Annotated[int, Field(ge=2), AtMost(1000, "they are in memory for every feature")] = Field(
        32, description="tokens of a piece; contexts that are shorter are shown whole"
    )
    tokens: Count | None = Field(
        None, description="rows of the held-out contexts to look at, the first ones; default: all of evaluation.tokens"
    )

    memory_gib: Annotated[float, Field(gt=0), AtMost(10**6, "no producer has more memory")] = Field(
        1.0,
        description="SAEs share passes over the held-out text as long as they and their arrays take no more together; "
        "one alone may take more",
    )

    @property
    def top(self) -> int:
        """Pieces with the largest activations."""
        return self.contexts - self.quantile

    @property
    def quantile(self) -> int:
        """Pieces at quantiles."""
        return self.contexts // 2


def _switched(value: object) -> object:
    return {True: FeatureSettings(), False: None}[value] if isinstance(value, bool) else value


Features = Annotated[FeatureSettings | None, BeforeValidator(_switched)]
