"""Loading of language models and tokenizers, and the fingerprint that tells models apart."""

from __future__ import annotations

import contextlib
import fnmatch
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from gsae_ray.config.sections import ModelSettings
from gsae_ray.errors import NoTokenizerError, UserError
from gsae_ray.files import digest, file_hash
from gsae_ray.language_model.causal import check_attention, check_kind
from gsae_ray.language_model.hub import explained, find_file, local_directory
from gsae_ray.language_model.transformer_lens import (
    WEIGHTS,
    TransformerLensConfig,
    TransformerLensModel,
    gpt2_config,
    is_transformer_lens,
    read_weights,
)

ADAPTER = "adapter_config.json"
"""The file in which peft keeps the configuration of an adapter."""
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "tekken.json", "tiktoken.model")
"""Files from which transformers makes a tokenizer, besides those that its class names."""


def _source(model: ModelSettings) -> dict[str, Any]:
    """Arguments that every `from_pretrained` of this model takes."""
    return {
        "pretrained_model_name_or_path": str(local_directory(model.name) or model.name),
        "revision": model.revision or "main",
        "trust_remote_code": model.trust_remote_code,
    }


def _config_file(model: ModelSettings) -> Path | None:
    return find_file(_source(model), "config.json")


def _transformer_lens_config(model: ModelSettings) -> TransformerLensConfig | None:
    """The configuration of a checkpoint in TransformerLens' format; None for any other model."""
    path = _config_file(model)
    values = json.loads(path.read_text(encoding="utf-8")) if path else {}
    if not isinstance(values, dict) or not is_transformer_lens(values):
        return None
    return gpt2_config(model.name, values)


def _transformer_lens_weights(model: ModelSettings) -> Path:
    """The checkpoint's one file of weights.

    Its name differs from model to model, so on the hub the files are listed, unless it is in the cache.
    """
    config = _config_file(model)
    found = sorted(config.parent.glob(WEIGHTS)) if config else []
    if not found and not local_directory(model.name):
        names = HfApi().list_repo_files(model.name, revision=model.revision)
        # Top level only: the checkpoints of training are in folders.
        wanted = [name for name in names if "/" not in name and fnmatch.fnmatch(name, WEIGHTS)]
        found = [Path(cached_file(model.name, name, revision=model.revision or "main")) for name in wanted]
    if len(found) != 1:
        there = ", ".join(path.name for path in found) or "none"
        raise UserError(f"model.name: {model.name!r} should hold one file {WEIGHTS}, its weights; found: {there}")
    return found[0]


def _refuse_adapter(model: ModelSettings) -> None:
    """Refuse a model with an adapter: without peft transformers ignores it, with peft it adds modules of its own.

    Raises:
        UserError: there is an adapter.
    """
    source = _source(model)
    name, revision = source["pretrained_model_name_or_path"], source["revision"]
    missing = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
    if cached_file(name, ADAPTER, revision=revision, **missing):
        raise _unmerged(model.name, ADAPTER)


def _unmerged(name: str, found: str) -> UserError:
    return UserError(
        f"model.name: {name!r} holds an adapter, as LoRA ({found}), that would not be applied; merge it into its base "
        "model (peft: merge_and_unload), save the result without it (save_pretrained) and name that folder"
    )


def load_config(model: ModelSettings) -> transformers.PretrainedConfig:
    """The model's configuration; no weights are read.

    Raises:
        UserError: it cannot be loaded, it is not that of a causal language model, or contexts are too long for it.
    """
    with explained(model.name, "configuration"):
        _refuse_adapter(model)
        config = _transformer_lens_config(model) or AutoConfig.from_pretrained(**_source(model))
    if not isinstance(config, TransformerLensConfig):
        check_kind(model.name, config)
    # Not as config.json says: by its word transformers fetches kernels from the hub, which are code, and runs them.
    config._attn_implementation = model.attn_implementation
    config._experts_implementation = None
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and model.context_size > limit:
        raise UserError(f"model.context_size: {model.context_size} is more than the {limit} positions of {model.name}")
    return config


@contextlib.contextmanager
def _attention_explained(model: ModelSettings) -> Iterator[None]:
    """A context in which an attention kernel that transformers does not have for the model is told by the key's name.

    Raises:
        UserError: it has none of that name.
    """
    try:
        yield
    except ValueError as error:
        asked = model.attn_implementation
        if asked is None or "attn_implementation" not in str(error):  # which transformers' words on it end with
            raise
        other = "eager" if asked == "sdpa" else "sdpa"
        raise UserError(
            f"model.attn_implementation: transformers has no {asked} for {model.name!r}; take {other}, or leave the "
            "key out: sdpa where the model has it, else eager"
        ) from error


def load_skeleton(model: ModelSettings) -> PreTrainedModel:
    """The model without weights (on the meta device): enough to find sites and their widths.

    Raises:
        UserError: as `load_config`; or the model has no such attention kernel.
    """
    config = load_config(model)
    config._experts_implementation = "batched_mm"  # the one that runs without weights
    with explained(model.name, "configuration"), _attention_explained(model), torch.device("meta"):
        if isinstance(config, TransformerLensConfig):
            return TransformerLensModel(config).eval()
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
    check_attention(model.name, skeleton)
    return skeleton.eval()


def layer_count(model: PreTrainedModel) -> int | None:
    """How many layers a model has; None where its configuration does not say."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    return count if isinstance(count, int) else None


def load_tokenizer(model: ModelSettings) -> PreTrainedTokenizerBase:
    """The tokenizer: `model.tokenizer`, else the one that a TransformerLens checkpoint names, else the model's own.

    Raises:
        NoTokenizerError: the model brings none, and none is named.
        UserError: it cannot be loaded, or one that is named has more tokens than the model embeds.
    """
    name = model.tokenizer
    if name is None:
        with explained(model.name, "tokenizer"):
            lens = _transformer_lens_config(model)
            if lens is None and (own := _real_tokenizer(_source(model))) is not None:
                return own
        if lens is None:
            raise NoTokenizerError(
                f"model.tokenizer: missing; {model.name!r} brings no tokenizer: name one, or read token ids "
                "(dataset.tokens_column)"
            )
        name = lens.tokenizer_name
        if name is None:
            raise NoTokenizerError(
                f"model.tokenizer: missing; the TransformerLens checkpoint {model.name!r} names none"
            )
    with explained(name, "tokenizer", "model.tokenizer"):
        path = {"pretrained_model_name_or_path": str(local_directory(name) or name)}
        tokenizer = _real_tokenizer({**path, "trust_remote_code": model.trust_remote_code})
    if tokenizer is None:
        raise UserError(f"model.tokenizer: there is no tokenizer in {name!r}")
    vocabulary = load_config(model).get_text_config().vocab_size
    if len(tokenizer) > vocabulary:
        raise UserError(
            f"model.tokenizer: {name!r} has {len(tokenizer)} tokens, more than the {vocabulary} of {model.name!r}"
        )
    return tokenizer


def _real_tokenizer(source: dict[str, Any]) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model; None where it has no files, and transformers would make one up from its defaults."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
    except ValueError as error:
        if "instantiate the backend tokenizer" in str(error):  # of a family that has no defaults
            return None
        raise
    names = getattr(tokenizer, "vocab_files_names", {}).values()  # a tokenizer of bytes needs none
    there = any(find_file(source, name) for name in (*VOCABULARIES, *names))
    return tokenizer if there or not names else None


def check_weights(model: ModelSettings) -> None:
    """Checks that a local checkpoint has every weight of its configuration, in its shape, by the files' headers.

    A model of the hub is checked by the producers: the driver would have to download it.

    Raises:
        UserError: as `load_model`.
    """
    if local_directory(model.name):
        load_model(model, "meta")


def load_model(model: ModelSettings, device_map: str = "cpu") -> PreTrainedModel:
    """The model with its weights, in evaluation mode, each weight in `model.dtype` straight to its device.

    Args:
        model: which model.
        device_map: a device, or `balanced`: the layers spread over all GPUs that this process sees.

    Raises:
        UserError: it cannot be loaded, a weight is missing, the model has no such attention kernel, or the GPUs have
            too little memory.
    """
    too_large = UserError(
        f"producers.gpus: too few; {model.name} in {model.dtype} does not fit into the memory of a producer's GPUs"
    )
    config = load_config(model)
    with explained(model.name, "weights"), _attention_explained(model):
        options: dict[str, Any] = {
            "config": config,
            "dtype": getattr(torch, model.dtype),
            "device_map": device_map,
            "output_loading_info": True,
            "ignore_mismatched_sizes": True,  # told below, by name
        }
        try:
            if isinstance(config, TransformerLensConfig):
                weights = read_weights(model.name, _transformer_lens_weights(model), config)
                loaded, report = TransformerLensModel.from_pretrained(None, state_dict=weights, **options)
            else:
                loaded, report = AutoModelForCausalLM.from_pretrained(**_source(model), **options, use_safetensors=True)
        except torch.OutOfMemoryError as error:
            raise too_large from error
    for name, in_checkpoint, in_model in sorted(report["mismatched_keys"]):
        raise UserError(
            f"model.name: cannot load the weights of {model.name!r}: {name} has the shape {list(in_checkpoint)} in the "
            f"checkpoint, {list(in_model)} by its configuration"
        )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])[0]
        raise UserError(f"model.name: cannot load the weights of {model.name!r}: {missing} is not in the checkpoint")
    for name in sorted(report["unexpected_keys"]):
        if ".lora_" in name:
            raise _unmerged(model.name, name)
    if device_map == "balanced" and {"cpu", "disk"} & {str(device) for device in loaded.hf_device_map.values()}:
        raise too_large  # transformers would go on, with layers that travel to a GPU at every forward pass
    return loaded.eval().requires_grad_(False)


def _content_hash(directory: Path) -> str:
    kinds = ("*.json", "*.safetensors", "*.model", "*.txt", "*.py", WEIGHTS)  # .py: with trust_remote_code
    files = sorted(path for path in directory.iterdir() if any(path.match(kind) for kind in kinds))
    return digest([[path.name, file_hash(path)] for path in files if path.name != "card.json"])


def pinned(model: ModelSettings) -> ModelSettings:
    """The settings with the commit that a hub model's revision stands for now, so that every process loads that."""
    if local_directory(model.name):
        return model
    with explained(model.name, "configuration"):
        path = cached_file(model.name, "config.json", revision=model.revision or "main")
    return model.model_copy(update={"revision": Path(path).parent.name})  # snapshots/{commit}/config.json


def model_fingerprint(model: ModelSettings) -> str:
    """Identity of the model's weights: a hash of the files of a local model, the commit of one from the hub."""
    where = local_directory(model.name)
    identity = _content_hash(where) if where else f"{model.name}@{pinned(model).revision}"
    return digest([identity, model.dtype, model.attn_implementation])
