"""`gsae-ray bench step`: the density that was asked for, and the engine."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from gsae_ray.cli.main import main

SMALL = ["--d-in", "32", "--width", "256", "--batch", "128", "--intervals", "1"]


@pytest.mark.parametrize("engine", ["dense", "sparse-cpu"])
@pytest.mark.parametrize("architecture", ["standard", "gated"])
@pytest.mark.parametrize("objective", ["paper", "norm_weighted"])
def test_a_measurement_has_the_density_that_was_asked_for(engine: str, architecture: str, objective: str) -> None:
    what = ["--architecture", architecture, "--engine", engine, "--objective", objective, "--l0", "10"]
    result = CliRunner().invoke(main, ["bench", "step", *SMALL, *what, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["l0"] == pytest.approx(10, rel=0.15)
    assert found["ms_per_step"] > 0
    assert (found["engine"], found["architecture"], found["d_sae"], found["steps"]) == (engine, architecture, 256, 10)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka_batchtopk", "jumprelu", "p_anneal"])
def test_every_architecture_can_be_measured(architecture: str) -> None:
    result = CliRunner().invoke(main, ["bench", "step", *SMALL, "--architecture", architecture, "--l0", "10", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["l0"] == pytest.approx(10, rel=0.15)
    assert (found["architecture"], found["objective"]) == (architecture, "unit_norm")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (["--l0", "200"], "--l0: 200 of 256 features; give 0.01 to half of them"),
        (["--l0", "1e-17"], "--l0: 1e-17 of 256 features; give 0.01 to half of them"),
        (["--architecture", "topk", "--objective", "paper"], "--objective: a topk SAE has one only; leave it out"),
        (
            ["--architecture", "topk", "--engine", "sparse-cpu"],
            "--engine: sparse-cpu has no topk SAEs; --engine dense has",
        ),
        (["--device", "cpu", "--precision", "bf16"], "--precision: bf16 is for --device cuda; float32 runs on both"),
        (
            ["--engine", "sparse-cpu", "--precision", "tf32"],
            "--precision: tf32 is for --engine dense; the sparse ones have float32's products",
        ),
        (
            ["--engine", "sparse-cuda", "--device", "cpu"],
            "--engine: sparse-cuda does not run on --device cpu; dense runs on both",
        ),
    ],
)
def test_what_cannot_be_measured_is_one_line(what: list[str], said: str) -> None:
    result = CliRunner().invoke(main, ["bench", "step", *SMALL, *what])
    assert result.exit_code == 2
    assert result.output == f"gsae-ray: {said}\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize(
    ("what", "named"),
    [
        (["--device", "cuda"], "--device: cuda"),
        (["--engine", "sparse-cuda"], "--engine: sparse-cuda is for GPUs"),
        (["--precision", "bf16"], "--precision: bf16 is for GPUs"),
    ],
)
def test_without_a_gpu_what_is_for_gpus_is_one_line(what: list[str], named: str) -> None:
    result = CliRunner().invoke(main, ["bench", "step", *SMALL, *what])
    assert result.exit_code == 2
    said = f"{named}, but PyTorch finds no GPU here; --engine dense and sparse-cpu, in float32, run on the CPU"
    assert result.output == f"gsae-ray: {said}\n"


def test_without_json_it_is_a_sentence() -> None:
    result = CliRunner().invoke(main, ["bench", "step", *SMALL, "--l0", "10"])
    assert " ms a step: gated (norm_weighted), 32 -> 256, batch 128, L0 " in result.output
