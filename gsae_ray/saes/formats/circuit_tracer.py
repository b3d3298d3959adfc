"""circuit-tracer: a set of transcoders, `config.yaml` with a `layer_{L}.safetensors` for each layer of the model.

After circuit-tracer 0.5.0, `transcoder/single_layer_transcoder.py` and `utils/hf_utils.py`. A set is written layer by
layer. It has a transcoder for every layer from 0 on, all of them of one width, which circuit-tracer insists on.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import yaml
from torch import Tensor

from gsae_ray.errors import UserError, first_line, shown
from gsae_ray.files import write_together
from gsae_ray.saes.base import SAE
from gsae_ray.saes.formats.foreign import ActivationsOf, assemble, checked, read_safetensors
from gsae_ray.saes.standard import StandardSAE

CONFIG = "config.yaml"
LAYER = re.compile(r"layer_(\d+)\.safetensors")
FILES = f"layer_L.safetensors beside {CONFIG}, as a file"
NAMES = (CONFIG,)

_KIND = "transcoder_set"
_SHAPES = {"W_enc": "FD", "b_enc": "F", "W_dec": "FO", "b_dec": "O"}
_THRESHOLD = "activation_function.threshold"
_OPTIONAL = {_THRESHOLD: "F", "W_skip": "OD"}
_KEYS = {"model_name", "feature_input_hook", "feature_output_hook"}


def recognises(path: Path) -> bool:
    """Whether it is the file of a layer, with the set's configuration beside it."""
    return LAYER.fullmatch(path.name) is not None and path.is_file() and path.with_name(CONFIG).is_file()


def read(path: Path) -> SAE:
    """The transcoder of a layer.

    Raises:
        ValueError: the files hold none, or are damaged; in one line.
        OSError: they cannot be read.
    """
    settings = _read_config(path.parent)
    tensors = read_safetensors(path)
    shapes = _SHAPES | {name: axes for name, axes in _OPTIONAL.items() if name in tensors}
    ours = checked(tensors, shapes, path.name)
    ours["W_enc"] = ours["W_enc"].T
    threshold = ours.pop(_THRESHOLD, None)
    layer = LAYER.fullmatch(path.name)
    assert layer is not None, "as it was recognised"
    hooks = (settings.get(f"feature_{end}_hook") for end in ("input", "output"))
    site, target = (f"blocks.{layer[1]}.{hook}" if isinstance(hook, str) else None for hook in hooks)
    of = ActivationsOf(site, settings.get("model_name"), target=target)
    if threshold is None:
        return assemble("circuit-tracer", "standard", ours, settings, of=of, transcoder=True)
    return assemble("circuit-tracer", "jumprelu", {**ours, "threshold": threshold}, settings, of=of, transcoder=True)


def _read_config(directory: Path) -> dict[str, Any]:
    """The configuration of a set.

    Raises:
        ValueError: there is something else; in one line.
        OSError: the file cannot be read.
    """
    try:
        settings = yaml.safe_load((directory / CONFIG).read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{CONFIG}: {shown(first_line(error), quoted=False)}") from error
    kind = settings.get("model_kind") if isinstance(settings, dict) else None
    if kind != _KIND:
        raise ValueError(f"{CONFIG}: model_kind is {shown(kind)}, not {_KIND}")
    return dict(settings)


# ---- out ------------------------------------------------------------------------------------------------------------


def write(sae: SAE, directory: Path) -> None:
    """Adds a transcoder to the set in a folder, which is begun with it if it is new.

    Raises:
        UserError: it has no form there, or is none for this set.
    """
    layer, settings = _place(sae)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(sae).items()}
    name = f"layer_{layer}.safetensors"
    if (directory / CONFIG).exists():
        _check_set(directory, name, settings, tensors)
    config = yaml.safe_dump({"model_kind": _KIND, **settings}, sort_keys=False).encode()
    write_together(directory, {CONFIG: config, name: safetensors.torch.save(tensors)})


def _place(sae: SAE) -> tuple[int, dict[str, Any]]:
    """The layer of a transcoder, and what the configuration of its set says of all of them."""
    cfg = sae.cfg
    if not cfg.is_transcoder:
        raise UserError("circuit-tracer: an SAE has no form there; it knows transcoders only")
    found = [re.fullmatch(r"blocks\.(\d+)\.(.+)", place) for place in (cfg.site, cfg.target)]
    if found[0] is None or found[1] is None or found[0][1] != found[1][1]:
        raise UserError(
            f"circuit-tracer: its transcoders go from one point of a layer to another, and this one is of "
            f"{shown(cfg.place)}"
        )
    if cfg.d_in != cfg.d_out:
        raise UserError(f"circuit-tracer: a transcoder from {cfg.d_in} to {cfg.d_out} coordinates has no form there")
    model = cfg.section("model").get("name")
    hooks = {"feature_input_hook": found[0][2], "feature_output_hook": found[1][2]}
    return int(found[0][1]), {"model_name": model, **hooks, "scan": model}


def _tensors(sae: SAE) -> dict[str, Tensor]:
    """The tensors of a layer's file: features of ReLU, or of JumpReLU, which has thresholds.

    Raises:
        UserError: its features are of another kind.
    """
    relu = isinstance(sae, StandardSAE)
    sae = sae if relu else sae.to_jumprelu()
    names = ["b_enc", "W_dec", "b_dec", *(["W_skip"] if sae.cfg.skip else [])]
    tensors = {"W_enc": sae.W_enc.T, **{name: sae.get_parameter(name) for name in names}}
    return tensors if relu else {**tensors, _THRESHOLD: sae.get_parameter("threshold")}


def _check_set(directory: Path, name: str, settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Checks that a transcoder may be added to the set in a folder.

    Raises:
        UserError: it may not.
    """
    if (directory / name).exists():
        raise UserError(
            f"--out: {directory} has a {name} already; nothing is overwritten: remove it, or give a new folder"
        )
    try:
        there = _read_config(directory)
    except ValueError as error:
        raise UserError(f"--out: {directory} holds no set of transcoders: {error}") from error
    for key in sorted(_KEYS):
        if there.get(key) != settings[key]:
            raise UserError(
                f"--out: the set in {directory} has {key} {shown(there.get(key))}, and this transcoder "
                f"{shown(settings[key])}; give another folder"
            )
    other = next((path for path in sorted(directory.iterdir()) if LAYER.fullmatch(path.name)), None)
    if other is None:
        return
    try:
        with safetensors.safe_open(other, framework="pt") as file:
            shapes = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise UserError(f"--out: {other} cannot be read: {shown(error, quoted=False)}") from error
    for what, key in (("width", "W_enc"), ("skip connection", "W_skip")):
        mine, its = (
            shape and shape[0] for shape in (list(tensors[key].shape) if key in tensors else [], shapes.get(key))
        )
        if mine != its and (mine or its):
            raise UserError(
                f"--out: the transcoders of a set are all of one kind, and {other.name} has another {what} than this "
                "one; give another folder"
            )
