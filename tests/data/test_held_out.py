"""Held-out documents are apart: by hash, or in a split of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from prepared import DOCUMENTS, IDS, blocks, complaint, documents_in, stream, sweep, write_jsonl

from gsae_ray.data.documents import held_out_by_hash
from gsae_ray.data.prepare import prepare_tokens
from gsae_ray.errors import UserError


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
