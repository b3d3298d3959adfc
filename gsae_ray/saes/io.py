"""SAEs on disk and over the wire: JSON and safetensors, nothing that could run code."""

from __future__ import annotations

from pathlib import Path

import pydantic
import safetensors
import safetensors.torch

from gsae_ray.errors import UserError, suggest
from gsae_ray.files import digest, file_hash, write_together
from gsae_ray.saes.base import REGISTRY, SAE, SAEConfig

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"


def build(cfg: SAEConfig) -> SAE:
    """An SAE with uninitialised weights."""
    if cfg.architecture not in REGISTRY:
        raise UserError(f"architecture: unknown {cfg.architecture!r}; {suggest(cfg.architecture, REGISTRY)}")
    return REGISTRY[cfg.architecture](cfg)


def to_bytes(sae: SAE) -> tuple[str, bytes]:
    """(cfg.json, sae_weights.safetensors) as they would be saved."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in sae.state_dict().items()}
    return sae.cfg.model_dump_json(indent=2), safetensors.torch.save(weights)


def from_bytes(cfg: str, weights: bytes) -> SAE:
    """The inverse of `to_bytes`.

    Raises:
        ValueError: the weights are not those of the configuration.
    """
    sae = build(SAEConfig.model_validate_json(cfg))
    try:
        sae.load_state_dict(safetensors.torch.load(weights))
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise ValueError(f"weights and configuration do not fit: {str(error).splitlines()[-1].strip()}") from error
    return sae.eval()


def save(sae: SAE, directory: str | Path) -> None:
    """Writes `cfg.json` and `sae_weights.safetensors` to `directory`, which is made if need be.

    An SAE that is there already is replaced; a save that fails halfway never leaves its files beside new ones.
    """
    cfg, weights = to_bytes(sae)
    write_together(Path(directory), {WEIGHTS_FILE: weights, CONFIG_FILE: (cfg + "\n").encode()})


def content_hash(directory: str | Path) -> str:
    """sha256 of a saved SAE, of both its files.

    Raises:
        FileNotFoundError: one is missing.
    """
    return digest([file_hash(Path(directory) / name) for name in (CONFIG_FILE, WEIGHTS_FILE)])


def load(directory: str | Path) -> SAE:
    """The SAE that `save` wrote, on the CPU, in evaluation mode.

    Raises:
        UserError: there is none, or its files are damaged.
    """
    directory = Path(directory)
    try:
        return from_bytes((directory / CONFIG_FILE).read_text("utf-8"), (directory / WEIGHTS_FILE).read_bytes())
    except FileNotFoundError as error:
        raise UserError(
            f"{directory}: no SAE here ({Path(str(error.filename)).name} is missing); "
            f"a saved SAE is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
        ) from error
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in (CONFIG_FILE, *first["loc"]))
        raise UserError(f"{directory}: this SAE cannot be read: {key}: {first['input']!r}: {first['msg']}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{directory}: this SAE cannot be read: {str(error).splitlines()[0]}") from error
