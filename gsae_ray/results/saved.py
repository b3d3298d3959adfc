"""SAEs by where they lie: in a folder, in a trial's directory, or with a run of MLflow."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from gsae_ray.errors import UserError
from gsae_ray.names import local_path
from gsae_ray.saes import SAE, load
from gsae_ray.storage.trial_directory import TrialDirectory

_RUN = re.compile(r"[0-9a-f]{32}")


def load_from(source: str | Path, tracking_uri: str | None = None) -> SAE:
    """The SAE of a folder in any format, of a trial's directory, or of a run.

    Args:
        source: a path, or the id of an MLflow run.
        tracking_uri: of MLflow, which is asked for a run only.

    Raises:
        UserError: there is none, or it is not as it was saved.
    """
    path = local_path(source, "DIR_OR_RUN")
    if _RUN.fullmatch(str(source)) and not path.exists():
        from gsae_ray.tracking.artifacts import fetch_sae  # MLflow takes seconds to import

        with tempfile.TemporaryDirectory(prefix="gsae-") as folder:
            return load(fetch_sae(str(source), folder, tracking_uri, "DIR_OR_RUN"))
    if not (path / "trial.json").exists():
        return load(path)
    directory = TrialDirectory(path)
    if directory.check_done() is None:
        raise UserError(f"{path}: this trial is not finished; it has no SAE yet")
    return load(path / "sae")
