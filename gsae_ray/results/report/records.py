"""What a report shows beside the frontier: what the launch was, its training curves, what failed, what it cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from gsae_ray.activations.production_log import PRODUCTION_LOG
from gsae_ray.errors import DamagedError
from gsae_ray.results.outcomes import MLflowOutcomes, Outcome, StorageOutcomes, left_stopped
from gsae_ray.storage.launch_directory import LAUNCH
from gsae_ray.storage.trial_directory import TrialDirectory
from gsae_ray.tracking.runs import RecordedExperiment
from gsae_ray.tracking.tags import LAUNCH as LAUNCH_TAG

SERIES = ("loss", "l0", "dead_fraction", "tokens_per_s")
"""What is read of a training: each is logged as `train/{name}`."""
Series = dict[str, list[tuple[int, float]]]
"""Name of `SERIES` -> (tokens, value) in order."""
COUNTERS = ("forward_ratio", "rows_produced", "rows_distinct", "rows_repeated", "evaluations")


@dataclasses.dataclass(frozen=True)
class About:
    """What a launch was."""

    settings: Mapping[str, str]
    """`model`, `dataset`, or `activations`, as far as it has them."""
    counters: Mapping[str, float]
    """Of `COUNTERS`, as far as they are known."""


class Records(Protocol):
    """Where a report reads what the frontier's table does not have."""

    def about(self, launch: str) -> About:
        """What a launch was."""

    def failed(self, launch: str | None) -> list[Outcome]:
        """Trials of a launch, or of all, that failed for good."""

    def stopped(self, launch: str | None) -> list[Outcome]:
        """Those that a scheduler has stopped, and that no other launch has trained on."""

    def trainings(self, run_ids: Sequence[str]) -> dict[str, Series]:
        """The training of each trial, by the `run_id` of its table row."""

    def page(self, run_id: str) -> str | None:
        """The address of a run's page, where a server has one."""


class MLflowRecords:
    """Records read from MLflow."""

    def __init__(self, tracking_uri: str | None, experiment: str) -> None:
        """Looks the experiment up.

        Raises:
            UserError: there is no such experiment, or MLflow does not answer.
        """
        self._experiment = RecordedExperiment(tracking_uri, experiment)
        self._outcomes = MLflowOutcomes(tracking_uri, experiment)

    def about(self, launch: str) -> About:
        found = [run for run in self._experiment.runs("launch", launch) if run.tags.get(LAUNCH_TAG) == launch]
        if not found:
            return About({}, {})
        params, metrics = found[0].params, found[0].metrics
        settings = {name: params[name] for name in ("model", "dataset", "activations") if name in params}
        return About(settings, {name: metrics[name] for name in COUNTERS if name in metrics})

    def failed(self, launch: str | None) -> list[Outcome]:
        return self._outcomes.failed(launch)

    def stopped(self, launch: str | None) -> list[Outcome]:
        return left_stopped(self._outcomes, launch)

    def trainings(self, run_ids: Sequence[str]) -> dict[str, Series]:
        found = self._experiment.histories(run_ids, [f"train/{name}" for name in SERIES])
        return {
            run_id: {name.removeprefix("train/"): points for name, points in series.items()}
            for run_id, series in found.items()
        }

    def page(self, run_id: str) -> str | None:
        return self._experiment.page(run_id)


class StorageRecords:
    """Records read from a storage, where `run_id` is a trial's folder."""

    def __init__(self, storage: str | Path, experiment: str) -> None:
        """Looks for launches of the experiment.

        Raises:
            UserError: there is no such experiment in it.
        """
        self._outcomes = StorageOutcomes(storage, experiment)

    def about(self, launch: str) -> About:
        folder = self._outcomes.folder(launch)
        try:
            found = LAUNCH.read(folder / "launch.json")
        except DamagedError:
            found = None
        return About({} if found is None else settings_of(found["sweep"]), _counters(folder))

    def failed(self, launch: str | None) -> list[Outcome]:
        return self._outcomes.failed(launch)

    def stopped(self, launch: str | None) -> list[Outcome]:
        return left_stopped(self._outcomes, launch)

    def trainings(self, run_ids: Sequence[str]) -> dict[str, Series]:
        return {run_id: _series(Path(run_id)) for run_id in run_ids}

    def page(self, run_id: str) -> str | None:  # noqa: ARG002
        return None


def records_of(experiment: str, tracking_uri: str | None, storage: str | Path | None) -> Records:
    """Where the records of an experiment are read: MLflow, or the storage where one is given."""
    return MLflowRecords(tracking_uri, experiment) if storage is None else StorageRecords(storage, experiment)


def settings_of(sweep: Mapping[str, Any]) -> dict[str, str]:
    """The settings of `About`, from a sweep that was written down."""
    found = {name: (sweep.get(name) or {}).get("name") for name in ("model", "dataset")}
    found["activations"] = (sweep.get("activations") or {}).get("path")
    return {name: str(value) for name, value in found.items() if value}


def _counters(folder: Path) -> dict[str, float]:
    """The counters of a launch's folder; of blocks, which have as many rows each, but for the last."""
    log = PRODUCTION_LOG.read_whole(folder / "record.json")
    distinct = {} if log is None else log.produced.keys() | log.repeated.keys()
    if log is None or not distinct:
        return {}
    return {"forward_ratio": sum(log.produced.values()) / len(distinct), "evaluations": log.evaluations}


def _series(folder: Path) -> Series:
    rows, _ = TrialDirectory(folder).rows()
    return {name: list(_values(rows, f"train/{name}")) for name in SERIES}


def _values(rows: Sequence[Any], name: str) -> Iterator[tuple[int, float]]:
    for row in rows:
        if name in row["metrics"]:
            yield row["step"], row["metrics"][name]


def trained_tokens(training: Series) -> int:
    """How far a trial came, by the last that it logged."""
    return max((tokens for points in training.values() for tokens, _ in points[-1:]), default=0)


def hours(training: Series) -> float:
    """Hours that a trial trained, by its own clock: what it logged of its speed."""
    seconds, before = 0.0, 0
    for tokens, speed in training.get("tokens_per_s", []):
        if speed > 0:
            seconds += (tokens - before) / speed
        before = tokens
    return seconds / 3600
