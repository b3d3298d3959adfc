"""Which files a path names, and of which format they are."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from gsae_ray.activation_files.collection import unfinished
from gsae_ray.activation_files.schema import SCHEMA_FILE
from gsae_ray.errors import UserError, shown
from gsae_ray.names import local_path

Format = Literal["safetensors", "parquet", "saelens"]
STATE_FILE, INFO_FILE = "state.json", "dataset_info.json"
"""Of a data set that `datasets` has saved."""


def find_files(path: str, format_: Format | None, key: str) -> tuple[Format, list[Path]]:
    """The files of rows that a path names, in the order of their names; of a saved data set its folder.

    Args:
        path: a file, a folder, or a glob.
        format_: which there should be; None: whichever there is.
        key: of the sweep file, where the path stands.

    Raises:
        UserError: there is no such file, or files are of several formats.
    """
    given = local_path(path, key)
    if (given / STATE_FILE).is_file() and format_ in (None, "saelens"):
        return "saelens", [given]
    if format_ == "saelens":
        raise UserError(
            f"{key}: {shown(path)} is no folder that SAELens has cached activations in (there is no {STATE_FILE})"
        )
    if given.is_file():  # brackets in its name are no glob
        found = [given]
    elif given.is_dir():
        found = sorted(file for file in given.rglob("*") if file.is_file() and not file.name.startswith("."))
    elif any(c in path for c in "*?["):
        found = sorted(file for file in Path(given.anchor).glob(str(given.relative_to(given.anchor))) if file.is_file())
    else:
        found = []
    formats: dict[Format, list[Path]] = {}
    for name in get_args(Format):
        if files := [file for file in found if file.suffix == f".{name}"]:
            formats[name] = files
    if format_ is not None:
        formats = {name: files for name, files in formats.items() if name == format_}
    if len(formats) > 1:
        raise UserError(
            f"{key}: {shown(path)} has files of several formats; say which: activations.format: {' or '.join(formats)}"
        )
    if not formats:
        raise UserError(f"{key}: {_nothing(given, path, format_)}")
    return next(iter(formats.items()))


def collected_folder(path: str, key: str) -> Path | None:
    """The folder, where it is one that `gsae-ray collect` has written; None for anything else.

    Raises:
        UserError: it has not been finished.
    """
    folder = local_path(path, key)
    if (folder / SCHEMA_FILE).is_file():
        return folder
    if not folder.exists() and unfinished(folder).is_dir():
        raise UserError(
            f"{key}: {shown(path)} is not finished ({unfinished(folder).name} is there); the same `gsae-ray collect` "
            "goes on"
        )
    return None


def _nothing(given: Path, path: str, format_: Format | None) -> str:
    wanted = f".{format_} file" if format_ else "file of activations (.safetensors, .parquet, or SAELens' cache)"
    if given.is_file():
        return f"{shown(path)} is no {wanted}"
    where = "" if given.is_absolute() else f" (from {Path.cwd()})"
    return f"there is no {wanted} at {shown(path)}{where}"
