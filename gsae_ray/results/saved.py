"""SAEs by where they lie: in a folder, in a trial's directory, with a run of MLflow, or on the Hugging Face hub."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gsae_ray import saes  # its names are imported at first use: `load` imports torch
from gsae_ray.errors import DamagedError, UserError, first_line
from gsae_ray.names import local_path
from gsae_ray.storage.trial_directory import TrialDirectory

if TYPE_CHECKING:
    from gsae_ray.saes import SAE

_RUN = re.compile(r"[0-9a-f]{32}")


def load_from(source: str | Path, tracking_uri: str | None = None) -> SAE:
    """The SAE of a folder in any format, of a trial's directory, of a run, or of the hub.

    Args:
        source: a path, or the id of an MLflow run, or what else `gsae_ray.load` takes.
        tracking_uri: of MLflow, which is asked for a run only.

    Raises:
        UserError: there is none, or it is not as it was saved.
    """
    path = local_path(source, "DIR_OR_RUN")
    if _RUN.fullmatch(str(source)) and not path.exists():
        return load_run(str(source), tracking_uri, "DIR_OR_RUN")
    if not (path / "trial.json").exists():
        return saes.load(path)
    return load_finished(path)


def load_finished(trial: Path) -> SAE:
    """The SAE of a trial's directory; raises as `finished_folder`."""
    return saes.load(finished_folder(trial))


def finished_folder(trial: Path, snapshot: int | None = None) -> Path:
    """The folder of the SAE in a trial's directory, or of its snapshot after so many tokens, which is as it was saved.

    Raises:
        UserError: it is not finished, or not as it was when it was.
    """
    try:
        directory = TrialDirectory(trial)
        if directory.check_done() is None:
            if (failure := directory.check_failed()) is not None:
                raise UserError(f"{trial}: this trial has failed ({failure}); it has no SAE")
            raise UserError(f"{trial}: this trial is not finished; it has no SAE yet")
    except DamagedError as error:
        damaged = first_line(error).partition(";")[0]
        raise UserError(f"{damaged}; run its sweep again, which trains this SAE again") from error
    return trial / "sae" if snapshot is None else _snapshot_folder(directory, snapshot)


def _snapshot_folder(directory: TrialDirectory, tokens: int) -> Path:
    """As `finished_folder`, of a trial that is finished."""
    try:
        if directory.snapshots.check(tokens) is None:
            raise UserError(f"{directory.path}: this trial has no snapshot at {tokens} tokens")
    except DamagedError as error:
        raise UserError(first_line(error)) from error
    return directory.snapshots.path(tokens)


def load_run(run_id: str, tracking_uri: str | None, option: str, snapshot: int | None = None) -> SAE:
    """The SAE of an MLflow run; arguments and errors as of `run_folder`."""
    with run_folder(run_id, tracking_uri, option, snapshot) as folder:
        return saes.load(folder)


@contextlib.contextmanager
def run_folder(run_id: str, tracking_uri: str | None, option: str, snapshot: int | None = None) -> Iterator[Path]:
    """The SAE of an MLflow run in a temporary folder, as it was saved.

    Args:
        run_id: the run's.
        tracking_uri: of MLflow.
        option: what errors name.
        snapshot: in place of the finished SAE its snapshot after so many tokens.

    Raises:
        UserError: it cannot be had, or is not as it was saved.
    """
    from gsae_ray.tracking.artifacts import fetch_sae  # MLflow takes seconds to import

    with tempfile.TemporaryDirectory(prefix="gsae-") as folder:
        yield fetch_sae(run_id, folder, tracking_uri, option, snapshot)
