"""The sweep file's documentation, made from its schema: for the terminal, and as the page docs/sweep_file.md.

`python -m gsae_ray.config.reference docs/sweep_file.md` writes the page, and `KEYS` beside this file, which `--help`
prints without importing the schema. A test checks that both are current.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gsae_ray.config.explain import models_in
from gsae_ray.config.layers import Layers
from gsae_ray.config.sae_settings import SAESettings
from gsae_ray.config.site import SiteSettings
from gsae_ray.config.sweep import Sweep
from gsae_ray.fields import AtMost, bounds_in, expand_grid
from gsae_ray.saes import REGISTRY, trainable_architectures

KEYS = Path(__file__).with_name("sweep_keys.txt")
"""What `describe` returned when the page was written."""
_INTRODUCTION = """\
# The sweep file

<!-- Made by `python -m gsae_ray.config.reference docs/sweep_file.md` from the schema: change it there. -->

A sweep file says which language model and which text to take, at which sites to train which SAEs, and how.
`gsae-ray plan FILE` prints what it will cost, `gsae-ray run FILE` runs it, and `gsae-ray run --help` prints the keys of
this page. It is YAML, of which only what means the same to everybody is read: no tags, no octal numbers, no `yes` for
true; anchors, aliases and merge keys (`<<`) work.

- A key that is not known is an error, which names the nearest one that is.
- A key of type *grid* takes one value, a list of values, `{log_range: [low, high], n: 5}` (n values from low to high,
  their logarithms evenly spaced) or `{log_uniform: [low, high], n: 8, seed: 0}` (n values drawn, their logarithms
  uniformly). A sweep trains one SAE for each combination of all grids of an entry, at each site.
- Where an integer is due, `1e6` and `400_000` are integers too.
- *Rows* are activation vectors, one of each token that is kept. Counts of them end in `_tokens`, but for `tokens`
  itself, `batch_size` and `resampling.inputs`.
- `null` as a default means what the description says, else nothing.
- `--set path.to.key=value` overrides a key from the command line, with the value in YAML; `saes.0.lr` is a key of the
  first entry of `saes`.
"""
_KINDS = ("", " of a synthetic sweep", " of a sweep on files")
"""What stands after the name of a section, by the kind of source: that of language models first."""
_EXAMPLES = {
    "": """\
name: example
model: {name: builtin}
dataset: {name: builtin}
sites: {layers: [1], points: [resid_post]}
saes:
  - {architecture: gated, widths: 512, l1_coefficient: [1, 2, 4]}
training: {tokens: 400_000, batch_size: 128}
""",
    "sites": """\
sites:
  layers: {from: 0, to: -1, step: 2} # every other layer; -1 is the last
  points: [resid_post, mlp_out]
  modules:
    - {module: model.layers.3.mlp.gate_proj, io: output}
""",
    "saes": """\
saes:
  - architecture: gated
    expansion_factors: [4, 8]
    l1_coefficient: {log_range: [0.5, 8], n: 5}
    sites: {points: resid_post} # a filter: not at the other points of the sweep
  - architecture: standard
    widths: {equal_compute_with: gated}
    l1_coefficient: [0.5, 1, 2]
    lr: 3e-4 # a key of training, for this entry alone
""",
    "training": """\
training:
  tokens: 1e8
  lr: [1e-4, 3e-4] # a grid
  seeds: [0, 1, 2] # another
  schedule: paper
  resampling: {at_steps: [5_000, 10_000]}
""",
}


def describe(model: type[BaseModel] = Sweep) -> str:
    """The schema as text, a line a key."""
    lines = []
    for name, field in model.model_fields.items():
        kinds: list[type[BaseModel] | None] = [*models_in(field.annotation)]
        default = "" if field.is_required() or kinds else f" [{_default(field.default)}]"
        for kind, nested in zip(_KINDS, kinds or [None], strict=False):
            about = field.description or (nested.__doc__ if nested else "")
            lines.append(f"{name}{kind}:{default} {about}{_upper_bounds(field)}".rstrip())
            if nested is not None and not (model is SAESettings and nested is SiteSettings):
                lines.extend("  " + line for line in describe(nested).splitlines())
    if model is SAESettings:
        of: dict[str, list[str]] = {}  # what several architectures have alike is one line
        for architecture in trainable_architectures():
            for name, field in REGISTRY[architecture].Hyperparameters.model_fields.items():
                of.setdefault(f"{name}: {field.description}{_upper_bounds(field)}", []).append(architecture)
        lines += [f"{line} ({', '.join(architectures)})" for line, architectures in of.items()]
    return "\n".join(lines)


def _upper_bounds(field: FieldInfo) -> str:
    found = [*bounds_in(field.annotation), *(bound for bound in field.metadata if isinstance(bound, AtMost))]
    return "".join(f"; {bound}" for bound in dict.fromkeys(found))


def _default(value: object) -> str:
    """A default as a sweep file would spell it."""
    if isinstance(value, tuple):
        return _default(value[0]) if len(value) == 1 else f"[{', '.join(map(_default, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "auto", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def markdown() -> str:
    """The page docs/sweep_file.md: what a sweep file is, an example, and a table of keys for each section."""
    parts = [_INTRODUCTION, _example(""), _table(Sweep)]
    for name, field in Sweep.model_fields.items():
        for kind, model in zip(_KINDS, models_in(field.annotation), strict=False):
            title = f"{'###' if kind else '##'} {name}{kind}\n"
            parts += [
                title,
                f"{_about(model)}\n",
                *([_example(name)] if name + kind in _EXAMPLES else []),
                _table(model),
            ]
            for key, inner in model.model_fields.items():
                nested = next(models_in(inner.annotation), None)
                if nested is not None and nested is not SiteSettings:
                    parts += [f"### {name}.{key}\n", f"{_about(nested)}\n", _table(nested)]
            if model is SAESettings:
                for architecture in trainable_architectures():
                    sae = REGISTRY[architecture]
                    what = (sys.modules[sae.__module__].__doc__ or "").splitlines()[0]
                    parts += [f"### Keys of architecture {architecture}\n", f"{what}\n", _table(sae.Hyperparameters)]
    return "\n".join(parts)


def _example(section: str) -> str:
    return f"```yaml\n{_EXAMPLES[section]}```\n"


def _about(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())


def _table(model: type[BaseModel]) -> str:
    """A table of a model's keys: Markdown."""
    rows = ["| key | type | default | bounds | description |", "|---|---|---|---|---|"]
    for name, field in model.model_fields.items():
        annotation = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        nested = next(models_in(field.annotation), None)
        about = field.description or (_about(nested) if nested else "")
        default = "required" if field.is_required() else "" if nested and field.default else _yaml(field.default)
        cells = (f"`{name}`", _type(annotation), default, ", ".join(_bounds(annotation)), about)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _yaml(default: object) -> str:
    return "`null`" if default is None else "`[]`" if default == () else f"`{_default(default)}`"


def _type(annotation: Any) -> str:
    """A type in words: `integer · grid`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation == Layers:  # equal; pydantic may have made it anew
        return "integer · list, or a range"
    if origin is Annotated:
        inner, *validators = arguments
        is_grid = any(getattr(validator, "func", None) is expand_grid for validator in validators)
        return f"{_type(get_args(inner)[0])} · grid" if is_grid else _type(inner)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(option) for option in arguments if option is not types.NoneType))
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        return f"{_type(arguments[0])} · list"
    if origin is Mapping:
        return f"{_type(arguments[0])} → {_type(arguments[1])}"
    words = {bool: "true or false", int: "integer", float: "number", str: "text"}
    return words.get(annotation, "mapping")


def _bounds(annotation: Any) -> list[str]:
    """The least and the most that a number may be, each in words."""
    least, most = [], []
    for bound in _constraints(annotation):
        if isinstance(bound, annotated_types.Ge):
            least.append(f"at least {bound.ge:,}")
        elif isinstance(bound, annotated_types.Gt):
            least.append(f"above {bound.gt:,}")
        elif isinstance(bound, annotated_types.Le):
            most.append(f"at most {bound.le:,}")
        elif isinstance(bound, annotated_types.Lt):
            most.append(f"below {bound.lt:,}")
        elif isinstance(bound, AtMost):
            most.append(str(bound))
    return least[:1] + most  # a field's own bound stands before its type's


def _constraints(annotation: Any) -> Iterator[Any]:
    """What the annotations within a type demand."""
    for found in getattr(annotation, "__metadata__", ()):
        yield from found.metadata if isinstance(found, FieldInfo) else (found,)
    for argument in get_args(annotation):
        yield from _constraints(argument)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(markdown(), encoding="utf-8")
    KEYS.write_text(describe() + "\n", encoding="utf-8")
