"""`gsae-ray export`: from a folder, a trial's directory or a run, to a folder of a library; MLflow for a run only."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy
import pytest
import torch
from click.testing import CliRunner, Result
from recorder import GATED_1, NEWER, Recorder
from safetensors.torch import save_file
from trials import begin, expand, finish

from gsae_ray.cli.main import main
from gsae_ray.results.frontier import frontier
from gsae_ray.saes import SAEConfig, build, load
from gsae_ray.saes.formats import WRITERS


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def export(*arguments: object) -> Result:
    result = invoke("export", *arguments)
    assert result.exit_code == 0, result.output
    return result


def refusal(*arguments: object) -> str:
    result = invoke("export", *arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line


def same_weights(one: Path, other: Path) -> bool:
    first, second = load(one).state_dict(), load(other).state_dict()
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    """A trial that is done."""
    (spec,) = expand("gated")
    directory = begin(tmp_path, spec)
    finish(directory, spec)
    return directory.path


def test_a_trial_goes_out_and_comes_back_in_each_format(trial: Path, tmp_path: Path) -> None:
    result = export(trial, "--format", "saelens", "--out", tmp_path / "saelens")
    sae = load(trial / "sae")
    assert (
        result.output
        == f"gated of {sae.cfg.site}, {sae.cfg.d_sae} features: written to {tmp_path}/saelens as saelens\n"
    )
    assert same_weights(trial / "sae", tmp_path / "saelens")
    export(tmp_path / "saelens", "--format", "dictionary_learning", "--out", tmp_path / "dictionary")
    assert same_weights(trial / "sae", tmp_path / "dictionary")
    export(tmp_path / "dictionary", "--out", tmp_path / "ours")
    assert same_weights(trial / "sae", tmp_path / "ours")
    folded = export(trial, "--format", "jumprelu", "--fold-b-dec", "--out", tmp_path / "folded")
    assert folded.output.splitlines()[1].startswith("How many on/off decisions changed by rounding was not counted")
    assert json.loads((tmp_path / "folded/cfg.json").read_text())["apply_b_dec_to_input"] is False


def test_it_says_how_many_decisions_change_where_b_dec_is_folded(tmp_path: Path) -> None:
    """In float32, 0.5 − 2²⁴ is −2²⁴: of the first row the first feature is on, by 0.5, and off once that is rounded."""
    sae = build(SAEConfig(architecture="jumprelu", d_in=1, d_sae=3))
    with torch.no_grad():
        sae.W_enc.fill_(1.0)
        sae.b_dec.fill_(2.0**24)
        sae.get_parameter("b_enc").copy_(torch.tensor([0.5, 1.0, -0.5]))
    sae.save(tmp_path / "sae")
    x_RD = torch.tensor([[2.0**24], [2.0**24 + 4], [0.0]])
    numpy.save(tmp_path / "rows.npy", x_RD.numpy())
    save_file({"x": x_RD.double()}, tmp_path / "rows.safetensors")
    fold = ("--format", "jumprelu", "--fold-b-dec", "--rows")
    for name in ("rows.npy", "rows.safetensors"):
        result = export(tmp_path / "sae", *fold, tmp_path / name, "--out", tmp_path / f"out of {name}")
        assert result.output.splitlines()[1] == "1 of 9 on/off decisions changed, on 3 rows"
    out = ("--out", tmp_path / "none")
    assert "--rows: only what --fold-b-dec changes" in refusal(tmp_path / "sae", "--rows", tmp_path / "rows.npy", *out)
    numpy.save(tmp_path / "wide.npy", numpy.ones((3, 2), dtype="float32"))
    numpy.save(tmp_path / "nan.npy", numpy.full((3, 1), numpy.nan, dtype="float32"))
    numpy.save(tmp_path / "objects.npy", numpy.array([{}], dtype=object))
    save_file({"x": x_RD, "y": x_RD.clone()}, tmp_path / "two.safetensors")
    for name, named in (
        ("wide.npy", "has [3, 2] of torch.float32, not activations [rows, 1]"),
        ("nan.npy", "has numbers that are not finite"),
        ("objects.npy", "is not an .npy, or safetensors with one tensor"),
        ("two.safetensors", "is not an .npy, or safetensors with one tensor"),
        ("missing.npy", "is not an .npy, or safetensors with one tensor"),
    ):
        line = refusal(tmp_path / "sae", *fold, tmp_path / name, *out)
        assert line.startswith("gsae-ray: --rows: ") and named in line
    assert not (tmp_path / "none").exists()


def test_a_trial_that_was_saved_in_the_format_before_is_read(tmp_path: Path) -> None:
    with tarfile.open(Path(__file__).parents[1] / "storage/before_layout.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    (cfg,) = tmp_path.glob("before/trials/*/sae/cfg.json")
    assert json.loads(cfg.read_text())["format"] == "gsae-1"
    export(cfg.parents[1], "--format", "saelens", "--out", tmp_path / "out")
    assert same_weights(cfg.parent, tmp_path / "out")


def test_a_run_is_fetched_and_best_takes_the_same_formats(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.record("sweep", NEWER, [(GATED_1[0], {"l0": 10.0, "loss_recovered": 0.9})])
    run_id = frontier("sweep", tracking_uri=recorder.uri)["run_id"][0]
    uri = ("--tracking-uri", recorder.uri)
    export(run_id, *uri, "--format", "saelens", "--out", tmp_path / "out")
    saved = tmp_path / "sweep" / NEWER / GATED_1[0].directory_name / "sae"
    assert same_weights(saved, tmp_path / "out")
    result = invoke("best", "sweep", "--max-l0", 40, *uri, "--format", "saelens", "--out", tmp_path / "best")
    assert result.exit_code == 0, result.output
    assert same_weights(saved, tmp_path / "best")
    line = refusal("0" * 32, *uri, "--out", tmp_path / "none")
    assert f"DIR_OR_RUN: the SAE of run {'0' * 32} cannot be fetched" in line


def test_of_a_folder_neither_mlflow_nor_ray_is_imported(trial: Path, tmp_path: Path) -> None:
    arguments = ["export", str(trial), "--format", "saelens", "--out", str(tmp_path / "out")]
    script = f"""
import sys
from gsae_ray.cli.main import main
main({arguments!r}, standalone_mode=False)
print([name for name in ("mlflow", "ray", "transformers", "huggingface_hub") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_cannot_be_exported_is_one_line_and_nothing_is_written(trial: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    assert "nowhere: no SAE here (nowhere is missing); known are" in refusal(tmp_path / "nowhere", *out)
    assert "--format: unknown 'sealens'; did you mean 'saelens'?" in refusal(trial, *out, "--format", "sealens")
    assert "--fold-b-dec: only --format jumprelu" in refusal(trial, *out, "--fold-b-dec")
    assert "sparsify" in refusal(trial, *out, "--format", "sparsify")
    assert "--out: " in refusal(trial, "--out", trial)
    assert "s3:/" in refusal("s3://bucket/sae", *out)
    weights = trial / "sae/sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    expected = "sae_weights.safetensors: this file is damaged; run its sweep again, which trains this SAE again"
    assert expected in refusal(trial, *out)
    unfinished = begin(tmp_path, expand("standard")[0]).path
    assert f"{unfinished}: this trial is not finished; it has no SAE yet" in refusal(unfinished, *out)
    failed = begin(tmp_path / "failed", expand("standard")[0])
    failed.fail("NaN")
    assert "this trial has failed (NaN); it has no SAE" in refusal(failed.path, *out)
    assert not (tmp_path / "out").exists()


def test_help_names_every_format() -> None:
    for command in ("export", "best"):
        text = invoke(command, "--help").output
        assert all(name in text for name in WRITERS)
