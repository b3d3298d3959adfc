"""Every file in sweeps/ runs end to end, cut down by --set, on a tiny checkpoint of the class that it names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from checkpoints import save_transformer_lens
from click.testing import CliRunner
from mlflow_stores import new_store
from rich.console import Console
from selection import quick

from gsae_ray.cli.main import main
from gsae_ray.config.load import load_sweep
from gsae_ray.config.sections import ModelSettings
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver import launch
from gsae_ray.language_model.loading import load_tokenizer
from gsae_ray.saes import REGISTRY

SWEEPS = Path(__file__).parents[2] / "sweeps"
FILES = sorted(path.name for path in SWEEPS.glob("*.yaml"))
MODELS = {
    "gelu_1l.yaml": "gelu_1l",
    "ablations.yaml": "gelu_1l",
    "pursuit.yaml": "gelu_1l",
    "pythia_2p8b.yaml": "pythia",
    "gemma_7b.yaml": "gemma",
    "smollm2.yaml": "llama",
    "gemma3_270m.yaml": "gemma3",
}
BOTH_OBJECTIVES = ("smollm2.yaml", "gemma3_270m.yaml")
"""Of the files of big models, those that ask the paper's findings of our recipe too."""
CONTEXT = 64


def configurations(size: str) -> dict[str, transformers.PreTrainedConfig]:
    """Of the models' classes: tiny, with the layers that the files name; or of the real sizes."""
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    if size == "tiny":
        pythia = {"hidden_size": 16, "num_hidden_layers": 29, "num_attention_heads": 2, "intermediate_size": 32}
        gemma = {"hidden_size": 16, "num_hidden_layers": 28, "num_attention_heads": 2, "num_key_value_heads": 2}
        gemma |= {"head_dim": 12, "intermediate_size": 32, "vocab_size": 4096}
        pythia |= {"vocab_size": 4096}
        llama, gemma3 = (gemma | {"num_hidden_layers": layers} for layers in (13, 10))
    else:  # EleutherAI/pythia-2.8b, google/gemma-7b, HuggingFaceTB/SmolLM2-135M-Instruct and google/gemma-3-270m
        pythia = {"hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 10240}
        gemma = {"hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 16}
        gemma |= {"head_dim": 256, "intermediate_size": 24576, "vocab_size": 256000}
        pythia |= {"vocab_size": 50304}
        llama = {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
        llama |= {"head_dim": 64, "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True}
        gemma3 = {"hidden_size": 640, "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1}
        gemma3 |= {"head_dim": 256, "intermediate_size": 2048, "vocab_size": 262144}
    return {
        "pythia": transformers.GPTNeoXConfig(**pythia, max_position_embeddings=2048, **ids),
        "gemma": transformers.GemmaConfig(**gemma, max_position_embeddings=8192, **ids),
        "llama": transformers.LlamaConfig(**llama, max_position_embeddings=8192, **ids),
        "gemma3": transformers.Gemma3TextConfig(**gemma3, max_position_embeddings=8192, **ids),
    }


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name -> the folder of a tiny, random model with the built-in tokenizer."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = load_tokenizer(ModelSettings(name="builtin"))
    torch.manual_seed(0)
    for name, config in configurations("tiny").items():
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    save_transformer_lens(root / "gelu_1l", d_model=32, n_heads=2, d_head=16, d_mlp=64, n_ctx=1024, d_vocab=4096)
    return {path.name: path for path in root.iterdir()}


def cut_down(file: str, checkpoints: dict[str, Path]) -> list[str]:
    """Overrides: a tiny model, a few thousand rows, no GPU, two values of λ an entry, narrow SAEs."""
    overrides = ["training.tokens=2048", "training.batch_size=64", "evaluation.tokens=500"]
    overrides += ["trials={cpus: 1, max_concurrent: 1}"]
    if not load_sweep(SWEEPS / file).is_synthetic:
        overrides += [f"model.context_size={CONTEXT}", "model.dtype=float32", "evaluation.batch=8"]
        overrides += ["producers={count: 1, batch: 8}"]
    model = MODELS.get(file)
    if model is not None:
        tokenizer = ", tokenizer: builtin" if model == "gelu_1l" else ""
        overrides.insert(0, f"model={{name: {checkpoints[model]}{tokenizer}}}")
        overrides.append("dataset={name: builtin, prepend_bos: true}")
    sweep = load_sweep(SWEEPS / file)
    for index, entry in enumerate(sweep.saes):
        extra = entry.model_extra or {}
        if entry.widths is not None:
            width = 36 if entry.architecture in ("standard", "rescale_shift") else 24
            overrides.append(f"saes.{index}.widths=[{width}]")
        sparsity = REGISTRY[entry.architecture].sparsity_hyperparameter or ""
        overrides.append(f"saes.{index}.{sparsity}={sorted(entry_values(extra[sparsity]))[:1]}")
        if "tokens" in extra:
            overrides.append(f"saes.{index}.tokens=1024")
    if sweep.evaluation.pursuit_l0 is not None:
        overrides.append("evaluation.pursuit_l0=[2, 4]")
    layers = sweep.sites.layers
    if not isinstance(layers, dict) and len(layers) > 2:
        overrides.append(f"sites.layers=[{layers[-1]}]")
    if file == "ablations.yaml":  # every form of gated SAEs, and rescale & shift
        overrides.append("training.engine=sparse-cpu")
    return overrides


def entry_values(grid: object) -> list[float]:
    from gsae_ray.fields import expand_grid

    values = expand_grid(grid)
    assert isinstance(values, tuple)
    return list(values)


def small(file: str, checkpoints: dict[str, Path]) -> Sweep:
    return load_sweep(SWEEPS / file, cut_down(file, checkpoints))


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
@pytest.mark.usefixtures("local_ray")
def test_a_sweep_file_runs_end_to_end_cut_down(file: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    sweep = small(file, checkpoints)
    result = launch.run(sweep, storage=tmp_path, tracking_uri=new_store(tmp_path), console=Console(quiet=True))
    assert result.failures == {}
    assert result.forward_ratio == 1.0
    rows = result.frontier()
    assert set(rows["architecture"]) == {entry.architecture for entry in sweep.saes}
    assert set(rows["site"]) == {site.name for site in sweep.trained_sites}
    notes = [note for note in rows.attrs["notes"] if "is left out" in note]
    assert len(rows) + len(notes) == sum(1 for _ in (tmp_path / sweep.name / "trials").iterdir())
    recipes = {recipe.split("+")[0] for recipe in rows["recipe"]}
    if file in BOTH_OBJECTIVES:
        assert recipes == {"paper/modern", "norm_weighted/modern"}
    elif file in MODELS:
        assert recipes == {"paper/paper"}, "the paper's recipe, nothing else"
    if sweep.evaluation.pursuit_l0:
        assert set(result.frontier(encoder="pursuit")["pursuit_l0"]) == set(sweep.evaluation.pursuit_l0)


@pytest.mark.parametrize(
    "file", quick(FILES, lambda file: file in ("quickstart.yaml", "architectures.yaml", "gemma_7b.yaml"))
)
def test_plan_answers_for_the_whole_file(file: str, tmp_path: Path) -> None:
    """At the real sizes, without weights: of the big models a folder that holds nothing but the configuration."""
    arguments = ["plan", str(SWEEPS / file), "--storage", str(tmp_path), "--slots", "4", "--json"]
    model = MODELS.get(file)
    if model == "gelu_1l":
        real = {"d_model": 512, "n_heads": 8, "d_head": 64, "d_mlp": 2048, "n_ctx": 1024, "d_vocab": 48262}
        save_transformer_lens(tmp_path / "model", weights=False, **real)
    elif model is not None:
        configurations("real")[model].save_pretrained(tmp_path / "model")
    if model is not None:
        arguments += ["--set", f"model.name={tmp_path / 'model'}"]
    answer = CliRunner().invoke(main, arguments)
    assert answer.exit_code == 0, answer.output
    cost = json.loads(answer.stdout)
    sweep = load_sweep(SWEEPS / file)
    assert cost["trials"] == sum(cost["phases"]) == sum(kind["trials"] for kind in cost["kinds"])
    assert len(cost["phases"]) == (2 if any(e.architecture == "rescale_shift" for e in sweep.saes) else 1)
    assert cost["waves"] == sum(-(-n // 4) for n in cost["phases"])
    assert cost["forward_ratio"] == 1.0
    assert cost["rows"] == max(e.training(sweep.training).steps * sweep.training.batch_size for e in sweep.saes)
    assert cost["model_flops"] > 0 and cost["training_flops"] > 0
    expected = {
        "gemma": {(3072, 131072), (3072, 196608), (4096, 131072), (4096, 196608)},
        "pythia": {(2560, 131072), (2560, 196608), (2560, 32768), (2560, 49152)},
        "gelu_1l": {(2048, 131072), (2048, 196608)},
        "llama": {(576, 1536), (576, 2304)},
        "gemma3": {(640, 1536), (640, 2304)},
    }
    if model is not None:
        assert {(kind["d_in"], kind["d_sae"]) for kind in cost["kinds"]} == expected[model]
