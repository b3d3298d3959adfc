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
ORDER = ("resid_pre", "attn_z", "attn_out", "mlp_in", "mlp_post", "mlp_out", "resid_post")
"""The points of a layer in the order in which a forward pass comes to them."""


@dataclasses.dataclass(frozen=True, order=True)
class Site:
    """A place in a language model: a point of a layer, or any module by path.

    The site of a transcoder is two points of a layer: the one that it reads (`source`), and the one whose activations
    it computes from those (`target`). Of any other site both are the site itself.
    """

    name: str
    """`blocks.{L}.hook_resid_post` and the like, or `{module path}:{input|output}`; of a transcoder
    `blocks.{L}.mlp.hook_in:hook_mlp_out`."""

    @classmethod
    def of_point(cls, layer: int, point: str) -> Site:
        return cls(f"blocks.{layer}.{POINTS[point]}")

    @classmethod
    def of_module(cls, module: str, io: IO) -> Site:
        return cls(f"{module}:{io}")

    @classmethod
    def of_transcoder(cls, source: Site, point: str) -> Site:
        """From a point of a layer to another one of the same layer."""
        return cls(f"{source.name}:{POINTS[point]}")

    @property
    def _points(self) -> tuple[int, list[str]] | None:
        """The layer of a named point, or of two of them, and their keys in `POINTS`; None for a module."""
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", self.name)
        names = {name: point for point, name in POINTS.items()}
        points = [names.get(name, "") for name in match[2].split(":", 1)] if match else []
        return (int(match[1]), points) if match and all(points) else None

    @property
    def layer(self) -> int | None:
        """The layer of a named point; None for a module."""
        found = self._points
        return found and found[0]

    @property
    def point(self) -> str:
        """The key of `POINTS`, or `input`/`output` for a module; `mlp_in:mlp_out` of a transcoder's site."""
        found = self._points
        return ":".join(found[1]) if found else self.name.rpartition(":")[2]

    @property
    def source(self) -> Site:
        """Where an SAE of this site reads."""
        return self.places[0]

    @property
    def target(self) -> Site:
        """Whose activations an SAE of this site computes."""
        return self.places[-1]

    @property
    def is_transcoders(self) -> bool:
        """Whether it is two places."""
        return len(self.places) > 1

    @property
    def places(self) -> tuple[Site, ...]:
        """The site itself; of a transcoder its source and its target."""
        found = self._points
        return tuple(Site.of_point(found[0], point) for point in found[1]) if found else (self,)

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
