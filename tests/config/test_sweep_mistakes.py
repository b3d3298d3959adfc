"""One clear line for every mistake in a sweep file, and for every absurd number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from sweep_texts import error_of, expand

from gsae_ray.config.load import load_sweep
from gsae_ray.errors import UserError, shown

# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        # positions that are no rows
        ("dataset.skip_first_position=true", ["dataset", "skip_positions: 1"]),
        ("dataset.skip_positions=127", ["dataset.skip_positions: 127", "128", "at most 126"]),
        ("dataset.skip_positions=-1", ["dataset.skip_positions", "-1"]),
        ("dataset.skip_positions=true", ["dataset.skip_positions"]),
        # unknown keys, with the nearest right one
        ("trainin={}", ["trainin", "unknown key", "did you mean 'training'?"]),
        ("training.batchsize=3", ["training.batchsize", "unknown key", "did you mean 'batch_size'?"]),
        ("model.nam=x", ["model.nam", "did you mean 'name'?"]),
        ("dataset.sede=x", ["dataset.sede", "did you mean 'seed'?"]),
        ("evaluation.token=1", ["evaluation.token", "did you mean 'tokens'?"]),
        ("producers.cpu=1", ["producers.cpu", "did you mean 'cpus'?"]),
        ("trials.max_concurent=1", ["trials.max_concurent", "did you mean 'max_concurrent'?"]),
        ("sites.layer=1", ["sites.layer", "did you mean 'layers'?"]),
        ("sites.modules=[{module: a, oi: input}]", ["sites.modules.0.oi", "unknown key"]),
        ("sites.modules=[{modul: a}]", ["sites.modules.0.modul", "did you mean 'module'?"]),  # a required key misspelt
        ("training={token: 5}", ["training.token:", "did you mean 'tokens'?"]),
        ("saes.0.width=3", ["saes.0.width:", "did you mean 'widths'?"]),
        ("saes.0.l1_coeficient=3", ["saes.0.l1_coeficient:", "did you mean 'l1_coefficient'?"]),
        ("saes.0.sites.layer=3", ["saes.0.sites.layer", "did you mean 'layers'?"]),
        # unknown values of a fixed list
        ("saes.0.architecture=gatd", ["saes.0", "'gatd'", "did you mean 'gated'?"]),
        ("sites.points=[resid_pots]", ["sites.points", "'resid_pots'", "did you mean 'resid_post'?"]),
        ("saes.1.sites.points=mlpout", ["saes.1.sites.points", "'mlpout'", "did you mean 'mlp_out'?"]),
        ("model.dtype=fp32", ["model.dtype", "'fp32'", "'float32', 'bfloat16' or 'float16'"]),
        ("sites.modules=[{module: a, io: out}]", ["sites.modules.0.io", "'out'", "'input' or 'output'"]),
        # wrong types
        ("training.tokens=many", ["training.tokens", "'many'", "integer"]),
        ("training.tokens='10000'", ["training.tokens", "'10000'", "integer"]),
        ("training.tokens=1.5", ["training.tokens", "1.5", "integer"]),
        ("training.tokens=true", ["training.tokens", "True", "integer"]),
        ("training.tokens=", ["training.tokens", "None", "integer"]),
        ("training.lr='1e-3'", ["training.lr.0", "'1e-3'", "number"]),
        ("training.seeds=[1.5]", ["training.seeds.0", "1.5", "integer"]),
        ("training=3", ["training", "3"]),
        ("model=null", ["model", "None"]),
        ("saes=3", ["saes", "3"]),
        ("saes.0=3", ["saes.0", "3"]),
        ("saes.0.architecture=3", ["saes.0.architecture", "3", "string"]),
        ("saes.0.widths=['8']", ["saes.0.widths.0", "'8'", "integer"]),
        ("saes.0.l1_coefficient=abc", ["saes.0.l1_coefficient", "'abc'", "number"]),
        ("saes.0.l1_coefficient=[2, true]", ["saes.0.l1_coefficient", "True", "number"]),
        ("saes.0.l1_coefficient=[[1, 2]]", ["saes.0.l1_coefficient", "[1, 2]"]),
        ("saes.0.l1_coefficient=null", ["saes.0.l1_coefficient", "None", "number"]),
        ("saes.0.tokens=abc", ["saes.0", "tokens", "'abc'", "integer"]),
        ("dataset.repeat=1", ["dataset.repeat", "1 should be true or false"]),
        ("name=[x]", ["name", "['x']", "string"]),
        # out of range
        ("saes.0.widths=0", ["saes.0.widths.0", "0 should be greater than 0"]),
        ("saes.0.widths=[8, -5]", ["saes.0.widths.1", "-5 should be greater than 0"]),
        ("saes.0={architecture: gated, expansion_factors: [0.01], l1_coefficient: 1}", ["expansion_factors", "0.01"]),
        ("saes.0={architecture: gated, expansion_factors: -1, l1_coefficient: 1}", ["saes.0.expansion_factors", "-1"]),
        ("saes.0.l1_coefficient=-1", ["saes.0.l1_coefficient", "-1"]),
        ("saes.0.l1_coefficient=.inf", ["saes.0.l1_coefficient", "inf"]),
        ("saes.0.l1_coefficient=.nan", ["saes.0.l1_coefficient", "nan"]),
        ("training.lr=0", ["training.lr.0", "0 should be greater than 0"]),
        ("training.lr=.inf", ["training.lr.0", "inf"]),
        ("dataset.seed=-1", ["dataset.seed", "-1 should be greater than or equal to 0"]),
        ("dataset.seed=5_000_000_000", ["dataset.seed", "5000000000 should be less than"]),
        ("training.seeds=[1, -1]", ["training.seeds.1", "-1 should be greater than or equal to 0"]),
        ("training.seeds=[1_000_000_000_000_000_000_000]", ["training.seeds.0", "should be less than"]),
        ("training.lr_warmup=2", ["training.lr_warmup", "2 should be less than or equal to 1"]),
        ("training.lr_warmup=0.9", ["lr_warmup + lr_decay = 1.1"]),
        ("training.tokens=99", ["tokens", "99", "100"]),
        ("saes.1.batch_size=20000", ["saes.1", "tokens", "10000", "20000"]),
        ("training.adam_betas=[0, 1]", ["adam_betas", "[0.0, 1.0]"]),
        ("model.context_size=1", ["model.context_size", "1 should be greater than or equal to 3"]),
        ("producers.count=0", ["producers.count", "0 should be greater than 0"]),
        ("producers.gpus=-1", ["producers.gpus", "-1"]),
        ("evaluation.fraction=1", ["evaluation.fraction", "1 should be less than 1"]),
        ("training.seeds=3", ["training.seeds", "[3], or [0, 1, 2]"]),
        ("saes.0.seeds=0", ["saes.0.seeds", "[0], or [0, 1, 2]"]),
        ("name=my sweep", ["name", "'my sweep'"]),
        # missing
        ("model={}", ["model.name", "missing"]),
        ("training={}", ["training.tokens", "missing", "rows that a trial trains on"]),
        ("saes.0={widths: 3}", ["saes.0.architecture", "missing"]),
        ("saes.0={architecture: gated, widths: 3}", ["saes.0", "l1_coefficient", "missing"]),
        ("saes.0={architecture: gated, l1_coefficient: 3}", ["saes.0", "either widths or expansion_factors"]),
        ("saes.0.expansion_factors=2", ["saes.0", "either widths or expansion_factors"]),
        ("training.adam_betas=[0]", ["training.adam_betas", "missing"]),
        ("sites={}", ["sites", "no site"]),
        ("sites={layers: [1]}", ["sites", "no site"]),
        ("sites={layers: [1], modules: [{module: a}]}", ["sites", "layers", "points"]),  # or layers would do nothing
        ("sites={points: [mlp_out], modules: [{module: a}]}", ["sites", "layers", "points"]),
        # empty and repeated
        ("saes=[]", ["saes", "empty list"]),
        ("saes.0.widths=[]", ["saes.0.widths", "empty list"]),
        ("saes.0.l1_coefficient=[]", ["saes.0", "l1_coefficient", "empty list"]),
        ("training.lr=[]", ["training.lr", "empty list"]),
        ("saes.1.seeds=[]", ["saes.1", "seeds", "empty list"]),
        ("training.seeds=[0, 0]", ["training.seeds", "twice", "[0, 0]"]),
        ("saes.0.l1_coefficient=[1, 1.0]", ["saes.0", "l1_coefficient", "twice", "[1, 1.0]"]),
        ("saes.1.sites.layers=[7]", ["saes.1.sites", "none of the sweep's sites"]),
        (
            "saes.1={architecture: gated, widths: 32, l1_coefficient: 2}",
            ["saes", "two entries", "blocks.1.hook_resid_post_gated_w32_l1-2_norm_weighted-modern_lr0.001_seed0"],
        ),
        # grids
        ("saes.0.l1_coefficient={log_range: [1, 4]}", ["saes.0", "l1_coefficient", "log_range: [low, high], n: 5"]),
        ("saes.0.widths={log_rang: [1, 4], n: 2}", ["saes.0.widths", "log_range: [low, high], n: 5"]),
        # references
        ("references=[{source: theirs}]", ["references.0.site: missing; one of the sweep's sites"]),
        ("references=[{site: blocks.1.hook_resid_post}]", ["references.0.source: missing; a folder"]),
        ("references={source: theirs}", ["references", "a list"]),
        ("references=[theirs]", ["references.0", "'theirs'", "mapping"]),
        (
            "references=[{source: theirs, site: blocks.3.hook_resid_post}]",
            ["references.0.site: no SAE of this sweep is at 'blocks.3.hook_resid_post'", "'blocks.2.hook_resid_post'"],
        ),
        (
            "training.engine=sparse",
            ["training.engine: 'sparse' should be 'auto', 'dense', 'sparse-cpu' or 'sparse-cuda'"],
        ),
        ("training.precision=bfloat16", ["training.precision: 'bfloat16' should be 'float32', 'tf32' or 'bf16'"]),
        ("training.lr={log_range: [0, 4], n: 2}", ["training.lr", "0 < low <= high"]),
        ("training.lr={log_range: [4, 1], n: 2}", ["training.lr", "0 < low <= high"]),
        ("training.lr={log_range: 4, n: 2}", ["training.lr", "0 < low <= high"]),
        ("training.lr={log_uniform: [1, 4], n: 0}", ["training.lr", "n is 0"]),
        ("training.lr={log_uniform: [1, 4], n: 2, seed: x}", ["training.lr", "seed", "'x'"]),
        ("training.lr={log_range: [1, 4], n: 2, seed: 1}", ["training.lr", "a grid is"]),
    ],
)
def test_a_mistake_is_one_line_that_names_key_and_value(path: Path, override: str, parts: list[str]) -> None:
    message = error_of(path, override)
    assert all(part in message for part in parts), message
    assert "should be String" not in message  # one sentence
    assert "Input" not in message
    assert message.startswith((f"{path}: ", "--set ", "saes: "))  # saes: what shows only when the sweep is expanded


@pytest.mark.parametrize("key", ["training.engine", "saes.0.engine"])
def test_an_engine_of_cpus_and_trials_on_gpus_are_one_line(path: Path, key: str) -> None:
    path.write_text(path.read_text() + "trials: {gpus: 1}\n")
    message = error_of(path, f"{key}=sparse-cpu")
    assert message == (
        f"{path}: {key}: sparse-cpu is for trials on CPUs, and trials.gpus is 1.0; engine: dense or sparse-cuda runs "
        "there, or set trials.gpus to 0"
    )


@pytest.mark.parametrize("entry", ["training", "saes.0"])
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"engine": "sparse-cuda"},
            "engine: sparse-cuda is for trials on GPUs, and trials.gpus is 0; engine: sparse-cpu or dense runs there, "
            "or set trials.gpus",
        ),
        (
            {"precision": "tf32"},
            "precision: tf32 is for trials on GPUs, and trials.gpus is 0; precision: float32 runs there, "
            "or set trials.gpus",
        ),
        (
            {"engine": "sparse-cpu", "precision": "bf16"},
            "precision: bf16 is for trials on GPUs, and trials.gpus is 0; precision: float32 runs there, "
            "or set trials.gpus",
        ),
    ],
)
def test_what_is_for_gpus_and_trials_on_cpus_are_one_line(
    path: Path, entry: str, settings: dict[str, str], said: str
) -> None:
    assert error_of(path, *(f"{entry}.{key}={value}" for key, value in settings.items())) == f"{path}: {entry}.{said}"


@pytest.mark.parametrize("entry", ["training", "saes.0"])
def test_a_precision_of_products_is_for_the_dense_engine(path: Path, entry: str) -> None:
    path.write_text(path.read_text() + "trials: {gpus: 1}\n")
    message = error_of(path, f"{entry}.precision=bf16", f"{entry}.engine=sparse-cuda")
    assert message == (
        f"{path}: {entry}.precision: bf16 is for engine: dense, and engine is sparse-cuda; take engine: dense, or "
        "precision: float32"
    )
    for engine in ("dense", "auto"):
        assert expand(load_sweep(path, ["training.precision=bf16", f"training.engine={engine}"]))
    assert expand(load_sweep(path, ["training.engine=sparse-cuda"]))


def test_all_mistakes_of_a_file_are_told_at_once_a_line_each(path: Path) -> None:
    def lines(*overrides: str) -> list[str]:
        with pytest.raises(UserError) as caught:
            load_sweep(path, overrides)
        return str(caught.value).splitlines()

    first, *others = lines("fooo=1", "saes.1.batchsize=3", "model.dtype=x", "training.lr=[0, -1]")
    assert first == f"{path}: 5 problems"
    keys = ["model.dtype", "saes.1.batchsize", "training.lr.0", "training.lr.1", "fooo"]
    assert [line.strip().split(": ")[0] for line in others] == keys
    assert others[1].startswith("  saes.1.batchsize: unknown key; did you mean 'batch_size'?")
    # What only shows when the parts fit together comes at once too.
    _, *others = lines("saes.1.batch_size=20_000", "saes.0.batch_size=30_000", "saes.1.sites.layers=[1, 7]")
    assert [line.strip() for line in others] == [
        "saes.0: tokens: 10000 is less than one batch of 30000",
        "saes.1: tokens: 10000 is less than one batch of 20000",
        "saes.1.sites.layers: 7 is not among the sweep's own sites",
    ]
    assert len(lines(*(f"wrong{i}=1" for i in range(30)))) == 6
    assert lines(*(f"wrong{i}=1" for i in range(30)))[-1] == "  and 26 more"


# ---- absurd numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("producers.count=1e300", "producers.count: 1e+300 should be at most 10,000"),
        ("producers.count=10001", "producers.count: 10001 should be at most 10,000 (one cluster runs no more)"),
        ("producers.count=.inf", "producers.count: inf should be"),
        ("producers.gpus=1e300", "producers.gpus: 1e+300 should be at most 10,000"),
        ("producers.gpus=.inf", "producers.gpus: inf should be a finite number"),
        ("trials.gpus=.inf", "trials.gpus: inf; give a number of GPUs, at most 10,000"),
        ("trials.gpus=" + "9" * 40, "trials.gpus: 1e+40; give a number of GPUs"),
        ("trials.cpus=1e5", "trials.cpus: 100000 should be at most 10,000"),
        ("trials.hang_timeout_s=1e300", "trials.hang_timeout_s: 1e+300 should be at most 3.1536e07 (a year)"),
        ("producers.timeout_s=1e10", "producers.timeout_s: 10000000000.0 should be at most 3.1536e07 (a year)"),
        ("producers.budget_gib=1e300", "producers.budget_gib: 1e+300 should be at most 1e09 (no cluster has"),
        ("training.tokens=1e300", "training.tokens: 1e+300 should be at most 1e15"),
        (
            "training.tokens=1e16",
            "training.tokens: 10000000000000000 should be at most 1e15 (no run gets through more)",
        ),
        ("training.batch_size=1e12", "training.batch_size: 1000000000000 should be at most 1e09 (they are in memory"),
        ("training.lr=1e300", "training.lr.0: 1e+300 should be at most 1e38 (SAEs are trained in float32)"),
        ("training.lr=" + "9" * 40, "training.lr.0: 1e+40 should be at most 1e38"),
        ("training.lr=" + "9" * 5000, "training.lr.0: '9999999999"),
        ("training.adam_betas=[0, " + "9" * 40 + "]", "training: adam_betas: [0.0, 1e+40]; each must be"),
        ("saes.0.l1_coefficient=1e300", "saes.0.l1_coefficient: 1e+300 should be at most 1e38 (SAEs are trained in"),
        (
            "saes.0.widths=1e12",
            "saes.0.widths.0: 1000000000000 should be at most 1e09 (an SAE's weights are in memory)",
        ),
        (
            "saes.0={architecture: gated, expansion_factors: 1e300, l1_coefficient: 1}",
            "saes.0.expansion_factors.0: 1e+3",
        ),
        ("saes.0={architecture: gated, expansion_factors: 1e6, l1_coefficient: 1}", None),
        ("saes.0.l1_coefficient={log_range: [1, 2], n: 20000}", "saes.0.l1_coefficient: n is 20000; log_range needs"),
        (
            "training.lr={log_uniform: [1, 2], n: 100000000000}",
            "training.lr: n is 100000000000; log_uniform needs a whole",
        ),
        ("training.lr={log_range: [1, .inf], n: 3}", "training.lr: log_range needs finite [low, high]"),
        ("training.lr={log_range: [true, 2], n: 3}", "training.lr: log_range needs finite [low, high]"),
        (
            f"training.seeds={list(range(1001))}",
            "training.seeds: 1,001 values; a grid has at most 1,000: each is an SAE",
        ),
        ("model.context_size=1e300", "model.context_size: 1e+300 should be at most 1e09"),
        ("saes.².widths=3", "--set saes.².widths: saes is a list of 2; '²' should be 0 to 1"),
        ("saes." + "9" * 5000 + ".widths=3", "--set saes.9999"),
        ("x" * 100_000 + "=1", "x" * 200 + "…: unknown key"),
        ("name=" + "x" * 100_000, "name: 'xxxx"),
        ("model.dtype=" + "x" * 100_000, "model.dtype: 'xxxx"),
        (f"model={list(range(9999))}", "model: [0, 1, 2"),
        (".".join(["training"] * 100) + "=1", "--set training.training"),
    ],
)
def test_an_absurd_number_is_refused_at_once_with_the_reason(path: Path, override: str, line: str | None) -> None:
    message = error_of(path, override) if line else "saes: "
    assert line is None or line in message
    # What is echoed is cut; the keys that are known may be long.
    assert len(re.sub(r"\(one of: .*?\)", "", message)) < 200 + 400 + len(str(path))


def test_more_trials_than_a_sweep_can_have_are_counted_before_any_is_made(path: Path) -> None:
    seeds = f"training.seeds={list(range(1000))}"
    message = error_of(path, seeds, "saes.0.l1_coefficient={log_range: [1, 16], n: 1000}")
    assert "saes: 8,000,008 trials; a sweep has at most 10,000, each with files" in message
    grids = "l1_coefficient: {log_range: [1, 9], n: 1000}, tied: [true, false], auxiliary: [frozen, unfrozen, none]"
    entry = f"saes.0={{architecture: gated, widths: 8, {grids}, learn_r_mag: [true, false]}}"
    assert "saes.0: 12,000 trials; a sweep has at most 10,000" in error_of(path, entry)


def test_a_message_echoes_at_most_200_characters() -> None:
    assert shown("x" * 199) == repr("x" * 199)[:200] + "…"
    assert shown(10**5000) == "what is too large to write"
    assert shown("a\nb", quoted=False) == "a b"
    deep: Any = []
    for _ in range(10_000):
        deep = [deep]
    assert len(shown(deep)) <= 201
