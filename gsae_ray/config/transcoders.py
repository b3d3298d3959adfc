"""What makes an entry of `saes` train transcoders: the point whose activations they compute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pydantic
from pydantic import Field

from gsae_ray.config.site import ORDER, POINTS, Site
from gsae_ray.errors import shown, suggest
from gsae_ray.fields import Settings


class TargetSettings(Settings):
    """What transcoders compute from the activations that they read."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _mapping(cls, value: object) -> object:
        if isinstance(value, str):
            raise ValueError(f"{shown(value)} should be a mapping: target: {{point: {value}}}")
        return value

    point: str = Field(description="a point of the same layer that comes after the one that is read: mlp_out, say")

    @pydantic.field_validator("point")
    @classmethod
    def _known(cls, point: str) -> str:
        if point not in POINTS:
            raise ValueError(f"unknown point {shown(point)}; {suggest(point, POINTS)}")
        return point

    def site_of(self, source: Site) -> Site:
        """The site of transcoders that read at `source`, which has such a target (see `target_problems`)."""
        return Site.of_transcoder(source, self.point)


def target_problems(target: TargetSettings, sources: Iterable[Site]) -> Iterator[str]:
    """Lines on sites from which a target cannot be computed, one for each point."""
    filtered = "give the entry sites of its own, a filter"
    for point, site in {site.point if site.layer is not None else site.name: site for site in sources}.items():
        if site.layer is None:
            yield f"{site} is not a point of a layer, so there is no {target.point} that belongs to it; {filtered}"
        elif point == target.point:
            earlier = ", ".join(ORDER[: ORDER.index(point)])
            instead = f"{filtered}: an earlier point ({earlier})" if earlier else "take a later one"
            yield f"{point} is what the transcoders would read themselves; {instead}"
        elif ORDER.index(point) > ORDER.index(target.point):
            after = ", ".join(ORDER[ORDER.index(point) + 1 :])
            later = f"a later point ({after})" if after else "another point to read"
            yield f"{target.point} comes before {point} in a layer, and cannot be computed from it; take {later}"
