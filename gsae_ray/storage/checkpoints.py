"""The checkpoints of a trial: states of training from which it goes on, the last two of them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import NotRequired, TypedDict

from gsae_ray.files import LOCAL, JSONFile, Storage, file_hash

if TYPE_CHECKING:
    from torch import Tensor

KEPT_CHECKPOINTS = 2
FILE_BYTES = 2**26
"""Bytes of tensors in a file of a checkpoint at most, but for one that has more alone.

While a file is written, what it holds is in memory once more, as bytes, and tensors that are laid out otherwise twice.
"""

State = tuple[dict[str, "Tensor"], dict[str, Any]]
"""Tensors, and the rest as JSON values."""


class _Manifest(TypedDict):
    tensors: str
    """Hash of the first file of tensors."""
    further: NotRequired[list[str]]
    """Those of the others; none in checkpoints from before there were any."""
    state: dict[str, Any]


MANIFEST = JSONFile(_Manifest, "the checkpoint before it is used", sealed=True)


class Checkpoints:
    """A folder with one for each checkpoint, `{tokens}/`: files of tensors, then manifest.json with their hashes.

    The first file is state.safetensors; the others, if there is more than fits, are state-1.safetensors and so on.
    """

    def __init__(self, folder: Path, storage: Storage = LOCAL) -> None:
        self.folder = folder
        self.storage = storage

    def tokens(self) -> list[int]:
        """The checkpoints by the tokens that were trained on, whole or not, the oldest first."""
        return sorted(int(name) for name in self.storage.names(self.folder) if name.isdecimal())

    def read(self, tokens: int) -> State | None:
        """What a checkpoint holds; None where it is not whole."""
        manifest = MANIFEST.read_whole(self._path(tokens) / "manifest.json", self.storage)
        if manifest is None:
            return None
        import safetensors.torch  # here: what only reads results does without torch

        tensors: dict[str, Tensor] = {}
        with contextlib.suppress(FileNotFoundError):  # other errors of a file system may pass
            for index, digest in enumerate([manifest["tensors"], *manifest.get("further", [])]):
                file = self.storage.local(self._path(tokens) / _file_name(index))
                if file_hash(file) != digest:
                    return None
                tensors |= safetensors.torch.load_file(file)
            return tensors, manifest["state"]
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
        hashes = []
        for index, part in enumerate(_parts(tensors)):
            data = safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in part.items()})
            self.storage.replace(target / _file_name(index), data)
            hashes.append(hashlib.sha256(data).hexdigest())
            del data  # before the next one is there
        check()
        manifest: _Manifest = {"tensors": hashes[0], "further": hashes[1:], "state": rest}
        MANIFEST.write(target / "manifest.json", manifest, self.storage)
        for old in self.tokens()[:-KEPT_CHECKPOINTS]:
            self.remove(old)

    def remove(self, tokens: int) -> None:
        """Removes a checkpoint."""
        self.storage.remove_tree(self._path(tokens))

    def _path(self, tokens: int) -> Path:
        return self.folder / str(tokens)


def _file_name(index: int) -> str:
    return f"state-{index}.safetensors" if index else "state.safetensors"


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors in their order, as many together as fit into a file; without any, one part."""
    part: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if part and sum(t.nbytes for t in (*part.values(), tensor)) > FILE_BYTES:
            yield part
            part = {}
        part[name] = tensor
    yield part
