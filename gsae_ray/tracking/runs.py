"""The runs of an experiment, as MLflow has them, for what reads results."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from gsae_ray.errors import UserError, suggest
from gsae_ray.tracking.connection import asking, open_tracking
from gsae_ray.tracking.credentials import redacted
from gsae_ray.tracking.pages import page_of, trials_page
from gsae_ray.tracking.tags import KIND, LAUNCH

REQUESTS = 8
"""At a time, where many are made."""


@dataclasses.dataclass(frozen=True)
class RecordedRun:
    """What MLflow has of a run, but its artifacts."""

    id: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    """The last value of each."""


class RecordedExperiment:
    """An experiment that has been recorded to."""

    def __init__(self, tracking_uri: str | None, name: str) -> None:
        """Looks it up.

        Raises:
            UserError: there is no such experiment, or MLflow does not answer.
        """
        self._client = open_tracking(tracking_uri)
        self._uri = self._client.tracking_uri
        with asking(self._uri):
            found = self._client.get_experiment_by_name(name)
            known = [] if found else [e.name for e in self._client.search_experiments() if e.name != "Default"]
        if found is None:
            raise unknown_experiment(name, redacted(self._uri), known)
        self._id = found.experiment_id

    def pages(self, launch: str) -> tuple[str, str] | None:
        """The addresses of a launch's trials and of its own run in MLflow's UI; None where no server has them.

        Raises:
            UserError: MLflow does not answer.
        """
        found = self.runs("launch", launch)
        own_page = page_of(self._uri, self._id, found[0].id) if found else None
        return None if own_page is None else (trials_page(self._uri, self._id, launch), own_page)

    def runs(self, kind: str, launch: str | None = None, status: str | None = None) -> list[RecordedRun]:
        """Its runs, the newest first.

        Args:
            kind: "launch", "trial" or "reference".
            launch: only those of this launch.
            status: only those that MLflow says are in it ("FINISHED", "FAILED", …).

        Raises:
            UserError: MLflow does not answer.
        """
        conditions = [f"tags.`{KIND}` = '{kind}'"]
        conditions += [] if status is None else [f"attributes.status = '{status}'"]
        conditions += [] if launch is None else [f"tags.`{LAUNCH}` = '{launch}'"]
        query, order = " and ".join(conditions), ["attributes.start_time DESC"]
        runs: list[Run] = []
        token: str | None = None
        while token != "":
            with asking(self._uri):
                page = self._client.search_runs([self._id], query, order_by=order, page_token=token)
            runs.extend(page)
            token = page.token or ""
        return [RecordedRun(run.info.run_id, run.data.tags, run.data.params, run.data.metrics) for run in runs]

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """(step, value) of each time that a run's metric was logged.

        Raises:
            UserError: MLflow does not answer.
        """
        with asking(self._uri):
            points = self._client.get_metric_history(run_id, metric)
        return [(point.step, point.value) for point in points]

    def histories(
        self, run_ids: Sequence[str], metrics: Sequence[str]
    ) -> dict[str, dict[str, list[tuple[int, float]]]]:
        """As `history`, of some metrics of many runs: run -> metric -> points, in order of their steps.

        Raises:
            UserError: MLflow does not answer.
        """
        pairs = [(run_id, metric) for run_id in run_ids for metric in metrics]
        found: dict[str, dict[str, list[tuple[int, float]]]] = {run_id: {} for run_id in run_ids}
        # `asking` is entered outside of the threads, since it sets environment variables.
        with asking(self._uri), ThreadPoolExecutor(REQUESTS) as pool:
            answers = pool.map(lambda pair: self._client.get_metric_history(*pair), pairs)
            for (run_id, metric), points in zip(pairs, answers, strict=True):
                found[run_id][metric] = sorted((point.step, point.value) for point in points)
        return found

    def page(self, run_id: str) -> str | None:
        """The address of a run's page, where there is one."""
        return page_of(self._uri, self._id, run_id)


def find_run(client: MlflowClient, experiment_id: str, tags: Mapping[str, str]) -> Run | None:
    """The run with those tags. Of several, only the newest stays.

    There are several where a request to make a run was given up and sent again, and the server carried out both.
    """
    query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    runs = client.search_runs([experiment_id], query, order_by=["attributes.start_time DESC"])
    for run in runs[1:]:
        client.delete_run(run.info.run_id)
    return runs[0] if runs else None


def recorded_experiments(tracking_uri: str | None) -> dict[str, str]:
    """Name -> id of the experiments that have been recorded, the newest first.

    Raises:
        UserError: nothing has been recorded there, or MLflow does not answer.
    """
    client = open_tracking(tracking_uri)
    with asking(client.tracking_uri):
        found = client.search_experiments(order_by=["creation_time DESC"])
    return {experiment.name: experiment.experiment_id for experiment in found if experiment.name != "Default"}


def unknown_experiment(name: str, where: str, known: Sequence[str]) -> UserError:
    """The error of an experiment that is not there, with the nearest one of those `known`."""
    hint = suggest(name, known) if known else "nothing has been recorded there"
    return UserError(f"experiment: no {name!r} at {where}; {hint}")


@contextlib.contextmanager
def recorded(tracking_uri: str | None, experiment: str) -> Iterator[tuple[MlflowClient, str]]:
    """A client, and the id of an experiment that MLflow has; for the length of a context that asks it.

    Raises:
        UserError: MLflow has no such experiment, or does not answer.
    """
    client = open_tracking(tracking_uri)
    with asking(client.tracking_uri):
        found = client.get_experiment_by_name(experiment)
        if found is None:
            raise UserError(f"--tracking-uri: {redacted(client.tracking_uri)} has no experiment {experiment!r}")
        yield client, found.experiment_id
