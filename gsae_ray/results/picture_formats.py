"""As which files pictures are written. Imports nothing that takes time: commands check it before all else."""

from __future__ import annotations

from pathlib import Path

from gsae_ray.errors import UserError

SUFFIXES = (".png", ".svg", ".pdf")


def check_picture(path: Path) -> None:
    """Refuses a file that is none of a picture, by its suffix.

    Raises:
        UserError: so it is.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"--out: {path.name} ends in none of {', '.join(SUFFIXES)}; a picture is written as one of these"
        )
