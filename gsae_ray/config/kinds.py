"""What kind of source a sweep file describes: a language model that reads text, synthetic activations, or files.

`model` or `activations` says it; what the other sections may say, and which may be left out, follows.
"""

from __future__ import annotations

from collections.abc import Mapping

from gsae_ray.config.activation_files import FileRowSettings
from gsae_ray.config.explain import read_as, refusal
from gsae_ray.config.sections import DatasetSettings, ModelSettings, RowSettings
from gsae_ray.config.synthetic import SYNTHETIC, SyntheticSettings

Model = ModelSettings | SyntheticSettings
Dataset = DatasetSettings | RowSettings | FileRowSettings


def is_synthetic(model: object) -> bool:
    """Whether a `model` section, as given or read, is that of a synthetic sweep."""
    return isinstance(model, SyntheticSettings) or (isinstance(model, Mapping) and model.get("name") == SYNTHETIC)


def with_what_may_be_left_out(sweep: object) -> object:
    """A sweep file's values with the sections that its kind of source does without."""
    if isinstance(sweep, Mapping) and sweep.get("activations") is not None:
        return {"model": None, "dataset": {}, **sweep}
    if isinstance(sweep, Mapping) and is_synthetic(sweep.get("model")):
        return {"dataset": {}, "sites": {}, **sweep}
    return sweep


def read_model(value: object, on_files: bool) -> Model | None:
    """The section `model`; None for activations on disk without one.

    Args:
        value: as given.
        on_files: whether activations are read from disk.

    Raises:
        ValidationError: something is wrong with it.
    """
    if on_files:
        if value is None:
            return None
        if is_synthetic(value):
            raise refusal([((), "synthetic, but activations are read from disk; leave one of the two out")])
    return read_as(SyntheticSettings, value) if is_synthetic(value) else read_as(ModelSettings, value)


def read_dataset(value: object, model: Model | None, on_files: bool) -> Dataset:
    """The section `dataset`, of the kind that goes with the model.

    Args:
        value: as given.
        model: None where something is wrong with it; then the data's own keys tell which kind is meant.
        on_files: whether activations are read from disk.

    Raises:
        ValidationError: something is wrong with it.
    """
    given = value if isinstance(value, Mapping) else {}
    kind: type[RowSettings | FileRowSettings] = FileRowSettings if on_files else RowSettings
    sweep = "a sweep on files" if on_files else "a synthetic sweep"
    if not on_files and (isinstance(model, ModelSettings) or (model is None and "name" in given)):
        return read_as(DatasetSettings, value)
    if others := [key for key in given if key in DatasetSettings.model_fields and key not in kind.model_fields]:
        what = f"{sweep} has no text; leave it out (this section takes {', '.join(kind.model_fields)})"
        raise refusal([((key,), what) for key in others])
    return read_as(kind, value)
