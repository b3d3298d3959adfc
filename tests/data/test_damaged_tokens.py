"""Prepared tokens are there whole or made again: what is torn is found before it is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from damage import COMMON, Damage
from prepared import blocks, sweep

from gsae_ray.data.prepare import prepare_tokens
from gsae_ray.data.tokens import TokenStore
from gsae_ray.errors import DamagedError

FILES = ["train-*/manifest.json", "train-*/block-00000.safetensors", "heldout-*/*.safetensors", "heldout-*/*.json"]


def everything(store: TokenStore) -> tuple[object, ...]:
    return store.rows, store.heldout_rows, blocks(store), store.heldout().tolist()


@pytest.mark.parametrize("files", FILES)
def test_damaged_tokens_are_made_again_as_they_were(text: Path, tmp_path: Path, files: str) -> None:
    wanted, out = sweep(text), tmp_path / "tokens"
    expected = everything(prepare_tokens(wanted, out))
    for damage in COMMON.values():
        (path,) = out.glob(files)
        damage(path)
        assert everything(prepare_tokens(wanted, out)) == expected
    assert len(list(out.iterdir())) == 2, "nothing is left of what was damaged"


@pytest.mark.parametrize("damage", COMMON.values(), ids=COMMON)
@pytest.mark.parametrize("which", ["block-00000", "heldout"])
def test_tokens_that_are_torn_in_mid_sweep_are_named_and_never_read(
    text: Path, tmp_path: Path, which: str, damage: Damage
) -> None:
    store = prepare_tokens(sweep(text), tmp_path / "tokens")
    (path,) = (tmp_path / "tokens").glob(f"*/{which}.safetensors")
    damage(path)
    with pytest.raises(DamagedError) as found:
        store.heldout() if which == "heldout" else store.block(0)
    assert str(found.value) == f"{path}: these tokens are damaged; the same command with --resume makes them again"


def test_tokens_that_a_full_disk_cut_short_are_no_prepared_ones(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_file: int) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("os.fsync", full)
        prepare_tokens(sweep(text), tmp_path / "tokens")
    assert list((tmp_path / "tokens").iterdir()) == []
