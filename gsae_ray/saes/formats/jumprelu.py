"""SAELens' folder of an SAE's JumpReLU form, for tools that know JumpReLU SAEs only; it is read as any of SAELens'."""

from __future__ import annotations

from pathlib import Path

from gsae_ray.saes.base import SAE
from gsae_ray.saes.formats import saelens


def write(sae: SAE, directory: Path) -> None:
    """Writes `sae.to_jumprelu()`.

    Raises:
        UserError: it has no such form.
    """
    saelens.write(sae.to_jumprelu(), directory)


def write_folded(sae: SAE, directory: Path) -> None:
    """Writes it with an encoder that takes x itself, as some tools read every SAE.

    Raises:
        UserError: as `write`.
    """
    saelens.write(sae.to_jumprelu().subtracting_b_dec(False), directory)
