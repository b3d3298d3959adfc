"""Transcoders that we wrote compute in SAELens, sparsify and circuit-tracer what they compute here, in a model too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import save_transformer_lens
from environments import CIRCUIT_TRACER, environment, run_in
from safetensors.torch import load_file, save_file
from torch import Tensor
from transcoders import transcoder

from gsae_ray.config.sections import ModelSettings
from gsae_ray.config.site import Site
from gsae_ray.evaluation.evaluator import Evaluator
from gsae_ray.language_model.hooks import capture
from gsae_ray.language_model.loading import load_model
from gsae_ray.saes import SAE, SAEConfig, build
from gsae_ray.saes.export import export

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # makes environments

SCRIPT = Path(__file__).with_name("neighbours.py")
HERE = [Site.of_transcoder(Site.of_point(layer, "mlp_in"), "mlp_out") for layer in (0, 1)]


def every_position(tokens_BT: Tensor) -> Tensor:
    return torch.ones_like(tokens_BT, dtype=torch.bool)


def test_what_is_written_for_the_libraries_computes_the_same_there(neighbours_python: Path, tmp_path: Path) -> None:
    x_BD = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    save_file({"x": x_BD}, tmp_path / "x.safetensors")
    written = {
        **{f"gsae-{kind}{skip}": (kind, skip) for kind in ("standard", "jumprelu", "batchtopk") for skip in (0, 1)},
        **{f"saelens-p_anneal{skip}": ("p_anneal", skip) for skip in (0, 1)},
        **{f"jumprelu-gated{skip}": ("gated", skip) for skip in (0, 1)},
        **{f"sparsify-topk{skip}": ("topk", skip) for skip in (0, 1)},
    }
    saes = {name: transcoder(kind, bool(skip)) for name, (kind, skip) in written.items()}
    for name, sae in saes.items():
        export(sae, tmp_path / name, format=name.partition("-")[0])
    run_in(neighbours_python, SCRIPT, "load", tmp_path)
    for name, sae in saes.items():
        computed = load_file(tmp_path / name / "computed.safetensors")
        with torch.no_grad():
            torch.testing.assert_close(computed["acts"], sae.encode(x_BD), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(computed["out"], sae(x_BD), rtol=1e-5, atol=1e-4)


def of_model(folder: Path, skip: bool, seed: int) -> tuple[dict[Site, SAE], Evaluator, dict[Site, Tensor]]:
    """A transcoder for each layer of a model of TransformerLens, an evaluator, and what they read of 8 contexts."""
    directory = folder / "model"
    if not directory.exists():
        save_transformer_lens(directory)
    model = load_model(ModelSettings(name=str(directory), context_size=32))
    generator = torch.Generator().manual_seed(0)
    tokens_ET = torch.randint(4096, (8, 32), generator=generator)
    save_file({"tokens": tokens_ET}, folder / "tokens.safetensors")
    activations = capture(model, tokens_ET, [place for site in HERE for place in site.places])
    saes = {}
    for site in HERE:
        x_BD, y_BD = (activations[place].flatten(0, 1) for place in site.places)
        sizes = {"d_in": x_BD.shape[1], "d_out": y_BD.shape[1], "d_sae": 96, "skip": skip}
        places = {"site": site.source.name, "target": site.target.name}
        metadata = {"model": {"name": "tiny", "context_size": 32}}
        sae = build(SAEConfig.model_validate({"architecture": "standard", **sizes, **places, "metadata": metadata}))
        sae.initialise(generator.manual_seed(seed), y_BD.mean(0), "paper")
        with torch.no_grad():
            sae.get_parameter("b_enc").copy_(torch.randn(96, generator=generator) * 0.2)
            if skip:
                sae.W_skip.copy_(torch.randn(sae.W_skip.shape, generator=generator) * 0.1)
        saes[site] = sae.eval()
    return saes, Evaluator(model, tokens_ET, every_position, batch=4), activations


def test_spliced_in_by_saelens_it_has_the_loss_that_we_measure_but_for_a_skip_connection(
    neighbours_python: Path, tmp_path: Path
) -> None:
    """SAELens 6.54.12 decodes where it splices, and adds W_skip x in `forward` only: it leaves that out."""
    expected: dict[str, float] = {}
    for skip in (False, True):
        saes, evaluator, _ = of_model(tmp_path, skip, seed=3)
        for site, sae in saes.items():
            name = f"{site.layer} {'with' if skip else 'without'} skip"
            export(sae, tmp_path / "saes" / name)
            metrics = evaluator.evaluate(site, sae).metrics
            expected |= {"clean": metrics["ce_clean"], name: metrics["ce_spliced"]}
            if skip:
                with torch.no_grad():
                    sae.W_skip.zero_()
                left_out = evaluator.evaluate(site, sae).metrics["ce_spliced"]
                assert abs(left_out - expected[name]) > 1e-3
                expected[name] = left_out
    run_in(neighbours_python, SCRIPT.with_name("spliced.py"), tmp_path)
    assert json.loads((tmp_path / "losses.json").read_text()) == pytest.approx(expected, abs=1e-4)
    assert min(abs(value - expected["clean"]) for name, value in expected.items() if name != "clean") > 1e-3


def test_circuit_tracer_computes_the_same_of_rows_and_in_its_replacement_model(
    shared_folder: Path, tmp_path: Path
) -> None:
    python = environment([CIRCUIT_TRACER, "torch>=2.11,<2.14"], shared_folder / "environments")
    sets: dict[str, list[SAE]] = {}
    for skip in (False, True):
        saes, _, activations = of_model(tmp_path, skip, seed=4)
        for name in ("relu", "jumprelu"):
            of_set = [sae if name == "relu" else sae.to_jumprelu() for sae in saes.values()]
            for sae in of_set:
                if name == "jumprelu":
                    with torch.no_grad():
                        sae.get_parameter("threshold").fill_(0.1)
                export(sae, tmp_path / "sets" / f"{name}{skip}", "circuit-tracer")
            sets[f"{name}{skip}"] = of_set
    x_BD = activations[HERE[0].source][1]
    save_file({"x": x_BD.contiguous()}, tmp_path / "x.safetensors")
    run_in(python, SCRIPT.with_name("circuit_tracer_sets.py"), tmp_path)
    for name, of_set in sets.items():
        computed = load_file(tmp_path / "computed" / f"{name}.safetensors")
        for layer, (site, sae) in enumerate(zip(HERE, of_set, strict=True)):
            with torch.no_grad():
                torch.testing.assert_close(computed["acts"][layer], sae.encode(x_BD), rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(computed["out"][layer], sae(x_BD), rtol=1e-4, atol=1e-4)
                acts_TF = sae.encode(activations[site.source][0])
            assert not computed["features"][layer][0].any(), "it leaves out the first position"
            torch.testing.assert_close(computed["features"][layer][1:], acts_TF[1:], rtol=1e-4, atol=1e-4)
