"""A launch seen through MLflow by those who did not start it: how far it is, and that it is to stop."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from gsae_ray.storage.progress import Progress
from gsae_ray.tracking.connection import asking, connect
from gsae_ray.tracking.tags import JOB, KIND, LAUNCH, PROGRESS, STOP


@dataclasses.dataclass(frozen=True)
class RemoteLaunch:
    """A launch's run in MLflow, as it was when it was found."""

    client: MlflowClient
    run: Run

    @classmethod
    def find(cls, tracking_uri: str, experiment: str, job: str) -> RemoteLaunch | None:
        """The launch that a job runs; None before it has begun.

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
        """Of its page in the MLflow UI."""
        info = self.run.info
        return f"{self.client.tracking_uri.rstrip('/')}/#/experiments/{info.experiment_id}/runs/{info.run_id}"

    @property
    def _reported(self) -> dict[str, Any]:
        """What the driver has written last (`Mirror.report`)."""
        try:
            reported = json.loads(self.run.data.tags.get(PROGRESS, "{}"))
        except ValueError:
            return {}
        return reported if isinstance(reported, dict) else {}

    @property
    def progress(self) -> Progress | None:
        """None: the driver has not told yet, or is of a version that told something else."""
        values, fields = self._reported, {field.name for field in dataclasses.fields(Progress)}
        return Progress(**{name: values[name] for name in fields}) if fields <= values.keys() else None

    @property
    def forward_ratio(self) -> float | None:
        """So far; None before the first block."""
        ratio: float | None = self._reported.get("forward_ratio")
        return ratio

    def ask_to_stop(self) -> None:
        """The driver reads it within seconds."""
        with asking(self.client.tracking_uri):
            self.client.set_tag(self.run.info.run_id, STOP, str(time.time_ns() // 1_000_000))

    def close_what_is_open(self) -> None:
        """Ends runs that say still that they run, as KILLED: those of a driver that is no more."""
        with asking(self.client.tracking_uri):
            query = f"tags.`{LAUNCH}` = '{self.launch_id}' and attributes.status = 'RUNNING'"
            for run in self.client.search_runs([self.run.info.experiment_id], query):
                self.client.set_terminated(run.info.run_id, "KILLED")
