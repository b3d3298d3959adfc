"""Sites, the places of a language model where SAEs are trained, and how a sweep file names them."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

import pydantic
from pydantic import Field

from gsae_ray.config.layers import Layers, depend_on_model, numbered
from gsae_ray.errors import shown, suggest
from gsae_ray.fields import MAX_GRID, Settings

IO = Literal["input", "output"]
"""The side of a module."""
POINTS = {
    "resid_pre": "hook_resid_pre",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_in": "mlp.hook_in",
    "mlp_out": "hook_mlp_out",
    "mlp_post": "mlp.hook_post",
    "attn_z": "attn.hook_z",
}
"""Point -> its name in TransformerLens, after `blocks.{layer}.`.

`mlp_in` is what the MLP is given, after the norm before it if there is one, `mlp_post` the activations of its neurons,
`attn_z` the output of the attention heads before W_O. TransformerLens' own `hook_mlp_in` is another place, before the
norm: `mlp.hook_in` is what its TransformerBridge, SAELens and circuit-tracer call this one.
"""


@dataclasses.dataclass(frozen=True, order=True)
class Site:
    """One place in a language model: a point of a layer, or any module by path."""

    name: str
    """`blocks.{L}.hook_resid_post` and the like, or `{module path}:{input|output}`."""

    @classmethod
    def of_point(cls, layer: int, point: str) -> Site:
        return cls(f"blocks.{layer}.{POINTS[point]}")

    @classmethod
    def of_module(cls, module: str, io: IO) -> Site:
        return cls(f"{module}:{io}")

    @property
    def layer(self) -> int | None:
        """The layer of a named point; None for a module."""
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", self.name)
        return int(match[1]) if match and match[2] in POINTS.values() else None

    @property
    def point(self) -> str:
        """The key of `POINTS`, or `input`/`output` for a module."""
        if self.layer is None:
            return self.name.rpartition(":")[2]
        suffix = self.name.split(".", 2)[2]
        return next(point for point, name in POINTS.items() if name == suffix)

    def __str__(self) -> str:
        return self.name


class ModuleSite(Settings):
    """Any module of the model, by path."""

    module: str = Field(description="as in `model.named_modules()`, e.g. model.layers.3.mlp")
    io: IO = Field("output", description="which side of it")


class SiteSettings(Settings):
    """Where SAEs are trained: every point of every layer, and modules by path."""

    layers: Layers = Field(
        (),
        description="layers, from 0; negative ones count from the end; or {from: 0, to: 31, step: 2} with both ends; "
        "or all",
    )
    points: tuple[str, ...] = Field((), description=f"points of a layer: {', '.join(POINTS)}")
    modules: tuple[ModuleSite, ...] = Field(
        (), max_length=MAX_GRID, description="further sites, as {module: path, io: input|output}"
    )

    @pydantic.field_validator("points", "modules", mode="before")
    @classmethod
    def _lists(cls, value: object) -> object:
        if isinstance(value, (dict, tuple)):  # a mapping is refused
            return value
        return tuple(value) if isinstance(value, list) else (value,)

    @pydantic.field_validator("points")
    @classmethod
    def _known_points(cls, points: tuple[str, ...]) -> tuple[str, ...]:
        for point in points:
            if point not in POINTS:
                raise ValueError(f"unknown point {shown(point)}; {suggest(point, POINTS)}")
        return tuple(dict.fromkeys(points))

    @property
    def depends_on_model(self) -> bool:
        """Whether it takes the model's number of layers to tell which ones are meant."""
        return depend_on_model(self.layers)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The layers, from 0. Only where they do not depend on the model."""
        if isinstance(self.layers, dict) or self.depends_on_model:
            raise RuntimeError(f"layers {self.layers}: which ones these are depends on the model; see Sweep.of_model")
        return self.layers

    def of_model(self, n_layers: int, key: str) -> SiteSettings:
        """The same settings with layers numbered from 0, for a model that has `n_layers`.

        Raises:
            UserError: the model has no such layer; the message begins with `key`.
        """
        return self.model_copy(update={"layers": numbered(self.layers, n_layers, key)})

    def sites(self) -> tuple[Site, ...]:
        """All sites, each once: by layer and point, then modules."""
        named = [Site.of_point(layer, point) for layer in self.numbers for point in self.points]
        return tuple(dict.fromkeys([*named, *(Site.of_module(m.module, m.io) for m in self.modules)]))

    def selects(self, site: Site) -> bool:
        """Whether a site passes these settings taken as a filter, in which a list that is absent excludes nothing."""
        if site.layer is None:
            return site in self.sites() if self.modules else not (self.layers or self.points)
        if self.modules and not (self.layers or self.points):
            return False
        return (not self.layers or site.layer in self.numbers) and (not self.points or site.point in self.points)
