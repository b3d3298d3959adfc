"""What the runs of a launch were made from, as MLflow is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gsae_ray.config.sweep import Sweep
from gsae_ray.data.documents import find_data
from gsae_ray.data.hub_data import HubData
from gsae_ray.driver.prepare import PreparedSweep
from gsae_ray.files import digest
from gsae_ray.tracking.inputs import Data, Inputs, LanguageModel


def inputs_of(prepared: PreparedSweep) -> Inputs:
    """Data sets and language model of a sweep: training rows, held-out rows, and the model whose activations they are.

    The digest of the training rows is the beginning of what identifies them in storage, that of the held-out rows the
    beginning of the evaluation's fingerprint.
    """
    sweep, source = prepared.sweep, prepared.source
    provenance = dict(source.provenance)
    rows = provenance.get("tokens") or provenance.get("activations") or digest(provenance)
    name, heldout = _names(sweep)
    evaluation = prepared.evaluation.fingerprint
    return Inputs(
        data=(
            Data(name, "training", rows, *_source(sweep, name, "train"), sum(source.rows)),
            Data(
                f"{heldout} (held out)",
                "evaluation",
                evaluation,
                *_source(sweep, heldout, "heldout"),
                source.heldout_rows,
            ),
        ),
        model=_model(sweep, dict(source.metadata.get("model") or {}), provenance.get("model")),
    )


def _names(sweep: Sweep) -> tuple[str, str]:
    """What the training rows and the held-out rows are called."""
    if sweep.is_synthetic:
        return sweep.synthetic.name, sweep.synthetic.name
    if sweep.activations is not None:
        return sweep.files.path, sweep.files.heldout or sweep.files.path
    return sweep.text.name, sweep.text.name


def _source(sweep: Sweep, name: str, part: str) -> tuple[dict[str, Any], str]:
    """Where rows are from, as MLflow's source of that type has it, and its type; files of a pattern are no one path."""
    if sweep.is_synthetic or name == "builtin":
        return {"uri": name}, "local"
    on_disk = Path(name).expanduser()
    if sweep.activations is not None or on_disk.exists() or not isinstance(find_data(sweep.text), HubData):
        return {"uri": on_disk.resolve().as_uri() if on_disk.exists() else name}, "local"
    text = sweep.text
    split = (sweep.evaluation.split or text.split) if part == "heldout" else text.split
    return {"path": name, "config_name": text.subset, "split": split, "revision": text.revision}, "hugging_face"


def _model(sweep: Sweep, described: dict[str, Any], fingerprint: str | None) -> LanguageModel | None:
    """The language model, where there is one that has a name."""
    if sweep.is_synthetic or not described.get("name"):
        return None
    told = {key: described.get(key) for key in ("name", "revision", "dtype", "context_size")}
    params = {key: str(value) for key, value in told.items() if value is not None}
    return LanguageModel(str(described["name"]), fingerprint or digest(params), params)
