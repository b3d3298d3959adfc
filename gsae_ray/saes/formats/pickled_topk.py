"""Public TopK SAEs as one pickled state dict a layer, such as Qwen-Scope's `layer{L}.sae.pt`; read as weights only."""

from __future__ import annotations

import re
from pathlib import Path

from gsae_ray.saes.base import SAE
from gsae_ray.saes.formats.foreign import ActivationsOf, assemble, checked, published_names, read_pickle

FILES = "layer{L}.sae.pt, the only one"
NAMES = ()  # on the hub a file is named: a folder has one for each layer

_SUFFIX = ".sae.pt"
_SHAPES = {"W_enc": "FD", "W_dec": "DF", "b_enc": "F", "b_dec": "D"}


def recognises(directory: Path) -> bool:
    """Whether this is a file `….sae.pt`, or a folder with one."""
    return bool(_files(directory))


def read(directory: Path) -> SAE:
    """The SAE of a file, or of the only such file in a folder.

    Its k is in no file: it stands in the name of the file, of its folder, or of its repository on the hub, as `L0_50`.

    Raises:
        ValueError: it holds no such SAE, or is damaged, or there are several, or no k; in one line.
        OSError: it cannot be read.
    """
    files = _files(directory)
    if len(files) > 1:
        first, last = files[0].name, files[-1].name
        raise ValueError(f"{len(files)} SAEs, {first} to {last}; give the path of one of these files")
    path = files[0]
    names = published_names(path, folders=1)
    said = (set(re.findall(r"L0_(\d+)", name)) for name in names)
    ks = next((found for found in said if found), set())
    if len(ks) != 1:
        raise ValueError(
            f"{path.name} has no k; it is taken from the name of its file or folder, which should have one L0_50 for "
            "k = 50"
        )
    tensors = checked(read_pickle(path), _SHAPES, path.name)
    ours = {**tensors, "W_enc": tensors["W_enc"].T, "W_dec": tensors["W_dec"].T}
    layer = re.match(r"layer(\d+)\.", path.name)
    site = f"blocks.{layer[1]}.hook_resid_post" if layer and any("SAE-Res" in name for name in names) else None
    return assemble("pickled_topk", "topk", ours, {}, {"k": int(*ks), "subtract_b_dec": False}, ActivationsOf(site))


def _files(path: Path) -> list[Path]:
    """Files of SAEs: itself, or those in a folder."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.name.endswith(_SUFFIX))
    return [path] if path.is_file() and path.name.endswith(_SUFFIX) else []
