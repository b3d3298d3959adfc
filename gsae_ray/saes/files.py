"""Reading SAEs of ours, from disk and over the wire: JSON and safetensors, nothing that could run code."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pydantic
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from gsae_ray.errors import shown
from gsae_ray.files import digest
from gsae_ray.saes import config_file
from gsae_ray.saes.base import ORIGIN, SAE
from gsae_ray.saes.folder import CONFIG_FILE, WEIGHTS_FILE
from gsae_ray.saes.folder import NAMES as NAMES
from gsae_ray.saes.registry import REGISTRY, build
from gsae_ray.saes.sae_config import SAEConfig
from gsae_ray.saes.serialise import saelens_form_or_reason

FILES = f"{CONFIG_FILE} and {WEIGHTS_FILE}"
WEIGHT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""What saved weights may be; they are loaded as float32."""


def from_bytes(cfg: str | bytes, weights: bytes | Path) -> SAE:
    """The SAE that `to_bytes` wrote. Nothing is allocated before configuration and tensors are known to fit.

    Args:
        cfg: its `cfg.json`.
        weights: its `sae_weights.safetensors`, or the path of that.

    Raises:
        ValueError: they are not those of a finished SAE; in one line.
        OSError: the file cannot be read.
    """
    config, for_saelens = _read_config(cfg)
    try:
        with torch.device("meta"):
            empty = build(config)
        config_file.check_agreement(config, saelens_form_or_reason(empty), for_saelens)
    except RuntimeError as error:  # of a size that is none
        raise ValueError(f"{CONFIG_FILE}: {shown(error, quoted=False)}") from error
    expected = empty.state_dict()
    tensors = tensors_of(weights, WEIGHTS_FILE)
    if tensors.keys() != expected.keys():
        names = ", ".join(sorted(tensors.keys() ^ expected.keys()))
        raise ValueError(f"{WEIGHTS_FILE} and {CONFIG_FILE} do not fit: {shown(names, quoted=False)}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{list(tensor.shape)}, not {list(expected[name].shape)}"
            raise ValueError(f"{WEIGHTS_FILE} and {CONFIG_FILE} do not fit: {name} is {shapes}")
        known = WEIGHT_DTYPES if expected[name].is_floating_point() else (expected[name].dtype,)
        if tensor.dtype not in known:
            raise ValueError(f"{WEIGHTS_FILE}: {name} is {tensor.dtype}; known: {', '.join(map(str, known))}")
    sae = build(config)
    sae.load_state_dict(tensors)
    if (damaged := sae.not_finite()) is not None:
        raise ValueError(f"{WEIGHTS_FILE}: {damaged} is not finite")
    return sae.eval()


def tensors_of(data: bytes | Path, file: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file; of a path they are mapped, and take no memory of their own.

    Raises:
        ValueError: it is none; in one line.
        OSError: the file cannot be read.
    """
    if isinstance(data, Path):
        data.stat()  # its error names the file
    try:
        return safetensors.torch.load_file(data) if isinstance(data, Path) else safetensors.torch.load(data)
    except KeyError as error:
        raise ValueError(f"{file}: a tensor is {shown(error.args[0])}, a dtype that torch has not") from error
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise ValueError(f"{file} cannot be read: {shown(error, quoted=False)}") from error


def _read_config(text: str | bytes) -> tuple[SAEConfig, dict[str, Any]]:
    """As `config_file.decode`, with the hyperparameters checked.

    Raises:
        ValueError: it is none; in one line.
    """
    cfg, for_saelens = config_file.decode(text)
    if cfg.architecture in REGISTRY:
        try:
            trained_here = ORIGIN not in cfg.metadata
            REGISTRY[cfg.architecture].check_hyperparameters(cfg.hyperparameters, trained_here)
        except pydantic.ValidationError as error:
            raise config_file.one_line(error, "hyperparameters") from error
    return cfg, for_saelens


def function_hash(sae: SAE) -> str:
    """The sha256 of what an SAE computes, its form and its weights, whatever files they came in."""
    tensors = {
        name: [str(tensor.dtype), list(tensor.shape), hashlib.sha256(tensor.cpu().contiguous().numpy()).hexdigest()]
        for name, tensor in sae.state_dict().items()
    }
    rounding = "elsewhere" if ORIGIN in sae.cfg.metadata else "here"  # the last bits: see `SAE._pre`
    return digest([saelens_form_or_reason(sae), sae.subtracts_b_dec, rounding, tensors])


def recognises(directory: Path) -> bool:
    """Whether `cfg.json` says that the SAE is ours, or is damaged beside weights named as ours, which `read` tells."""
    try:
        return config_file.is_ours((directory / CONFIG_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return False
    except ValueError:
        return (directory / WEIGHTS_FILE).is_file()


def read(directory: Path) -> SAE:
    """The SAE that `save` wrote, on the CPU, in evaluation mode.

    Raises:
        ValueError, UserError: its files are damaged.
        OSError: they cannot be read.
    """
    return from_bytes((directory / CONFIG_FILE).read_bytes(), directory / WEIGHTS_FILE)
