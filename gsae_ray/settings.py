"""What the sweep file's schema is made of: strict models, grids of values, errors in one line, and its description."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import numpy as np
import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from gsae_ray.errors import suggest

T = TypeVar("T")


def _whole(value: object) -> object:
    """1e9 in YAML is a float; a count may be written so."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(_whole), Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def expand_grid(value: object) -> object:
    """A list stands for itself, a scalar for a list of one; `log_range` and `log_uniform` spell lists."""
    if not isinstance(value, Mapping):
        return tuple(value) if isinstance(value, (list, tuple)) else (value,)
    forms = {"log_range": {"log_range", "n"}, "log_uniform": {"log_uniform", "n", "seed"}}
    form = next((f for f in forms if f in value), None)
    if form is None or set(value) - forms[form] or "n" not in value:
        raise ValueError(
            "a grid is a value, a list, {log_range: [low, high], n: 5} or {log_uniform: [low, high], n: 8, seed: 0}"
        )
    bounds, n = value[form], value["n"]
    is_range = isinstance(bounds, (list, tuple)) and len(bounds) == 2
    if (
        not is_range
        or not all(isinstance(b, (int, float)) for b in bounds)
        or not 0 < bounds[0] <= bounds[1] < math.inf
    ):
        raise ValueError(f"{form} needs finite [low, high] with 0 < low <= high")
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f"n is {n!r}; {form} needs a whole number of at least 1")
    low, high = (math.log(float(b)) for b in bounds)
    if form == "log_range":
        points = np.linspace(low, high, n)
    else:
        seed = value.get("seed", 0)
        if not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise ValueError(f"seed is {seed!r}; {form} needs a whole number of at least 0")
        points = np.sort(np.random.RandomState(seed).uniform(low, high, n))
    # Six significant digits: names and identities stay short, and do not hang on the last bit of exp.
    return tuple(float(f"{math.exp(p):.6g}") for p in points)


def unique(values: tuple[T, ...]) -> tuple[T, ...]:
    """The values, of which there is at least one and none twice."""
    if not values:
        raise ValueError("an empty list; give at least one value")
    if any(value in values[:i] for i, value in enumerate(values)):  # they need not be hashable
        raise ValueError(f"a value stands twice in {list(values)}")
    return values


Grid = Annotated[tuple[T, ...], BeforeValidator(expand_grid), pydantic.AfterValidator(unique)]
"""A list of values to sweep over, or what stands for one (see `expand_grid`)."""


class Settings(BaseModel):
    """Strict: an unknown key or a value of another type is an error, never a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


# ---- errors ----------------------------------------------------------------------------------------------------------


def _fields_at(root: type[BaseModel], location: Sequence[str | int]) -> Mapping[str, pydantic.fields.FieldInfo]:
    """The fields known at a place below `root`, for suggestions."""
    model: Any = root
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        if field is None:
            return {}
        model = next(iter(models_in(field.annotation)), None)
    return getattr(model, "model_fields", {})


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from models_in(argument)


def explain(error: pydantic.ValidationError, root: type[BaseModel]) -> str:
    """The first problem of a `root` in one line: key, value, and what would be right; the number of further ones."""
    problems = error.errors(include_url=False)
    # A misspelt key that is required is missing too: the misspelling says more.
    first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    key = ".".join(str(part) for part in first["loc"])
    match first["type"]:
        case "extra_forbidden":
            known = _fields_at(root, first["loc"][:-1])
            line = f"{key}: unknown key; {suggest(first['loc'][-1], known)}"
        case "missing":
            known = _fields_at(root, first["loc"][:-1])
            description = known[str(first["loc"][-1])].description if str(first["loc"][-1]) in known else None
            line = f"{key}: missing{f'; {description}' if description else ''}"
        case "value_error":
            line = f"{key}: {first['ctx']['error']}" if key else str(first["ctx"]["error"])
        case "literal_error":
            line = f"{key}: {first['input']!r} should be {first['ctx']['expected']}"
        case _:
            _, _, what = first["msg"].partition(" should ")
            line = f"{key}: {first['input']!r} should {what}" if what else f"{key}: {first['input']!r}: {first['msg']}"
    more = len(problems) - 1
    return line + (f" (and {more} more problem{'s' if more > 1 else ''})" if more else "")
