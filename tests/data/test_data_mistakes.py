"""One line for data that is not there, is not what it should be, or cannot be read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
from prepared import DOCUMENTS, IDS, complaint, sweep, write_jsonl

from gsae_ray.builtin import MODEL_DIR
from gsae_ray.config.sections import DatasetSettings
from gsae_ray.data.documents import pinned_data


def test_an_unknown_split_of_the_builtin_text_is_named_with_the_known_ones(out: Path) -> None:
    message = complaint(sweep("builtin", dataset_split="trian"), out)
    assert message.startswith("dataset.split: ") and "'trian'" in message and "did you mean 'train'?" in message


def test_an_unknown_split_of_local_files_is_named(text: Path, out: Path) -> None:
    message = complaint(sweep(text, dataset_split="validation"), out)
    assert message.startswith("dataset.split: ") and "'validation'" in message and "one of: train" in message


def test_an_unknown_split_of_a_data_set_with_splits_is_named(with_splits: str, out: Path) -> None:
    message = complaint(sweep(with_splits, evaluation_split="test", dataset_split="trian"), out)
    assert message.startswith("dataset") and "'trian'" in message and "train" in message.replace("trian", "")


@pytest.mark.parametrize("kind", ["builtin", "local", "splits"])
def test_an_unknown_held_out_split_is_blamed_on_the_key_that_names_it(
    kind: str, text: Path, with_splits: str, out: Path
) -> None:
    name = {"builtin": "builtin", "local": str(text), "splits": with_splits}[kind]
    message = complaint(sweep(name, evaluation_split="validation"), out)
    assert message.startswith("evaluation.split: ") and "'validation'" in message


@pytest.mark.parametrize("key", ["text_column", "tokens_column"])
def test_an_unknown_column_is_named_with_the_known_ones(key: str, text: Path, out: Path) -> None:
    changes: dict[str, Any] = {f"dataset_{key}": "txet"}
    message = complaint(sweep(text, **changes), out)
    assert message.startswith(f"dataset.{key}: ") and "'txet'" in message and "did you mean 'text'?" in message


@pytest.mark.parametrize(
    ("column", "values", "key"),
    [("number", list(range(100)), "text_column"), ("text", DOCUMENTS, "tokens_column"), ("ids", IDS, "text_column")],
)
def test_a_column_that_holds_something_else_is_named(
    column: str, values: list[Any], key: str, tmp_path: Path, out: Path
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", values, column)
    changes: dict[str, Any] = {f"dataset_{key}": column}
    message = complaint(sweep(path, **changes), out)
    assert message.startswith(f"dataset.{key}: ") and f"{column!r}" in message


@pytest.mark.parametrize("name", ["/no/such/file.txt", "./nothing/*.jsonl", "nothing.parquet", "~/no-such-directory"])
def test_a_file_that_is_not_there_is_named(name: str, out: Path) -> None:
    message = complaint(sweep(name), out)
    assert message.startswith("dataset.name: ") and f"{name!r}" in message
    assert not out.exists() or list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": \n'),
        ("a.jsonl", b""),
        ("a.parquet", b"no parquet"),
        ("a.txt", b"\xff\xfe\xff"),
        ("a.csv", b"text\na\n"),
    ],
    ids=["broken-json", "empty-json", "broken-parquet", "no-utf8", "unknown-kind"],
)
def test_a_file_that_cannot_be_read_is_named(file: str, content: bytes, tmp_path: Path, out: Path) -> None:
    (tmp_path / file).write_bytes(content)
    message = complaint(sweep(tmp_path / file), out)
    assert message.startswith("dataset.name: ") and file in message


def test_files_of_several_kinds_are_refused(tmp_path: Path, out: Path) -> None:
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.txt").write_text("a")
    write_jsonl(tmp_path / "mixed" / "a.jsonl", DOCUMENTS)
    for name in (tmp_path / "mixed", tmp_path / "mixed" / "*"):
        assert "files of one kind" in complaint(sweep(name), out)


def test_a_data_set_of_the_hub_without_a_network_is_one_line(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = complaint(sweep("lab/no-such-corpus"), out)
    assert message.startswith("dataset.name: ") and "'lab/no-such-corpus'" in message and "network" in message


def test_a_folder_that_is_not_there_is_one_line_where_the_hub_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    dataset = DatasetSettings(name="data/no-such-folder")
    assert pinned_data(dataset) == dataset  # and loading it is refused, as without a network


def test_a_bos_that_the_tokenizer_lacks_is_named(text: Path, tmp_path: Path, out: Path) -> None:
    shutil.copytree(MODEL_DIR, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    config.pop("bos_token")
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(config))
    message = complaint(sweep(text, model_name=str(tmp_path / "model"), dataset_prepend_bos=True), out)
    assert message.startswith("dataset.prepend_bos: true")
