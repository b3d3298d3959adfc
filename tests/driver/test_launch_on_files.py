"""Sweeps on activations that were collected: they train the same SAEs. For files of others see the file beside."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import run as launch
from rich.console import Console
from safetensors.torch import load_file
from sweeps_on_files import complaint, evaluated, on_files, on_model, prepared, trained

import gsae_ray
from gsae_ray.activation_files.schema import SCHEMA
from gsae_ray.activations.file_source import FileRows, FileSpec
from gsae_ray.activations.producer import Producer
from gsae_ray.capacity.forecast import forecast
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver.prepare import PreparedSweep, producer_spec
from gsae_ray.errors import UserError

SITES = ["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"]
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def plain(storage: Path) -> PreparedSweep:
    return prepared(on_model(), storage)


def collect(layout: Any, storage: Path, out: Path) -> Path:
    sweep = Sweep.model_validate(on_model())
    return gsae_ray.collect(sweep, out, layout=layout, storage=storage, console=QUIET).folder


@pytest.fixture(scope="module")
def folder(storage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As safetensors."""
    return collect("safetensors", storage, tmp_path_factory.mktemp("out") / "acts")


@pytest.fixture(scope="module", params=["safetensors", "saelens"])
def collected(
    request: pytest.FixtureRequest, folder: Path, storage: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    if request.param == "safetensors":
        return folder
    return collect("saelens", storage, tmp_path_factory.mktemp("out") / "acts")


def rows_of(of: PreparedSweep) -> FileRows:
    assert isinstance(of.source.spec, FileSpec)
    return of.source.spec.rows


# ---- what was collected ---------------------------------------------------------------------------------------------


def test_blocks_and_their_statistics_are_those_of_the_model(
    collected: Path, plain: PreparedSweep, storage: Path
) -> None:
    files = prepared(on_files(collected), storage)
    assert files.layout == plain.layout
    by_model, by_files = (Producer(producer_spec(of)) for of in (plain, files))
    for block in range(len(plain.layout.rows)):
        (expected, chunks), (statistics, read) = (p.produce(block, SITES) for p in (by_model, by_files))
        assert all(np.array_equal(a, b) for a, b in zip(chunks, read, strict=True))
        for site, found in statistics.items():
            assert np.array_equal(found.mean, expected[site].mean)
            assert found.mean_square_norm == expected[site].mean_square_norm and found.norms == expected[site].norms


@pytest.mark.parametrize(("layout", "dtype"), [("safetensors", "float32"), ("saelens", "bfloat16")])
def test_the_same_saes_are_trained_bit_for_bit(layout: Any, dtype: str, storage: Path, tmp_path: Path) -> None:
    sweep = on_model(model={"name": "builtin", "context_size": 32, "dtype": dtype})
    wanted = Sweep.model_validate(sweep)
    folder = gsae_ray.collect(wanted, tmp_path / "acts", layout=layout, storage=storage, console=QUIET).folder
    by_model, by_files = prepared(sweep, storage), prepared(on_files(folder), storage)
    expected, found = (trained(of, 3).state_dict() for of in (by_model, by_files))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert by_files.trials[3].identity != by_model.trials[3].identity


def test_evaluations_are_those_of_the_model_as_far_as_rows_tell(
    collected: Path, plain: PreparedSweep, storage: Path
) -> None:
    sae = trained(plain, 0)
    expected = evaluated(plain, SITES[0], sae)
    rows = evaluated(prepared(on_files(collected), storage), SITES[0], sae)
    assert set(rows.metrics) == {"l0", "gamma", "fvu", "alive_fraction", "dead_heldout", "dense_heldout", "rows"}
    assert rows.metrics == pytest.approx({name: expected.metrics[name] for name in rows.metrics}, rel=1e-6)
    assert rows.sequences["rows"] == expected.sequences["rows"], "by contexts"
    files = prepared(on_files(collected, model={"name": "builtin"}), storage)
    assert evaluated(files, SITES[0], sae) == expected, "with the model all of it"


def test_saes_say_of_which_model_and_text_they_are(folder: Path, plain: PreparedSweep, storage: Path) -> None:
    for files in (on_files(folder), on_files(folder, model={"name": "builtin"})):
        assert prepared(files, storage).source.metadata == plain.source.metadata


def test_fewer_sites_and_tokens_are_a_part_of_the_same(folder: Path, storage: Path) -> None:
    both, one = (prepared(on_files(folder, layers), storage) for layers in ([1, 2], [2]))
    assert {trial.identity for trial in one.trials} < {trial.identity for trial in both.trials}
    assert one.evaluation == both.evaluation
    shorter = {"tokens": 1500, "batch_size": 64, "lr": 1e-3}
    few = prepared(on_files(folder, training=shorter), storage)
    assert few.layout.rows == both.layout.rows[:2]


def test_the_held_out_rows_are_the_same_whatever_the_order_of_the_others(folder: Path, storage: Path) -> None:
    """Law 6: data seeds and blocks are compared on the same evaluation."""
    few = {"tokens": 64}
    orders: list[dict[str, Any]] = [{}, {"seed": 4}, {"seed": 5}, {"shuffle_tokens": 500}]
    found = [prepared(on_files(folder, [1], dataset=dataset, evaluation=few), storage) for dataset in orders]
    assert len({of.evaluation for of in found}) == 1
    contexts = [rows_of(of).evaluated_K.tolist() for of in found]
    assert contexts == [contexts[0]] * len(orders) and len(contexts[0]) < 9, "fewer than were collected"


def test_plan_counts_the_rows_that_there_are(folder: Path) -> None:
    sections: list[dict[str, Any]] = [
        {"training": {"tokens": 9999, "batch_size": 64}},
        {"evaluation": {"tokens": 9999}},
    ]
    for changes in sections:
        with pytest.raises(UserError, match=f"{next(iter(changes))}.tokens: 9999 asked for, but .* has only "):
            forecast(Sweep.model_validate({**on_files(folder), **changes}))


def test_positions_that_are_no_rows_stay_out_of_a_site_of_a_collected_cache(storage: Path, tmp_path: Path) -> None:
    """`kept`, which SAELens does not read, is read here."""
    cache = collect("saelens", storage, tmp_path / "acts") / "train" / SITES[0]
    ends = SCHEMA.read(tmp_path / "acts/schema.json")
    assert ends is not None
    few = {"training": {"tokens": 600, "batch_size": 64}, "evaluation": {"tokens": 64, "fraction": 0.1}}
    rows = rows_of(prepared(on_files(cache, [1], **few), storage)).train_rows.groups.rows_G
    assert rows.sum() == sum(ends["train"]["rows"]) < rows.size * 31, "some are end-of-text tokens"


# ---- transcoders -----------------------------------------------------------------------------------------------------


def transcoders(**changes: Any) -> dict[str, Any]:
    entry = {"architecture": "gated", "widths": [16], "l1_coefficient": 1.0, "target": {"point": "mlp_out"}}
    return {"sites": {"layers": [1], "points": ["mlp_in"]}, "saes": [entry], **changes}


def test_transcoders_on_what_was_collected_are_those_on_the_model(storage: Path, tmp_path: Path) -> None:
    on_text = prepared(on_model(**transcoders()), storage)
    (trial,) = on_text.trials
    sweep = Sweep.model_validate(on_model(**transcoders()))
    collected = gsae_ray.collect(sweep, tmp_path / "acts", sites=[trial.site], storage=storage, console=QUIET)
    assert collected.sites == ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"), "both places"
    sae = trained(on_text, 0)
    expected = evaluated(on_text, trial.site, sae)
    models: list[dict[str, Any]] = [{}, {"model": {"name": "builtin"}}]
    for model in models:
        files = {**on_files(collected.folder, [1]), **transcoders(), **model}
        of = prepared(files, storage)
        found = trained(of, 0).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in sae.state_dict().items())
        evaluation = evaluated(of, trial.site, sae)
        wanted = {name: expected.metrics[name] for name in evaluation.metrics}
        assert evaluation.metrics == pytest.approx(wanted, rel=1e-6)
        assert ("loss_recovered" in evaluation.metrics) == bool(model)


def test_it_is_the_contents_that_count_not_the_place(folder: Path, storage: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    here, there = (prepared(on_files(path), storage) for path in (folder, moved))
    assert [t.identity for t in here.trials] == [t.identity for t in there.trials]
    assert here.evaluation == there.evaluation


def test_another_seed_or_block_has_the_same_rows_in_another_order(folder: Path, storage: Path) -> None:
    rows: dict[str, dict[bytes, int]] = {}
    first = {}
    for name, dataset in {
        "own": {},
        "seed": {"seed": 4},
        "block": {"shuffle_tokens": 700},
        "again": {"seed": 3},
    }.items():
        files = prepared(on_files(folder, [1], dataset=dataset), storage)
        producer = Producer(producer_spec(files))
        found = [np.concatenate(producer.produce(b, SITES[:1])[1]) for b in range(len(files.layout.rows))]
        first[name] = found[0]
        stream = np.concatenate(found)
        rows[name] = {row.tobytes(): 0 for row in stream}
        assert len(files.layout.rows) == (5 if name == "block" else 4 if name == "seed" else 3), files.layout.rows
    assert np.array_equal(first["own"], first["again"])
    assert rows["own"].keys() == rows["again"].keys() >= rows["block"].keys()
    assert len(first["seed"]) == 750 and not np.array_equal(first["own"][:750], first["seed"])


def test_what_does_not_fit_what_was_collected_is_one_line(folder: Path, storage: Path, tmp_path: Path) -> None:
    longer = {"tokens": 4000, "batch_size": 64}
    assert "training.tokens: 4000 asked for" in (line := complaint(on_files(folder, training=longer), storage))
    assert "lower it, or set dataset.repeat: true" in line
    assert "evaluation.tokens: 9999 asked for" in complaint(on_files(folder, evaluation={"tokens": 9999}), storage)
    assert "sites: blocks.3.hook_resid_post is not in" in complaint(on_files(folder, [3]), storage)
    assert "it was collected); leave it out" in complaint(on_files(folder, column="x"), storage)
    assert "it was collected); leave it out" in complaint(on_files(folder, dataset={"skip_positions": 1}), storage)
    share = {"tokens": 256, "fraction": 0.5}
    assert "evaluation.fraction: " in (line := complaint(on_files(folder, evaluation=share), storage))
    assert "has held-out rows of its own; leave it out" in line
    assert "activations.format" in complaint(on_files(folder, format="parquet"), storage)
    other = {"name": "builtin", "dtype": "bfloat16"}
    assert "model.dtype: bfloat16, but these activations are of the model in float32; set it so" in complaint(
        on_files(folder, model=other), storage
    )
    contexts = {"name": "builtin", "context_size": 64}
    assert "contexts of 32 tokens; leave it out" in complaint(on_files(folder, model=contexts), storage)

    copy = shutil.copytree(folder, tmp_path / "copy")
    damaged = next(path for path in sorted((copy / "train" / SITES[0]).iterdir()) if path.stat().st_size > 1000)
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert f"{damaged.name} is not as it was collected" in complaint(on_files(copy), storage)
    assert prepared(on_files(copy, [2]), storage).trials, "it is not read"
    damaged.unlink()
    assert f"{damaged.name} is missing" in complaint(on_files(copy), storage)
    schema = json.loads((copy / "schema.json").read_text())
    (copy / "schema.json").write_text(json.dumps({**schema, "seed": 5}))
    assert "schema.json: this file is damaged; collect" in complaint(on_files(copy), storage)
    found = SCHEMA.read(folder / "schema.json")
    assert found is not None
    SCHEMA.write(copy / "schema.json", {**found, "format": "gsae-activations-9"})
    assert "'gsae-activations-9'; this version reads gsae-activations-1" in complaint(on_files(copy), storage)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_launch_on_files_ends_with_the_saes_of_a_launch_on_the_model(tmp_path: Path) -> None:
    home = tmp_path
    launch(on_model(), home)
    sweep = Sweep.model_validate(on_model())
    gsae_ray.collect(sweep, home / "acts", storage=home / "runs", console=QUIET)
    result = launch(on_files(home / "acts", model={"name": "builtin"}), home)
    assert result.forward_ratio == 1.0 and not result.failures
    weights: dict[str, list[dict[str, torch.Tensor]]] = {}
    for name in ("on_model", "on_files"):
        for folder in (home / "runs" / name / "trials").iterdir():
            key = folder.name.rpartition("-")[0]
            weights.setdefault(key, []).append(load_file(folder / "sae/sae_weights.safetensors"))
    assert len(weights) == 4
    for first, second in weights.values():
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    own, files = (gsae_ray.frontier(name, storage=home / "runs") for name in ("on_model", "on_files"))
    columns = ["l0", "loss_recovered", "gamma", "fvu"]
    assert own[columns].equals(files[columns])
