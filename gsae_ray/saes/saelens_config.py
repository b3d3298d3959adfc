"""The `cfg.json` of SAELens, of an SAE of ours: what `SAE.load_from_disk` and `ActivationsStore.from_sae` read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gsae_ray.errors import UserError
from gsae_ray.saes.sae_config import SAEConfig
from gsae_ray.saes.transformer_lens_names import TRANSFORMER_LENS_MODELS

HEADS = ".attn.hook_z"
VERSION = "6.54.12"
"""The SAELens that this was checked against; it drops the `metadata` of a file that names none, or one before 6.0.0."""
MATRYOSHKA = "matryoshka_batchtopk"
NO_MODEL = "synthetic"
"""The site of activations that are of no language model."""
TRANSCODERS = {"standard": "transcoder", "jumprelu": "jumprelu_transcoder"}
"""Architecture of an SAE -> that of a transcoder whose features are computed alike, without a skip connection."""
WITH_SKIP = {"transcoder": "skip_transcoder", "jumprelu_transcoder": "jumprelu_skip_transcoder"}
NO_FORM = "none: "
"""An `architecture` that begins so says why SAELens has none; its KeyError shows the rest."""


def form_of(cfg: SAEConfig, form: Mapping[str, Any]) -> dict[str, Any]:
    """What SAELens has for it.

    Args:
        cfg: the SAE's configuration.
        form: of an SAE with such features, as `SAE.saelens_form` gives it.

    Raises:
        UserError: it is a transcoder, of which SAELens has fewer.
    """
    if not cfg.is_transcoder:
        return dict(form)
    architecture = TRANSCODERS.get(form["architecture"])
    if architecture is None:
        jumprelu = "; format jumprelu writes what it computes" if form["architecture"] == "gated" else ""
        raise UserError(f"SAELens has no {cfg.architecture} transcoder, only those of ReLU and JumpReLU{jumprelu}")
    if any(place.endswith(HEADS) for place in (cfg.site, cfg.target)):
        raise UserError("SAELens has no transcoder of attention's heads, which it takes [..., heads, width of a head]")
    return {"architecture": WITH_SKIP[architecture] if cfg.skip else architecture}


def saelens_config(cfg: SAEConfig, form: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of SAELens' `cfg.json`.

    Args:
        cfg: the SAE's configuration.
        form: what `form_of` gives: the `architecture`, and its keys that are not as they are by default.
    """
    at_heads = cfg.site.endswith(HEADS)  # [..., heads, width of a head] there; SAEs take them side by side
    theirs = cfg.section("settings").get("reshape_activations")  # of an SAE that was read from a folder of SAELens
    return {
        "architecture": form["architecture"],
        "d_in": cfg.d_in,
        **({"d_out": cfg.d_out} if cfg.is_transcoder else {}),
        "d_sae": cfg.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": not cfg.is_transcoder and cfg.hyperparameters.get("subtract_b_dec", True),
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
        "training_architecture_details": _training_details(cfg),
        "model_name": model.get("name"),
        **hook_of(cfg.site, model.get("name"), cfg.metadata.get("module")),
        **hook_of(cfg.target, model.get("name"), cfg.metadata.get("target_module"), "hook_name_out"),
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


def _training_details(cfg: SAEConfig) -> dict[str, Any] | None:
    """What SAELens keeps there of a Matryoshka SAE, which it saves as a JumpReLU SAE; of others nothing."""
    own = cfg.architecture == MATRYOSHKA
    hyperparameters = cfg.hyperparameters if own else cfg.section(MATRYOSHKA)  # which its JumpReLU form keeps
    widths = hyperparameters.get("prefix_widths")
    return {"k": hyperparameters.get("k"), "matryoshka_widths": widths} if isinstance(widths, list) else None


def hook_of(site: str, model: object, place: object, key: str = "hook_name") -> dict[str, str]:
    """Where SAELens finds activations: a hook of TransformerLens, or the output of a module of transformers.

    Args:
        site: where they are.
        model: the model's name.
        place: the same as a module's output or input, `model.layers.3:output`, which counts where TransformerLens does
            not have the model. SAELens has no hook of a module's input.
        key: of the hook's name.
    """
    if isinstance(place, str) and place.endswith(":output") and str(model) not in TRANSFORMER_LENS_MODELS:
        site = place
    module, _, io = site.rpartition(":")
    if not module:
        known_hook = site and site != NO_MODEL
        return {"model_class_name": "HookedTransformer", key: site} if known_hook else {}
    known = {"model_class_name": "AutoModelForCausalLM"}
    return {**known, key: module} if io == "output" else known
