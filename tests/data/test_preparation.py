"""Too little text, the same text again, and what is prepared kept for the next launch."""

from __future__ import annotations

from pathlib import Path

import pytest
from prepared import ALL_TOKENS, DOCUMENTS, blocks, complaint, documents_in, rows_of, stream, sweep, write_jsonl

from gsae_ray.data.documents import held_out_by_hash
from gsae_ray.data.prepare import prepare_tokens
from gsae_ray.data.tokens import TokenStore
from gsae_ray.errors import DataEndedError

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
