"""The checkpoints of a trial: states of training from which it goes on, the last two of them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from gsae_ray.files import LOCAL, JSONFile, Storage, file_hash

if TYPE_CHECKING:
    from torch import Tensor

KEPT_CHECKPOINTS = 2

State = tuple[dict[str, "Tensor"], dict[str, Any]]
"""Tensors, and the rest as JSON values."""


class _Manifest(TypedDict):
    tensors: str
    state: dict[str, Any]


MANIFEST = JSONFile(_Manifest, "the checkpoint before it is used", sealed=True)


class Checkpoints:
    """A folder with one for each checkpoint, `{tokens}/`: state.safetensors, then manifest.json with its hash."""

    def __init__(self, folder: Path, storage: Storage = LOCAL) -> None:
        self.folder = folder
        self.storage = storage

    def tokens(self) -> list[int]:
        """The checkpoints by the tokens that were trained on, whole or not, the oldest first."""
        return sorted(int(name) for name in self.storage.names(self.folder) if name.isdecimal())

    def read(self, tokens: int) -> State | None:
        """What a checkpoint holds; None where it is not whole."""
        manifest = MANIFEST.read_whole(self._path(tokens) / "manifest.json", self.storage)
        with contextlib.suppress(FileNotFoundError):  # other errors of a file system may pass
            if manifest is not None:
                tensors = self.storage.local(self._path(tokens) / "state.safetensors")
                if file_hash(tensors) == manifest["tensors"]:
                    import safetensors.torch  # here: what only reads results does without torch

                    return safetensors.torch.load_file(tensors), manifest["state"]
        return None

    def write(self, tokens: int, state: State, check: Callable[[], None]) -> None:
        """Saves a state, and removes all but the last two.

        Args:
            tokens: that were trained on.
            state: at that point.
            check: called before the checkpoint counts; what it raises leaves it without a manifest.
        """
        import safetensors.torch  # here: what only reads results does without torch

        target, (tensors, rest) = self._path(tokens), state
        self.storage.remove_tree(target)
        self.storage.make_folder(target)
        data = safetensors.torch.save(tensors)
        self.storage.replace(target / "state.safetensors", data)
        check()
        manifest: _Manifest = {"tensors": hashlib.sha256(data).hexdigest(), "state": rest}
        MANIFEST.write(target / "manifest.json", manifest, self.storage)
        for old in self.tokens()[:-KEPT_CHECKPOINTS]:
            self.remove(old)

    def remove(self, tokens: int) -> None:
        """Removes a checkpoint."""
        self.storage.remove_tree(self._path(tokens))

    def _path(self, tokens: int) -> Path:
        return self.folder / str(tokens)
