"""SAEs trained by dictionary_learning and by SAELens: their own losses, optimisers, schedules and scaling.

Runs in an environment of those two libraries, without ours; `head_to_head.py` makes it and starts this script:

    python neighbours.py ROWS.safetensors JOBS.json

`rows` [R, n] float32 is the row stream: batch i is rows [iB, (i+1)B). Each job's `out` becomes a folder with the SAE in
the library's own format, for raw activations, and `probes.safetensors`: what the library makes of some rows with the
SAE that it loads from there (probe_x, probe_acts, probe_x_hat).

What the two do (read in dictionary-learning 0.1.0, `trainers/`, `training.py`; sae-lens 6.54.12, `saes/`,
`training/sae_trainer.py`). Both: sums over coordinates and features, mean over the batch.
    dictionary_learning  x' = x / rms‖x‖; decoder norms 1 (StandardTrainerAprilUpdate: free), the gradient along them
        projected out. Adam 0.9, 0.999; of gated and JumpReLU SAEs 0, 0.999. Gradient norm clipped at 1, but not of
        gated, standard (without April) and p-annealed ones. Defaults: lr warm-up 1000 steps (linear, from 0), sparsity
        warm-up 2000 steps, no decay. Biases × rms at the end.
        TopK and its kin: b_dec := geometric median of the first batch; an auxiliary loss of features that were silent
        for 10,000,000 rows. Matryoshka: the mean of the prefixes' losses, divided by their number once more.
        JumpReLU: θ := 0.001, bandwidth 0.001; (L0 / target − 1)² is the one penalty; b_dec is not subtracted.
        p_anneal: (Σ f^p)^(1/p), or as in the paper Σ f^p (`Lp^p`); p falls from 1 to its last value but one.
    SAELens  x' = x √n / E‖x‖ (`expected_average_only_in`); decoder norms are free and start at 0.1, W_enc := W_decᵀ;
        L1 weighted by them; gated: auxiliary decoder not frozen; Adam 0.9, 0.999; gradient norm clipped at 1. Defaults:
        no warm-up, no decay; its tutorial: sparsity warm-up 5 %, lr decay over the last 20 %. W_enc × k, W_dec ÷ k,
        b_dec ÷ k at the end.
        TopK and its kin: activations are multiplied by decoder norms before the largest are chosen; an auxiliary loss
        of features that were silent for 1000 steps. JumpReLU: θ := 0.01, bandwidth 0.05, the L0 penalty.
λ here is ours (‖·‖² summed, E‖x‖² = n); λ_raw = λ / k for a loss on k·x, hence the factors below. Of JumpReLU SAEs
it is a share of E‖x‖²; `sparsity` of those of dictionary_learning is the L0 that is asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["WANDB_MODE"] = "disabled"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import safetensors.torch
import torch
from torch import Tensor

PROBE_ROWS = 256
Job = dict[str, Any]


class Batches:
    """The stream, as often as it is asked for; copies, since trainSAE divides in place."""

    def __init__(self, rows_RD: Tensor, job: Job) -> None:
        self.rows_RD, self.size, self.steps = rows_RD, job["batch_size"], job["steps"]

    def __iter__(self) -> Iterator[Tensor]:
        for step in range(self.steps):
            yield self.rows_RD[step * self.size : (step + 1) * self.size].clone()


# ---- dictionary_learning --------------------------------------------------------------------------------------------


def dictionary_learning_trainer(job: Job, n: int) -> dict[str, Any]:
    """The trainer, and the settings that it has besides those of all."""
    from dictionary_learning.trainers import batch_top_k, gdm, jumprelu, p_anneal, standard, top_k
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer

    sparsity, steps = job["sparsity"], job["steps"]
    l1 = sparsity / math.sqrt(n)  # E‖x'‖² = 1
    warmup = {"sparsity_warmup_steps": round(job["l1_warmup"] * steps)}
    match job["architecture"]:
        case "gated":
            return {"trainer": gdm.GatedSAETrainer, "l1_penalty": l1, **warmup}
        case "standard":
            april = job["library"] == "dictionary_learning_april"
            trainer = standard.StandardTrainerAprilUpdate if april else standard.StandardTrainer
            return {"trainer": trainer, "l1_penalty": l1, **warmup}
        case "topk":
            return {"trainer": top_k.TopKTrainer, "k": sparsity}
        case "batchtopk":
            return {"trainer": batch_top_k.BatchTopKTrainer, "k": sparsity}
        case "matryoshka_batchtopk":
            sizes = [end - first for first, end in itertools.pairwise((0, *job["prefix_widths"]))]
            fractions = [size / job["d_sae"] for size in sizes]
            return {"trainer": MatryoshkaBatchTopKTrainer, "k": sparsity, "group_fractions": fractions}
        case "jumprelu":
            return {"trainer": jumprelu.JumpReluTrainer, "target_l0": sparsity, **warmup}
        case "p_anneal":
            function = "Lp^p" if job["library"] == "dictionary_learning_lp_p" else "Lp"
            anneal = {"anneal_start": math.ceil(job["anneal_start"] * steps), "p_end": job["p_end"]}
            anneal |= {"sparsity_function": function, "initial_sparsity_penalty": l1}
            return {"trainer": p_anneal.PAnnealTrainer, **anneal, **warmup}
    raise ValueError(job["architecture"])


def dictionary_learning(rows_RD: Tensor, job: Job, out: Path) -> Any:
    from dictionary_learning.training import trainSAE
    from dictionary_learning.utils import load_dictionary

    n, steps = rows_RD.shape[1], job["steps"]
    config = {
        **dictionary_learning_trainer(job, n),
        "steps": steps,
        "activation_dim": n,
        "dict_size": job["d_sae"],
        "layer": 0,
        "lm_name": "rows",
        "device": "cpu",
        "lr": job["lr"],
        "warmup_steps": round(job["lr_warmup"] * steps),
        "decay_start": round((1 - job["lr_decay"]) * steps) if job["lr_decay"] else None,
        "seed": job["seed"],
    }
    torch.manual_seed(job["seed"])  # JumpReluTrainer makes no use of its own
    with tempfile.TemporaryDirectory() as directory:
        data = Batches(rows_RD, job)
        trainSAE(data, [config], steps, save_dir=directory, normalize_activations=True, device="cpu")
        shutil.copytree(Path(directory, "trainer_0"), out)
    return load_dictionary(str(out), device="cpu")[0]


# ---- SAELens --------------------------------------------------------------------------------------------------------


def sae_lens_training_sae(job: Job, n: int, scaling_factor: float, rms: float) -> Any:
    """An SAE to be trained; activations are multiplied by the factor."""
    from sae_lens.saes import batchtopk_sae, gated_sae, jumprelu_sae, matryoshka_batchtopk_sae, standard_sae, topk_sae

    sparsity, warm_up_steps = job["sparsity"], round(job["l1_warmup"] * job["steps"])
    l1 = {"l1_coefficient": sparsity * scaling_factor * rms / math.sqrt(n)}  # √n ÷ E‖x‖ instead of √n ÷ rms
    l1["l1_warm_up_steps"] = warm_up_steps
    l0 = {"l0_coefficient": sparsity * (scaling_factor * rms) ** 2, "l0_warm_up_steps": warm_up_steps}
    module, name, settings = {
        "gated": (gated_sae, "Gated", l1),
        "standard": (standard_sae, "Standard", l1),
        "topk": (topk_sae, "TopK", {"k": sparsity}),
        "batchtopk": (batchtopk_sae, "BatchTopK", {"k": sparsity}),
        "matryoshka_batchtopk": (
            matryoshka_batchtopk_sae,
            "MatryoshkaBatchTopK",
            {"k": sparsity, "matryoshka_widths": job.get("prefix_widths")},
        ),
        "jumprelu": (jumprelu_sae, "JumpReLU", l0),
    }[job["architecture"]]
    config = getattr(module, f"{name}TrainingSAEConfig")
    scaled = {"normalize_activations": "expected_average_only_in"}
    return getattr(module, f"{name}TrainingSAE")(config(d_in=n, d_sae=job["d_sae"], **scaled, **settings))


def sae_lens(rows_RD: Tensor, job: Job, out: Path) -> Any:
    from sae_lens import SAE
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.activation_scaler import ActivationScaler
    from sae_lens.training.sae_trainer import SAETrainer

    n, steps = rows_RD.shape[1], job["steps"]
    scaler = ActivationScaler()  # estimated beforehand: from the trainer's own stream it would swallow the batches
    scaler.estimate_scaling_factor(n, iter(Batches(rows_RD, job)), n_batches_for_norm_estimate=min(1000, steps))
    rms = rows_RD.square().sum(1, dtype=torch.float64).mean().sqrt().item()
    torch.manual_seed(job["seed"])
    sae = sae_lens_training_sae(job, n, scaler.scaling_factor, rms)
    config = SAETrainerConfig(
        total_training_samples=steps * job["batch_size"],
        train_batch_size_samples=job["batch_size"],
        lr=job["lr"],
        lr_end=job["lr"] / 10,  # its runner's default; not read by the constant schedule
        lr_warm_up_steps=round(job["lr_warmup"] * steps),
        lr_decay_steps=round(job["lr_decay"] * steps),
    )
    trainer = SAETrainer(config, sae, iter(Batches(rows_RD, job)))
    trainer.activation_scaler = scaler
    trainer.fit()  # which folds the scaling in the end
    sae.save_inference_model(out)
    return SAE.load_from_disk(out)


# ---- jobs -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def probed(rows_RD: Tensor, sae: Any) -> dict[str, Tensor]:
    x_BD = rows_RD[-PROBE_ROWS:].clone()
    acts_BF = sae.encode(x_BD)
    return {"probe_x": x_BD, "probe_acts": acts_BF.contiguous(), "probe_x_hat": sae.decode(acts_BF).contiguous()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("jobs", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows_RD = safetensors.torch.load_file(args.rows)["rows"]
    for job in json.loads(args.jobs.read_text("utf-8")):
        train = sae_lens if job["library"] == "sae_lens" else dictionary_learning
        out = Path(job["out"])
        unfinished = out.with_name(f"{out.name}.part")
        shutil.rmtree(unfinished, ignore_errors=True)
        with contextlib.redirect_stdout(sys.stderr):  # what the libraries print
            sae = train(rows_RD, job, unfinished)
        safetensors.torch.save_file(probed(rows_RD, sae), unfinished / "probes.safetensors")
        unfinished.rename(out)  # a folder that is there is whole
        print(f"{job['library']} {job['sparsity']:g} seed {job['seed']}: trained", flush=True)


if __name__ == "__main__":
    main()
