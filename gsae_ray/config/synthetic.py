"""Synthetic activations in a sweep file: a known dictionary in the place of a language model (`gsae_ray.synthetic`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Final, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import Field

from gsae_ray.config.explain import Key, refusal
from gsae_ray.config.sae_settings import SAESettings
from gsae_ray.config.sections import EvaluationSettings, ProducerSettings
from gsae_ray.config.site import Site, SiteSettings
from gsae_ray.fields import AtMost, Fraction, Positive, Seed, Settings

SYNTHETIC: Final = "synthetic"
"""`model.name` of a sweep without a language model, and the name of its one site."""
SITE = Site(SYNTHETIC)
MOST_SEARCHED = 2048
"""Features among which directions of a chosen coherence are looked for: all pairs are in memory."""

InDictionary = Annotated[Positive, AtMost(10**6, "the dictionary is in memory")]
MOST_NUMBERS = 10**9
"""Of the dictionary: features times coordinates."""
RAREST = 2.0**-32
"""Random numbers have 32 bits: what is rarer is never drawn."""
AboveZero = Annotated[float, Field(gt=0, le=1)]


class HierarchySettings(Settings):
    """Trees of features: a child is only active where its parent is."""

    roots: InDictionary = Field(description="features with children: the most frequent ones")
    branching: InDictionary = Field(4, description="children of each feature above the last level")
    depth: Annotated[Positive, AtMost(20, "trees grow fast")] = Field(1, description="levels below the roots")
    frequency: AboveZero = Field(0.2, description="how often a child is active where its parent is")
    exclusive: bool = Field(False, description="of the children of a feature at most one is active on a row")

    @property
    def weight(self) -> float:
        """Mean number of active features of a tree where its root is active, the root among them."""
        return sum((self.branching * self.frequency) ** level for level in range(self.depth + 1))

    @property
    def size(self) -> int:
        """Features of all trees."""
        return self.roots * sum(self.branching**level for level in range(self.depth + 1))

    @pydantic.model_validator(mode="after")
    def _possible(self) -> HierarchySettings:
        if self.exclusive and self.branching * self.frequency > 1 + 1e-9:
            raise _refused(
                "exclusive",
                f"{self.branching} children (branching) that are active with frequency {self.frequency:g} "
                f"each are more than one; at most {1 / self.branching:g}",
            )
        return self


class CorrelationSettings(Settings):
    """Groups of features that are active together, as those of a topic are."""

    groups: InDictionary = Field(description="how many; features without a parent take turns, children follow theirs")
    frequency: AboveZero = Field(0.25, description="share of the rows on which a group is on")
    strength: Fraction = Field(
        0.5,
        description="share of a feature's activity that is kept for rows on which its group is; 0: independent "
        "features, 1: active on those rows only",
    )

    @property
    def boost(self) -> float:
        """How much more often a feature is active on rows of its group than on all."""
        return 1 - self.strength + self.strength / self.frequency


class SyntheticSettings(Settings):
    """Activations from a known dictionary, without a language model (docs/synthetic.md)."""

    name: Literal["synthetic"] = Field(SYNTHETIC, description="tells it from a language model")
    d_in: InDictionary = Field(64, description="coordinates of a row")
    features: InDictionary = Field(256, description="true features; more than d_in of them are in superposition")
    active: Annotated[float, Field(gt=0)] = Field(8.0, description="active features of a row, on average: the true L0")
    zipf: Annotated[float, Field(ge=0), AtMost(10, "all but one feature would be gone")] = Field(
        1.0, description="frequencies fall as rank^-zipf; 0: all are the same"
    )
    max_frequency: AboveZero = Field(0.3, description="share of the rows that no feature without a parent exceeds")
    magnitudes: Literal["constant", "uniform", "lognormal", "exponential"] = Field(
        "uniform",
        description="of an active feature's coefficient, 1 on average: always 1, from 0.5 to 1.5, lognormal with "
        "sigma 0.5, or exponential",
    )
    correlation: CorrelationSettings | None = Field(None, description="groups of features that are active together")
    hierarchy: HierarchySettings | None = Field(None, description="features that are active only where a parent is")
    coherence: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="largest |cosine| between the directions of two features; default: that of random directions",
    )
    noise: Annotated[float, Field(ge=0), AtMost(1000, "nothing else would be seen")] = Field(
        0.0, description="root mean square norm of Gaussian noise, where a feature's coefficient is 1 on average"
    )
    seed: Seed = Field(0, description="of the dictionary: directions; that of the rows is dataset.seed")

    @property
    def without_parent(self) -> int:
        """Features without a parent."""
        return self.features - (self.hierarchy.size - self.hierarchy.roots if self.hierarchy else 0)

    def frequencies(self) -> NDArray[np.float64]:
        """How often each feature without a parent is active: p_i = min(max_frequency, c i^-zipf) of the i-th.

        c is such that with their children, see `HierarchySettings`, `active` of them are on average.
        """
        zipf_N = np.arange(1, self.without_parent + 1, dtype=np.float64) ** -self.zipf
        weight_N = np.ones(self.without_parent)  # active features of a tree, whose root is one of these
        if self.hierarchy is not None:
            weight_N[: self.hierarchy.roots] = self.hierarchy.weight
        # The first m are at the maximum; the others share what these leave.
        capped_M = self.max_frequency * np.concatenate([[0.0], np.cumsum(weight_N)])[:-1]
        c_M = (self.active - capped_M) / np.cumsum((weight_N * zipf_N)[::-1])[::-1]
        p_N = np.full(self.without_parent, self.max_frequency)
        fitting = np.flatnonzero(c_M * zipf_N <= self.max_frequency * (1 + 1e-12))
        if len(fitting):  # else all are at the maximum, which then makes `active`
            p_N[fitting[0] :] = c_M[fitting[0]] * zipf_N[fitting[0] :]
        return p_N

    @pydantic.model_validator(mode="after")
    def _possible(self) -> SyntheticSettings:
        if self.features * self.d_in > MOST_NUMBERS:
            raise _refused(
                "features",
                f"{self.features:,} directions in {self.d_in:,} dimensions (d_in) do not fit into memory; at most "
                f"{MOST_NUMBERS // self.d_in:,} features",
            )
        if (tree := self.hierarchy) is not None and tree.size > self.features:
            raise _refused(
                "hierarchy",
                f"{tree.roots} roots with branching {tree.branching} and depth {tree.depth} are "
                f"{tree.size:,} features, and there are {self.features:,} (features)",
            )
        most = self.max_frequency * (self.without_parent + (tree.roots * (tree.weight - 1) if tree else 0))
        if self.active > most * (1 + 1e-9):
            raise _refused(
                "active",
                f"{self.active:g} is out of reach: {self.features:,} features, none without a parent on more "
                f"than {self.max_frequency:g} of the rows (max_frequency), are at most {most:.4g} on average",
            )
        frequency_N = self.frequencies()
        rarest = float(frequency_N.min())
        if tree is not None:
            rarest = min(rarest, float(frequency_N[tree.roots - 1]) * tree.frequency**tree.depth)
        if rarest < RAREST:
            raise _refused(
                "zipf",
                f"the rarest of {self.features:,} features would be on {rarest:.1g} of the rows, which is never: lower "
                "zipf, features or the hierarchy's depth",
            )
        if (group := self.correlation) is not None:
            if group.groups > self.without_parent:
                raise _refused(
                    "correlation",
                    f"{group.groups:,} groups of features without a parent, of which there are "
                    f"{self.without_parent:,}; at most as many",
                )
            most = float(frequency_N.max())
            if most * group.boost > 1 + 1e-9:
                lower = math.floor(1e4 / group.boost) / 1e4
                raise _refused(
                    "correlation",
                    f"the most frequent feature, on {most:.3g} of all rows, would be on {most * group.boost:.3g} of "
                    f"those of its group; lower max_frequency to {lower:g}, or the strength",
                )
        if self.coherence is not None:
            self._check_coherence(self.coherence)
        return self

    def _check_coherence(self, coherence: float) -> None:
        if self.features > MOST_SEARCHED:
            raise _refused(
                "coherence",
                f"directions are looked for among at most {MOST_SEARCHED:,} features; leave it out, for "
                "random directions",
            )
        if coherence < self.welch:
            raise _refused(
                "coherence",
                f"{coherence:g} is out of reach: some two of {self.features:,} directions in {self.d_in} "
                f"dimensions have a |cosine| of {self.welch:.3g} or more (Welch's bound)",
            )

    @property
    def welch(self) -> float:
        """The least that the largest |cosine| of so many directions can be (Welch 1974)."""
        if self.features <= self.d_in:
            return 0.0
        return math.sqrt((self.features - self.d_in) / (self.d_in * (self.features - 1)))


def _refused(key: str, why: str) -> pydantic.ValidationError:
    """The error of a validator that names one of the section's own keys."""
    return refusal([((key,), why)])


def problems_beside(
    sites: SiteSettings,
    saes: Sequence[SAESettings],
    evaluation: EvaluationSettings,
    producers: ProducerSettings,
) -> Iterator[tuple[Key, str]]:
    """What other sections of a synthetic sweep say that does not apply to it, as (key, what is wrong with it)."""
    one_site = f"a synthetic sweep has one site, {SITE}; leave this out"
    if sites != SiteSettings():
        yield ("sites",), one_site
    for index, entry in enumerate(saes):
        if entry.sites is not None:
            yield ("saes", index, "sites"), one_site
        if entry.target is not None:
            yield ("saes", index, "target"), "synthetic rows have one place, so nothing to compute; leave this out"
    why = {"split": "held-out rows are drawn", "fraction": "held-out rows are drawn", "batch": "there are no contexts"}
    why |= {"probes": "no language model reads their text", "features": "no text is there to be shown"}
    for key, reason in why.items():
        if getattr(evaluation, key) != type(evaluation).model_fields[key].default:
            yield ("evaluation", key), f"does not apply to a synthetic sweep: {reason}; leave it out"
    if producers.gpus:
        yield ("producers", "gpus"), f"{producers.gpus:g}, but synthetic rows are made on CPUs; leave it out"
    if producers.batch != type(producers).model_fields["batch"].default:
        yield ("producers", "batch"), "does not apply to a synthetic sweep: there are no contexts; leave it out"
