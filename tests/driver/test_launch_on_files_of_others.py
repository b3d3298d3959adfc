"""Sweeps on activations that others have written to disk: they train, and what is wrong with them is one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from producers import source_of
from row_files import CONTEXT, SITE, N, random_rows, write_cache, write_parquet, write_safetensors
from safetensors.torch import load_file
from sweeps_on_files import complaint, evaluated, on_files, on_model, prepared, trained

from gsae_ray.activations.producer import Producer
from gsae_ray.capacity.forecast import forecast
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver.prepare import PreparedSweep, producer_spec


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def plain(storage: Path) -> PreparedSweep:
    return prepared(on_model(), storage)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """The same 6,000 rows in each format."""
    x_Rn = random_rows(6000)
    for number, rows in enumerate(x_Rn.split(2500)):
        write_safetensors(tmp_path / f"safetensors/{number}.safetensors", rows)
        write_parquet(tmp_path / f"parquet/{number}.parquet", rows)
    write_cache(tmp_path / "saelens", x_Rn.reshape(-1, CONTEXT, N))
    return {name: tmp_path / name for name in ("safetensors", "parquet", "saelens")}


@pytest.mark.parametrize("format_", ["safetensors", "parquet", "saelens"])
def test_files_of_others_are_trained_and_evaluated_on(format_: str, files: dict[str, Path], storage: Path) -> None:
    said: list[str] = []
    of = prepared(on_files(files[format_], [1], evaluation={"tokens": 256, "fraction": 0.1}), storage, said)
    assert len(said) == 1 and ("dataset.skip_positions: 1" if format_ == "saelens" else "group_rows") in said[0]
    sae = trained(of, 0)
    evaluation = evaluated(of, SITE, sae)
    assert evaluation.metrics["rows"] >= 256 and 0 < evaluation.metrics["fvu"] < 1.5
    assert len(evaluation.sequences["rows"]) == (29 if format_ == "saelens" else 2)
    cost = forecast(Sweep.model_validate(on_files(files[format_], [1])))
    assert cost.model_flops == 0 and (cost.disk_bytes > 6000 * N * 4) == (format_ == "parquet")


def test_formats_of_the_same_rows_are_the_same_stream(files: dict[str, Path], storage: Path) -> None:
    streams, tenth = [], {"tokens": 256, "fraction": 0.1}
    for format_ in ("safetensors", "parquet"):
        of = prepared(on_files(files[format_], [1], group_rows=100, evaluation=tenth), storage)
        producer = Producer(producer_spec(of))
        streams.append(np.concatenate([np.concatenate(producer.produce(b, [SITE])[1]) for b in range(4)]))
    assert np.array_equal(streams[0], streams[1])


def test_a_model_beside_contexts_of_others_gives_its_metrics(
    storage: Path, plain: PreparedSweep, tmp_path: Path
) -> None:
    """As if SAELens had cached the built-in model's activations."""
    source = source_of(Producer(producer_spec(plain)))
    tokens = source.spec.tokens.block(0)
    x_Rn = source.rows(tokens, torch.ones_like(tokens).bool(), [SITE]).rows[SITE]
    folder = write_cache(tmp_path / "cache", x_Rn.unflatten(0, tokens.shape), token_ids=tokens.int())
    options = {"evaluation": {"tokens": 64, "fraction": 0.3}, "training": {"tokens": 300, "batch_size": 64}}
    of = prepared(on_files(folder, [1], model={"name": "builtin"}, **options), storage)
    evaluation = evaluated(of, SITE, trained(plain, 0))
    assert {"loss_recovered", "ce_clean", "l0"} <= set(evaluation.metrics)
    rows = evaluated(prepared(on_files(folder, [1], **options), storage), SITE, trained(plain, 0))
    assert rows.metrics == pytest.approx({name: evaluation.metrics[name] for name in rows.metrics}, rel=1e-5)


def test_held_out_files_and_groups_may_be_named(files: dict[str, Path], storage: Path, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "apart/h.safetensors", random_rows(500, seed=1), doc=torch.arange(500) // 10)
    for path in files["safetensors"].iterdir():
        rows = load_file(path)["acts"]
        write_safetensors(path, rows, doc=torch.arange(len(rows)) // 10)
    training = {"tokens": 6000, "batch_size": 64}
    options = {"heldout": str(tmp_path / "apart"), "group_column": "doc", "training": training}
    of = prepared(on_files(files["safetensors"], [1], **options), storage)
    assert sum(of.layout.rows) == 6000 and of.source.heldout_rows == 260
    assert "is among the files that are trained on" in complaint(
        on_files(files["safetensors"], [1], heldout=str(files["safetensors"] / "1.safetensors")), storage
    )
    write_safetensors(tmp_path / "apart/h.safetensors", random_rows(500)[:, :8])
    narrow = on_files(files["safetensors"], [1], heldout=str(tmp_path / "apart"))
    assert "are 8 wide in float32, those of activations.path 12" in complaint(narrow, storage)


def test_what_is_wrong_with_files_of_others_is_one_line(files: dict[str, Path], storage: Path, tmp_path: Path) -> None:
    safetensors, saelens = files["safetensors"], files["saelens"]
    longer, all_of_them = {"tokens": 7000, "batch_size": 64}, {"tokens": 6000, "batch_size": 64}
    some = {"tokens": 100}
    assert "has only 6000 rows; lower it" in complaint(on_files(safetensors, [1], training=longer), storage)
    line = complaint(on_files(safetensors, [1], training=all_of_them), storage)
    assert "has only 5" in line and "beside the share of 0.01 that is held out; lower it, or set dataset.repeat" in line
    repeated = prepared(on_files(safetensors, [1], training=longer, dataset={"repeat": True}, evaluation=some), storage)
    assert sum(repeated.layout.rows) >= 7000
    line = complaint(on_files(safetensors, [1], evaluation={"tokens": 1000}), storage)
    assert "the held-out share (0.01)" in line and "raise evaluation.fraction, or name held-out files" in line
    rows = random_rows(100)
    rows[3, 3] = torch.nan
    write_safetensors(safetensors / "9.safetensors", rows)
    assert "row 3 of 9.safetensors is not finite" in complaint(on_files(safetensors, [1]), storage)
    write_safetensors(safetensors / "9.safetensors", random_rows(100)[:, :5])
    assert "12 wide in 0.safetensors, 5 wide in 9.safetensors" in complaint(on_files(safetensors, [1]), storage)
    assert "have the rows of one site, and the sweep has 2" in complaint(on_files(files["parquet"]), storage)
    assert "are its contexts; leave it out" in complaint(on_files(saelens, [1], group_rows=5), storage)
    assert "has no contexts; leave it out" in complaint(
        on_files(files["parquet"], [1], dataset={"skip_positions": 1}), storage
    )
    assert "is 128 wide at" in complaint(on_files(saelens, [1], model={"name": "builtin"}), storage)
    assert "no file of activations" in complaint(on_files(tmp_path / "none", [1]), storage)
    line = complaint(on_files(saelens, [1, 2], column=SITE), storage)
    assert f"activations.column: '{SITE}' is the rows of one site, and the sweep has 2: leave it out" in line
    one = {"group_rows": 10_000, "evaluation": {"tokens": 100, "fraction": 1 - 1e-9}}
    line = complaint(on_files(write_safetensors(tmp_path / "one.safetensors", random_rows(6000)), [1], **one), storage)
    assert "activations.group_rows: the rows are 1 group, and the share that is held out" in line
