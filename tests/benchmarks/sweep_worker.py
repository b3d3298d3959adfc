"""Trains the SAEs of a sweep with SAELens' `MultiSAETrainingRunner`; `sweep.py` starts it where ours is not installed.

    python sweep_worker.py MODEL TEXT.parquet THREADS VALUES

VALUES is the sweep file as JSON. Prints how long the runner ran, the model being there.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from typing import Any

os.environ["WANDB_MODE"] = "disabled"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import load_dataset
from sae_lens.config import LoggingConfig
from sae_lens.load_model import load_model
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig
from sae_lens.saes.gated_sae import GatedTrainingSAEConfig
from sae_lens.saes.standard_sae import StandardTrainingSAEConfig

CONFIGS: Any = {"gated": GatedTrainingSAEConfig, "standard": StandardTrainingSAEConfig}


def main() -> None:
    folder, text, threads, given = sys.argv[1:]
    torch.set_num_threads(int(threads))
    values = json.loads(given)
    saes, hooks = {}, {}
    for layer, entry in itertools.product(values["sites"]["layers"], values["saes"]):
        for width, coefficient in itertools.product(entry["widths"], entry["l1_coefficient"]):
            name = f"{layer}-{entry['architecture']}-{coefficient}"
            saes[name] = CONFIGS[entry["architecture"]](d_in=128, d_sae=width, l1_coefficient=coefficient)
            hooks[name] = f"gpt_neox.layers.{layer}"
    model = load_model("AutoModelForCausalLM", folder, "cpu", hook_names=sorted(set(hooks.values())))
    training = values["training"]
    config = MultiSAETrainingRunnerConfig(
        saes=saes,
        hook_names=hooks,
        model_class_name="AutoModelForCausalLM",
        model_name=folder,
        context_size=values["model"]["context_size"],
        training_tokens=training["tokens"],
        train_batch_size_tokens=training["batch_size"],
        lr=training["lr"],
        store_batch_size_prompts=32,
        streaming=False,
        logger=LoggingConfig(log_to_wandb=False),
        n_checkpoints=0,
        checkpoint_path=None,
        output_path=None,
    )
    dataset = load_dataset("parquet", data_files=text, split="train")
    started = time.perf_counter()
    MultiSAETrainingRunner(config, override_dataset=dataset, override_model=model).run()
    print(json.dumps({"seconds": time.perf_counter() - started, "saes": len(saes)}))


if __name__ == "__main__":
    main()
