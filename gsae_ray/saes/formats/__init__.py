"""The file formats of SAEs by name: ours, and those of other libraries, one module each.

A format is a module with `FILES`, `NAMES`, `recognises` and `read`, entered in `READERS`. If it can be written it has
`write`, entered in `WRITERS`. All of them read JSON, safetensors and weights-only pickles: nothing that could run code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from gsae_ray.errors import UserError, first_line, shown
from gsae_ray.saes import files as gsae
from gsae_ray.saes.base import SAE
from gsae_ray.saes.formats import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    jumprelu,
    llama_scope,
    pickled_topk,
    saelens,
    sparsify,
)
from gsae_ray.saes.hub import fetch, parse_hub_id


class Reader(Protocol):
    """What a module of a format offers."""

    FILES: str
    """What a folder of this format has, as an error line says it: "cfg.json with sae_weights.safetensors"."""

    @property
    def NAMES(self) -> Sequence[str]:
        """The files of such a folder that `read` reads: of a folder on the hub, only these are downloaded."""

    def recognises(self, directory: Path) -> bool:
        """Whether a folder looks like one of this format: by names of files, and keys of a small JSON file at most.

        Weights are not read.
        """

    def read(self, directory: Path) -> SAE:
        """The SAE of a folder that is recognised, on the CPU, in evaluation mode, as float32.

        Raises:
            ValueError, UserError: the files hold no SAE that we know, or are damaged; in one line.
            OSError: they cannot be read.
        """


READERS: dict[str, Reader] = {
    "pickled_topk": pickled_topk,  # which may be a file
    "circuit-tracer": circuit_tracer,  # which is one
    "gsae": gsae,
    "saelens": saelens,
    "dictionary_learning": dictionary_learning,
    "sparsify": sparsify,
    "gemma_scope": gemma_scope,
    "llama_scope": llama_scope,
}
"""Formats that `load` reads; the first that recognises a folder reads it."""

WRITERS: dict[str, Callable[[SAE, Path], None]] = {
    "gsae": lambda sae, folder: sae.save(folder),
    "saelens": saelens.write,
    "jumprelu": jumprelu.write,
    "dictionary_learning": dictionary_learning.write,
    "sparsify": sparsify.write,
    "circuit-tracer": circuit_tracer.write,
}
"""Formats that `export` writes. A function writes an SAE to a folder, which is made if need be.

It raises a `UserError` that names the reason where the SAE has no form in its format.
"""


def load(source: str | Path) -> SAE:
    """The SAE of a folder in any format of `READERS`, on the CPU, in evaluation mode.

    Args:
        source: the folder, or the file of weights where a format has nothing else. Where there is no such path,
            `owner/name/folder` or `owner/name@revision/folder` of a repository of the Hugging Face hub: what is read
            of that folder is downloaded to the hub's cache.

    Raises:
        UserError: there is none, its files are damaged, or the hub refuses it or cannot be reached.
    """
    path = _on_disk(source)
    try:
        for reader in READERS.values():
            if reader.recognises(path):
                return reader.read(path)
        found = sorted(file.name for file in path.iterdir())
    except NotADirectoryError as error:
        raise UserError(f"{source}: this is a file; give the folder that it lies in") from error
    except FileNotFoundError as error:
        missing = Path(str(error.filename)).name
        raise UserError(f"{source}: no SAE here ({missing} is missing); {_known()}") from error
    except (OSError, ValueError, UserError) as error:
        raise UserError(f"{source}: this SAE cannot be read: {first_line(error)}") from error
    if "sae" in found:
        raise UserError(f"{source}: no SAE here, but a folder sae, as in a trial's directory; give {source}/sae")
    raise UserError(f"{source}: no SAE here, but {shown(', '.join(found) or 'nothing', quoted=False)}; {_known()}")


def _on_disk(source: str | Path) -> Path:
    """The path itself; or where there is none, and it may be a hub id, that of the SAE in the hub's cache.

    Raises:
        UserError: the hub has none, refuses it, or cannot be reached.
    """
    path, hub_id = Path(source), parse_hub_id(str(source))
    if hub_id is None:
        return path
    with contextlib.suppress(OSError):  # too long a name
        if path.exists():
            return path
    return fetch(hub_id, str(source), {name for reader in READERS.values() for name in reader.NAMES})


def _known() -> str:
    return "known are folders of " + "; ".join(f"{name} ({reader.FILES})" for name, reader in READERS.items())
