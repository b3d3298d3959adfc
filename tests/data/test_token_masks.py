"""Which positions are rows: not the first one, and no special token."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from prepared import EOS, IDS, blocks, documents_in, rows_of, stream, sweep
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from gsae_ray.builtin import MODEL_DIR
from gsae_ray.config.sections import ModelSettings
from gsae_ray.data.prepare import prepare_tokens
from gsae_ray.data.tokens import kept_mask
from gsae_ray.language_model.loading import load_tokenizer


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
