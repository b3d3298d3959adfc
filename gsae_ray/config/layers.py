"""Layers in a sweep file: by number, counted from the end, as a range, or all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator

from gsae_ray.errors import UserError, shown

MAX_LAYER = 9999
FORMS = "give numbers (negative ones count from the end), {from: 0, to: 31, step: 2} with both ends, or all"


def _number(value: object, name: str = "") -> int:
    if type(value) is not int or abs(value) > MAX_LAYER:
        raise ValueError(f"{name}{shown(value)} should be an integer from -{MAX_LAYER} to {MAX_LAYER}; {FORMS}")
    return value


def _read(value: object) -> tuple[int, ...] | dict[str, int]:
    """Layers as a sweep file says them: numbers, or a range as a mapping with all of its keys."""
    if value == "all":
        return {"from": 0, "to": -1, "step": 1}
    if not isinstance(value, Mapping):
        if isinstance(value, (list, tuple)) and len(value) > MAX_LAYER:
            raise ValueError(f"{len(value):,} layers; no model has so many")
        return tuple(dict.fromkeys(map(_number, value if isinstance(value, (list, tuple)) else [value])))
    if not {"from", "to"} <= set(value) <= {"from", "to", "step"}:
        raise ValueError(f"{shown(value)}; {FORMS}")
    span = {key: _number(value.get(key, 1), f"{key}: ") for key in ("from", "to", "step")}
    if span["step"] < 1:
        raise ValueError(f"step: {span['step']} should be at least 1")
    return span


Layers = Annotated[
    tuple[int, ...] | dict[str, int], PlainValidator(_read), PlainSerializer(lambda layers: layers, return_type=Any)
]


def depend_on_model(layers: tuple[int, ...] | dict[str, int]) -> bool:
    """Whether it takes the model's number of layers to tell which layers are meant."""
    return isinstance(layers, dict) or any(layer < 0 for layer in layers)


def numbered(layers: tuple[int, ...] | dict[str, int], n_layers: int, key: str) -> tuple[int, ...]:
    """The numbers, from 0, of layers of a model that has `n_layers`.

    Raises:
        UserError: the model has no such layer; the message begins with `key`.
    """

    def number(layer: int) -> int:
        if not -n_layers <= layer < n_layers:
            raise UserError(
                f"{key}: {layer} is out of range; this model has layers 0 to {n_layers - 1} (from the end: -1 to "
                f"-{n_layers})"
            )
        return layer % n_layers

    if not isinstance(layers, dict):
        return tuple(dict.fromkeys(map(number, layers)))
    first, last = number(layers["from"]), number(layers["to"])
    if first > last:
        raise UserError(f"{key}: from {layers['from']} to {layers['to']}: no layer of the {n_layers} is between them")
    return tuple(range(first, last + 1, layers["step"]))
