"""SAELens: `cfg.json` and `sae_weights.safetensors` of `save_model`, of any release. After sae-lens 6.54.12, `saes/`.

The SAEs that we save ourselves are such folders too; `gsae_ray.saes.files` reads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gsae_ray.errors import shown, suggest
from gsae_ray.files import write_together
from gsae_ray.saes.base import CONFIG_FILE, SAE, WEIGHTS_FILE
from gsae_ray.saes.config_file import json_text
from gsae_ray.saes.formats.foreign import (
    ActivationsOf,
    assemble,
    checked,
    keys_of,
    norms_folded,
    read_json,
    read_safetensors,
)
from gsae_ray.saes.saelens_config import saelens_config
from gsae_ray.saes.serialise import saelens_form, weight_bytes

FILES = f"{CONFIG_FILE} with {WEIGHTS_FILE}"
NAMES = (CONFIG_FILE, WEIGHTS_FILE)

_LINEAR = {"W_enc": "DF", "b_enc": "F", "W_dec": "FD", "b_dec": "D"}
_THRESHOLD = {**_LINEAR, "threshold": "F"}
_TRANSCODER = {"W_dec": "FO", "b_dec": "O"}
_SKIP = {**_TRANSCODER, "W_skip": "OD"}
_SHAPES = {
    "standard": _LINEAR,
    "topk": _LINEAR,
    "jumprelu": _THRESHOLD,
    "gated": {"W_enc": "DF", "W_dec": "FD", "b_dec": "D", "b_gate": "F", "b_mag": "F", "r_mag": "F"},
    "transcoder": {**_LINEAR, **_TRANSCODER},
    "skip_transcoder": {**_LINEAR, **_SKIP},
    "jumprelu_transcoder": {**_THRESHOLD, **_TRANSCODER},
    "jumprelu_skip_transcoder": {**_THRESHOLD, **_SKIP},
}
"""Architecture -> its tensors, which are named and shaped as ours. batchtopk and matryoshka are saved as jumprelu."""
_TRAINING = "a training checkpoint of SAELens; its `save_inference_model` writes the SAE, as jumprelu"
_OTHER_FUNCTIONS = {
    "batchtopk": _TRAINING,
    "matryoshka_batchtopk": _TRAINING,
    "abstopk": "its features may be negative",
    "matching_pursuit": "its encoder is a search with the decoder, step by step",
    "temporal": "its features depend on earlier positions too",
}
"""architecture -> why it is no SAE of ours."""
_NORMALISED = {
    "expected_average_only_in": "the scale of its activations is not in the files, and SAELens leaves it out too",
    "covariance_whitening": "the whitening of its activations is not in the files, and SAELens leaves it out too",
    "constant_norm_rescale": "each row is divided by its norm, which decoding needs as well",
    "layer_norm": "each row is normalised by its mean and deviation, which decoding needs as well",
}
"""normalize_activations -> why such an SAE is none of raw activations."""


def recognises(directory: Path) -> bool:
    """Whether there are weights beside a `cfg.json` that gives the size of an SAE."""
    return (directory / WEIGHTS_FILE).is_file() and {"d_in", "d_sae"} <= keys_of(directory / CONFIG_FILE)


def read(directory: Path) -> SAE:
    """The SAE of a folder, as `SAE.load_from_disk` has it.

    Raises:
        ValueError: the files hold no SAE that we know, or are damaged; in one line.
        OSError: they cannot be read.
    """
    settings = read_json(directory / CONFIG_FILE)
    architecture = _architecture(settings)
    _check_normalisation(settings.get("normalize_activations"))
    of = _activations_of(settings)
    found = _without_scaling_factor(read_safetensors(directory / WEIGHTS_FILE))
    tensors = checked(found, _SHAPES[architecture], WEIGHTS_FILE)
    is_transcoder = "transcoder" in architecture
    d_in, d_sae = tensors["W_enc"].shape
    sizes = {"d_in": d_in, "d_sae": d_sae, **({"d_out": len(tensors["b_dec"])} if is_transcoder else {})}
    for key, size in sizes.items():
        if settings.get(key) != size:
            raise ValueError(f"{CONFIG_FILE}: {key} is {shown(settings.get(key))}, but {WEIGHTS_FILE} has {size}")
    hyperparameters: dict[str, Any] = {}
    subtracts = _flag(settings, "apply_b_dec_to_input", True)
    if is_transcoder:
        if subtracts:
            raise ValueError(f"{CONFIG_FILE}: apply_b_dec_to_input is not false, which SAELens refuses of a transcoder")
        kind = "jumprelu" if "threshold" in tensors else "standard"
        return assemble("saelens", kind, tensors, settings, of=of, transcoder=True)
    if not subtracts:
        hyperparameters["subtract_b_dec"] = False
    if architecture == "topk" and _flag(settings, "rescale_acts_by_decoder_norm", False):
        tensors = norms_folded(tensors, WEIGHTS_FILE)  # its features are z ‖d‖, and decoded with d ÷ ‖d‖
    if architecture == "topk":
        hyperparameters["k"] = _k(settings)
    return assemble("saelens", architecture, tensors, settings, hyperparameters, of)


def _architecture(settings: dict[str, Any]) -> str:
    """The key of `_SHAPES`.

    Raises:
        ValueError: it is another function; in one line, with the reason.
    """
    before_6 = settings.get("activation_fn_str", settings.get("activation_fn"))
    architecture = "topk" if before_6 == "topk" else settings.get("architecture", "standard")
    name = str(architecture)
    if architecture == name and name in _SHAPES:
        return name
    if (why := _OTHER_FUNCTIONS.get(name)) is not None:
        raise ValueError(f"{CONFIG_FILE}: architecture is {shown(architecture)}: {why}")
    raise ValueError(f"{CONFIG_FILE}: architecture {shown(architecture)} is not known; {suggest(name, _SHAPES)}")


def _activations_of(settings: dict[str, Any]) -> ActivationsOf:
    """What the activations are of, by the file's `metadata`, or by its own keys, as before release 6.

    Raises:
        ValueError: they are of no site; in one line.
    """
    nested = settings.get("metadata")
    about = nested if isinstance(nested, dict) else {"prepend_bos": True, **settings}  # its default there
    head = about.get("hook_head_index", about.get("hook_point_head_index"))
    if head is not None:
        raise ValueError(f"{CONFIG_FILE}: hook_head_index is {shown(head)}: an SAE of one head; sites have all heads")
    if (reshape := settings.get("reshape_activations", "none")) not in ("none", "hook_z"):
        raise ValueError(f"{CONFIG_FILE}: reshape_activations is {shown(reshape)}; known: 'none', 'hook_z'")
    site = about.get("hook_name", about.get("hook_point"))
    target = about.get("hook_name_out")
    if about.get("model_class_name") == "AutoModelForCausalLM":  # there a hook is a module of transformers
        site, target = (name if name is None else f"{name}:output" for name in (site, target))
    keys = {
        "model": "model_name",
        "dataset": "dataset_path",
        "context_size": "context_size",
        "prepend_bos": "prepend_bos",
    }
    return ActivationsOf(site, target=target, **{ours: about.get(theirs) for ours, theirs in keys.items()})


def _k(settings: dict[str, Any]) -> object:
    before_6 = settings.get("activation_fn_kwargs")
    return settings.get("k", before_6.get("k") if isinstance(before_6, dict) else None)


def _flag(settings: dict[str, Any], key: str, default: bool) -> bool:
    value = settings.get(key, default)
    if not isinstance(value, bool):
        raise ValueError(f"{CONFIG_FILE}: {key} is {shown(value)}, neither true nor false")
    return value


def _check_normalisation(value: object) -> None:
    if isinstance(value, bool):  # before release 6
        value = "expected_average_only_in" if value else "none"
    if value not in (None, "none"):
        why = _NORMALISED.get(value, "which is not known") if isinstance(value, str) else "which is not known"
        raise ValueError(
            f"{CONFIG_FILE}: normalize_activations is {shown(value)}: {why}; fold it into the weights with SAELens "
            "where that can be, and save it again"
        )


def _without_scaling_factor(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Old releases added a tensor of ones; one of other numbers is left, to be refused by its name."""
    factor = tensors.get("scaling_factor")
    ones = factor is not None and torch.allclose(factor.float(), torch.ones(()))
    return {name: tensor for name, tensor in tensors.items() if not (ones and name == "scaling_factor")}


def write(sae: SAE, directory: Path) -> None:
    """Writes a folder for `SAE.load_from_disk`; the one that `sae.save` writes has all that is ours besides.

    Raises:
        UserError: the architecture has no form there.
    """
    cfg = json_text(saelens_config(sae.cfg, saelens_form(sae)))
    write_together(directory, {WEIGHTS_FILE: weight_bytes(sae), CONFIG_FILE: (cfg + "\n").encode()})
