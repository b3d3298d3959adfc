"""The `cfg.json` of SAELens, of an SAE of ours: what `SAE.load_from_disk` and `ActivationsStore.from_sae` read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gsae_ray.saes.sae_config import SAEConfig
from gsae_ray.saes.transformer_lens_names import TRANSFORMER_LENS_MODELS

VERSION = "6.54.12"
"""The SAELens that this was checked against; it drops the `metadata` of a file that names none, or one before 6.0.0."""
NO_MODEL = "synthetic"
"""The site of activations that are of no language model."""
NO_FORM = "none: "
"""An `architecture` that begins so says why SAELens has none; its KeyError shows the rest."""


def saelens_config(cfg: SAEConfig, form: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of SAELens' `cfg.json`.

    Args:
        cfg: the SAE's configuration.
        form: what `SAE.saelens_form` gives: the `architecture`, and its keys that are not as they are by default.
    """
    at_heads = cfg.site.endswith(".attn.hook_z")  # [..., heads, width of a head] there; SAEs take them side by side
    theirs = cfg.section("settings").get("reshape_activations")  # of an SAE that was read from a folder of SAELens
    return {
        "architecture": form["architecture"],
        "d_in": cfg.d_in,
        "d_sae": cfg.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": cfg.hyperparameters.get("subtract_b_dec", True),
        "normalize_activations": "none",
        "reshape_activations": theirs if theirs in ("none", "hook_z") else "hook_z" if at_heads else "none",
        **form,
        "metadata": _metadata(cfg),
    }


def _metadata(cfg: SAEConfig) -> dict[str, Any]:
    """What the activations are of; what is not known is left out."""
    model, dataset = (cfg.section(name) for name in ("model", "dataset"))
    skipped = dataset.get("skip_positions")
    found = {
        "sae_lens_version": VERSION,
        "training_architecture": cfg.metadata.get("training_architecture", cfg.architecture),
        "model_name": model.get("name"),
        **hook_of(cfg.site, model.get("name"), cfg.metadata.get("module")),
        "context_size": model.get("context_size"),
        "dataset_path": dataset.get("name"),
        "prepend_bos": dataset.get("prepend_bos"),
        "exclude_special_tokens": dataset.get("skip_special_tokens"),
        "seqpos_slice": None if skipped is None else [skipped or None, None],
    }
    theirs = cfg.section("settings").get("metadata")  # of an SAE that was read from a folder of SAELens
    if isinstance(theirs, dict) and "sae_lens_version" in theirs:
        found |= {**theirs, "sae_lens_version": VERSION}
    return {key: value for key, value in found.items() if value is not None}


def hook_of(site: str, model: object, place: object) -> dict[str, str]:
    """Where SAELens finds activations: a hook of TransformerLens, or the output of a module of transformers.

    Args:
        site: where they are.
        model: the model's name.
        place: the same as a module's output or input, `model.layers.3:output`, which counts where TransformerLens does
            not have the model. SAELens has no hook of a module's input.
    """
    if isinstance(place, str) and place.endswith(":output") and str(model) not in TRANSFORMER_LENS_MODELS:
        site = place
    module, _, io = site.rpartition(":")
    if not module:
        known_hook = site and site != NO_MODEL
        return {"model_class_name": "HookedTransformer", "hook_name": site} if known_hook else {}
    known = {"model_class_name": "AutoModelForCausalLM"}
    return {**known, "hook_name": module} if io == "output" else known
