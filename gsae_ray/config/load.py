"""Reading a sweep file: YAML, with overrides from the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic

from gsae_ray.config import plain_yaml
from gsae_ray.config.explain import explain
from gsae_ray.config.sweep import Sweep
from gsae_ray.errors import UserError, shown


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep file.

    Args:
        path: the file.
        overrides: `path.to.key=value`, the value in YAML; list items by index (`saes.0.l1_coefficient=[1,2]`).

    Raises:
        UserError: the file cannot be read, or something in it is wrong.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(plain_yaml.MAX_CHARACTERS + 1)  # what is longer is something else: a model, a device
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise UserError(f"{path}: cannot read this sweep file: {reason}") from error
    data = plain_yaml.load(text, str(path))
    if not isinstance(data, dict):
        raise UserError(f"{path}: a sweep file is a mapping of {', '.join(Sweep.model_fields)}")
    for override in overrides:
        _override(data, override)
    try:
        return Sweep.model_validate(data)
    except pydantic.ValidationError as error:
        raise UserError(explain(error, Sweep, str(path))) from error


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {shown(override, quoted=False)}: expected path.to.key=value")
    *path, last = key.split(".")
    key = shown(key, quoted=False)
    if len(path) > plain_yaml.MAX_DEPTH:
        raise UserError(f"--set {key}: {plain_yaml.TOO_DEEP}")
    node: Any = data
    for depth, part in enumerate(path):
        if isinstance(node, dict):
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
        else:
            node = node[_index(node, part, key, depth)]
        if not isinstance(node, (dict, list)):
            raise UserError(f"--set {key}: {'.'.join(path[: depth + 1])} is {shown(node)}, which has no keys")
    parsed = plain_yaml.load(value, f"--set {key}")
    node[last if isinstance(node, dict) else _index(node, last, key, len(path))] = parsed


def _index(items: list[Any], part: str, key: str, depth: int) -> int:
    if not re.fullmatch("[0-9]{1,9}", part) or int(part) >= len(items):
        where = ".".join(key.split(".")[:depth])
        indices = f"{shown(part)} should be 0 to {len(items) - 1}" if items else "nothing is in it"
        raise UserError(f"--set {key}: {where} is a list of {len(items)}; {indices}")
    return int(part)
