"""Token ids that somebody else has prepared: read as what they are, never padded into rows, checked before anything."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from prepared import CONTEXT, DOCUMENTS, EOS, IDS, complaint, stream, sweep, write_jsonl
from tokenizers.processors import TemplateProcessing

from gsae_ray.activations.language_model_source import LanguageModelSpec
from gsae_ray.activations.layout import Layout
from gsae_ray.activations.producer import Producer, ProducerSpec
from gsae_ray.builtin import MODEL_DIR
from gsae_ray.config.sections import ModelSettings
from gsae_ray.config.site import Site
from gsae_ray.config.sweep import Sweep
from gsae_ray.data.prepare import prepare_tokens
from gsae_ray.data.tokens import PADDING, TokenStore
from gsae_ray.errors import NoTokenizerError, UserError
from gsae_ray.language_model.hooks import capture
from gsae_ray.language_model.loading import load_model, load_tokenizer

VOCABULARY, BOS, PAD = 4096, 7, 5
RANDOM = np.random.RandomState(0)
CONTEXTS = [[BOS, *(int(token) for token in RANDOM.randint(10, VOCABULARY, CONTEXT - 1))] for _ in range(100)]
"""Rows of exactly a context that begin with BOS and hold no EOS."""


def parquet(path: Path, ids: Iterable[Any], **columns: Any) -> Path:
    pyarrow.parquet.write_table(pa.table({"input_ids": list(ids), **columns}), path)
    return path


def tokens(name: Path, are: str | None = None, **changes: Any) -> Sweep:
    return sweep(name, dataset_tokens_column="input_ids", dataset_tokens_are=are, **changes)


def contexts_of(store: TokenStore) -> list[list[int]]:
    """All contexts, trained and held out."""
    trained = [context for index in range(len(store.rows)) for context in store.block(index).tolist()]
    return trained + store.heldout().tolist()


def model_with(folder: Path, *, tokenizer: bool = True, begins_with_bos: bool = False, **config: Any) -> str:
    """The built-in model with other special tokens: BOS and PAD of `VOCABULARY`."""
    shutil.copytree(MODEL_DIR, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    if not tokenizer:
        for path in folder.glob("tokenizer*"):
            path.unlink()
    if begins_with_bos:
        loaded = load_tokenizer(ModelSettings(name="builtin"))
        loaded.bos_token, loaded.pad_token = (loaded.convert_ids_to_tokens(token) for token in (BOS, PAD))
        template = f"{loaded.bos_token} $A"
        loaded.backend_tokenizer.post_processor = TemplateProcessing(
            single=template, special_tokens=[(loaded.bos_token, BOS)]
        )
        loaded.save_pretrained(folder)
    return str(folder)


# ---- contexts, or documents -----------------------------------------------------------------------------------------


def test_rows_of_one_length_are_asked_what_they_are(tmp_path: Path) -> None:
    message = complaint(tokens(parquet(tmp_path / "a.parquet", CONTEXTS)), tmp_path / "out")
    assert message.startswith("dataset.tokens_are: missing") and f"{CONTEXT} tokens" in message
    assert "contexts" in message and "documents" in message
    assert not (tmp_path / "out").exists()


def test_rows_of_several_lengths_are_documents(tmp_path: Path) -> None:
    name = parquet(tmp_path / "a.parquet", [[*ids, EOS] for ids in IDS])
    implied, said = (prepare_tokens(tokens(name, are), tmp_path / str(are)) for are in (None, "documents"))
    assert implied.fingerprint == said.fingerprint and contexts_of(implied) == contexts_of(said)


def test_what_tokens_are_is_a_setting_of_token_columns() -> None:
    with pytest.raises(ValueError, match="tokens_column"):
        sweep("builtin", dataset_tokens_are="contexts")


def test_contexts_are_read_as_they_are(tmp_path: Path) -> None:
    name = parquet(tmp_path / "a.parquet", CONTEXTS)
    model = model_with(tmp_path / "m", begins_with_bos=True)
    store = prepare_tokens(tokens(name, "contexts", model_name=model), tmp_path / "out")
    found = contexts_of(store)
    assert len(found) > 40 and len({tuple(context) for context in found}) == len(found)
    assert all(context in CONTEXTS for context in found)
    assert found[:40] != CONTEXTS[:40]  # in a seeded order
    assert all(rows == (CONTEXT - 1) * len(store.block(index)) for index, rows in enumerate(store.rows))


def test_no_end_of_text_is_put_into_token_ids(tmp_path: Path) -> None:
    ids = [context[1 : 3 + row % 9] for row, context in enumerate(CONTEXTS)]
    store = prepare_tokens(
        tokens(parquet(tmp_path / "a.parquet", ids), "documents", training_tokens=200, evaluation_tokens=15),
        tmp_path / "out",
    )
    read = stream(store)
    assert EOS not in read and EOS not in store.heldout()
    in_order = {tuple(row) for row in ids}
    start = 0
    while start + 12 < len(read):  # one row after the other, with nothing between
        size = next(n for n in range(2, 12) if tuple(read[start : start + n]) in in_order)
        start += size


def test_a_bos_that_is_there_is_not_added_again(tmp_path: Path) -> None:
    model = model_with(tmp_path / "m", begins_with_bos=True)
    for are in ("contexts", "documents"):
        for prepend in (None, True):
            name = parquet(tmp_path / "a.parquet", CONTEXTS)
            given = tokens(name, are, model_name=model, dataset_prepend_bos=prepend)
            found = contexts_of(prepare_tokens(given, tmp_path / f"{are}-{prepend}"))
            assert all(context in CONTEXTS for context in found)


def test_a_bos_that_is_not_there_is_added_to_documents_as_to_text(tmp_path: Path) -> None:
    model = model_with(tmp_path / "m", begins_with_bos=True)
    name = parquet(tmp_path / "a.parquet", [[*ids, EOS] for ids in IDS])
    found = contexts_of(prepare_tokens(tokens(name, "documents", model_name=model), tmp_path / "a"))
    assert all(context[0] == BOS and context[1] != BOS for context in found)
    short = parquet(tmp_path / "b.parquet", [context[1:] for context in CONTEXTS])
    given = tokens(short, "contexts", model_name=model, dataset_prepend_bos=True)
    assert all(context in CONTEXTS for context in contexts_of(prepare_tokens(given, tmp_path / "b")))


def test_a_row_that_is_longer_than_a_context_is_refused_with_the_length_that_it_needs(tmp_path: Path) -> None:
    name = parquet(tmp_path / "a.parquet", [context * 2 for context in CONTEXTS])
    message = complaint(tokens(name, "contexts"), tmp_path / "out")
    assert message.startswith(f"model.context_size: {CONTEXT} ") and f"{2 * CONTEXT} tokens" in message


# ---- padding --------------------------------------------------------------------------------------------------------

LENGTHS = [3 + row % (CONTEXT - 2) for row in range(len(CONTEXTS))]
REAL = [context[:length] for context, length in zip(CONTEXTS, LENGTHS, strict=True)]


def padded(side: str, pad: int = PAD) -> tuple[list[list[int]], list[list[int]]]:
    """Ids and masks."""
    pads = [[pad] * (CONTEXT - len(ids)) for ids in REAL]
    zeros, ones = [[0] * len(pad) for pad in pads], [[1] * len(ids) for ids in REAL]
    if side == "right":
        return [a + b for a, b in zip(REAL, pads, strict=True)], [a + b for a, b in zip(ones, zeros, strict=True)]
    return [b + a for a, b in zip(REAL, pads, strict=True)], [b + a for a, b in zip(ones, zeros, strict=True)]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "saved"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_pads_are_neither_context_nor_rows(side: str, kind: str, tmp_path: Path) -> None:
    ids, masks = padded(side, pad=11)  # an id like any other: the mask alone tells
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        parquet(path, ids, attention_mask=[[bool(m) for m in mask] for mask in masks])
    elif kind == "jsonl":
        rows = [{"input_ids": i, "attention_mask": m} for i, m in zip(ids, masks, strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        datasets.Dataset.from_dict({"input_ids": ids, "attention_mask": masks}).save_to_disk(path)
    store = prepare_tokens(tokens(path, "contexts", training_tokens=400), tmp_path / "contexts")
    expected = [real + [PADDING] * (CONTEXT - len(real)) for real in REAL]
    assert all(context in expected for context in contexts_of(store))
    for index, kept in enumerate(store.rows):
        tokens_ST = store.block(index)
        expected_ST = tokens_ST != PADDING
        expected_ST[:, 0] = False
        assert torch.equal(store.kept(tokens_ST), expected_ST) and kept == int(expected_ST.sum())
    as_documents = prepare_tokens(tokens(path, "documents", training_tokens=400), tmp_path / "documents")
    parquet(tmp_path / "real.parquet", REAL)
    real = prepare_tokens(tokens(tmp_path / "real.parquet", "documents", training_tokens=400), tmp_path / "real")
    assert contexts_of(as_documents) == contexts_of(real)


@pytest.mark.parametrize("side", ["left", "right"])
def test_pads_without_a_mask_are_told_by_the_pad_token(side: str, tmp_path: Path) -> None:
    ids, _ = padded(side)
    model = model_with(tmp_path / "m", begins_with_bos=True)
    name = parquet(tmp_path / "a.parquet", ids)
    given = tokens(name, "contexts", model_name=model, training_tokens=400, dataset_skip_special_tokens=False)
    store = prepare_tokens(given, tmp_path / "out")
    expected = [real + [PADDING] * (CONTEXT - len(real)) for real in REAL]
    assert all(context in expected for context in contexts_of(store))


def test_where_the_pad_is_the_end_of_text_one_of_them_stays(tmp_path: Path) -> None:
    ids = [[*real[:-1], EOS, *[EOS] * (CONTEXT - len(real))] for real in REAL]  # as GPT-2's are padded
    model = model_with(tmp_path / "m", tokenizer=False, pad_token_id=EOS, eos_token_id=EOS)
    given = tokens(parquet(tmp_path / "a.parquet", ids), "contexts", model_name=model, training_tokens=400)
    expected = [[*real[:-1], EOS, *[PADDING] * (CONTEXT - len(real))] for real in REAL]
    assert all(context in expected for context in contexts_of(prepare_tokens(given, tmp_path / "out")))


def test_rows_of_a_padded_context_are_those_of_the_context_alone(tmp_path: Path) -> None:
    ids, masks = padded("left")
    name = parquet(tmp_path / "a.parquet", ids, attention_mask=masks)
    given = tokens(name, "contexts", training_tokens=100, evaluation_tokens=15)
    store = prepare_tokens(given, tmp_path / "out")
    model, site = load_model(given.language_model), Site.of_point(2, "resid_post")
    width = model.config.hidden_size
    layout = Layout(rows=store.rows, widths={site.name: width}, dtype="float32", chunk_bytes=2**20)
    source = LanguageModelSpec(given.language_model, store, batch=4, evaluation_batch=4, gpus=0, max_norm=None)
    spec = ProducerSpec(source, layout, store.seed, threads=1)
    _, chunks = Producer(spec).produce(0, [site.name])
    made = {tuple(np.round(row, 3)) for row in np.concatenate(chunks)}
    alone: list[Any] = []
    for context in store.block(0).tolist():
        real = torch.tensor([[token for token in context if token != PADDING]])
        alone += capture(model, real, [site])[site][0, 1:].tolist()
    assert len(alone) == store.rows[0] == sum(len(chunk) for chunk in chunks)
    np.testing.assert_allclose(
        np.array(sorted(tuple(row) for row in np.concatenate(chunks).tolist())),
        np.array(sorted(map(tuple, alone))),
        atol=1e-4,
    )
    assert made


def test_a_mask_of_another_length_is_refused(tmp_path: Path) -> None:
    ids, masks = padded("right")
    masks[3] = masks[3][:-1]
    name = parquet(tmp_path / "a.parquet", ids, attention_mask=masks)
    message = complaint(tokens(name, "contexts", training_tokens=500), tmp_path / "out")
    assert "attention_mask" in message and "a.parquet, row 3" in message


# ---- ids ------------------------------------------------------------------------------------------------------------

BAD: list[tuple[str, Any, Any]] = [
    ("negative", [-1], -1),
    ("beyond the embedding", [VOCABULARY], VOCABULARY),
    ("wraps to 5 in int32", [2**32 + 5], 2**32 + 5),
    ("wraps in int64", [2**63], 2**63),
    ("null", [None], None),
    ("boolean", [True], True),
    ("float", [5.5], 5.5),
    ("whole float", [5.0], 5.0),
    ("text", ["5"], "5"),
]


@pytest.mark.parametrize(("ids", "value"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_an_id_that_is_none_of_the_model_is_named_with_file_row_and_value(
    kind: str, ids: list[Any], value: Any, tmp_path: Path
) -> None:
    good = [list(row) for row in IDS]
    if kind == "jsonl":
        write_jsonl(tmp_path / "b.jsonl", [*good[:10], [3, *ids, 4], *good[10:]], "input_ids")
        given, place = tmp_path / "b.jsonl", "b.jsonl, row 10, position 1"
    else:
        given, place = tmp_path / "c", "b.parquet, row 0, position 0"
        given.mkdir()
        is_int = type(value) is int or value is None
        column = pa.array([ids], pa.list_(pa.uint64() if value == 2**63 else pa.int64()) if is_int else None)
        pyarrow.parquet.write_table(pa.table({"input_ids": column}), given / "b.parquet")
        if is_int and value != 2**63:  # the files' columns are of one type
            parquet(given / "a.parquet", good)
    message = complaint(tokens(given, "documents", training_tokens=3000), tmp_path / "out")
    assert message.startswith("dataset.tokens_column: ") and repr(value) in message
    assert place in message and f"0 to {VOCABULARY - 1}" in message
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("train-*"))


@pytest.mark.parametrize("ids", [[True, False], [5.0, 6.0]], ids=["boolean", "float"])
def test_ids_of_another_type_in_a_later_file_are_not_cast(ids: list[Any], tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    parquet(tmp_path / "c" / "a.parquet", [list(row) for row in IDS])
    parquet(tmp_path / "c" / "b.parquet", [ids] * 50)
    message = complaint(tokens(tmp_path / "c", "documents"), tmp_path / "out")
    assert message.startswith("dataset.tokens_column: ") and "b.parquet" in message


def test_ids_of_a_hub_like_data_set_are_checked_too(tmp_path: Path) -> None:
    rows = [*(list(row) for row in IDS[:20]), [VOCABULARY]]
    datasets.Dataset.from_dict({"input_ids": rows}).save_to_disk(tmp_path / "s")
    message = complaint(tokens(tmp_path / "s", "documents", training_tokens=3000), tmp_path / "out")
    assert message.startswith("dataset.tokens_column: ") and "row 20" in message and str(VOCABULARY) in message


# ---- tokenizers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [(), ("tokenizer_config.json",)])
def test_a_tokenizer_that_is_not_there_is_never_made_up(left: tuple[str, ...], tmp_path: Path) -> None:
    name = model_with(tmp_path / "m", tokenizer=False)
    for file in left:
        shutil.copy(MODEL_DIR / file, tmp_path / "m" / file)
    with pytest.raises(NoTokenizerError, match="^model.tokenizer: missing; .* brings no tokenizer"):
        load_tokenizer(ModelSettings(name=name))
    write_jsonl(tmp_path / "text.jsonl", DOCUMENTS)
    message = complaint(sweep(tmp_path / "text.jsonl", model_name=name), tmp_path / "out")
    assert message.startswith("model.tokenizer: missing") and "\n" not in message
    assert complaint(sweep(tmp_path / "text.jsonl", model_tokenizer=name), tmp_path / "out").startswith(
        "model.tokenizer: there is no tokenizer in "
    )
    named = sweep(tmp_path / "text.jsonl", model_name=name, model_tokenizer="builtin")
    assert prepare_tokens(named, tmp_path / "out").rows


def test_a_tokenizer_of_mistrals_own_format_is_one(tmp_path: Path) -> None:
    name = model_with(tmp_path / "m", tokenizer=False, model_type="mistral")
    letters = [{"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode(), "token_str": None} for i in range(256)]
    special = [{"rank": i, "token_str": text, "is_control": True} for i, text in enumerate(("<unk>", "<s>", "</s>"))]
    config = {"pattern": r"\p{L}+|\p{N}|\s+", "default_vocab_size": 259, "default_num_special_tokens": 3}
    tekken = {"config": {**config, "version": "v3"}, "vocab": letters, "special_tokens": special}
    (tmp_path / "m" / "tekken.json").write_text(json.dumps(tekken))
    assert load_tokenizer(ModelSettings(name=name)).tokenize("ab") == ["a", "b"]


def test_token_columns_need_no_tokenizer_and_take_special_ids_from_the_config(tmp_path: Path) -> None:
    config: dict[str, Any] = {"bos_token_id": BOS, "eos_token_id": [12, 13], "pad_token_id": VOCABULARY + 1}
    name = model_with(tmp_path / "m", tokenizer=False, **config)
    ids = [[0, 1, BOS, 12, 13, *row[5:]] for row in CONTEXTS]
    store = prepare_tokens(tokens(parquet(tmp_path / "a.parquet", ids), "contexts", model_name=name), tmp_path / "out")
    assert store.special_ids == (BOS, 12, 13)
    tokens_ST = store.block(0)
    expected_ST = ~torch.isin(tokens_ST, torch.tensor([BOS, 12, 13]))
    expected_ST[:, 0] = False
    assert torch.equal(store.kept(tokens_ST), expected_ST) and bool(expected_ST[:, 1].all())
    assert all(context in ids for context in contexts_of(store))


def test_a_tokenizer_with_more_tokens_than_the_model_embeds_is_refused_before_anything(tmp_path: Path) -> None:
    name = model_with(tmp_path / "m")
    tokenizer = load_tokenizer(ModelSettings(name="builtin"))
    tokenizer.add_tokens(["import x"])
    tokenizer.save_pretrained(tmp_path / "m")
    write_jsonl(tmp_path / "text.jsonl", DOCUMENTS)
    message = complaint(sweep(tmp_path / "text.jsonl", model_name=name), tmp_path / "out")
    assert message.startswith("model.tokenizer: ") and f"id {VOCABULARY}" in message and str(VOCABULARY - 1) in message
    # What the text never uses does no harm: Gemma 3's tokenizer has a token for images more than its text model.
    write_jsonl(tmp_path / "other.jsonl", [text.replace("import", "self") for text in DOCUMENTS])
    assert prepare_tokens(sweep(tmp_path / "other.jsonl", model_name=name), tmp_path / "out").rows
    with pytest.raises(UserError):
        prepare_tokens(sweep(tmp_path / "text.jsonl", model_name=name), tmp_path / "out")
