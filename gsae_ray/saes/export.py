"""Writing an SAE to a folder in the format of a library."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from gsae_ray.errors import UserError, shown, suggest
from gsae_ray.names import local_path
from gsae_ray.saes.folder import saved_files_of, visible_files

if TYPE_CHECKING:
    from gsae_ray.saes.base import SAE

OURS = "gsae"
"""Our own format, of which nothing but files is looked at here: `gsae-ray best` copies them without torch."""
SET = "circuit-tracer"
"""The format of which a folder holds several: writing to it adds one."""
_OF_SET = re.compile(r"config\.yaml|layer_\d+\.safetensors")
FOLDABLE = "jumprelu"
"""The format that can be written without b_dec subtracted."""


def check_export(directory: str | Path, format: str, fold_b_dec: bool = False, rows: Path | None = None) -> Path:
    """Checks that `export` can write there, before anything is fetched. Returns the directory.

    Raises:
        UserError: the format is unknown or cannot have b_dec folded, or the directory is a file, or has files; those of
            an SAE that was saved there are replaced by format `gsae`, and to a set of circuit-tracer one is added.
    """
    if format != OURS:
        from gsae_ray.saes.formats import WRITERS

        if format not in WRITERS:
            raise UserError(f"--format: unknown {format!r}; {suggest(format, WRITERS)}")
    if fold_b_dec and format != FOLDABLE:
        raise UserError(f"--fold-b-dec: only --format {FOLDABLE} can be written so, not {format}")
    if rows is not None and not fold_b_dec:
        raise UserError("--rows: only what --fold-b-dec changes is counted")
    directory = local_path(directory, "--out")
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--out: {directory} is a file; give a folder")
    replaceable = saved_files_of(directory) if format == OURS else set()
    if format == SET:
        replaceable = {name for name in visible_files(directory) if _OF_SET.fullmatch(name)}
    if taken := sorted(visible_files(directory) - replaceable):
        raise UserError(
            f"--out: {directory} has other files ({shown(', '.join(taken), quoted=False)}); nothing is overwritten: "
            "give a new folder, or remove them"
        )
    return directory


def export(sae: SAE, directory: str | Path, format: str = "gsae", fold_b_dec: bool = False) -> None:
    """Writes an SAE in one of the formats of `gsae_ray.saes.formats.WRITERS`.

    Args:
        sae: what to write.
        directory: a folder that is new or empty; with format `gsae` it may have an SAE that was saved there, and with
            `circuit-tracer` transcoders of other layers.
        format: the format's name.
        fold_b_dec: with format `jumprelu`, for tools that do not subtract b_dec from the encoder's input: b_enc takes
            it in. The same function, but for rounding at thresholds.

    Raises:
        UserError: as `check_export`; or the SAE has no form in that format, for a reason that the line gives.
    """
    directory = check_export(directory, format, fold_b_dec)
    from gsae_ray.saes.formats import WRITERS
    from gsae_ray.saes.formats.jumprelu import write_folded

    write = write_folded if fold_b_dec else WRITERS[format]
    write(sae, directory)
