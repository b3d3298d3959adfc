"""Activations of a sweep on disk: what producers make, resumable, and never a folder that only looks finished."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from producers import tokens_of
from rich.console import Console
from safetensors.torch import load_file
from selection import quick

import gsae_ray
from gsae_ray.activation_files import collection
from gsae_ray.activation_files.schema import SCHEMA, Schema
from gsae_ray.activations.language_model_source import LanguageModelSource
from gsae_ray.activations.producer import Producer
from gsae_ray.activations.reader import to_array
from gsae_ray.cli.main import main
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver import block_writer
from gsae_ray.driver.prepare import PreparedSweep, prepare, producer_spec
from gsae_ray.errors import UserError
from gsae_ray.files import file_hash

SITES = ["blocks.1.hook_resid_post", "blocks.2.mlp.hook_post"]


def sweep(tokens: int = 3000, dtype: str = "float32") -> Sweep:
    return Sweep.model_validate(
        {
            "name": "small",
            "model": {"name": "builtin", "context_size": 32, "dtype": dtype},
            "dataset": {"name": "builtin", "seed": 3, "shuffle_tokens": 1000},
            "sites": {"layers": [1, 2], "points": ["resid_post", "mlp_post"]},
            "saes": [
                {
                    "architecture": "gated",
                    "widths": [16],
                    "l1_coefficient": 1.0,
                    "sites": {"layers": [layer], "points": [p]},
                }
                for layer, p in ((1, "resid_post"), (2, "mlp_post"))
            ],
            "training": {"tokens": tokens, "batch_size": 64, "lr": 1e-3},
            "evaluation": {"tokens": 256},
            "producers": {"batch": 8},
        }
    )


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def prepared(storage: Path) -> PreparedSweep:
    return prepare(sweep(), storage)


@pytest.fixture(scope="module")
def collected(storage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collect(storage, tmp_path_factory.mktemp("out") / "acts")


def collect(storage: Path, out: Path, of: Sweep | None = None, **options: Any) -> Path:
    quiet = Console(quiet=True)
    return gsae_ray.collect(of or sweep(), out, storage=storage, console=quiet, **options).folder


def schema_of(folder: Path) -> Schema:
    found = SCHEMA.read(folder / "schema.json")
    assert found is not None
    return found


def snapshot(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_hash(path) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_writer, "PART_BYTES", 300 * 512 * 4)


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """The next collection ends as by Ctrl-C after so many forward passes."""

    def after(passes: int) -> None:
        real, left = LanguageModelSource.rows, iter(range(passes))

        def rows(*arguments: Any) -> Any:
            if next(left, None) is None:
                monkeypatch.setattr(LanguageModelSource, "rows", real)
                raise KeyboardInterrupt
            return real(*arguments)

        monkeypatch.setattr(LanguageModelSource, "rows", rows)

    return after


def test_files_hold_what_producers_make(collected: Path, prepared: PreparedSweep) -> None:
    schema, producer = schema_of(collected), Producer(producer_spec(prepared))
    assert list(schema["sites"]) == SITES and schema["seed"] == 3
    for block, rows in enumerate(prepared.layout.rows):
        _, chunks = producer.produce(block, SITES)
        order = np.random.RandomState([schema["seed"], block]).permutation(rows)
        for site, chunk in zip(SITES, chunks, strict=True):
            files = sorted((collected / "train" / site).glob(f"{block:05d}-*.safetensors"))
            found = torch.cat([load_file(file)["activations"] for file in files])
            assert np.array_equal(chunk[order], to_array(found)), (block, site)
        contexts = load_file(collected / f"train/contexts/{block:05d}.safetensors")
        tokens = tokens_of(prepared).block(block)
        assert torch.equal(contexts["tokens"].long(), tokens)
        assert torch.equal(contexts["kept"], tokens_of(prepared).kept(tokens))
        assert schema["train"]["rows"][block] == int(contexts["kept"].sum()) == rows
    (held_out,) = (collected / "heldout" / SITES[0]).iterdir()
    assert len(load_file(held_out)["activations"]) == schema["heldout"]["rows"][0] == tokens_of(prepared).heldout_rows


@pytest.mark.usefixtures("small_parts")
def test_parts_are_of_bounded_size_and_follow_each_other(collected: Path, storage: Path, tmp_path: Path) -> None:
    folder = collect(storage, tmp_path / "acts")
    for site in SITES:
        parts = sorted((folder / "train" / site).iterdir())
        assert len(parts) > 4
        assert all(path.stat().st_size <= 300 * 512 * 4 + 200 for path in parts)
        whole = sorted((collected / "train" / site).iterdir())
        found, expected = (torch.cat([load_file(f)["activations"] for f in files]) for files in (parts, whole))
        assert torch.equal(found, expected)


def test_the_schema_names_every_file_with_its_hash(collected: Path) -> None:
    files = {name: file["sha256"] for name, file in schema_of(collected)["files"].items()}
    assert snapshot(collected) == {**files, "schema.json": file_hash(collected / "schema.json")}


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    "case", quick([("safetensors", 1), ("safetensors", 12), ("saelens", 7)], lambda case: case[1] == 12), ids=str
)
def test_what_was_interrupted_goes_on_and_ends_the_same(
    case: tuple[Any, int], storage: Path, tmp_path: Path, interrupted: Any
) -> None:
    layout, passes = case
    expected = snapshot(collect(storage, tmp_path / "whole", layout=layout))
    interrupted(passes)
    out = tmp_path / "acts"
    with pytest.raises(KeyboardInterrupt):
        collect(storage, out, layout=layout)
    assert not out.exists()
    left = tmp_path / "acts.unfinished"
    assert not (left / "schema.json").exists() and not [*left.rglob("state.json")]
    (left / "train" / ".block.half").write_text("written when the power went")
    assert snapshot(collect(storage, out, layout=layout)) == expected
    assert not left.exists()


def test_a_crash_between_the_last_steps_is_made_good(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "acts"
    out.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            collect(storage, out)
    monkeypatch.setattr(Producer, "__init__", lambda *_: pytest.fail("the model is loaded"))
    with monkeypatch.context() as patch:
        patch.setattr(collection, "_remove_leftovers", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            collect(storage, out)
    collect(storage, out)
    assert set(snapshot(out)) == {*schema_of(out)["files"], "schema.json"}


def test_a_finished_folder_is_left_as_it_is(collected: Path, storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Producer, "__init__", lambda *_: pytest.fail("the model is loaded"))
    before = snapshot(collected)
    collect(storage, collected)
    assert snapshot(collected) == before


def refused(storage: Path, out: Path, of: Sweep | None = None, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        collect(storage, out, of, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_fit_is_one_line_before_anything_is_written(
    collected: Path, storage: Path, tmp_path: Path, interrupted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "other activations (a difference in layout)" in refused(storage, collected, layout="saelens")
    assert "other activations (a difference in sites)" in refused(storage, collected, sites=SITES[:1])
    assert "other activations (a difference in how many training rows" in refused(storage, collected, tokens=1000)
    assert "did you mean 'blocks.1.hook_resid_post'" in refused(storage, tmp_path / "a", sites=["blocks.1.resid_post"])
    assert "--set training.tokens=3001" in refused(storage, tmp_path / "a", tokens=3001)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("…")
    assert "something else at" in refused(storage, tmp_path / "mine")
    (tmp_path / "b.unfinished").mkdir()
    (tmp_path / "b.unfinished/thesis.txt").write_text("…")
    assert "something else in" in refused(storage, tmp_path / "b")
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "b.unfinished"}

    interrupted(3)
    with pytest.raises(KeyboardInterrupt):
        collect(storage, tmp_path / "acts")
    assert "the beginning of other activations" in refused(storage, tmp_path / "acts", tokens=1000)
    with (tmp_path / "acts.unfinished/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process is writing" in refused(storage, tmp_path / "acts")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**21))
    assert "GiB are to be written" in (line := refused(storage, tmp_path / "c")) and "--tokens would fit" in line


def test_a_full_disk_stops_it_and_the_same_call_goes_on(
    storage: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(storage)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)  # others fill it meanwhile
    with pytest.raises(gsae_ray.errors.StorageFullError, match="make room, and the same command goes on"):
        collect(storage, small_disk / "acts")


def test_activations_that_are_not_finite_are_told_of(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LanguageModelSource.rows

    def rows(*arguments: Any) -> Any:
        made = real(*arguments)
        made.rows[SITES[1]][5, 7] = torch.nan
        return made

    monkeypatch.setattr(LanguageModelSource, "rows", rows)
    assert f"activations at {SITES[1]} are not finite in block 0" in refused(storage, tmp_path / "acts")


def test_fewer_tokens_and_sites_are_the_beginning_of_all(collected: Path, storage: Path, tmp_path: Path) -> None:
    folder = collect(storage, tmp_path / "acts", tokens=1000, sites=SITES[1:])
    schema = schema_of(folder)
    assert list(schema["sites"]) == SITES[1:] and 1000 <= sum(schema["train"]["rows"]) < 1100
    some, all_ = snapshot(folder), snapshot(collected)
    assert some.items() - all_.items() == {("schema.json", some["schema.json"])}


@pytest.mark.parametrize(("dtype", "stored"), [("float32", "float32"), ("bfloat16", "float32"), ("float16", "float16")])
def test_saelens_layout_is_a_data_set_of_whole_contexts(dtype: str, stored: str, storage: Path, tmp_path: Path) -> None:
    wanted = sweep(tokens=1000, dtype=dtype)
    folder = collect(storage, tmp_path / "a", wanted, layout="saelens")
    plain = collect(storage, tmp_path / "b", wanted)
    for split in ("train", "heldout"):
        for site in SITES:
            found = datasets.load_from_disk(str(folder / split / site))
            assert found.features[site].dtype == stored and list(found.features) == [site, "token_ids", "kept"]
            found = found.with_format("torch")
            kept = found["kept"][:]
            rows = torch.cat([load_file(f)["activations"] for f in sorted((plain / split / site).iterdir())])
            assert torch.equal(found[site][:][kept], rows.to(getattr(torch, stored)))
            files = sorted((plain / split / "contexts").iterdir())
            assert torch.equal(found["token_ids"][:], torch.cat([load_file(f)["tokens"] for f in files]).long())


def test_the_command_says_what_it_does(storage: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(json.dumps(sweep().model_dump(mode="json", exclude_none=True)))
    command = ["collect", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "acts"), "--storage", str(storage)]
    result = CliRunner().invoke(
        main, [*command, "--site", SITES[0], "--tokens", "1000", "--set", "evaluation.tokens=100"]
    )
    assert result.exit_code == 0, result.output
    assert "GiB at 1 sites to" in result.stderr and "1,0" in result.stdout and "training rows" in result.stdout
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2 and "other activations" in result.stderr
