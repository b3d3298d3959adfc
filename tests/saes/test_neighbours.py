"""SAEs of the real libraries compute here what they compute there, and ours do there what they do here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import save_transformer_lens
from click.testing import CliRunner
from environments import run_in
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from gsae_ray.cli.main import main
from gsae_ray.config.sections import ModelSettings
from gsae_ray.config.site import Site
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver.launch import run
from gsae_ray.evaluation.evaluator import Evaluator
from gsae_ray.language_model.hooks import capture
from gsae_ray.language_model.loading import load_model
from gsae_ray.saes import SAE, BatchTopKSAE, SAEConfig, build, load
from gsae_ray.saes.export import export
from gsae_ray.saes.jumprelu import JumpReLUSAE
from gsae_ray.saes.topk import TopKSAE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # makes an environment

SCRIPT = Path(__file__).with_name("neighbours.py")
N, M, ROWS = 16, 48, 256
WRITTEN: dict[str, tuple[str, dict[str, Any]]] = {
    "gsae-standard": ("standard", {"l1_coefficient": 1.0}),
    "gsae-gated": ("gated", {"l1_coefficient": 1.0}),
    "gsae-gated at attn_z": ("gated", {"l1_coefficient": 1.0}),
    "gsae-gated of x": ("gated", {"l1_coefficient": 1.0, "subtract_b_dec": False}),
    "gsae-rescale_shift": ("rescale_shift", {"l1_coefficient": 1.0}),
    "gsae-jumprelu": ("jumprelu", {}),
    "gsae-jumprelu of x": ("jumprelu", {"subtract_b_dec": False}),
    "gsae-topk": ("topk", {"k": 5}),
    "gsae-topk of x": ("topk", {"k": 5, "subtract_b_dec": False}),
    "saelens-standard": ("standard", {"l1_coefficient": 1.0}),
    "saelens-gated": ("gated", {"l1_coefficient": 1.0}),
    "saelens-standard of x": ("standard", {"l1_coefficient": 1.0, "subtract_b_dec": False}),
    "saelens-jumprelu of x": ("jumprelu", {"subtract_b_dec": False}),
    "saelens-topk": ("topk", {"k": 5}),
    "jumprelu-standard of x": ("standard", {"l1_coefficient": 1.0, "subtract_b_dec": False}),
    "jumprelu-standard": ("standard", {"l1_coefficient": 1.0}),
    "dictionary_learning-standard": ("standard", {"l1_coefficient": 1.0}),
    "dictionary_learning-standard of other norms": ("standard", {"l1_coefficient": 1.0}),
    "dictionary_learning-gated of x": ("gated", {"l1_coefficient": 1.0, "subtract_b_dec": False}),
    "dictionary_learning-gated": ("gated", {"l1_coefficient": 1.0}),
    "dictionary_learning-rescale_shift": ("rescale_shift", {"l1_coefficient": 1.0}),
    "dictionary_learning-jumprelu": ("jumprelu", {}),
    "dictionary_learning-jumprelu of x": ("jumprelu", {"subtract_b_dec": False}),
    "dictionary_learning-topk": ("topk", {"k": 5}),
    "dictionary_learning-topk of x": ("topk", {"k": 5, "subtract_b_dec": False}),
    "gsae-p_anneal": ("p_anneal", {"l1_coefficient": 1.0}),
    **{
        f"{format}-{architecture}": (architecture, {"k": 5})
        for format in ("gsae", "saelens", "jumprelu", "dictionary_learning")
        for architecture in ("batchtopk", "matryoshka_batchtopk")
    },
    "dictionary_learning-p_anneal": ("p_anneal", {"l1_coefficient": 1.0}),
    "sparsify-topk": ("topk", {"k": 5}),
    "sparsify-topk of x": ("topk", {"k": 5, "subtract_b_dec": False}),
}
"""Folder -> architecture and hyperparameters of an SAE that is written there; up to the hyphen it names the format."""


def finished(architecture: str, hyperparameters: dict[str, Any], x_BD: Tensor, site: str, unit_norms: bool) -> SAE:
    """Random weights of few binary digits, decoder rows of norm 1; feature f is exactly at its threshold in row f."""
    metadata = {"model": {"name": "gpt2", "context_size": 32}}
    fields: dict[str, Any] = {"architecture": architecture, "hyperparameters": hyperparameters, "metadata": metadata}
    sae = build(SAEConfig(d_in=N, d_sae=M, site=site, **fields))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_((torch.randn(parameter.shape, generator=generator) * 4).round() / 8)
        if unit_norms:
            sae.normalise_decoder()
        pre_BF = (x_BD - sae.b_dec if sae.subtracts_b_dec else x_BD) @ sae.W_enc
        if isinstance(sae, JumpReLUSAE):
            sae.threshold.copy_((pre_BF + sae.b_enc)[:M].diagonal().clamp_min(0))
        elif hasattr(sae, "b_gate"):
            sae.get_parameter("b_gate").copy_(-pre_BF[:M].diagonal())
        elif isinstance(sae, BatchTopKSAE):  # one threshold, at which some activation is
            at_F = (pre_BF + sae.b_enc)[:M].diagonal()
            sae.threshold.fill_(at_F[at_F > 0].median().item())
        elif isinstance(sae, TopKSAE):  # no two alike: which of them is kept is nowhere said
            sae.b_enc.add_(torch.randn(M, generator=generator) / 100)
    return sae


def same(sae: SAE, computed: dict[str, Tensor]) -> None:
    with torch.no_grad():
        acts_BF = sae.encode(computed["x"])
        assert 0.02 < (acts_BF > 0).double().mean() < 0.98
        torch.testing.assert_close(acts_BF, computed["acts"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sae.decode(computed["acts"], computed["x"]), computed["out"], rtol=1e-5, atol=1e-5)


def test_what_the_libraries_save_is_loaded_and_computes_the_same(neighbours_python: Path, tmp_path: Path) -> None:
    run_in(neighbours_python, SCRIPT, "make", tmp_path / "made")
    made = sorted((tmp_path / "made").iterdir())
    assert len(made) == 35
    for directory in made:
        sae = load(directory)
        same(sae, load_file(directory / "computed.safetensors"))
        sae.save(tmp_path / "ours" / directory.name)  # and as ours it stays that
        same(load(tmp_path / "ours" / directory.name), load_file(directory / "computed.safetensors"))


def test_what_is_written_for_the_libraries_is_loaded_there_and_computes_the_same(
    neighbours_python: Path, tmp_path: Path
) -> None:
    x_BD = (torch.randn(ROWS, N, generator=torch.Generator().manual_seed(4)) * 4).round() / 8
    save_file({"x": x_BD}, tmp_path / "x.safetensors")
    sites = {name: f"blocks.1.{'attn.hook_z' if name.endswith('attn_z') else 'hook_resid_post'}" for name in WRITTEN}
    saes = {name: finished(*what, x_BD, sites[name], "other norms" not in name) for name, what in WRITTEN.items()}
    for name, sae in saes.items():
        export(sae, tmp_path / name, format=name.partition("-")[0])
    run_in(neighbours_python, SCRIPT, "load", tmp_path)
    for name, sae in saes.items():
        same(sae, load_file(tmp_path / name / "computed.safetensors"))


# ---- in a language model --------------------------------------------------------------------------------------------

SPLICED = [Site(f"blocks.{layer}.{point}") for layer, point in ((0, "hook_resid_post"), (1, "hook_mlp_out"))]
SPLICED += [Site("blocks.1.attn.hook_z")]


def every_position(tokens_BT: Tensor) -> Tensor:
    return torch.ones_like(tokens_BT, dtype=torch.bool)


def best_of_a_sweep(folder: Path, model: Path) -> dict[Site, Path]:
    """Trains an SAE at each site; what `gsae-ray best --out` writes of it."""
    sweep = {
        "name": "tiny",
        "model": {"name": str(model), "context_size": 32},
        "dataset": {"name": "builtin"},
        "sites": {"layers": [0, 1], "points": ["resid_post", "mlp_out", "attn_z"]},
        "saes": [
            {"architecture": "gated", "widths": [16], "l1_coefficient": 0.1, "sites": filter_}
            for filter_ in (
                {"layers": [0], "points": ["resid_post"]},
                {"layers": [1], "points": ["mlp_out", "attn_z"]},
            )
        ],
        "training": {"tokens": 8192, "batch_size": 128, "lr": 1e-3},
        "evaluation": {"tokens": 1024},
    }
    uri, out = f"sqlite:///{folder}/mlflow.db", {}
    run(Sweep.model_validate(sweep), tracking_uri=uri, storage=folder / "runs", console=Console(quiet=True))
    for site in SPLICED:
        out[site] = folder / f"best at {site.name}"
        options = ["--site", site.name, "--max-l0", "1000", "--tracking-uri", uri, "--out", str(out[site])]
        answer = CliRunner().invoke(main, ["best", "tiny", *options])
        assert answer.exit_code == 0, answer.output
    return out


def test_a_run_with_our_saes_spliced_in_has_the_loss_that_we_measure(neighbours_python: Path, tmp_path: Path) -> None:
    """At each kind of site: straight from `best`, and of each architecture that is trained."""
    directory = save_transformer_lens(tmp_path / "model")
    model = load_model(ModelSettings(name=str(directory), context_size=32))
    generator = torch.Generator().manual_seed(0)
    tokens_ET = torch.randint(4096, (8, 32), generator=generator)
    save_file({"tokens": tokens_ET}, tmp_path / "tokens.safetensors")
    evaluator = Evaluator(model, tokens_ET, every_position, batch=4)
    activations = capture(model, tokens_ET, SPLICED)
    expected: dict[str, float] = {}
    for site, folder in best_of_a_sweep(tmp_path, directory).items():
        shutil.copytree(folder, tmp_path / "saes" / folder.name)
        expected[folder.name] = evaluator.evaluate(site, load(folder)).metrics["ce_spliced"]
    for site in SPLICED:
        x_BD = activations[site].flatten(0, 1)
        for architecture in ("standard", "gated", "rescale_shift"):
            cfg = SAEConfig(architecture=architecture, d_in=x_BD.shape[1], d_sae=96, site=site.name)
            sae = build(cfg.model_copy(update={"hyperparameters": {"l1_coefficient": 1.0}}))
            sae.initialise(generator, x_BD.mean(0))
            with torch.no_grad():
                for name, parameter in sae.named_parameters():
                    if name in ("b_enc", "b_gate", "b_mag", "r_mag"):
                        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            name = f"{site.name}-{architecture}"
            export(sae.eval(), tmp_path / "saes" / name)
            metrics = evaluator.evaluate(site, sae).metrics
            expected |= {name: metrics["ce_spliced"], "clean": metrics["ce_clean"]}
    run_in(neighbours_python, SCRIPT.with_name("spliced.py"), tmp_path)
    assert json.loads((tmp_path / "losses.json").read_text()) == pytest.approx(expected, abs=1e-4)
    assert min(abs(value - expected["clean"]) for name, value in expected.items() if name != "clean") > 1e-3
