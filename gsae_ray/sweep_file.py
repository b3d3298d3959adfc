"""Reading a sweep file: YAML with overrides from the command line; and the schema as text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic
import yaml
from pydantic import BaseModel

from gsae_ray.errors import UserError
from gsae_ray.saes import REGISTRY
from gsae_ray.settings import explain, models_in
from gsae_ray.sweep import TRAINABLE, SAESettings, SiteSettings, Sweep


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number and a key that stands twice is an error."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # While composing: later, merge keys (<<) have put others' keys among the mapping's own.
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    problem = f"key {key.value!r} stands twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add((key.tag, key.value))
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)
# A date is a string here: no key takes one, and sweeps get named after them.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{where}{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: e.g. !!int x
        raise UserError(f"{where}: not valid YAML: {str(error).splitlines()[0]}") from error


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Reads a sweep file.

    Args:
        overrides: `path.to.key=value`, the value in YAML; list items by index (`saes.0.l1_coefficient=[1,2]`).
    Raises:
        UserError: the file cannot be read, or something in it is wrong.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise UserError(f"{path}: cannot read this sweep file: {reason}") from error
    data = _parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise UserError(f"{path}: a sweep file is a mapping of {', '.join(Sweep.model_fields)}")
    for override in overrides:
        _override(data, override)
    try:
        return Sweep.model_validate(data)
    except pydantic.ValidationError as error:
        raise UserError(f"{path}: {explain(error, Sweep)}") from error


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: expected path.to.key=value")
    *path, last = key.split(".")
    node: Any = data
    for depth, part in enumerate(path):
        if isinstance(node, dict):
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
        else:
            node = node[_index(node, part, key, depth)]
        if not isinstance(node, (dict, list)):
            raise UserError(f"--set {key}: {'.'.join(path[: depth + 1])} is {node!r}, which has no keys")
    parsed = _parse_yaml(value, f"--set {key}")
    node[last if isinstance(node, dict) else _index(node, last, key, len(path))] = parsed


def _index(items: list[Any], part: str, key: str, depth: int) -> int:
    if not part.isdigit() or int(part) >= len(items):
        where = ".".join(key.split(".")[:depth])
        raise UserError(f"--set {key}: {where} is a list of {len(items)}; {part!r} should be 0 to {len(items) - 1}")
    return int(part)


def describe(model: type[BaseModel] = Sweep) -> str:
    """The schema as text, from the fields' descriptions."""
    lines = []
    for name, field in model.model_fields.items():
        nested = next(models_in(field.annotation), None)
        default = "" if field.is_required() or nested else f" [{_default(field.default)}]"
        lines.append(f"{name}:{default} {field.description or (nested.__doc__ if nested else '')}".rstrip())
        if nested is not None and not (model is SAESettings and nested is SiteSettings):
            lines.extend("  " + line for line in describe(nested).splitlines())
    if model is SAESettings:
        for architecture, sae in ((name, REGISTRY[name]) for name in TRAINABLE):
            for name, field in sae.Hyperparameters.model_fields.items():
                lines.append(f"{name}: {field.description} ({architecture})")
    return "\n".join(lines)


def _default(value: object) -> str:
    """A default as a sweep file would spell it."""
    if isinstance(value, tuple):
        return _default(value[0]) if len(value) == 1 else f"[{', '.join(map(_default, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "auto", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
