"""Exporting an SAE: formats are known by name, and nothing but an SAE of ours is overwritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from random_saes import config, trained
from torch import Tensor

from gsae_ray.errors import UserError
from gsae_ray.saes import SAE, JumpReLUSAE, build, load
from gsae_ray.saes.export import check_export, export


def files(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a reader of SAELens' folders has of one: `cfg.json` and the tensors."""
    return json.loads((folder / "cfg.json").read_text()), safetensors.torch.load_file(
        folder / "sae_weights.safetensors"
    )


def untied() -> SAE:
    return build(config("gated", hyperparameters={"l1_coefficient": 1.0, "tied": False}))


def test_export_checks_the_format_and_the_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--format: unknown 'gase'; did you mean 'gsae'"):
        export(trained("gated"), tmp_path, "gase")
    with pytest.raises(UserError, match=r"^--fold-b-dec: only --format jumprelu can be written so, not saelens$"):
        export(trained("gated"), tmp_path / "new", "saelens", fold_b_dec=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^--out: .*file is a file; give a folder$"):
        export(trained("gated"), tmp_path / "file")
    assert check_export(tmp_path / "new", "gsae") == tmp_path / "new"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "notes.txt"])
def test_export_overwrites_no_file_that_is_not_ours(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"architecture": "standard", "d_in": 8, "d_sae": 16}')
    with pytest.raises(UserError, match=rf"^--out: .* \({name}\); nothing is overwritten: give a new folder, or "):
        export(trained("gated"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_export_replaces_an_sae_of_ours_as_a_whole(tmp_path: Path) -> None:
    trained("standard").save(tmp_path)
    (tmp_path / ".gitignore").write_text("")
    export(trained("gated"), tmp_path)
    assert load(tmp_path).cfg.architecture == "gated"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".gitignore", "cfg.json", "sae_weights.safetensors"]


@pytest.mark.parametrize("format_", ["saelens", "jumprelu", "dictionary_learning"])
def test_other_formats_are_not_written_beside_an_sae_of_ours(tmp_path: Path, format_: str) -> None:
    trained("standard").save(tmp_path)
    with pytest.raises(UserError, match=r"\(cfg.json, sae_weights.safetensors\); nothing is overwritten"):
        export(trained("gated"), tmp_path, format_)
    assert load(tmp_path).cfg.architecture == "standard"


# ---- SAELens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["standard", "gated"])
def test_the_saelens_folder_is_ours_without_what_is_ours(architecture: str, tmp_path: Path) -> None:
    sae = trained(architecture)
    sae.save(tmp_path / "ours")
    export(sae, tmp_path / "theirs", "saelens")
    (ours, tensors), (theirs, exported) = files(tmp_path / "ours"), files(tmp_path / "theirs")
    del ours["gsae"]
    assert theirs == ours
    assert exported.keys() == tensors.keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in exported.items())
    x_BD = torch.randn(50, 6)
    loaded = load(tmp_path / "theirs")
    assert (type(loaded), loaded.cfg.site) == (type(sae), sae.cfg.site)
    torch.testing.assert_close(loaded(x_BD), sae(x_BD))  # which rounds as SAELens does


@pytest.mark.parametrize(
    ("format_", "line"),
    [
        ("saelens", r"^SAELens has no gated SAE with untied encoders \(tied: false\)$"),
        ("jumprelu", r"^to_jumprelu: this gated SAE has untied encoders \(tied: false\), which have no such form$"),
        ("dictionary_learning", r"untied encoders \(tied: false\)"),
        ("sparsify", r"TopK"),
    ],
)
def test_what_has_no_form_there_is_refused_with_the_reason_and_nothing_is_written(
    format_: str, line: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=line):
        export(untied(), tmp_path / "new", format_)
    assert list(tmp_path.iterdir()) == []
    export(untied(), tmp_path / "ours")
    assert (
        files(tmp_path / "ours")[0]["architecture"]
        == "none: SAELens has no gated SAE with untied encoders (tied: false)"
    )


@pytest.mark.parametrize("architecture", ["standard", "gated"])
def test_the_jumprelu_folder_is_of_the_same_function(architecture: str, tmp_path: Path) -> None:
    sae = trained(architecture)
    export(sae, tmp_path, "jumprelu")
    cfg, tensors = files(tmp_path)
    assert (cfg["architecture"], cfg["apply_b_dec_to_input"]) == ("jumprelu", True)
    assert cfg["metadata"]["training_architecture"] == architecture
    assert set(tensors) == {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}
    x_BD = torch.randn(500, 6)
    z_BF = (x_BD - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]
    torch.testing.assert_close(z_BF.relu() * (z_BF > tensors["threshold"]), sae.encode(x_BD), atol=1e-5, rtol=1e-5)


def test_with_b_dec_folded_the_encoder_takes_x_itself(tmp_path: Path) -> None:
    """The numbers are small enough to be exact."""
    sae = build(config("jumprelu", d_in=2, d_sae=3, hyperparameters={}))
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]]))
        sae.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
        sae.b_dec.copy_(torch.tensor([0.5, -2.0]))
        sae.get_parameter("b_enc").copy_(torch.tensor([0.25, 0.0, 1.0]))
        sae.get_parameter("threshold").copy_(torch.tensor([0.0, 0.5, 4.0]))
    export(sae, tmp_path / "folded", "jumprelu", fold_b_dec=True)
    cfg, tensors = files(tmp_path / "folded")
    assert cfg["apply_b_dec_to_input"] is False
    assert tensors["b_enc"].tolist() == [0.25 - 0.5, 2.0, 1.0 - 3.0]
    assert tensors["b_dec"].tolist() == [0.5, -2.0]
    assert torch.equal(tensors["threshold"], sae.get_parameter("threshold"))
    loaded = load(tmp_path / "folded")
    x_BD = torch.tensor([[0.0, 0.0], [1.0, -1.5], [3.0, -2.0], [2.5, 1.0]])
    assert isinstance(loaded, JumpReLUSAE)
    assert torch.equal(loaded.encode(x_BD), sae.encode(x_BD))
    assert torch.equal(loaded(x_BD), sae(x_BD))
    export(loaded, tmp_path / "again", "jumprelu", fold_b_dec=True)
    assert torch.equal(files(tmp_path / "again")[1]["b_enc"], tensors["b_enc"])


def test_an_sae_without_b_dec_subtracted_keeps_that_in_our_own_folder(tmp_path: Path) -> None:
    export(trained("gated"), tmp_path / "folded", "jumprelu", fold_b_dec=True)
    loaded = load(tmp_path / "folded")
    export(loaded, tmp_path / "ours")
    assert files(tmp_path / "ours")[0]["apply_b_dec_to_input"] is False
    x_BD = torch.randn(50, 6)
    assert torch.equal(load(tmp_path / "ours")(x_BD), loaded(x_BD))
