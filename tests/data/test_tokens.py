"""What text becomes: the same contexts in the same order, whoever asks, however often."""

from __future__ import annotations

import http.server
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from prepared import CONTEXT, DOCUMENTS, EOS, IDS, RANDOM, TOKENIZER, blocks, documents_in, stream, sweep, write_jsonl
from servers import serving

from gsae_ray.data.prepare import prepare_tokens

# ---- what is read ---------------------------------------------------------------------------------------------------


def test_documents_are_packed_end_to_end_each_once(text: Path, out: Path) -> None:
    store = prepare_tokens(sweep(text), out)
    documents = documents_in(stream(store))
    assert set(documents) <= set(IDS) and max(Counter(documents).values()) == 1
    assert all(len(context) == CONTEXT for block in blocks(store) for context in block)
    assert store.block(0).dtype == torch.int64 and store.block(0).shape[1] == CONTEXT


def test_text_json_and_parquet_of_the_same_documents_give_the_same_tokens(tmp_path: Path) -> None:
    (tmp_path / "txt").mkdir()
    for index, document in enumerate(DOCUMENTS):
        (tmp_path / "txt" / f"{index:03d}.txt").write_text(document)
    pyarrow.parquet.write_table(pa.table({"text": DOCUMENTS}), tmp_path / "whole.parquet")
    (tmp_path / "parts").mkdir()
    pyarrow.parquet.write_table(pa.table({"text": DOCUMENTS[:30]}), tmp_path / "parts" / "a.parquet")
    pyarrow.parquet.write_table(pa.table({"text": DOCUMENTS[30:]}), tmp_path / "parts" / "b.parquet")
    write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    names = ["txt/*.txt", "txt", "whole.parquet", "parts", "parts/?.parquet", "a.jsonl"]
    stores = [prepare_tokens(sweep(tmp_path / name), tmp_path / f"out{i}") for i, name in enumerate(names)]
    assert all(blocks(store) == blocks(stores[0]) for store in stores)
    assert all(torch.equal(store.heldout(), stores[0].heldout()) for store in stores)


def test_a_text_file_is_one_document_with_all_its_lines(tmp_path: Path, out: Path) -> None:
    documents = [f"import os\n\nimport sys  # {i}\n" * 3 for i in range(60)]
    for index, document in enumerate(documents):
        (tmp_path / f"{index}.txt").write_text(document)
    store = prepare_tokens(sweep(tmp_path / "*.txt"), out)
    assert set(documents_in(stream(store))) <= {tuple(TOKENIZER(document)["input_ids"]) for document in documents}


def test_pretokenised_columns_are_read_as_they_are(tmp_path: Path, out: Path) -> None:
    rows = [[*ids, EOS] for ids in IDS]
    pyarrow.parquet.write_table(pa.table({"ids": rows}), tmp_path / "ids.parquet")
    store = prepare_tokens(sweep(tmp_path / "ids.parquet", dataset_tokens_column="ids"), out)
    trained, held_out = documents_in(stream(store)), documents_in(store.heldout().flatten().tolist())
    assert trained and held_out and set(trained) | set(held_out) <= set(IDS) and not set(trained) & set(held_out)


def test_a_column_of_another_name_and_empty_documents_are_read(tmp_path: Path, out: Path) -> None:
    rows = [*DOCUMENTS, "", None]
    RANDOM.shuffle(rows)
    path = write_jsonl(tmp_path / "a.jsonl", rows, "content")
    store = prepare_tokens(sweep(path, dataset_text_column="content"), out)
    assert set(documents_in(stream(store))) <= set(IDS)


def test_the_builtin_text_is_there_without_a_file(out: Path) -> None:
    store = prepare_tokens(sweep("builtin", 5_000, 1_000, dataset_shuffle_tokens=1_000), out)
    assert sum(store.rows) >= 5_000 and store.heldout_rows >= 1_000
    assert "def " in TOKENIZER.decode(stream(store))


@pytest.mark.parametrize("name", ["builtin", "local"])
def test_reading_text_that_lies_here_asks_no_server(
    name: str, text: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: Any) -> None: ...

    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", True)  # as it is by default
    with serving(http.server.HTTPServer(("127.0.0.1", 0), Server)) as server:
        monkeypatch.setattr(datasets.config, "S3_DATASETS_BUCKET_PREFIX", f"http://127.0.0.1:{server.server_port}")
        prepare_tokens(sweep(text if name == "local" else name), out)
    assert asked == []


# ---- the same for everybody -----------------------------------------------------------------------------------------


def test_the_same_sweep_gives_the_same_files_anywhere(text: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copy(text, tmp_path / "moved.jsonl"))
    stores = [prepare_tokens(sweep(name), tmp_path / out) for name, out in ((text, "a"), (text, "b"), (moved, "c"))]
    contents = [
        {path.relative_to(store.blocks_directory): path.read_bytes() for path in store.blocks_directory.iterdir()}
        for store in stores
    ]
    assert contents[0] == contents[1] == contents[2]
    assert len({(store.fingerprint, store.heldout_fingerprint) for store in stores}) == 1


def test_other_documents_have_another_fingerprint(text: Path, out: Path) -> None:
    before = prepare_tokens(sweep(text), out)
    write_jsonl(text, DOCUMENTS[::-1])
    after = prepare_tokens(sweep(text), out)
    assert before.fingerprint != after.fingerprint and before.heldout_fingerprint != after.heldout_fingerprint


def test_the_first_blocks_do_not_depend_on_how_many_tokens_are_needed(text: Path, tmp_path: Path) -> None:
    short, long = (prepare_tokens(sweep(text, n), tmp_path / str(n)) for n in (250, 900))
    assert len(short.rows) < len(long.rows)
    assert blocks(long)[: len(short.rows)] == blocks(short) and long.rows[: len(short.rows)] == short.rows
    assert short.fingerprint == long.fingerprint
    assert torch.equal(short.heldout(), long.heldout())


def test_a_longer_trial_beside_it_changes_no_block_of_a_trial(text: Path, tmp_path: Path) -> None:
    entry = {"architecture": "standard", "widths": [8], "l1_coefficient": [1]}
    common: dict[str, Any] = {"tokens": 300, "dataset_shuffle_tokens": None}
    alone = prepare_tokens(sweep(text, **common, saes=[entry]), tmp_path / "alone")
    beside = prepare_tokens(sweep(text, **common, saes=[entry, {**entry, "tokens": 900}]), tmp_path / "beside")
    assert alone.fingerprint == beside.fingerprint
    assert len(beside.rows) > len(alone.rows) and blocks(beside)[: len(alone.rows)] == blocks(alone)


def test_tokens_of_a_site_that_no_sae_uses_are_not_prepared(text: Path, out: Path) -> None:
    entry = {"architecture": "standard", "widths": [8], "l1_coefficient": [1], "sites": {"layers": [1]}}
    prepare_tokens(sweep(text, saes=[{**entry, "tokens": 200}]), out)  # enough for layer 1


def test_blocks_are_about_shuffle_tokens_rows(text: Path, out: Path) -> None:
    store = prepare_tokens(sweep(text, 900, dataset_shuffle_tokens=200), out)
    assert len(store.rows) > 3
    assert {len(block) for block in blocks(store)} == {14}  # ceil(200 / 15) contexts
    assert all(140 < rows <= 210 for rows in store.rows)


def test_seeds_change_the_order_of_documents_and_not_the_documents(text: Path, tmp_path: Path) -> None:
    stores = [prepare_tokens(sweep(text, 1000, dataset_seed=seed), tmp_path / str(seed)) for seed in (0, 1, 2**31)]
    orders = [documents_in(stream(store)) for store in stores]
    assert len({store.fingerprint for store in stores}) == len({tuple(order) for order in orders}) == 3
    # The evaluation is the same for all seeds.
    assert len({store.heldout_fingerprint for store in stores}) == 1
    assert all(torch.equal(store.heldout(), stores[0].heldout()) for store in stores)


def test_documents_are_shuffled_before_they_are_packed(text: Path, out: Path) -> None:
    numbers = [IDS.index(ids) for ids in documents_in(stream(prepare_tokens(sweep(text, 900), out)))]
    assert numbers != sorted(numbers) and max(numbers[:20]) > 50
