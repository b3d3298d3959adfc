"""Finished SAEs of other sweeps that trials start from: fetched from MLflow once, and kept in the storage."""

from __future__ import annotations

import tempfile
from pathlib import Path

from gsae_ray.config.sweep import Sweep
from gsae_ray.files import JSONFile, file_hash
from gsae_ray.saes import SAEConfig, load
from gsae_ray.saes.folder import WEIGHTS_FILE, content_hash, holds

_PARENT = JSONFile(str, "it is fetched again")
"""The hash of a parent that was fetched (`saes.folder.content_hash`)."""


def fetch_parents(sweep: Sweep, folder: Path, tracking_uri: str | None) -> dict[str, Path]:
    """Fetches the SAEs that entries of a sweep name by run, unless they are in `folder` already, and whole.

    Returns:
        Run id -> folder of its SAE.

    Raises:
        UserError: there is no such run, or it has no SAE.
    """
    settings = [values for entry in sweep.saes for values in entry.hyperparameters()]
    run_ids = dict.fromkeys(str(values["parent"]) for values in settings if values.get("parent") is not None)
    parents = {run_id: folder / run_id / "sae" for run_id in run_ids}
    for run_id, target in parents.items():
        if not holds(target, _PARENT.read_whole(target.parent / "sae.json")):
            _fetch_parent(run_id, target, tracking_uri)
    return parents


def _fetch_parent(run_id: str, target: Path, tracking_uri: str | None) -> None:
    """Fetches a finished SAE to `target`, in place of a damaged one, and writes its hash beside it."""
    from gsae_ray.tracking.artifacts import fetch_sae  # here: MLflow takes seconds to import

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        fetched = fetch_sae(run_id, temporary, tracking_uri, "parent")
        content = content_hash(fetched)
        if not holds(target, content):  # another driver may have been quicker
            if target.exists():
                target.rename(Path(temporary) / "damaged")
            fetched.rename(target)
        _PARENT.write(target.parent / "sae.json", content)


def parent_configs(parents: dict[str, Path]) -> dict[str, tuple[SAEConfig, str]]:
    """Run id -> the configuration of its SAE, and a hash of the SAE."""
    return {run: (load(folder).cfg, file_hash(folder / WEIGHTS_FILE)) for run, folder in parents.items()}
