"""What runs were made from, as MLflow knows it: data sets, and the language model as a model that is kept elsewhere."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput, LoggedModelStatus
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_MODEL_IS_EXTERNAL
from mlflow.utils.validation import MAX_DATASET_DIGEST_SIZE, MAX_DATASET_NAME_SIZE

from gsae_ray.tracking.tags import MODEL

LANGUAGE_MODEL = "language model"
"""MLflow's type of the model."""
_NOT_IN_NAMES = re.compile(r"[/:.%\"']+")
"""What MLflow refuses in the name of such a model."""


@dataclasses.dataclass(frozen=True)
class Data:
    """The training rows of a sweep, or the held-out ones."""

    name: str
    context: str
    """`training` or `evaluation`."""
    fingerprint: str
    """Of the rows, a hash; MLflow keeps the first 36 characters, and calls them the digest."""
    source: Mapping[str, Any]
    """Where they are from, as MLflow's source of that type has it."""
    source_type: str
    """`hugging_face`, or `local`: files, and what is made here."""
    rows: int


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """The model whose activations are learnt from."""

    name: str
    fingerprint: str
    params: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What every run of a launch was made from."""

    data: tuple[Data, ...] = ()
    model: LanguageModel | None = None


def dataset_inputs(inputs: Inputs) -> list[DatasetInput]:
    """The data sets as MLflow takes them."""
    return [
        DatasetInput(
            Dataset(
                name=data.name[:MAX_DATASET_NAME_SIZE],
                digest=data.fingerprint[:MAX_DATASET_DIGEST_SIZE],
                source_type=data.source_type,
                source=json.dumps(data.source),
                profile=json.dumps({"num_rows": data.rows}),
            ),
            [InputTag(MLFLOW_DATASET_CONTEXT, data.context)],
        )
        for data in inputs.data
    ]


def model_inputs(client: MlflowClient, experiment_id: str, model: LanguageModel | None) -> list[LoggedModelInput]:
    """The language model as MLflow takes it: found in the experiment by its fingerprint, or made there."""
    if model is None:
        return []
    query = f"tags.`{MODEL}` = '{model.fingerprint}'"
    found = client.search_logged_models([experiment_id], query, max_results=1)
    if found:
        known = found[0]
    else:
        known = client.create_logged_model(
            experiment_id,
            name=_NOT_IN_NAMES.sub("-", model.name).strip("-") or "model",
            tags={MODEL: model.fingerprint, MLFLOW_MODEL_IS_EXTERNAL: "true"},
            params=dict(model.params),
            model_type=LANGUAGE_MODEL,
        )
    if known.status != LoggedModelStatus.READY:  # whoever made it may have died before it said so
        client.finalize_logged_model(known.model_id, LoggedModelStatus.READY)
    return [LoggedModelInput(known.model_id)]
