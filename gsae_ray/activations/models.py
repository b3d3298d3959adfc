"""Loading language models and tokenizers, and saying which they are."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from gsae_ray.builtin import MODEL_DIR
from gsae_ray.errors import UserError
from gsae_ray.files import digest, file_hash
from gsae_ray.sweep import ModelSettings


def _source(model: ModelSettings) -> dict[str, Any]:
    """Arguments that every `from_pretrained` of this model takes."""
    directory = MODEL_DIR if model.name == "builtin" else Path(model.name).expanduser()
    return {
        "pretrained_model_name_or_path": str(directory) if directory.is_dir() else model.name,
        "revision": model.revision or "main",
        "trust_remote_code": model.trust_remote_code,
    }


@contextlib.contextmanager
def quiet_hub() -> Iterator[None]:
    """Without the lines that the hub's client and transformers print while they try and retry."""
    transformers.utils.logging.disable_progress_bar()
    hub_log = logging.getLogger("huggingface_hub")
    level, verbosity = hub_log.level, transformers.utils.logging.get_verbosity()
    hub_log.setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()  # reports of many lines on weights that do not fit
    try:
        yield
    finally:
        hub_log.setLevel(level)
        transformers.utils.logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _explained(model: ModelSettings, what: str) -> Iterator[None]:
    """Turns the hub's many exceptions into one line."""
    try:
        with quiet_hub():
            yield
    except UserError:
        raise
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        path, text = Path(model.name).expanduser(), " ".join(str(error).split())
        if "trust_remote_code" in text:
            reason = "it needs its own code; set model.trust_remote_code: true if you trust it"
        elif path.is_dir() or model.name == "builtin":
            reason = text[:300] or type(error).__name__
        elif path.is_absolute() or model.name.startswith("."):
            raise UserError(f"model.name: there is no directory {model.name!r}") from error
        elif "gated repo" in text or "401" in text or "403" in text:
            reason = "it is gated or private; accept its licence on the hub and set HF_TOKEN"
        else:
            reason = "it is neither 'builtin' nor a local directory, and the hub has no such model or cannot be reached"
        raise UserError(f"model.name: cannot load the {what} of {model.name!r}: {reason}") from error


def load_config(model: ModelSettings) -> transformers.PretrainedConfig:
    """The model's configuration; no weights are read."""
    with _explained(model, "configuration"):
        config = AutoConfig.from_pretrained(**_source(model))
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and model.context_size > limit:
        raise UserError(f"model.context_size: {model.context_size} is more than the {limit} positions of {model.name}")
    return config


def load_skeleton(model: ModelSettings) -> PreTrainedModel:
    """The model without weights (on the meta device): enough to find sites and their widths."""
    config = load_config(model)
    with _explained(model, "configuration"), torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
    return skeleton.eval()


def load_tokenizer(model: ModelSettings) -> PreTrainedTokenizerBase:
    with _explained(model, "tokenizer"):
        return AutoTokenizer.from_pretrained(**_source(model))


def load_model(model: ModelSettings, device: torch.device | str = "cpu") -> PreTrainedModel:
    """The model with its weights, in evaluation mode, straight to `device` in `model.dtype`."""
    with _explained(model, "weights"):
        loaded, report = AutoModelForCausalLM.from_pretrained(
            **_source(model),
            dtype=getattr(torch, model.dtype),
            attn_implementation=model.attn_implementation,
            use_safetensors=True,
            output_loading_info=True,
        )
        if report["missing_keys"]:
            raise ValueError(f"{sorted(report['missing_keys'])[0]} is not in the checkpoint")
    return loaded.to(device).eval().requires_grad_(False)


def _content_hash(directory: Path) -> str:
    files = sorted(p for p in directory.iterdir() if p.suffix in (".json", ".safetensors", ".model", ".txt"))
    return digest([[path.name, file_hash(path)] for path in files if path.name != "card.json"])


def pinned(model: ModelSettings) -> ModelSettings:
    """With the commit that a hub model's revision stands for now: every process loads that one."""
    if Path(_source(model)["pretrained_model_name_or_path"]).is_dir():
        return model
    with _explained(model, "configuration"):
        path = cached_file(model.name, "config.json", revision=model.revision or "main")
    return model.model_copy(update={"revision": Path(path).parent.name})  # snapshots/{commit}/config.json


def model_fingerprint(model: ModelSettings) -> str:
    """Which weights these are: a hash of the files of a local model, the commit of one from the hub."""
    where = Path(_source(model)["pretrained_model_name_or_path"])
    identity = _content_hash(where) if where.is_dir() else f"{model.name}@{pinned(model).revision}"
    return digest([identity, model.dtype, model.attn_implementation])
