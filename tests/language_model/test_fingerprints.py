"""A model's fingerprint differs by all that decides its activations, and by nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from saved_models import edit_config, edit_weights, settings

from gsae_ray.language_model.loading import load_model, model_fingerprint


def test_a_fingerprint_does_not_depend_on_where_the_model_lies(saved: Path, directory: Path) -> None:
    assert model_fingerprint(settings(saved)) == model_fingerprint(settings(directory))


def test_fingerprints_differ_by_dtype_and_attention(saved: Path) -> None:
    models = [settings(saved), settings(saved, dtype="bfloat16"), settings(saved, attn_implementation="eager")]
    assert len({model_fingerprint(model) for model in models}) == 3


def test_a_fingerprint_differs_by_one_number_of_one_weight(saved: Path, directory: Path) -> None:
    edit_weights(directory, lambda weights: weights["model.norm.weight"][3].add_(1e-6))
    assert model_fingerprint(settings(directory)) != model_fingerprint(settings(saved))


def test_a_fingerprint_differs_by_the_configuration(saved: Path, directory: Path) -> None:
    edit_config(directory, rms_norm_eps=1e-3)
    assert model_fingerprint(settings(directory)) != model_fingerprint(settings(saved))


def test_a_fingerprint_differs_by_the_code_that_comes_with_a_model(directory: Path) -> None:
    (directory / "modeling_own.py").write_text("SCALE = 1\n")
    before = model_fingerprint(settings(directory))
    (directory / "modeling_own.py").write_text("SCALE = 2\n")
    assert model_fingerprint(settings(directory)) != before


def test_a_fingerprint_is_of_what_is_there_now(directory: Path) -> None:
    before = model_fingerprint(settings(directory))
    edit_weights(directory, lambda weights: weights["model.norm.weight"][3].add_(1e-6))
    assert model_fingerprint(settings(directory)) != before


@pytest.mark.usefixtures("offline")
def test_a_model_of_the_hub_is_known_by_its_commit(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--lab--tiny"
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(saved, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    def fingerprint(commit: str, **fields: Any) -> str:
        (repository / "refs" / "main").write_text(commit)
        return model_fingerprint(settings("lab/tiny", **fields))

    assert fingerprint("a" * 40) != fingerprint("b" * 40)
    assert fingerprint("b" * 40, revision="a" * 40) == fingerprint("a" * 40)
    assert torch.equal(
        load_model(settings("lab/tiny")).lm_head.weight, load_file(saved / "model.safetensors")["lm_head.weight"]
    )
