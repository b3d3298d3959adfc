"""Exporting an SAE: formats are known by name, and nothing but an SAE of ours is overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest
from trials import expand, random_sae

from gsae_ray.errors import UserError
from gsae_ray.saes import SAE, load
from gsae_ray.saes.export import check_export, export


def sae(architecture: str) -> SAE:
    return random_sae(expand(architecture)[0])


def test_export_checks_the_format_and_the_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--format: unknown 'gase'; did you mean 'gsae'"):
        export(sae("gated"), tmp_path, "gase")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^--out: .*file is a file; give a folder$"):
        export(sae("gated"), tmp_path / "file")
    assert check_export(tmp_path / "new", "gsae") == tmp_path / "new"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "notes.txt"])
def test_export_overwrites_no_file_that_is_not_ours(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"architecture": "standard", "d_in": 8, "d_sae": 16}')
    with pytest.raises(UserError, match=rf"^--out: .* \({name}\); nothing is overwritten: give a new folder, or "):
        export(sae("gated"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_export_replaces_an_sae_of_ours_as_a_whole(tmp_path: Path) -> None:
    sae("standard").save(tmp_path)
    (tmp_path / ".gitignore").write_text("")
    export(sae("gated"), tmp_path)
    assert load(tmp_path).cfg.architecture == "gated"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".gitignore", "cfg.json", "sae_weights.safetensors"]
