"""Parts of schemas: strict models, grids of values, numbers within bounds."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar, get_args, get_origin

import numpy as np
import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import CoreSchema, core_schema

from gsae_ray.errors import shown

T = TypeVar("T")

MAX_GRID = 1000
"""The most values of a grid: each is an SAE or more."""


@dataclasses.dataclass(frozen=True)
class AtMost:
    """A bound for an annotation: the largest value of a number, and why there is one."""

    limit: float
    why: str

    def __str__(self) -> str:
        limit = f"{self.limit:,}" if self.limit < 1e6 else f"{self.limit:g}".replace("e+", "e")
        return f"at most {limit} ({self.why})"

    def __get_pydantic_core_schema__(self, source: Any, handler: pydantic.GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: Any) -> Any:
        if value > self.limit:
            raise ValueError(f"{shown(value)} should be {self}")
        return value


def bounds_in(annotation: Any) -> Iterator[AtMost]:
    """The upper bounds within a type."""
    yield from (bound for bound in getattr(annotation, "__metadata__", ()) if isinstance(bound, AtMost))
    for argument in get_args(annotation):
        yield from bounds_in(argument)


def _whole(value: object) -> object:
    """An integer for a float that is one: 1e9 in YAML is a float, and counts may be written so."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Positive = Annotated[int, BeforeValidator(_whole), Field(gt=0)]
Count = Annotated[Positive, AtMost(10**15, "no run gets through more")]
InMemory = Annotated[Positive, AtMost(10**9, "they are in memory at once")]
Processes = Annotated[Positive, AtMost(10_000, "one cluster runs no more")]
Seconds = Annotated[float, AtMost(31_536_000, "a year")]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Finite32 = Annotated[float, AtMost(1e38, "SAEs are trained in float32")]


def expand_grid(value: object) -> object:
    """The values of a grid: a list, one value, or what `log_range` or `log_uniform` stand for.

    Raises:
        ValueError: it is a mapping of another form.
    """
    if not isinstance(value, Mapping):
        return tuple(value) if isinstance(value, (list, tuple)) else (value,)
    forms = {"log_range": {"log_range", "n"}, "log_uniform": {"log_uniform", "n", "seed"}}
    form = next((f for f in forms if f in value), None)
    if form is None or set(value) - forms[form] or "n" not in value:
        raise ValueError(
            "a grid is a value, a list, {log_range: [low, high], n: 5} or {log_uniform: [low, high], n: 8, seed: 0}"
        )
    bounds, n = value[form], value["n"]
    is_range = isinstance(bounds, (list, tuple)) and len(bounds) == 2 and all(type(b) in (int, float) for b in bounds)
    if not is_range or not 0 < bounds[0] <= bounds[1] <= sys.float_info.max:
        raise ValueError(f"{form} needs finite [low, high] with 0 < low <= high")
    if type(n) is not int or not 1 <= n <= MAX_GRID:
        raise ValueError(f"n is {shown(n)}; {form} needs a whole number from 1 to {MAX_GRID:,}: each value is an SAE")
    low, high = (math.log(float(b)) for b in bounds)
    if form == "log_range":
        points = np.linspace(low, high, n)
    else:
        seed = value.get("seed", 0)
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise ValueError(f"seed is {shown(seed)}; {form} needs a whole number from 0 to {2**32 - 1:,}")
        points = np.sort(np.random.RandomState(seed).uniform(low, high, n))
    # Six significant digits: names and identities stay short, and do not hang on the last bit of exp.
    return tuple(float(f"{math.exp(p):.6g}") for p in points)


def takes_list(annotation: Any) -> bool:
    """Whether values of a type are lists themselves, of which a grid is a list."""
    return get_origin(annotation) is tuple or any(map(takes_list, get_args(annotation)))


def expand_lists(value: object) -> object:
    """The values of a grid of lists: one list, or a list of them."""
    if isinstance(value, list) and any(isinstance(item, list) for item in value):
        return tuple(tuple(item) if isinstance(item, list) else item for item in value)
    return (tuple(value) if isinstance(value, list) else value,)


def unique(values: tuple[T, ...]) -> tuple[T, ...]:
    """The values of a grid, checked.

    Raises:
        ValueError: there are none, or too many, or one stands twice.
    """
    if not values:
        raise ValueError("an empty list; give at least one value")
    if len(values) > MAX_GRID:
        raise ValueError(f"{len(values):,} values; a grid has at most {MAX_GRID:,}: each is an SAE")
    try:
        repeated = len(set(values)) < len(values)
    except TypeError:  # a list among them, which is no value: said with its place
        repeated = False
    if repeated:
        raise ValueError(f"a value stands twice in {shown(list(values))}")
    return values


Grid = Annotated[tuple[T, ...], BeforeValidator(expand_grid), pydantic.AfterValidator(unique)]
"""A list of values to sweep over, or what stands for one (see `expand_grid`)."""


class Settings(BaseModel):
    """A strict model: an unknown key or a value of another type is an error, never a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
