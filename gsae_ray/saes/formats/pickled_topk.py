"""Public TopK SAEs as one pickled state dict a layer, such as Qwen-Scope's `layer{L}.sae.pt`; read as weights only."""

from __future__ import annotations

import re
from pathlib import Path

from gsae_ray.saes.base import SAE
from gsae_ray.saes.formats.foreign import ActivationsOf, assemble, checked, read_pickle

FILES = "layer{L}.sae.pt, the only one"
NAMES = ()  # on the hub a file is named: a folder has one for each layer

_SUFFIX = ".sae.pt"
_SHAPES = {"W_enc": "FD", "W_dec": "DF", "b_enc": "F", "b_dec": "D"}


def recognises(directory: Path) -> bool:
    """Whether this is a file `….sae.pt`, or a folder with one."""
    return bool(_files(directory))


def read(directory: Path) -> SAE:
    """The SAE of a file, or of the only such file in a folder. Its k stands in the path, as `L0_50`: no file has it.

    Raises:
        ValueError: it holds no such SAE, or is damaged, or there are several, or no k; in one line.
        OSError: it cannot be read.
    """
    files = _files(directory)
    if len(files) > 1:
        names = f"{files[0].name} to {files[-1].name}"
        raise ValueError(f"{len(files)} SAEs, {names}; give the path of one of these files")
    path = files[0].absolute()
    k = re.findall(r"L0_(\d+)", str(path))
    if not k:
        raise ValueError(f"{path.name} has no k; it is taken from the path, which should have L0_50 for k = 50")
    tensors = checked(read_pickle(path), _SHAPES, path.name)
    ours = {**tensors, "W_enc": tensors["W_enc"].T, "W_dec": tensors["W_dec"].T}
    layer = re.match(r"layer(\d+)\.", path.name)
    site = f"blocks.{layer[1]}.hook_resid_post" if layer and "SAE-Res" in str(path) else None
    return assemble("pickled_topk", "topk", ours, {}, {"k": int(k[-1]), "subtract_b_dec": False}, ActivationsOf(site))


def _files(path: Path) -> list[Path]:
    """Files of SAEs: itself, or those in a folder."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.name.endswith(_SUFFIX))
    return [path] if path.is_file() and path.name.endswith(_SUFFIX) else []
