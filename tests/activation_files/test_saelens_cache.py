"""SAELens itself reads the caches that we write, and trains on them; we read the caches that it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from environments import run_in
from rich.console import Console
from safetensors.torch import load_file

import gsae_ray
from gsae_ray.activation_files.find import find_files
from gsae_ray.activation_files.opened import ForeignFiles
from gsae_ray.config.sweep import Sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # makes an environment

SCRIPT = Path(__file__).with_name("saelens_cache.py")
HOOK, CONTEXT, EXCLUDED = "blocks.1.hook_resid_post", 16, 0  # as there


def test_saelens_reads_and_trains_on_what_we_collect(neighbours_python: Path, tmp_path: Path) -> None:
    """With position 0 and special tokens, which are no rows here: it has masks of its own."""
    sites = ["blocks.1.hook_resid_post", "blocks.2.attn.hook_z"]
    sweep = Sweep.model_validate(
        {
            "name": "small",
            "model": {"name": "builtin", "context_size": CONTEXT},
            "dataset": {"name": "builtin", "shuffle_tokens": 500},
            "sites": {"layers": [1, 2], "points": ["resid_post", "attn_z"]},
            "saes": [{"architecture": "gated", "widths": [16], "l1_coefficient": 1.0}],
            "training": {"tokens": 2048, "batch_size": 64},
            "evaluation": {"tokens": 256},
        }
    )
    options = {"storage": tmp_path / "runs", "console": Console(quiet=True), "sites": sites}
    ours = gsae_ray.collect(sweep, tmp_path / "saelens", layout="saelens", **options).folder  # type: ignore[arg-type]
    plain = gsae_ray.collect(sweep, tmp_path / "plain", **options).folder  # type: ignore[arg-type]
    run_in(neighbours_python, SCRIPT, "load", ours / "train")
    contexts = [load_file(file) for file in sorted((plain / "train/contexts").iterdir())]
    tokens, kept = (torch.cat([file[name] for file in contexts]) for name in ("tokens", "kept"))
    assert (tokens == EXCLUDED).any() and not kept.all()
    for site in sites:
        read = load_file(ours / "train" / f"{site}.safetensors")
        positions = len(read["tokens"])
        assert torch.equal(read["tokens"], tokens.flatten()[:positions])
        files = sorted((plain / "train" / site).iterdir())
        rows = torch.cat([load_file(file)["activations"] for file in files])
        ours_kept = kept.flatten()[:positions]
        assert torch.equal(read["activations"][ours_kept], rows[: int(ours_kept.sum())]), "the rows that we train on"
        special = tokens.flatten()[:positions] == EXCLUDED
        assert torch.equal(read["filtered"], read["activations"][~special]), "by its own mask"


def test_we_read_what_saelens_caches(neighbours_python: Path, tmp_path: Path) -> None:
    run_in(neighbours_python, SCRIPT, "make", tmp_path)
    made = load_file(tmp_path / "made.safetensors")
    format_, files = find_files(str(tmp_path / "cache"), None, "activations.path")
    found = ForeignFiles(format_, tuple(files), None, None, 1, skip_positions=1, key="activations.path").open([HOOK])
    index_R = found.groups.locate(np.arange(len(found.groups.rows_G))).index_R
    assert torch.equal(found.tables[HOOK].take(index_R), made["activations"][:, 1:].flatten(0, 1))
    tokens = found.tokens()
    assert tokens is not None and np.array_equal(tokens, made["tokens"].numpy())
