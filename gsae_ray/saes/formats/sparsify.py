"""sparsify: TopK SAEs and transcoders, a folder each, with `cfg.json` and `sae.safetensors`.

After eai-sparsify 1.3.3, `sparse_coder.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch

from gsae_ray.errors import UserError, shown
from gsae_ray.files import write_together
from gsae_ray.saes.base import SAE
from gsae_ray.saes.batchtopk import BatchTopKSAE
from gsae_ray.saes.formats.foreign import assemble, checked, read_json, read_safetensors
from gsae_ray.saes.topk import TopKSAE

WEIGHTS, CONFIG = "sae.safetensors", "cfg.json"
FILES = f"{CONFIG} with {WEIGHTS}"
NAMES = (CONFIG, WEIGHTS)

_SHAPES = {"encoder.weight": "FD", "encoder.bias": "F", "W_dec": "FD", "b_dec": "D"}


def recognises(directory: Path) -> bool:
    """Whether there is a `sae.safetensors`."""
    return (directory / WEIGHTS).is_file()


def read(directory: Path) -> SAE:
    """The SAE of a folder.

    Raises:
        ValueError: the files hold no SAE that we know, or are damaged; in one line.
        OSError: they cannot be read.
    """
    settings = read_json(directory / CONFIG)
    transcoder, skip = bool(settings.get("transcode")), bool(settings.get("skip_connection"))
    if skip and not transcoder:
        raise ValueError(f"{CONFIG}: skip_connection is true: an SAE that adds W_skip x is none that we know")
    if settings.get("signed"):  # of the first releases
        raise ValueError(f"{CONFIG}: signed is true: its features may be negative")
    if (activation := settings.get("activation", "topk")) != "topk":
        raise ValueError(f"{CONFIG}: activation is {shown(activation)}; known: 'topk'")
    if "k" not in settings:  # older ones have a default, which has changed
        raise ValueError(f"{CONFIG}: k is missing")
    shapes = {**_SHAPES, "W_skip": "DD"} if skip else _SHAPES
    tensors = checked(read_safetensors(directory / WEIGHTS), shapes, WEIGHTS)
    if settings.get("d_in") != tensors["b_dec"].shape[0]:
        raise ValueError(f"{CONFIG}: d_in is {shown(settings.get('d_in'))}; {WEIGHTS} has {tensors['b_dec'].shape[0]}")
    ours = {"W_enc": tensors["encoder.weight"].T, "b_enc": tensors["encoder.bias"]}
    ours |= {name: tensors[name] for name in ("W_dec", "b_dec", "W_skip") if name in tensors}
    return assemble("sparsify", "topk", ours, settings, {"k": settings["k"]}, transcoder=transcoder)


def write(sae: SAE, directory: Path) -> None:
    """Writes a folder for `SparseCoder.load_from_disk`.

    Raises:
        UserError: it is no TopK SAE, or a transcoder whose input and output are of different widths.
    """
    if not isinstance(sae, TopKSAE) or isinstance(sae, BatchTopKSAE):
        raise UserError(f"sparsify: a {sae.architecture} SAE has no form there; it knows TopK SAEs only")
    transcoder = sae.cfg.is_transcoder
    if sae.cfg.width_out != sae.cfg.d_in:
        raise UserError(f"sparsify: a transcoder from {sae.cfg.d_in} to {sae.cfg.d_out} coordinates has no form there")
    sae = sae if transcoder else sae.subtracting_b_dec(True)
    tensors = {"encoder.weight": sae.W_enc.T, "encoder.bias": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    tensors |= {"W_skip": sae.W_skip} if sae.cfg.skip else {}
    settings = {
        "activation": "topk",
        "expansion_factor": max(1, sae.cfg.d_sae // sae.cfg.d_in),
        "normalize_decoder": True,
        "num_latents": sae.cfg.d_sae,
        "k": sae.k,
        "multi_topk": False,
        "skip_connection": sae.cfg.skip,
        "transcode": transcoder,
        "d_in": sae.cfg.d_in,
    }
    weights = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    write_together(directory, {WEIGHTS: weights, CONFIG: (json.dumps(settings, indent=2) + "\n").encode()})
