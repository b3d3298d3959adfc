"""What `gsae-ray plan` says: counted, not guessed, from the configuration alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner, Result
from torch.utils.flop_counter import FlopCounterMode

from gsae_ray.activations.retention import forward_ratio
from gsae_ray.capacity import duration
from gsae_ray.capacity.forecast import Forecast, equal_compute, forecast
from gsae_ray.cli.main import main
from gsae_ray.config.sweep import Sweep
from gsae_ray.data.python_labels import TASKS
from gsae_ray.errors import UserError
from gsae_ray.saes import Objective, SAEConfig, build

QUICKSTART = Path(__file__).parents[2] / "sweeps/quickstart.yaml"
ENTRIES: list[dict[str, Any]] = [
    {"architecture": "gated", "widths": [32, 64], "l1_coefficient": [1.0, 2.0]},
    {"architecture": "gated", "widths": [32], "l1_coefficient": 1.0, "tied": False},
    {"architecture": "standard", "widths": [48], "l1_coefficient": 1.0, "objective": ["paper", "norm_weighted"]},
]
CHILD = {"architecture": "rescale_shift", "widths": [48], "l1_coefficient": 1.0}


def sweep(entries: list[dict[str, Any]] | None = None, model: str | Path = "builtin", **sections: Any) -> Sweep:
    values: dict[str, Any] = {
        "name": "test",
        "model": {"name": str(model), "context_size": 65},
        "dataset": {"name": "builtin"},
        "sites": {"layers": [1, 2], "points": ["resid_post"]},
        "saes": entries or ENTRIES,
        "training": {"tokens": 64_000, "batch_size": 100},
    }
    for key, section in sections.items():
        values[key] = {**values.get(key, {}), **section}
    return Sweep.model_validate(values)


def cost(*args: Any, slots: int | None = 4, **sections: Any) -> Forecast:
    return forecast(sweep(*args, **sections), slots)


# ---- what is counted ------------------------------------------------------------------------------------------------


def test_parameters_are_those_of_the_saes_as_built() -> None:
    kinds = cost([*ENTRIES, CHILD]).kinds
    assert {kind.architecture for kind in kinds} == {"gated", "standard", "rescale_shift"}
    for kind in kinds:
        options = {"tied": False} if kind.variant == "tied=false" else {}
        hyperparameters = {"l1_coefficient": 1.0, **options}
        sae = build(
            SAEConfig(architecture=kind.architecture, d_in=kind.d_in, d_sae=kind.d_sae, hyperparameters=hyperparameters)
        )
        assert kind.parameters == sum(p.numel() for p in sae.parameters())
    gated, standard = (next(k for k in kinds if k.architecture == a) for a in ("gated", "standard"))
    assert gated.parameters == 2 * gated.d_in * gated.d_sae + 3 * gated.d_sae + gated.d_in
    assert standard.parameters == 2 * standard.d_in * standard.d_sae + standard.d_sae + standard.d_in


def test_snapshots_are_counted_on_disk_and_in_evaluations() -> None:
    """Each is as large as its SAE, here and in MLflow, and is evaluated as that is."""
    one = [ENTRIES[1]]
    base, twice = cost(one), cost(one, training={"snapshots_at": [6_400, 12_800]})
    (kind,) = base.kinds
    assert twice.disk_bytes - base.disk_bytes == 2 * 2 * 4 * kind.parameters * kind.trials
    pursued = cost(one, evaluation={"pursuit_l0": [4, 8]})
    assert twice.evaluation_flops == pytest.approx(pursued.evaluation_flops)
    assert twice.training_flops == base.training_flops


def test_trials_are_counted_by_kind() -> None:
    result = cost()
    assert result.trials == sum(kind.trials for kind in result.kinds) == 2 * (4 + 1 + 2)
    assert {(k.architecture, k.variant, k.objective, k.d_sae): k.trials for k in result.kinds} == {
        ("gated", "", "norm_weighted", 32): 4,
        ("gated", "", "norm_weighted", 64): 4,
        ("gated", "tied=false", "norm_weighted", 32): 2,
        ("standard", "", "paper", 48): 2,
        ("standard", "", "norm_weighted", 48): 2,
    }


@pytest.mark.parametrize("objective", ["paper", "norm_weighted"])
@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("standard", {}),
        ("gated", {}),
        ("gated", {"tied": False}),
        ("gated", {"auxiliary": "frozen"}),
        ("gated", {"auxiliary": "unfrozen"}),
        ("gated", {"auxiliary": "none"}),
        ("gated", {"tied": False, "auxiliary": "none"}),
        ("rescale_shift", {}),
    ],
)
def test_flops_of_a_training_step_are_those_that_torch_counts(
    architecture: str, options: dict[str, Any], objective: Objective
) -> None:
    batch, n, width = 64, 96, 256
    hyperparameters = {"l1_coefficient": 1.0, **options}
    sae = build(SAEConfig(architecture=architecture, d_in=n, d_sae=width, hyperparameters=hyperparameters)).to("meta")
    counter = FlopCounterMode(display=False)
    with counter:
        sae.losses(torch.empty(batch, n, device="meta"), 1.0, objective).loss.backward()
    products = counter.get_total_flops() / (2 * batch * n * width)
    expected = type(sae).training_products(hyperparameters, objective)
    assert expected <= products < expected + 0.1  # products with a vector (b_dec, norms) are the rest


def test_phases_and_waves() -> None:
    one = cost(slots=4)
    assert (one.phases, one.slots, one.waves) == ((14,), 4, 4)
    children = [ENTRIES[2], {**CHILD, "objective": ["paper", "norm_weighted"]}]
    two = cost(children, slots=3)
    assert (two.phases, two.waves) == ((4, 4), 2 + 2)
    assert cost(slots=100).waves == 1
    default = cost(slots=None, trials={"max_concurrent": 1})
    assert (default.slots, default.waves) == (1, 14)


@pytest.mark.parametrize(
    ("waves", "budget", "expected"),
    [
        ([100], 0, 1.0),
        ([100], 50, 1.0),
        ([100] * 5, 100, 1.0),
        ([100] * 5, 1000, 1.0),
        ([100] * 5, 0, 5.0),
        ([100] * 5, 2, 5.0),  # the window alone
        ([100] * 5, 3, 1 + 4 * 0.99 - 0.01),  # behind one block of prefix the last wave finds room for one
        ([100] * 3, 25, 1 + 2 * 0.77 - 0.02),
        ([100] * 2, 50, 1.5),
        ([100, 10], 50, 1.0),  # a short wave reads what was kept
        ([100, 10], 0, 1.1),
        ([100, 60], 50, 1.12),  # it does not get to where the window stopped
        ([50, 100], 50, 1.0),
        ([50, 50, 100, 100], 50, 1.5),  # two waves fit, the third finds all of their blocks
        ([50, 100], 0, 1.5),
    ],
)
def test_the_forward_ratio_is_that_of_law_3(waves: list[int], budget: int, expected: float) -> None:
    assert forward_ratio(waves, budget) == pytest.approx(expected)


def test_rows_bytes_and_ratio_are_those_of_the_longest_trial() -> None:
    entries = [*ENTRIES, {"architecture": "standard", "widths": [8], "l1_coefficient": 1.0, "tokens": 128_050}]
    free = cost(entries, slots=4)
    assert (free.rows, free.blocks, free.kept_blocks) == (128_000, 8, 8)  # whole batches; 250 contexts a block
    d_in = free.kinds[0].d_in
    assert free.activation_bytes == 8 * free.block_bytes == 128_000 * 2 * d_in * 4
    assert (free.budget_bytes, free.forward_ratio) == (None, 1.0)
    assert free.forward_ratio_without_budget == pytest.approx((3 * 64 + 128) / 128)
    # 3.9 blocks are three; two of them are the window.
    tight = cost(entries, slots=4, producers={"budget_gib": 3.9 * free.block_bytes / 2**30})
    assert (tight.waves, tight.kept_blocks) == (4, 1)
    assert tight.forward_ratio == pytest.approx((4 + 3 + 3 + 8 - 2) / 8)
    assert tight.model_flops == pytest.approx(free.model_flops * tight.forward_ratio)
    # Blocks are made whole: 128,200 rows take a ninth one.
    ninth = cost([{**entries[-1], "tokens": 128_200}], slots=4)
    assert (ninth.rows, ninth.blocks) == (128_200, 9)
    assert ninth.model_flops == pytest.approx(free.model_flops * 9 / 8)
    whole = cost(entries, slots=4, dataset={"skip_positions": 0})  # 247 contexts a block
    assert (whole.blocks, whole.block_bytes) == (8, 247 * 65 * 2 * d_in * 4)
    assert whole.model_flops == pytest.approx(free.model_flops * 247 / 250)


def test_training_flops_are_products_times_rows() -> None:
    result = cost()
    expected = sum(2 * k.d_in * k.d_sae * k.products * k.trials for k in result.kinds) * 64_000
    assert result.training_flops == pytest.approx(expected)
    assert all(k.flops_a_row == 2 * k.d_in * k.d_sae * k.products for k in result.kinds)


def test_memory_and_disk_hold_what_is_written() -> None:
    result = cost(slots=1)
    largest = max(kind.parameters for kind in result.kinds)
    assert result.trial.host >= 4 * 4 * largest  # weights, gradients, two moments
    assert result.store_bytes > result.activation_bytes
    assert result.disk_bytes >= 4 * (6 * largest + sum(k.parameters * k.trials for k in result.kinds))


def test_equal_compute_is_told_for_objectives_that_both_are_trained_with() -> None:
    (line,) = equal_compute(cost().kinds)
    assert line.startswith("equal compute (norm_weighted): at equal width a gated step has 1.60 x")
    both = [{**entry, "objective": ["paper", "norm_weighted"]} for entry in (ENTRIES[0], ENTRIES[2])]
    lines = equal_compute(cost(both).kinds)
    assert ["(paper)" in line and "1.40 x" in line for line in lines] == [True, False]
    assert equal_compute(cost([ENTRIES[0]]).kinds) == []


# ---- models as large as the paper's, without weights ----------------------------------------------------------------


def gemma_7b() -> transformers.PretrainedConfig:
    sizes = {"hidden_size": 3072, "intermediate_size": 24_576, "num_hidden_layers": 28, "vocab_size": 256_000}
    return transformers.GemmaConfig(num_attention_heads=16, num_key_value_heads=16, head_dim=256, **sizes)


def pythia_2p8b() -> transformers.PretrainedConfig:
    sizes = {"hidden_size": 2560, "intermediate_size": 10_240, "num_hidden_layers": 32, "vocab_size": 50_304}
    return transformers.GPTNeoXConfig(num_attention_heads=32, **sizes)


@pytest.mark.parametrize(
    ("config", "layer", "layers", "weights_a_layer", "n"),
    [
        (gemma_7b, 27, 28, 4 * 3072 * 4096 + 3 * 3072 * 24_576, 3072),
        (gemma_7b, 6, 7, 4 * 3072 * 4096 + 3 * 3072 * 24_576, 3072),  # no further than the deepest site
        pytest.param(pythia_2p8b, 31, 32, 12 * 2560**2, 2560, marks=pytest.mark.slow),
    ],
)
def test_a_model_directory_without_weights_is_enough(
    tmp_path: Path, config: Any, layer: int, layers: int, weights_a_layer: int, n: int
) -> None:
    config().save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    entries = [{"architecture": "gated", "widths": [2**17], "l1_coefficient": 1e-4}]
    paper = {"objective": "paper", "schedule": "paper", "batch_size": 4096, "tokens": 300_000 * 4096}
    result = cost(
        entries,
        model=tmp_path,
        slots=1,
        sites={"layers": [layer], "points": ["resid_post"]},
        training=paper,
        dataset={"name": "corpus.txt"},
    )
    assert result.kinds[0].d_in == n
    assert result.kinds[0].parameters == 2 * n * 2**17 + 3 * 2**17 + n
    assert result.rows == 300_000 * 4096
    positions = result.rows * 65 / 64
    assert result.model_flops == pytest.approx(2 * layers * weights_a_layer * positions, rel=0.03)  # + attention
    assert result.training_flops == pytest.approx(7 * 2 * n * 2**17 * result.rows)
    assert [line for line in result.notices if not line.startswith("model.dtype: ")] == []  # of this machine's cores


def test_an_evaluation_takes_the_layers_from_its_site_on(tmp_path: Path) -> None:
    config = transformers.GPTNeoXConfig(
        vocab_size=100, hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4
    )
    config.save_pretrained(tmp_path)
    first, last = (
        cost(ENTRIES[:1], tmp_path, sites={"layers": [layer]}, evaluation={"tokens": 64_000}) for layer in (0, 3)
    )
    assert first.trials == last.trials == 4
    flops_a_token = 2 * 12 * 256**2 * 3  # of the layers between the two, without attention
    assert first.evaluation_flops - last.evaluation_flops == pytest.approx(4 * flops_a_token * 65_000, rel=0.06)


MODULE = {"layers": [], "points": [], "modules": [{"module": "model.layers.1"}]}


def test_of_a_mixture_of_experts_those_count_that_a_token_uses(tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 100}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    config = transformers.MixtralConfig(**sizes, **heads, num_local_experts=8, num_experts_per_tok=2)
    config.save_pretrained(tmp_path)
    result = cost(ENTRIES[:1], tmp_path, sites=MODULE)
    weights_a_token = 2 * (4 * 256**2 + 256 * 8 + 2 * 3 * 256 * 512)
    assert result.model_flops == pytest.approx(2 * weights_a_token * result.rows * 65 / 64, rel=0.05)


def test_a_model_that_needs_its_weights_is_one_line(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 100}
    transformers.JetMoeConfig(**sizes, num_key_value_heads=2, kv_channels=8).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="model.name.*without its weights") as caught:
        cost(ENTRIES[:1], tmp_path, sites=MODULE)
    assert "\n" not in str(caught.value)


# ---- the command ----------------------------------------------------------------------------------------------------


def plan(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["plan", str(QUICKSTART), *map(str, arguments)])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def test_plan_prints_what_a_sweep_will_cost(here: Path) -> None:
    result = plan("--slots", 2, "--set", "saes.0.schedule=paper")
    assert result.exit_code == 0, result.output
    text = result.output
    assert "trials:         16, 2 at a time: 8 waves" in text
    for words in ("rows:", "forward ratio:  1.00", "language model:", "SAEs:", "memory:", "disk:", "FLOPs a row"):
        assert words in text
    gated = next(line for line in text.splitlines() if "gated" in line and "norm_weighted" in line)
    assert f"{2 * 128 * 512 + 3 * 512 + 128:,}" in gated
    assert "all kept if 60 % of the object store holds them" in text  # which plan does not look at
    assert "1.00 GiB keep 4 of 4 blocks" in plan("--set", "producers.budget_gib=1").output
    assert "0.30 GiB keep 1 of 4 blocks" in plan("--set", "producers.budget_gib=0.3").output
    assert "equal compute (norm_weighted)" in text
    assert "lr warm-up are shortened" in text
    assert "reference" not in text
    theirs = "{source: theirs, site: blocks.1.hook_resid_post}"  # a folder that plan does not look at
    text = plan("--set", f"references=[{theirs}, {theirs}]").output
    assert re.search("evaluations: .* FLOPs of the language model, with 2 references\n", text)
    assert list(here.iterdir()) == []  # nothing is written


def test_plan_tells_what_probes_and_a_scheduler_do(here: Path) -> None:
    text = plan("--set", "evaluation.probes=builtin").output
    assert f"evaluation.probes: up to {len(TASKS)} tasks; the built-in ones take about 3 seconds an SAE" in text
    text = plan("--set", "scheduler.stop_dominated=true", "--set", "training.lr=[1e-3, 3e-3]").output
    assert "scheduler: 32 of 32 trials are compared after 100,000, 200,000 rows" in text
    (here / "own.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b", "label": 2}\n{"text": "c", "label": 3}\n')
    own = ("--set", "evaluation.probes=[{name: own, data: own.jsonl}]")
    assert "evaluation.probes: up to 3 tasks" in plan(*own).output
    (here / "own.jsonl").write_text('{"text": "a", "label": 1}\n{"text": \n')
    assert "evaluation.probes.0: own.jsonl, line 2: no JSON" in plan(*own).stderr
    (here / "own.jsonl").unlink()
    assert "evaluation.probes.0: data: no file 'own.jsonl'" in plan(*own).stderr


@pytest.mark.usefixtures("here")
def test_plan_in_json_holds_the_same() -> None:
    result = plan("--slots", 2, "--json")
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert (value["trials"], value["waves"], value["phases"], value["slots"]) == (16, 8, [16], 2)
    assert value["forward_ratio"] == 1.0
    assert value["model_flops"] > 0 and value["training_flops"] > 0
    assert sum(kind["trials"] for kind in value["kinds"]) == 16
    assert {kind["architecture"] for kind in value["kinds"]} == {"gated", "standard"}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--set", "model.name=./nowhere"], ["model.name", "'./nowhere'"]),
        (["--set", "sites.layers=[9]"], ["layers", "9"]),
        (["--set", "training.schedule=old"], ["training.schedule", "'old'"]),
        (["--slots", "0"], ["--slots", "0"]),
    ],
)
def test_a_mistake_in_plan_is_told(arguments: list[str], parts: list[str]) -> None:
    result = plan(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert all(part in result.stderr for part in parts), result.stderr


def test_the_sparse_engine_takes_less_time_for_the_same_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duration, "_core_flops", lambda: 1e10)  # else measured, each time anew
    dense, sparse = (cost(training={"engine": engine}) for engine in ("dense", "sparse-cpu"))
    assert dense.training_flops == sparse.training_flops
    assert dense.pace is not None and sparse.pace is not None
    assert sparse.pace.trials_s == pytest.approx(dense.pace.trials_s * duration.ENGINE_SHARES["sparse-cpu"])
    assert sparse.pace.model_s == dense.pace.model_s
