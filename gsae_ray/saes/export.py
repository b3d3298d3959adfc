"""Writing an SAE to a folder in the format of a library."""

from __future__ import annotations

from pathlib import Path

from gsae_ray.errors import UserError, shown, suggest
from gsae_ray.names import local_path
from gsae_ray.saes.base import SAE
from gsae_ray.saes.files import foreign_files
from gsae_ray.saes.formats import WRITERS


def check_export(directory: str | Path, format: str) -> Path:
    """Checks that `export` can write there, before anything is fetched. Returns the directory.

    Raises:
        UserError: the format is unknown, or the directory is a file, or has files that are not of an SAE.
    """
    if format not in WRITERS:
        raise UserError(f"--format: unknown {format!r}; {suggest(format, WRITERS)}")
    directory = local_path(directory, "--out")
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--out: {directory} is a file; give a folder")
    if directory.exists() and (foreign := ", ".join(foreign_files(directory))):
        raise UserError(
            f"--out: {directory} has files that are not of an SAE saved there before ({shown(foreign, quoted=False)}); "
            "nothing is overwritten: give a new folder, or remove them"
        )
    return directory


def export(sae: SAE, directory: str | Path, format: str = "gsae") -> None:
    """Writes an SAE in one of `WRITERS`.

    Raises:
        UserError: as `check_export`.
    """
    directory = check_export(directory, format)
    WRITERS[format](sae, directory)
