"""Which files are read, and as which split: by Hugging Face's names, by contents, and the wanted column alone."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from prepared import DOCUMENTS, IDS, TOKENIZER, blocks, complaint, documents_in, stream, sweep, write_jsonl
from selection import quick

from gsae_ray.data import local_files
from gsae_ray.data.column import Column
from gsae_ray.data.documents import find_data
from gsae_ray.data.prepare import prepare_tokens
from gsae_ray.data.tokens import TokenStore
from gsae_ray.driver.prepare import prepare
from gsae_ray.errors import DataEndedError, UserError

TRAIN, TEST = DOCUMENTS[:80], DOCUMENTS[80:]
SETS = {split: set(ids) for split, ids in (("train", IDS[:80]), ("test", IDS[80:]))}


def write(path: Path, documents: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.table({"text": documents}), path)
        return
    data = "".join(json.dumps({"text": document}) + "\n" for document in documents).encode()
    compress: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    path.write_bytes(compress.get(path.suffix, bytes)(data))


def trained_on(store: TokenStore) -> set[tuple[int, ...]]:
    return set(documents_in(stream(store)))


def held_out(store: TokenStore) -> set[tuple[int, ...]]:
    return set(documents_in(store.heldout().flatten().tolist()))


# ---- splits ---------------------------------------------------------------------------------------------------------

LAYOUTS = [
    ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
    ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
    ("train/a.jsonl", "test/a.jsonl"),
    ("en/train/0.jsonl.gz", "en/test/0.jsonl.gz"),
    ("my_train.jsonl.xz", "my_eval.jsonl.xz"),
    ("training.json.bz2", "testing.json.bz2"),
]


@pytest.mark.parametrize("names", LAYOUTS, ids=[names[0] for names in LAYOUTS])
def test_files_named_as_another_split_are_never_trained_on_and_can_be_evaluated_on(
    names: tuple[str, str], tmp_path: Path
) -> None:
    for name, documents in zip(names, (TRAIN, TEST), strict=True):
        write(tmp_path / "corpus" / name, documents)
    kept = sum(len(ids) for ids in IDS[:80]) - 200
    store = prepare_tokens(sweep(tmp_path / "corpus", kept, evaluation_split="test"), tmp_path / "a")
    assert trained_on(store) <= SETS["train"] and held_out(store) <= SETS["test"] and held_out(store)
    by_hash = prepare_tokens(sweep(tmp_path / "corpus"), tmp_path / "b")
    assert trained_on(by_hash) | held_out(by_hash) <= SETS["train"]
    other = prepare_tokens(sweep(tmp_path / "corpus", 100, 15, dataset_split="test"), tmp_path / "c")
    assert trained_on(other) | held_out(other) <= SETS["test"]


def test_a_glob_over_files_of_several_splits_trains_on_one(tmp_path: Path) -> None:
    write(tmp_path / "c" / "train-0.parquet", TRAIN)
    write(tmp_path / "c" / "test-0.parquet", TEST)
    store = prepare_tokens(sweep(tmp_path / "c" / "*.parquet", evaluation_split="test"), tmp_path / "a")
    assert trained_on(store) <= SETS["train"] and held_out(store) <= SETS["test"]


def test_a_file_that_is_named_itself_is_trained_on_whatever_it_is_called(tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl", DOCUMENTS)
    assert trained_on(prepare_tokens(sweep(tmp_path / "test.jsonl"), tmp_path / "a")) <= set(IDS)


def test_other_names_are_given_by_patterns(tmp_path: Path) -> None:
    write(tmp_path / "c" / "old" / "1.jsonl", TRAIN)
    write(tmp_path / "c" / "new" / "1.jsonl", TEST)
    both = prepare_tokens(sweep(tmp_path / "c", 900), tmp_path / "a")
    assert trained_on(both) & SETS["train"] and trained_on(both) & SETS["test"]  # no split's name: all are `train`
    given = {"train": "old/*", "fresh": ["new/*"]}
    store = prepare_tokens(sweep(tmp_path / "c", dataset_data_files=given, evaluation_split="fresh"), tmp_path / "a")
    assert trained_on(store) <= SETS["train"] and held_out(store) <= SETS["test"]
    for pattern in ("ald/*", "o**d/*", "../c/old/*"):
        message = complaint(sweep(tmp_path / "c", dataset_data_files={"train": pattern}), tmp_path / "a")
        assert message.startswith("dataset.data_files.train: ") and repr(pattern) in message
    for name in (tmp_path / "c" / "old" / "1.jsonl", "builtin"):
        message = complaint(sweep(name, dataset_data_files=given), tmp_path / "a")
        assert message.startswith("dataset.data_files: ") and repr(str(name)) in message
    message = complaint(sweep(tmp_path / "c", dataset_data_files={"train": "**", "test": "new/*"}), tmp_path / "a")
    assert message.startswith("dataset.data_files: ") and "new/1.jsonl" in message


def test_a_split_that_no_file_is_of_is_named_with_those_that_are(tmp_path: Path) -> None:
    write(tmp_path / "c" / "train.jsonl", TRAIN)
    write(tmp_path / "c" / "val.jsonl", TEST)
    message = complaint(sweep(tmp_path / "c", evaluation_split="test"), tmp_path / "a")
    assert message.startswith("evaluation.split: ") and "'test'" in message and "train, validation" in message


def test_what_is_taken_and_what_is_not_is_said(tmp_path: Path) -> None:
    for name in ("train-0.jsonl", "train-1.jsonl", "test-0.jsonl", "more.jsonl"):
        write(tmp_path / "c" / name, TRAIN)
    line = find_data(sweep(tmp_path / "c").text).notice("train")
    assert line is not None and "\n" not in line
    assert "2 files (train-0.jsonl, train-1.jsonl)" in line and "test (1)" in line
    assert "of no split: 1 file (more.jsonl)" in line
    assert find_data(sweep(tmp_path / "c" / "more.jsonl").text).notice("train") is None
    assert find_data(sweep("builtin").text).notice("train") is None


def test_files_that_are_no_data_do_not_name_the_splits(tmp_path: Path) -> None:
    write(tmp_path / "c" / "part-0.jsonl", DOCUMENTS)
    for name in ("train.py", "test.sh", "README.md", "dataset_infos.json", ".cache/x.json", "__pycache__/x.json"):
        (tmp_path / "c" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "c" / name).write_text("{}")
    assert trained_on(prepare_tokens(sweep(tmp_path / "c"), tmp_path / "a")) <= set(IDS)


# ---- contents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.parquet", "c/train.jsonl", "other/train.csv"])
def test_a_file_rewritten_with_its_time_stamp_kept_is_read_anew(name: str, tmp_path: Path) -> None:
    def write_version(documents: list[str]) -> None:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("\n".join(documents))
        elif path.suffix == ".csv":
            datasets.Dataset.from_dict({"text": documents}).to_csv(path)
        else:
            write(path, documents)
        os.utime(path, ns=(10**18, 10**18))

    given = tmp_path / name if "/" not in name else (tmp_path / name).parent
    fraction: dict[str, Any] = {"evaluation_fraction": 0.9 if name == "a.txt" else 0.25}
    stores = []
    for version in ("old", "new"):
        # Texts of one length, so that the file's size tells nothing either.
        documents = [f"{version} document {i:03d}: self import x y z u v w" for i in range(100)]
        write_version(documents)
        if name == "a.txt":  # one document, which is held out
            with pytest.raises(DataEndedError):
                prepare_tokens(sweep(given, **fraction), tmp_path / "out")
        else:
            stores.append(prepare_tokens(sweep(given, **fraction), tmp_path / "out"))
        read = find_data(sweep(given).text).load("train", Column("text", None), "dataset.split")
        assert all(version in row["text"] for row in read)
    if stores:
        assert stores[0].fingerprint != stores[1].fingerprint and blocks(stores[0]) != blocks(stores[1])
        assert "new" in TOKENIZER.decode(stream(stores[1])) and "old" not in TOKENIZER.decode(stream(stores[1]))


@pytest.mark.parametrize("by", ["data_files", "README.md"])
def test_other_files_of_a_folder_of_another_format_are_other_data(by: str, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    for name in ("old", "new"):
        texts = [f"{name} document {i:03d}: self import x y z" for i in range(100)]
        datasets.Dataset.from_dict({"text": texts}).to_csv(folder / f"{name}.csv")
    stores = []
    for name in ("old", "new"):
        given = sweep(folder)
        if by == "data_files":
            given = sweep(folder, dataset_data_files={"train": [f"{name}.csv"]})
        else:
            (folder / by).write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {name}.csv\n---\n")
        stores.append(prepare_tokens(given, tmp_path / "out"))
        assert name in TOKENIZER.decode(stream(stores[-1]))
    assert stores[0].fingerprint != stores[1].fingerprint
    assert stores[0].heldout_fingerprint != stores[1].heldout_fingerprint


def test_a_split_that_is_not_used_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "c" / "train.jsonl", TRAIN)
    write(tmp_path / "c" / "test.jsonl", TEST)
    before = prepare_tokens(sweep(tmp_path / "c"), tmp_path / "a")
    write(tmp_path / "c" / "test.jsonl", TEST[::-1])
    assert prepare_tokens(sweep(tmp_path / "c"), tmp_path / "a") == before


# ---- formats --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", quick([".gz", ".bz2", ".xz"], lambda suffix: suffix == ".gz"))
def test_compressed_files_give_the_tokens_of_plain_ones(suffix: str, tmp_path: Path) -> None:
    compressors: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
    }
    compress = compressors[suffix]
    for kind in ("txt", "jsonl", "json"):
        for index, document in enumerate(DOCUMENTS):
            text = (
                document
                if kind == "txt"
                else json.dumps([{"text": document}] if kind == "json" else {"text": document})
            )
            for folder, data, end in (("plain", text.encode(), ""), ("packed", compress(text.encode()), suffix)):
                path = tmp_path / folder / kind / f"{index:03d}.{kind}{end}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
    stores = [
        prepare_tokens(sweep(tmp_path / folder / kind), tmp_path / f"{folder}-{kind}")
        for folder in ("plain", "packed")
        for kind in ("txt", "jsonl", "json")
    ]
    assert all(blocks(store) == blocks(stores[0]) for store in stores)


def test_what_save_to_disk_wrote_is_read(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", TRAIN)
    plain = prepare_tokens(sweep(tmp_path / "a.jsonl"), tmp_path / "a")
    train, test = (datasets.Dataset.from_dict({"text": rows, "n": [0] * len(rows)}) for rows in (TRAIN, TEST))
    train.with_format("torch", columns=["n"]).save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / "dict")
    assert blocks(prepare_tokens(sweep(tmp_path / "one"), tmp_path / "b")) == blocks(plain)
    store = prepare_tokens(sweep(tmp_path / "dict", evaluation_split="test"), tmp_path / "c")
    assert trained_on(store) <= SETS["train"] and held_out(store) <= SETS["test"]
    message = complaint(sweep(tmp_path / "dict", evaluation_split="valid"), tmp_path / "c")
    assert message.startswith("evaluation.split: ") and "test, train" in message


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_other_columns_may_differ_from_file_to_file(kind: str, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    others: list[dict[str, Any]] = [{"meta": {"a": 1}}, {"meta": "x", "url": [1, "b"]}, {"meta": [{"b": None}], "n": 3}]
    for part, other in enumerate(others):
        rows = [{**other, "text": document} for document in DOCUMENTS[part::3]]
        if kind == "parquet":
            rows = [{"text": row["text"], "meta": part if part else "x"} for row in rows]
            pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "c" / f"{part}.parquet")
        else:
            (tmp_path / "c" / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = prepare_tokens(sweep(tmp_path / "c"), tmp_path / "a")
    in_order = [document for part in range(3) for document in DOCUMENTS[part::3]]
    write_jsonl(tmp_path / "plain.jsonl", in_order)
    assert blocks(store) == blocks(prepare_tokens(sweep(tmp_path / "plain.jsonl"), tmp_path / "b"))


def test_other_columns_may_differ_from_row_to_row(tmp_path: Path) -> None:
    rows = [{"text": text, "meta": i if i % 2 else {"of": [text]}, f"k{i}": i} for i, text in enumerate(DOCUMENTS)]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_jsonl(tmp_path / "plain.jsonl", DOCUMENTS)
    mixed, plain = (prepare_tokens(sweep(tmp_path / f"{n}.jsonl"), tmp_path / n) for n in ("mixed", "plain"))
    assert blocks(mixed) == blocks(plain) and torch.equal(mixed.heldout(), plain.heldout())


def test_a_row_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n\n{"text": \n')
    message = complaint(sweep(tmp_path / "a.jsonl"), tmp_path / "out")
    assert message.startswith("dataset.name: a.jsonl, row 1 is no JSON")


# ---- too much, too little -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/", "/.", "/**/*.txt", "/tmp/.."])
def test_the_whole_disk_is_not_scanned(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def scan(*_: Any, **__: Any) -> Any:
        raise AssertionError("scanned")

    for place, function in ((os, "walk"), (os, "scandir"), (Path, "glob"), (Path, "rglob")):
        monkeypatch.setattr(place, function, scan)
    with pytest.raises(UserError, match=r"^dataset.name: .* is the whole disk"):
        find_data(sweep(name).text)


@pytest.mark.parametrize("name", ["a**b", "x" * 5000, "~nobody-of-this-name/x", "./*/**x"])
def test_a_name_that_no_file_can_have_is_refused(name: str, tmp_path: Path) -> None:
    message = complaint(sweep(name), tmp_path / "out")
    assert message.startswith("dataset.name: cannot look for ") and len(message) < 300


def test_a_folder_without_data_is_named_and_its_pipes_are_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "notes.docx").write_text("x")
    os.mkfifo(tmp_path / "c" / "a.jsonl")
    assert "no files of data" in complaint(sweep(tmp_path / "c"), tmp_path / "out")


@pytest.mark.parametrize("file", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
def test_a_damaged_file_of_save_to_disk_is_one_line(file: str, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": DOCUMENTS}).save_to_disk(tmp_path / "s")
    (tmp_path / "s" / file).write_text("{}" if file == "state.json" else "[]")
    message = complaint(sweep(tmp_path / "s"), tmp_path / "out")
    assert message.startswith("dataset.name: ") and "cannot be read" in message


def test_a_name_is_not_empty() -> None:
    with pytest.raises(ValueError, match="name"):
        sweep("")


def test_more_files_than_any_data_set_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_files, "MOST_FILES", 3)
    for index in range(3):
        write(tmp_path / "c" / f"{index}.jsonl", DOCUMENTS)
    assert trained_on(prepare_tokens(sweep(tmp_path / "c"), tmp_path / "a")) <= set(IDS)
    write(tmp_path / "c" / "3.jsonl", DOCUMENTS)
    assert "narrow it" in complaint(sweep(tmp_path / "c"), tmp_path / "a")


@pytest.mark.parametrize("fraction", [0.01, 0.999])
def test_one_document_is_told_that_it_cannot_be_shared_out(fraction: float, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("import self x " * 2000)
    message = complaint(sweep(tmp_path / "book.txt", evaluation_fraction=fraction), tmp_path / "a", DataEndedError)
    assert "1 document" in message and "cut it up" in message and "evaluation.split" in message
    assert "evaluation.fraction" not in message


def test_a_folder_that_was_moved_is_the_same_data(tmp_path: Path) -> None:
    write(tmp_path / "c" / "train.jsonl", TRAIN)
    before = prepare_tokens(sweep(tmp_path / "c"), tmp_path / "a")
    shutil.move(tmp_path / "c", tmp_path / "d")
    assert prepare_tokens(sweep(tmp_path / "d"), tmp_path / "a") == before


def test_a_launch_says_what_it_takes(tmp_path: Path) -> None:
    write(tmp_path / "c" / "train.jsonl", TRAIN)
    write(tmp_path / "c" / "test.jsonl", TEST)
    said: list[str] = []
    prepare(sweep(tmp_path / "c", evaluation_split="test"), tmp_path / "out", said.append)
    (notice,) = said
    assert "trains on split 'train', 1 file (train.jsonl)" in notice and "test (1)" in notice
