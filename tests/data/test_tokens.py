"""What text becomes: the same contexts in the same order, whoever asks, however often; held-out documents apart."""

from __future__ import annotations

import http.server
import itertools
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from prepared import (
    ALL_TOKENS,
    CONTEXT,
    DOCUMENTS,
    EOS,
    IDS,
    RANDOM,
    TOKENIZER,
    blocks,
    complaint,
    documents_in,
    stream,
    sweep,
    write_jsonl,
)
from servers import serving
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from gsae_ray.builtin import MODEL_DIR
from gsae_ray.config.sections import DatasetSettings, ModelSettings
from gsae_ray.data.documents import held_out_by_hash, pinned_data
from gsae_ray.data.prepare import prepare_tokens
from gsae_ray.data.tokens import TokenStore, kept_mask
from gsae_ray.errors import DataEndedError, UserError
from gsae_ray.language_model.loading import load_tokenizer


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "text.jsonl", DOCUMENTS)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


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


# ---- held out -------------------------------------------------------------------------------------------------------


def test_documents_held_out_by_hash_never_appear_in_training_blocks(text: Path, out: Path) -> None:
    store = prepare_tokens(sweep(text, 900, 150), out)
    trained, held_out = documents_in(stream(store)), documents_in(store.heldout().flatten().tolist())
    by_hash = {ids for ids, document in zip(IDS, DOCUMENTS, strict=True) if held_out_by_hash(document, 0.25)}
    assert len(trained) > 30 and set(trained).isdisjoint(by_hash)
    assert len(held_out) > 5 and set(held_out) <= by_hash


def test_a_document_that_stands_twice_is_held_out_twice(tmp_path: Path, out: Path) -> None:
    path = write_jsonl(tmp_path / "twice.jsonl", DOCUMENTS * 2)
    store = prepare_tokens(sweep(path, 1500, 150), out)
    assert set(documents_in(stream(store))).isdisjoint(documents_in(store.heldout().flatten().tolist()))


def test_the_held_out_share_is_about_the_fraction() -> None:
    for fraction in (0.01, 0.25, 0.5):
        share = sum(held_out_by_hash(f"document {i}", fraction) for i in range(4000)) / 4000
        assert abs(share - fraction) < 4 * (fraction * (1 - fraction) / 4000) ** 0.5
    # A larger fraction holds out the same documents, and more.
    assert all(held_out_by_hash(d, 0.5) for d in DOCUMENTS if held_out_by_hash(d, 0.25))


@pytest.fixture
def with_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A data set that has splits, as those of the hub have."""
    (tmp_path / "corpus").mkdir()
    for split, rows in (("train", DOCUMENTS[:80]), ("test", DOCUMENTS[80:])):
        datasets.Dataset.from_dict({"text": rows}).to_csv(tmp_path / "corpus" / f"{split}.csv")
    monkeypatch.chdir(tmp_path)
    return "corpus"


def test_a_held_out_split_leaves_the_training_split_whole(with_splits: str, out: Path) -> None:
    kept = sum(len(ids) for ids in IDS[:80]) - 200
    store = prepare_tokens(sweep(with_splits, kept, evaluation_split="test"), out)
    trained = set(documents_in(stream(store)))
    assert trained <= set(IDS[:80]) and any(
        IDS[i] in trained for i in range(80) if held_out_by_hash(DOCUMENTS[i], 0.25)
    )
    assert set(documents_in(store.heldout().flatten().tolist())) <= set(IDS[80:])


def test_documents_held_out_by_hash_are_of_the_split_that_is_trained_on(with_splits: str, tmp_path: Path) -> None:
    for split, own in (("train", IDS[:80]), ("test", IDS[80:])):
        store = prepare_tokens(sweep(with_splits, 100, 15, dataset_split=split, evaluation_fraction=0.4), tmp_path)
        assert set(documents_in(store.heldout().flatten().tolist())) <= set(own)


def test_a_streamed_data_set_gives_the_same_tokens_each_time(with_splits: str, tmp_path: Path) -> None:
    wanted = sweep(with_splits, evaluation_split="test", dataset_streaming=True)
    first, second = (prepare_tokens(wanted, tmp_path / out) for out in "ab")
    assert blocks(first) == blocks(second) and set(documents_in(stream(first))) <= set(IDS[:80])


def test_tokens_prepared_by_streaming_are_not_taken_for_those_that_are_not(with_splits: str, tmp_path: Path) -> None:
    streamed, whole = (sweep(with_splits, evaluation_split="test", dataset_streaming=s) for s in (True, False))
    prepare_tokens(streamed, tmp_path / "a")
    assert blocks(prepare_tokens(whole, tmp_path / "a")) == blocks(prepare_tokens(whole, tmp_path / "b"))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_split_is_never_both_trained_and_evaluated_on(split: str, out: Path) -> None:
    with pytest.raises((UserError, ValueError), match="evaluation.split"):
        prepare_tokens(sweep("builtin", 300, 100, dataset_split=split, evaluation_split=split), out)


@pytest.mark.parametrize(
    ("trained", "held_out"), [("train", "train[:10%]"), ("train[:90%]", "test+train"), ("train+test", "test")]
)
def test_a_slice_of_what_is_trained_on_is_never_evaluated_on(
    trained: str, held_out: str, with_splits: str, out: Path
) -> None:
    message = complaint(sweep(with_splits, 100, 15, dataset_split=trained, evaluation_split=held_out), out)
    assert message.startswith("evaluation.split: ") and repr(held_out) in message


def test_two_slices_of_a_split_may_be_trained_and_evaluated_on(with_splits: str, out: Path) -> None:
    store = prepare_tokens(sweep(with_splits, 100, 90, dataset_split="train[:60]", evaluation_split="train[60:]"), out)
    trained, held_out = documents_in(stream(store)), documents_in(store.heldout().flatten().tolist())
    assert set(trained) <= set(IDS[:60]) and set(held_out) <= set(IDS[60:80]) and trained and held_out


# ---- rows -----------------------------------------------------------------------------------------------------------


def rows_of(store: TokenStore) -> list[int]:
    return [int(store.kept(store.block(index)).sum()) for index in range(len(store.rows))]


@pytest.mark.parametrize("bos", [None, False, True])
def test_position_0_and_special_tokens_are_no_rows(bos: bool | None, text: Path, out: Path) -> None:
    store = prepare_tokens(sweep(text, dataset_prepend_bos=bos), out)
    manifest = json.loads((store.blocks_directory / "manifest.json").read_text())
    assert list(store.rows) == manifest["rows"] == rows_of(store)
    assert store.heldout_rows == int(store.kept(store.heldout()).sum()) >= 60
    tokens_ST = torch.cat([store.block(index) for index in range(len(store.rows))])
    expected_ST = tokens_ST != EOS
    expected_ST[:, 0] = False
    assert torch.equal(store.kept(tokens_ST), expected_ST)
    assert bool((tokens_ST[:, 0] == EOS).all()) is (bos is True)
    assert set(documents_in(stream(store, lead=int(bos is True)))) <= set(IDS)


@pytest.mark.parametrize("skipped", [0, 1, 3])
@pytest.mark.parametrize("skip_special", [True, False])
def test_the_mask_is_a_setting(skipped: int, skip_special: bool, text: Path, out: Path) -> None:
    store = prepare_tokens(sweep(text, dataset_skip_positions=skipped, dataset_skip_special_tokens=skip_special), out)
    kept_ST = store.kept(store.block(0))
    assert rows_of(store) == list(store.rows)
    assert not kept_ST[:, :skipped].any() and kept_ST[:, skipped].any()
    assert bool(kept_ST[store.block(0) == EOS].any()) is not skip_special
    if not skip_special:
        assert kept_ST[:, skipped:].all()


def test_masks_have_fingerprints_of_their_own(text: Path, out: Path) -> None:
    fields: list[dict[str, Any]] = [
        {},
        {"dataset_skip_positions": 0},
        {"dataset_skip_positions": 2},
        {"dataset_skip_special_tokens": False},
    ]
    fields += [{"dataset_prepend_bos": True}, {"model_context_size": 8}, {"evaluation_fraction": 0.3}]
    stores = [prepare_tokens(sweep(text, **f), out) for f in fields]
    assert len({store.fingerprint for store in stores}) == len(fields)
    assert len({store.heldout_fingerprint for store in stores}) == len(fields)


def test_kept_mask_is_per_position() -> None:
    tokens_BT = torch.tensor([[5, 0, 7], [0, 3, 9]])

    def kept(special: tuple[int, ...], skip_positions: int) -> list[list[bool]]:
        mask: Tensor = kept_mask(tokens_BT, special, skip_positions)
        return mask.tolist()

    assert kept((0, 9), 1) == [[False, False, True], [False, True, False]]
    assert kept((0, 9), 0) == [[True, False, True], [False, True, False]]
    assert kept((), 2) == [[False, False, True], [False, False, True]]


def test_contexts_begin_with_bos_where_the_tokenizer_itself_begins_so(text: Path, tmp_path: Path, out: Path) -> None:
    shutil.copytree(MODEL_DIR, tmp_path / "model")
    tokenizer = load_tokenizer(ModelSettings(name=str(tmp_path / "model")))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", EOS)]
    )
    tokenizer.save_pretrained(tmp_path / "model")
    store = prepare_tokens(sweep(text, model_name=str(tmp_path / "model")), out)
    assert all(context[0] == EOS for block in blocks(store) for context in block)
    # Only contexts: the documents get none of their own.
    assert not any(0 == a == b for a, b in itertools.pairwise(stream(store, lead=1)))
    assert store.fingerprint != prepare_tokens(sweep(text), out).fingerprint


def test_another_end_of_text_token_makes_other_tokens(text: Path, tmp_path: Path, out: Path) -> None:
    shutil.copytree(MODEL_DIR, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "a"}))
    given = {"dataset_skip_special_tokens": False}
    store = prepare_tokens(sweep(text, model_name=str(tmp_path / "model"), **given), out)
    assert store.fingerprint != prepare_tokens(sweep(text, **given), out).fingerprint


# ---- too little, and again ------------------------------------------------------------------------------------------


def test_too_few_tokens_is_an_error_that_says_what_to_do_and_leaves_nothing(text: Path, out: Path) -> None:
    message = complaint(sweep(text, ALL_TOKENS), out, DataEndedError)
    assert message.startswith(f"training.tokens: {ALL_TOKENS} ") and "dataset.repeat" in message
    assert [path.name.split("-")[0] for path in out.iterdir()] == ["heldout"]
    # What is said to be there is there.
    there = int(message.split("has only ")[1].split()[0])
    assert sum(prepare_tokens(sweep(text, there), out).rows) == there
    assert complaint(sweep(text, there + 1), out, DataEndedError)
    assert sum(prepare_tokens(sweep(text, there), out).rows) == there  # and not lost by asking for more


def test_too_few_held_out_tokens_is_an_error_that_says_what_to_do_and_leaves_nothing(text: Path, out: Path) -> None:
    message = complaint(sweep(text, held_out=ALL_TOKENS), out, DataEndedError)
    assert message.startswith(f"evaluation.tokens: {ALL_TOKENS} ") and "evaluation.fraction" in message
    assert list(out.iterdir()) == []
    there = int(message.split("has only ")[1].split(";")[0])
    assert prepare_tokens(sweep(text, held_out=there), out).heldout_rows == there


def test_too_few_tokens_in_a_held_out_split_names_the_split(with_splits: str, out: Path) -> None:
    message = complaint(sweep(with_splits, held_out=ALL_TOKENS, evaluation_split="test"), out, DataEndedError)
    assert "split 'test'" in message and "evaluation.fraction" not in message


def test_repeat_starts_again_in_another_order(text: Path, tmp_path: Path) -> None:
    once = documents_in(stream(prepare_tokens(sweep(text, 1000), tmp_path / "once")))
    store = prepare_tokens(sweep(text, 3 * ALL_TOKENS, dataset_repeat=True), tmp_path / "again")
    again = documents_in(stream(store))
    size = len(set(again))
    passes = [again[i * size : (i + 1) * size] for i in range(3)]
    assert passes[0][: len(once)] == once
    assert set(passes[0]) == set(passes[1]) == set(passes[2]) and sum(store.rows) >= 3 * ALL_TOKENS
    assert passes[0] != passes[1] != passes[2]
    assert set(again).isdisjoint(documents_in(store.heldout().flatten().tolist()))


def test_repeat_of_nothing_is_an_error_and_no_endless_loop(tmp_path: Path, out: Path) -> None:
    path = write_jsonl(tmp_path / "empty.jsonl", ["", ""])
    for wanted in (sweep(path, dataset_repeat=True), sweep(path)):
        complaint(wanted, out, DataEndedError)
    # All documents are held out.
    held = write_jsonl(tmp_path / "held.jsonl", [d for d in DOCUMENTS if held_out_by_hash(d, 0.25)])
    assert "training.tokens" in complaint(sweep(held, dataset_repeat=True), out, DataEndedError)


def test_with_repeat_the_blocks_are_the_same_whatever_was_prepared_before(text: Path, tmp_path: Path) -> None:
    there = int(complaint(sweep(text, ALL_TOKENS), tmp_path / "a", DataEndedError).split("has only ")[1].split()[0])
    prepare_tokens(sweep(text, there), tmp_path / "a")  # ends with a block that is not full
    again = sweep(text, there, dataset_repeat=True)
    assert blocks(prepare_tokens(again, tmp_path / "a")) == blocks(prepare_tokens(again, tmp_path / "b"))


# ---- kept for the next launch ---------------------------------------------------------------------------------------


def snapshot(directory: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in sorted(directory.rglob("*"))}


def test_what_is_prepared_is_used_again(text: Path, out: Path) -> None:
    first = prepare_tokens(sweep(text, 600), out)
    before = snapshot(out)
    assert prepare_tokens(sweep(text, 600), out) == first
    assert prepare_tokens(sweep(text, 300), out) == first  # the longer one serves the shorter
    assert snapshot(out) == before


def test_a_longer_run_makes_further_blocks_and_keeps_the_first(text: Path, tmp_path: Path) -> None:
    short = blocks(prepare_tokens(sweep(text, 250), tmp_path / "a"))
    long = prepare_tokens(sweep(text, 900), tmp_path / "a")
    assert blocks(long)[: len(short)] == short
    assert blocks(long) == blocks(prepare_tokens(sweep(text, 900), tmp_path / "b"))
    assert sorted(p.name.split("-")[0] for p in (tmp_path / "a").iterdir()) == ["heldout", "train"]


def test_an_interrupted_preparation_leaves_nothing_and_is_made_again(text: Path, tmp_path: Path) -> None:
    def interrupt(what: str, done: int, _needed: int) -> None:
        if what == "tokenising" and done > 300:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_tokens(sweep(text), tmp_path / "a", interrupt)
    assert [path.name.split("-")[0] for path in (tmp_path / "a").iterdir()] == ["heldout"]
    assert blocks(prepare_tokens(sweep(text), tmp_path / "a")) == blocks(prepare_tokens(sweep(text), tmp_path / "b"))


def test_two_sweeps_that_prepare_at_once_both_find_all_their_blocks(text: Path, out: Path) -> None:
    longer: list[TokenStore] = []

    def meanwhile(what: str, _done: int, _needed: int) -> None:
        if what == "tokenising" and not longer:
            longer.append(prepare_tokens(sweep(text, 900), out))

    shorter = prepare_tokens(sweep(text, 250), out, meanwhile)
    for store in (shorter, longer[0]):
        assert rows_of(store) == list(store.rows)


def test_progress_rises_to_what_is_needed(text: Path, out: Path) -> None:
    seen: dict[str, list[int]] = {}

    def report(what: str, done: int, needed: int) -> None:
        assert 0 <= done <= needed == {"tokenising": 600, "held-out tokens": 60}[what]
        seen.setdefault(what, []).append(done)

    prepare_tokens(sweep(text), out, report)
    assert {what: done[-1] for what, done in seen.items()} == {"tokenising": 600, "held-out tokens": 60}
    assert all(done == sorted(done) for done in seen.values())


# ---- errors ---------------------------------------------------------------------------------------------------------


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
