"""Runs in an environment with SAELens, which test_saelens_cache.py installs: its caches for us, and ours for it.

python saelens_cache.py make FOLDER    # FOLDER/cache: by its CacheActivationsRunner; FOLDER/made.safetensors: tensors
python saelens_cache.py load FOLDER    # FOLDER/{site}: data sets of ours; adds FOLDER/{site}.safetensors: what it read
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import datasets
import torch
from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, StandardTrainingSAEConfig
from sae_lens import cache_activations_runner as caching
from sae_lens.config import CacheActivationsRunnerConfig, LoggingConfig
from sae_lens.training.activations_store import ActivationsStore
from safetensors.torch import save_file
from transformer_lens import HookedTransformer, HookedTransformerConfig

HOOK, CONTEXT, CONTEXTS = "blocks.1.hook_resid_post", 16, 64
EXCLUDED = 0


def model(context: int, width: int) -> HookedTransformer:
    """An untrained one: it has to be there, and is what `make` takes activations of."""
    torch.manual_seed(0)
    shape = {"n_layers": 2, "d_model": width, "n_ctx": context, "d_head": 4, "n_heads": 2, "d_mlp": 16, "d_vocab": 4096}
    return HookedTransformer(HookedTransformerConfig(**shape, act_fn="gelu"))


def texts(context: int) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"tokens": torch.randint(1, 4096, (CONTEXTS, context)).tolist()})


def make(folder: Path) -> None:
    own, data = model(CONTEXT, 8), texts(CONTEXT)
    caching.load_model = lambda **_: own  # of the hub otherwise
    config = CacheActivationsRunnerConfig(
        dataset_path="none",
        model_name="none",
        model_batch_size=4,
        hook_name=HOOK,
        d_in=8,
        context_size=CONTEXT,
        training_tokens=CONTEXT * CONTEXTS,
        new_cached_activations_path=str(folder / "cache"),
        prepend_bos=False,
        device="cpu",
        dtype="float32",
        buffer_size_gb=1e-5,
    )
    caching.CacheActivationsRunner(config, override_dataset=data).run()
    found = datasets.load_from_disk(str(folder / "cache")).with_format("torch")
    tensors = {"activations": found[HOOK][:], "tokens": found["token_ids"][:].int()}
    save_file(tensors, folder / "made.safetensors")


def store_of(folder: Path, hook: str, shape: tuple[int, int], **options: Any) -> ActivationsStore:
    return ActivationsStore(
        model=None,
        dataset=None,
        streaming=False,
        hook_name=hook,
        hook_head_index=None,
        context_size=shape[0],
        d_in=shape[1],
        n_batches_in_buffer=2,
        total_training_tokens=100,
        store_batch_size_prompts=3,
        train_batch_size_tokens=16,
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
        cached_activations_path=str(folder),
        **options,
    )


def load(folder: Path) -> None:
    """Reads some batches of each data set, without and with special tokens, and trains on them."""
    for path in sorted(path.parent for path in folder.glob("*/state.json")):
        hook = path.name
        shape = datasets.load_from_disk(str(path)).features[hook].shape
        store = store_of(path, hook, shape)
        batches = [store.get_raw_llm_batch() for _ in range(5)]
        store = store_of(path, hook, shape, exclude_special_tokens=torch.tensor([EXCLUDED]))
        tensors = {
            "activations": torch.cat([x_Rn for x_Rn, _ in batches]),
            "tokens": torch.cat([tokens_R for _, tokens_R in batches]).int(),
            "filtered": torch.cat([store.get_filtered_llm_batch() for _ in range(5)]),
        }
        save_file(tensors, folder / f"{hook}.safetensors")
        config = LanguageModelSAERunnerConfig(
            sae=StandardTrainingSAEConfig(d_in=shape[1], d_sae=32, l1_coefficient=1.0),
            hook_name=hook,
            dataset_path="none",
            context_size=shape[0],
            use_cached_activations=True,
            cached_activations_path=str(path),
            training_tokens=2048,
            train_batch_size_tokens=64,
            store_batch_size_prompts=4,
            n_batches_in_buffer=4,
            n_checkpoints=0,
            checkpoint_path=str(folder / "checkpoints"),
            output_path=str(folder / "output"),
            logger=LoggingConfig(log_to_wandb=False),
            device="cpu",
            dtype="float32",
            n_eval_batches=1,
        )
        runner = LanguageModelSAETrainingRunner(config, texts(shape[0]), model(*shape))
        assert runner.run().cfg.d_in == shape[1]


if __name__ == "__main__":
    {"make": make, "load": load}[sys.argv[1]](Path(sys.argv[2]))
