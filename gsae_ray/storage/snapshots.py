"""The snapshots of a trial: its SAE as it was after some of the tokens, finished, and kept for good."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import TypedDict

from gsae_ray.errors import DamagedError
from gsae_ray.files import LOCAL, JSONFile, Storage
from gsae_ray.saes.folder import content_hash

if TYPE_CHECKING:
    from gsae_ray.saes import SAE


class _Snapshot(TypedDict):
    sae: str
    """The SAE's `saes.folder.content_hash`."""


_GONE = "this snapshot is not shown any more, and its trial is not trained again for it"
SNAPSHOT = JSONFile(_Snapshot, _GONE, sealed=True)


class Snapshots:
    """A folder with one for each snapshot, `{tokens}/`: the files of a saved SAE; then `{tokens}.json`, their hash.

    The tokens are those by which the sweep file names it.
    """

    def __init__(self, folder: Path, storage: Storage = LOCAL) -> None:
        self.folder = folder
        self.storage = storage

    def tokens(self) -> list[int]:
        """The snapshots that were written to the end, the earliest first."""
        stems = [name.removesuffix(".json") for name in self.storage.names(self.folder) if name.endswith(".json")]
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def path(self, tokens: int) -> Path:
        """The folder of a snapshot's SAE."""
        return self.folder / str(tokens)

    def content(self, tokens: int) -> str | None:
        """The hash of a snapshot, without a look at its files; None where there is none."""
        found = SNAPSHOT.read_whole(self._file(tokens), self.storage)
        return None if found is None else found["sae"]

    def check(self, tokens: int) -> str | None:
        """Looks at a snapshot's files. Returns its hash; None where there is none.

        Raises:
            DamagedError: they are not as they were when it was written.
        """
        if (found := SNAPSHOT.read(self._file(tokens), self.storage)) is None:
            return None
        with contextlib.suppress(FileNotFoundError):
            if content_hash(self.storage.local(self.path(tokens))) == found["sae"]:
                return found["sae"]
        raise DamagedError(f"{self.path(tokens)}: these files are damaged; {_GONE}")

    def write(self, tokens: int, make: Callable[[], SAE], attempt: int, check: Callable[[], None]) -> None:
        """Saves a snapshot, unless it is there, whole: an attempt from an earlier checkpoint comes past it again.

        Args:
            tokens: its name.
            make: gives the SAE.
            attempt: the number of the one that writes.
            check: called before the snapshot counts; what it raises leaves all as it was.
        """
        with contextlib.suppress(DamagedError):
            if self.check(tokens) is not None:
                return
        from gsae_ray.saes.serialise import saved_files  # here: what only reads results does without torch

        storage, temporary = self.storage, self.folder / f".{tokens}-{attempt}"
        storage.make_folder(temporary)
        for name, data in saved_files(make()).items():
            storage.replace(temporary / name, data)
        check()
        storage.remove(self._file(tokens))
        storage.remove_tree(self.path(tokens))
        storage.rename(temporary, self.path(tokens))
        content = content_hash(storage.local(self.path(tokens)))
        SNAPSHOT.write(self._file(tokens), {"sae": content}, storage)

    def remove_unfinished(self) -> None:
        """Removes what attempts that died have left of snapshots."""
        for name in [name for name in self.storage.names(self.folder) if name.startswith(".")]:
            self.storage.remove_tree(self.folder / name)

    def forget(self, tokens: int) -> None:
        """Has a snapshot count no more; its files stay."""
        self.storage.remove(self._file(tokens))

    def _file(self, tokens: int) -> Path:
        return self.folder / f"{tokens}.json"
