"""What readers of other libraries' files share: tensors without code, checked by name and shape, and their SAE."""

from __future__ import annotations

import dataclasses
import lzma
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic
import torch
from torch import Tensor

from gsae_ray.errors import shown
from gsae_ray.saes.base import ORIGIN, SAE, SAEConfig, is_finite
from gsae_ray.saes.config_file import json_object
from gsae_ray.saes.files import WEIGHT_DTYPES, tensors_of
from gsae_ray.saes.registry import REGISTRY, build

DAMAGE: tuple[type[Exception], ...] = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError),
    *(lzma.LZMAError, pickle.UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error),
)
"""What unpickling and reading of archives raise where bytes are wrong: nearly anything."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: there is something else; in one line.
        OSError: the file cannot be read.
    """
    return json_object(path.read_bytes(), path.name)


def keys_of(path: Path) -> set[str]:
    """The top-level keys of a JSON file; none where there is no such file, or something else in it."""
    try:
        return set(read_json(path))
    except (OSError, ValueError):
        return set()


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: it is none; in one line.
        OSError: the file cannot be read.
    """
    return tensors_of(path, path.name)


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict that `torch.save` wrote. Code in the file is not run.

    Raises:
        ValueError: it holds anything else; in one line.
        OSError: the file cannot be read.
    """
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        raise ValueError(
            f"{path.name} is not a file of tensors only; nothing else is read from a pickle, since it could run code"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path.name} is not a state dict of tensors")
    for name, tensor in tensors.items():
        if tensor.is_meta or tensor.layout is not torch.strided:
            raise ValueError(f"{path.name}: {shown(name)} is no dense tensor")
    return tensors


def checked(tensors: Mapping[str, Tensor], shapes: Mapping[str, str], file: str) -> dict[str, Tensor]:
    """The tensors of a file as float32, their names, shapes, dtypes and numbers checked.

    Args:
        tensors: all of them, by name.
        shapes: name -> axes, D for d_in, F for d_sae and O for d_out; the first tensor says how large these are.
        file: the file's name, for errors.

    Raises:
        ValueError: they are others; in one line.
    """
    if missing := [name for name in shapes if name not in tensors]:
        raise ValueError(f"{file}: {missing[0]} is missing")
    if unknown := [name for name in tensors if name not in shapes]:
        raise ValueError(f"{file}: {shown(unknown[0])} is no tensor of this architecture")
    sizes: dict[str, int] = {}
    for name, axes in shapes.items():
        tensor = tensors[name]
        if tensor.dim() == len(axes):
            sizes = {**dict(zip(axes, tensor.shape, strict=True)), **sizes}
        expected = [sizes.get(axis, axis) for axis in axes]
        if list(tensor.shape) != expected or not tensor.numel():
            raise ValueError(f"{file}: {name} is {list(tensor.shape)}, not [{', '.join(map(str, expected))}]")
        if tensor.dtype not in WEIGHT_DTYPES:
            raise ValueError(f"{file}: {name} is {tensor.dtype}; known: {', '.join(map(str, WEIGHT_DTYPES))}")
        if not is_finite(tensor.float()):
            raise ValueError(f"{file}: {name} is not finite")
    return {name: tensor.float() for name, tensor in tensors.items()}


def published_names(path: Path, folders: int) -> list[str]:
    """Names that whoever published a file has given to it and to what it lies in, the nearest first.

    Args:
        path: the file.
        folders: how many folders the layout has; no others are looked at, which may be called anything. In the cache
            of the Hugging Face hub those are the ones within the repository, and its name is the last one.
    """
    parts = path.absolute().parts[::-1]
    if "snapshots" in parts[1:] and parts[parts.index("snapshots") + 1].startswith("models--"):
        snapshots = parts.index("snapshots")
        return [*parts[: snapshots - 1], parts[snapshots + 1].rpartition("--")[2]]
    return list(parts[: folders + 1])


@dataclasses.dataclass(frozen=True)
class ActivationsOf:
    """What an SAE's activations are of, as far as its files say; values of another type count as not said."""

    site: object = None
    """As our sites are named."""
    model: object = None
    context_size: object = None
    dataset: object = None
    prepend_bos: object = None
    target: object = None
    """As `site`: where a transcoder writes."""

    def metadata(self) -> dict[str, dict[str, Any]]:
        """The sections `model` and `dataset` of an SAE's metadata, as a sweep has them."""
        said: dict[str, dict[str, tuple[object, type]]] = {
            "model": {"name": (self.model, str), "context_size": (self.context_size, int)},
            "dataset": {"name": (self.dataset, str), "prepend_bos": (self.prepend_bos, bool)},
        }
        found = {
            section: {key: value for key, (value, kind) in keys.items() if type(value) is kind}
            for section, keys in said.items()
        }
        return {section: keys for section, keys in found.items() if keys}


def norms_folded(tensors: Mapping[str, Tensor], file: str) -> dict[str, Tensor]:
    """Tensors of ours with the norms of decoder rows moved into W_enc and b_enc.

    Raises:
        ValueError: a row is zero.
    """
    norms_F = tensors["W_dec"].norm(dim=1)
    if (norms_F == 0).any():
        raise ValueError(f"{file}: a feature's direction in the decoder is zero, and its library divides by its norm")
    folded = {"W_enc": tensors["W_enc"] * norms_F, "b_enc": tensors["b_enc"] * norms_F}
    return {**tensors, **folded, "W_dec": tensors["W_dec"] / norms_F[:, None]}


def assemble(
    origin: str,
    architecture: str,
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    hyperparameters: Mapping[str, Any] | None = None,
    of: ActivationsOf | None = None,
    transcoder: bool = False,
) -> SAE:
    """An SAE of ours with tensors of another library, in evaluation mode; its weights are float32.

    Args:
        origin: the format's name, which goes to the metadata.
        architecture: key of the registry.
        tensors: all that this architecture has, by our names; checked.
        settings: what the library wrote about the SAE, which goes to the metadata.
        hyperparameters: those that the function depends on; what it was trained with stays in `settings`.
        of: what the files say of its activations.
        transcoder: it is one, with a skip connection where it has `W_skip`.

    Raises:
        ValueError: a hyperparameter is none of this architecture; in one line.
    """
    d_in, d_sae = tensors["W_enc"].shape
    of = of or ActivationsOf()
    metadata = {ORIGIN: origin, "settings": dict(settings), **of.metadata()}
    try:
        REGISTRY[architecture].check_hyperparameters(dict(hyperparameters or {}), trained_here=False)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {shown(first['input'])}: {first['msg']}") from error
    sae = build(
        SAEConfig(
            architecture=architecture,
            d_in=d_in,
            d_sae=d_sae,
            hyperparameters=dict(hyperparameters or {}),
            site=of.site if isinstance(of.site, str) else "",
            metadata=metadata,
            d_out=tensors["W_dec"].shape[1] if transcoder else None,
            target=of.target if transcoder and isinstance(of.target, str) else "",
            skip="W_skip" in tensors,
        )
    )
    sae.load_state_dict(dict(tensors))
    if (name := sae.not_finite()) is not None:
        raise ValueError(f"{name} is not finite once it takes raw activations; the file holds extreme numbers")
    return sae.eval()
