"""Gated SAEs trained by dictionary_learning and by SAELens: their own losses, optimisers, schedules and scaling.

Runs in an environment of those two libraries, without ours; `head_to_head.py` makes it and starts this script:

    python neighbours.py ROWS.safetensors JOBS.json

`rows` [R, n] float32 is the row stream: batch i is rows [iB, (i+1)B). Each job's `out` gets a safetensors file with the
SAE for raw activations (W_enc [n, M], W_dec [M, n], b_dec, b_gate, b_mag, r_mag) and what the library itself makes of
some rows (probe_x, probe_acts, probe_x_hat).

What the two do (read in dictionary-learning 0.1.0, `trainers/gdm.py`, `training.py`; sae-lens 6.54.12,
`saes/gated_sae.py`, `training/sae_trainer.py`). Both: sums over coordinates and features, mean over the batch.
    dictionary_learning  x' = x / rms‖x‖; the paper's loss, auxiliary decoder frozen; unit decoder norms, parallel
        gradient projected out; Adam 0, 0.999; no clipping. Defaults: lr warm-up 1000 steps (linear, from 0), λ warm-up
        2000 steps, no decay. Biases × rms at the end.
    SAELens  x' = x √n / E‖x‖ (`expected_average_only_in`); L1 weighted by ‖d_i‖, which are free and start at 0.1, W_enc
        := W_decᵀ; auxiliary decoder not frozen; Adam 0.9, 0.999; gradient norm clipped at 1. Defaults: no warm-up, no
        decay; its tutorial: λ warm-up 5 %, lr decay over the last 20 %. W_enc × k, W_dec ÷ k, b_dec ÷ k at the end.
λ here is ours (‖·‖² summed, E‖x‖² = n); λ_raw = λ / k for a loss on k·x, hence the factors below.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
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


def dictionary_learning(rows_RD: Tensor, job: Job) -> dict[str, Tensor]:
    from dictionary_learning.dictionary import GatedAutoEncoder
    from dictionary_learning.trainers.gdm import GatedSAETrainer
    from dictionary_learning.training import trainSAE

    n, steps = rows_RD.shape[1], job["steps"]
    config = {
        "trainer": GatedSAETrainer,
        "steps": steps,
        "activation_dim": n,
        "dict_size": job["d_sae"],
        "layer": 0,
        "lm_name": "rows",
        "device": "cpu",
        "lr": job["lr"],
        "l1_penalty": job["l1"] / math.sqrt(n),  # E‖x'‖² = 1
        "warmup_steps": round(job["lr_warmup"] * steps),
        "sparsity_warmup_steps": round(job["l1_warmup"] * steps),
        "decay_start": round((1 - job["lr_decay"]) * steps) if job["lr_decay"] else None,
        "seed": job["seed"],
    }
    with tempfile.TemporaryDirectory() as directory:
        data = Batches(rows_RD, job)
        trainSAE(data, [config], steps, save_dir=directory, normalize_activations=True, device="cpu")
        state = torch.load(Path(directory, "trainer_0", "ae.pt"), weights_only=True)
    ae = GatedAutoEncoder(n, job["d_sae"])
    ae.load_state_dict(state)
    return probed(rows_RD, ae) | {
        "W_enc": ae.encoder.weight.T,
        "W_dec": ae.decoder.weight.T,
        "b_dec": ae.decoder_bias,
        "b_gate": ae.gate_bias,
        "b_mag": ae.mag_bias,
        "r_mag": ae.r_mag,
    }


def sae_lens(rows_RD: Tensor, job: Job) -> dict[str, Tensor]:
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.gated_sae import GatedTrainingSAE, GatedTrainingSAEConfig
    from sae_lens.training.activation_scaler import ActivationScaler
    from sae_lens.training.sae_trainer import SAETrainer

    n, steps = rows_RD.shape[1], job["steps"]
    scaler = ActivationScaler()  # estimated beforehand: from the trainer's own stream it would swallow the batches
    scaler.estimate_scaling_factor(n, iter(Batches(rows_RD, job)), n_batches_for_norm_estimate=min(1000, steps))
    rms = rows_RD.square().sum(1, dtype=torch.float64).mean().sqrt().item()
    torch.manual_seed(job["seed"])
    sae = GatedTrainingSAE(
        GatedTrainingSAEConfig(
            d_in=n,
            d_sae=job["d_sae"],
            normalize_activations="expected_average_only_in",
            l1_coefficient=job["l1"] * scaler.scaling_factor * rms / math.sqrt(n),  # √n ÷ E‖x‖ instead of √n ÷ rms
            l1_warm_up_steps=round(job["l1_warmup"] * steps),
        )
    )
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
    trainer.fit()
    names = ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag")
    return probed(rows_RD, sae) | {name: getattr(sae, name) for name in names}


@torch.no_grad()
def probed(rows_RD: Tensor, sae: Any) -> dict[str, Tensor]:
    x_BD = rows_RD[-PROBE_ROWS:]
    acts_BF = sae.encode(x_BD)
    return {"probe_x": x_BD, "probe_acts": acts_BF, "probe_x_hat": sae.decode(acts_BF)}


TRAIN = {"dictionary_learning": dictionary_learning, "sae_lens": sae_lens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("jobs", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows_RD = safetensors.torch.load_file(args.rows)["rows"]
    for job in json.loads(args.jobs.read_text("utf-8")):
        with contextlib.redirect_stdout(sys.stderr):  # what the libraries print
            tensors = TRAIN[job["library"]](rows_RD, job)
        copies = {
            name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
        }
        unfinished = Path(job["out"]).with_suffix(".part")
        safetensors.torch.save_file(copies, unfinished)
        unfinished.rename(job["out"])  # a file that is there is whole
        print(f"{job['library']} λ {job['l1']:g} seed {job['seed']}: trained", flush=True)


if __name__ == "__main__":
    main()
