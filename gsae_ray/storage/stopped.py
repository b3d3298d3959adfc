"""Trials that a launch has stopped early: a file for each in the launch's folder, made before the trial is told.

launches/{id}/stopped/{trial}.json   at how many tokens, what it had come to by then, and which trials have beaten it

They belong to the launch, so that another launch of the sweep, without a scheduler, trains these trials on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from typing_extensions import TypedDict

from gsae_ray.errors import DamagedError
from gsae_ray.files import LOCAL, JSONFile, Storage


class Stop(TypedDict):
    """Why a trial was stopped. The numbers are means over the seeds of a setting, on a part of the held-out rows."""

    tokens: int
    """After which it was compared; it may have come further before it was stopped."""
    l0: float
    quality: float
    """Loss recovered; without a language model explained variance."""
    by: list[str]
    """The trials that have beaten it, one a seed."""
    by_l0: float
    by_quality: float


STOP = JSONFile(Stop, "its trial is trained on until it is compared again", sealed=True)


class StoppedTrials:
    """The trials that a launch has stopped."""

    def __init__(self, launch: Path, storage: Storage = LOCAL) -> None:
        """Reads nothing yet.

        Args:
            launch: its folder.
            storage: in which the folder is.
        """
        self.folder = launch / "stopped"
        self.storage = storage
        self._known: dict[str, Stop] = {}

    def __contains__(self, trial: object) -> bool:
        return isinstance(trial, str) and self.get(trial) is not None

    def get(self, trial: str) -> Stop | None:
        """Why a trial was stopped; None where it was not. A damaged file counts as none."""
        if trial not in self._known and (found := STOP.read_whole(self._path(trial), self.storage)) is not None:
            self._known[trial] = found
        return self._known.get(trial)

    def create(self, trial: str, stop: Stop) -> None:
        """Writes down that a trial is stopped. What another has written down before stays."""
        if trial in self:
            return
        self.storage.make_folder(self.folder)
        try:
            self.storage.create(self._path(trial))
        except FileExistsError:
            if trial in self:
                return  # it was written meanwhile; else by one that died before it had written
        STOP.write(self._path(trial), stop, self.storage)

    def remove(self, trial: str) -> None:
        """Takes back that a trial is stopped."""
        self._known.pop(trial, None)
        with contextlib.suppress(FileNotFoundError):
            self.storage.remove(self._path(trial))

    def damaged(self, trials: Iterable[str]) -> Iterator[str]:
        """A line for each decision that cannot be read."""
        for trial in trials:
            try:
                STOP.read(self._path(trial), self.storage)
            except DamagedError as error:
                yield str(error)

    def _path(self, trial: str) -> Path:
        return self.folder / f"{trial}.json"


def told(stop: Stop) -> str:
    """`stopped at 100,000 tokens: L0 31.2, quality 0.941; NAME has L0 30.9, 0.958`."""
    others = f" and {len(stop['by']) - 1} more seeds" if len(stop["by"]) > 1 else ""
    return (
        f"stopped at {stop['tokens']:,} tokens: L0 {stop['l0']:.4g}, quality {stop['quality']:.4f}; "
        f"{stop['by'][0]}{others} had L0 {stop['by_l0']:.4g}, {stop['by_quality']:.4f}"
    )
