"""A launch that runs elsewhere, as its run in MLflow shows it: how far it is, and where to look at it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from gsae_ray.storage.progress import Progress
from gsae_ray.tracking.connection import asking, connect
from gsae_ray.tracking.pages import run_page
from gsae_ray.tracking.tags import JOB, KIND, LAUNCH, PROGRESS


@dataclasses.dataclass(frozen=True)
class RemoteLaunch:
    """A launch's run in MLflow, as it was when it was found."""

    client: MlflowClient
    run: Run

    @classmethod
    def find(cls, tracking_uri: str, experiment: str, job: str) -> RemoteLaunch | None:
        """The launch that a job runs; None before that has begun.

        Raises:
            UserError: MLflow does not answer.
        """
        client = connect(tracking_uri)
        with asking(tracking_uri):
            found = client.get_experiment_by_name(experiment)
            query = f"tags.`{KIND}` = 'launch' and tags.`{JOB}` = '{job}'"
            runs = client.search_runs([found.experiment_id], query) if found is not None else []
        ours = [run for run in runs if LAUNCH in run.data.tags]  # another's may be half-made, or no launch
        return cls(client, ours[0]) if ours else None

    @property
    def launch_id(self) -> str:
        return str(self.run.data.tags[LAUNCH])

    @property
    def link(self) -> str:
        """The address of its page in the MLflow UI."""
        return run_page(self.client.tracking_uri, self.run.info.experiment_id, self.run.info.run_id)

    @property
    def _reported(self) -> dict[str, Any]:
        """What the driver wrote last of its progress (`Mirror.report`)."""
        try:
            reported = json.loads(self.run.data.tags.get(PROGRESS, "{}"))
        except ValueError:
            return {}
        return reported if isinstance(reported, dict) else {}

    @property
    def progress(self) -> Progress | None:
        """How far it is; None before the driver has said so, and where one of another version has said other things."""
        values, fields = self._reported, {field.name for field in dataclasses.fields(Progress)}
        return Progress(**{name: values[name] for name in fields}) if fields <= values.keys() else None

    @property
    def forward_ratio(self) -> float | None:
        """Rows that went through the language model ÷ distinct rows, so far; None before the first block."""
        ratio: float | None = self._reported.get("forward_ratio")
        return ratio

    def close_what_is_open(self) -> None:
        """Ends, as KILLED, the runs of a driver that is gone and could not end them itself."""
        with asking(self.client.tracking_uri):
            query = f"tags.`{LAUNCH}` = '{self.launch_id}' and attributes.status = 'RUNNING'"
            for run in self.client.search_runs([self.run.info.experiment_id], query):
                self.client.set_terminated(run.info.run_id, "KILLED")
