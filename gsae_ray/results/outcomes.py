"""The outcomes of an experiment's trials and references, read from MLflow or from the storage that it mirrors.

Both give the same, but for a trial that one launch has stopped (`scheduler`) and another has trained on: storage,
which has one SAE a trial, gives it as finished for both launches; in MLflow the first one's run says that it was
stopped until that launch is resumed.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from gsae_ray.config.scheduler import RUNG
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import DamagedError, UserError
from gsae_ray.files import JSONFile
from gsae_ray.names import local_path
from gsae_ray.storage.evaluations import EvaluationRequest, Snapshot, Subject, schema_of
from gsae_ray.storage.launch_directory import EVALUATED, asked_in, find_trial
from gsae_ray.storage.launch_directory import LAUNCH as LAUNCH_FILE
from gsae_ray.storage.ratings import summary_of
from gsae_ray.storage.references import evaluation_of, folder_of, reference_id, references_of
from gsae_ray.storage.stopped import StoppedTrials
from gsae_ray.storage.trial_directory import TrialDirectory
from gsae_ray.tracking.params import reference_params, trial_params
from gsae_ray.tracking.runs import RecordedExperiment, unknown_experiment
from gsae_ray.tracking.tags import (
    CONTENT,
    EVALUATION,
    FAILURE,
    IDENTITY,
    LAUNCH,
    ORIGIN,
    RATINGS,
    SCHEMA,
    SOURCE,
    STOPPED,
    TRIAL,
)

T = TypeVar("T")
SHOWN_FAILURES = 3


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A trial that has finished or failed, or a reference, as its run in MLflow has it."""

    run_id: str
    """MLflow's id; where the storage was read, the folder of the trial, or of the reference's evaluations."""
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    """The last value of each metric that is finite."""

    @property
    def identity(self) -> str:
        return self.tags.get(IDENTITY, self.run_id)

    @property
    def schema(self) -> int:
        """The schema version of its evaluations (`evaluation.metrics`)."""
        return int(self.tags.get(SCHEMA, 1))

    @property
    def evaluation(self) -> dict[str, float]:
        """The metrics of the evaluation with the SAE's own encoder."""
        return {name.removeprefix("eval/"): value for name, value in self.metrics.items() if name.startswith("eval/")}

    @property
    def failure(self) -> str:
        """Which trial failed, and why: `TRIAL: why`."""
        return f"{self.tags.get(TRIAL, self.run_id)}: {self.tags.get(FAILURE, 'it does not say why')}"


class Outcomes(Protocol):
    """Where the outcomes of an experiment are read."""

    failures: str
    """Where each failure's reason is."""

    @property
    def notes(self) -> Sequence[str]:
        """A line for each thing that could not be read so far."""

    def launches(self) -> list[str]:
        """Ids, the newest first."""

    def finished(self, launch: str | None) -> list[Outcome]:
        """Trials of a launch, or of all, that are evaluated; those of newer launches first."""

    def failed(self, launch: str | None) -> list[Outcome]:
        """Those that failed for good."""

    def stopped(self, launch: str | None) -> list[Outcome]:
        """Those that a scheduler has stopped."""

    def pursuit(self, outcome: Outcome) -> dict[int, dict[str, float]]:
        """The metrics of a finished trial by gradient pursuit, by target L0; none where it was not asked for."""

    def snapshots(self, outcome: Outcome) -> dict[int, dict[str, float]]:
        """The metrics of a finished trial's snapshots, by their tokens."""

    def comparisons(self, outcome: Outcome) -> dict[int, dict[str, float]]:
        """What a scheduler compared of a trial, by the tokens that it was trained on then."""

    def references(self, launch: str | None) -> list[Outcome]:
        """SAEs from elsewhere that a launch is, or all are, compared with; those of newer launches first."""


class MLflowOutcomes:
    """Outcomes read from MLflow."""

    failures = "the tag gsae.failure of its run"
    notes: Sequence[str] = ()

    def __init__(self, tracking_uri: str | None, experiment: str) -> None:
        """Looks the experiment up.

        Raises:
            UserError: there is no such experiment, or MLflow does not answer.
        """
        self._experiment = RecordedExperiment(tracking_uri, experiment)

    def launches(self) -> list[str]:
        return [run.tags[LAUNCH] for run in self._experiment.runs("launch") if LAUNCH in run.tags]

    def finished(self, launch: str | None) -> list[Outcome]:
        return self._runs("trial", launch, "FINISHED")

    def failed(self, launch: str | None) -> list[Outcome]:
        return self._runs("trial", launch, "FAILED")

    def stopped(self, launch: str | None) -> list[Outcome]:
        return [outcome for outcome in self._runs("trial", launch, "KILLED") if STOPPED in outcome.tags]

    def pursuit(self, outcome: Outcome) -> dict[int, dict[str, float]]:
        return self._by_step(outcome, "pursuit/")

    def snapshots(self, outcome: Outcome) -> dict[int, dict[str, float]]:
        return self._by_step(outcome, "snapshot/")

    def comparisons(self, outcome: Outcome) -> dict[int, dict[str, float]]:
        return self._by_step(outcome, RUNG)

    def _by_step(self, outcome: Outcome, kind: str) -> dict[int, dict[str, float]]:
        evaluations: dict[int, dict[str, float]] = {}
        for name in [name for name in outcome.metrics if name.startswith(kind)]:
            for step, value in self._experiment.history(outcome.run_id, name):
                evaluations.setdefault(step, {})[name.removeprefix(kind)] = value
        return evaluations

    def references(self, launch: str | None) -> list[Outcome]:
        return self._runs("reference", launch, "FINISHED")

    def _runs(self, kind: str, launch: str | None, status: str) -> list[Outcome]:
        runs = self._experiment.runs(kind, launch, status)
        return [Outcome(run.id, run.tags, run.params, run.metrics) for run in runs]


class StorageOutcomes:
    """Outcomes read from a storage, without asking MLflow."""

    failures = "FAILED in its folder"

    def __init__(self, storage: str | Path, experiment: str) -> None:
        """Looks for launches of the experiment.

        Raises:
            UserError: there is no such experiment in it.
        """
        root = local_path(storage, "--storage").absolute()
        files = sorted(root.glob("*/launches/*/launch.json"), key=lambda file: file.parent.name, reverse=True)
        if not files:
            raise UserError(f"--storage: no launch in {root}; give the folder that `run` was given")
        self.notes: list[str] = []
        self._launches: dict[str, tuple[Path, dict[str, str]]] = {}
        """Launch -> its folder, and the identities of its trials by name."""
        self._outcomes: dict[str, list[Outcome]] = {}
        """Launch -> the outcomes of its trials: evaluations are large, and are read once."""
        self._requests: dict[str, EvaluationRequest] = {}
        """Launch -> what it asks for: where that is not known, a note says so once."""
        others: set[str] = set()
        for file in files:
            if (found := self._read(LAUNCH_FILE, file)) is not None:
                name = found["sweep"].get("experiment") or found["sweep"].get("name")
                others.add(str(name))
                if name == experiment:
                    self._launches[file.parent.name] = file.parent, found["trials"]
        if not self._launches:
            raise UserError("; ".join([str(unknown_experiment(experiment, str(root), sorted(others))), *self.notes]))

    def launches(self) -> list[str]:
        return list(self._launches)

    def finished(self, launch: str | None) -> list[Outcome]:
        ended = {FAILURE, STOPPED}
        return [o for o in self._trials(launch) if EVALUATION in o.tags and not ended & o.tags.keys()]

    def failed(self, launch: str | None) -> list[Outcome]:
        return [outcome for outcome in self._trials(launch) if FAILURE in outcome.tags]

    def stopped(self, launch: str | None) -> list[Outcome]:
        return [outcome for outcome in self._trials(launch) if STOPPED in outcome.tags]

    def pursuit(self, outcome: Outcome) -> dict[int, dict[str, float]]:
        return {of: found for of, found in self._others(outcome).items() if isinstance(of, int)}

    def snapshots(self, outcome: Outcome) -> dict[int, dict[str, float]]:
        return {of.tokens: found for of, found in self._others(outcome).items() if isinstance(of, Snapshot)}

    def comparisons(self, outcome: Outcome) -> dict[int, dict[str, float]]:
        rows = TrialDirectory(Path(outcome.run_id)).rows()[0]
        found = {row["step"]: _finite({k: v for k, v in row["metrics"].items() if k.startswith(RUNG)}) for row in rows}
        return {
            step: {name.removeprefix(RUNG): value for name, value in metrics.items()}
            for step, metrics in found.items()
            if metrics
        }

    def _others(self, outcome: Outcome) -> dict[Subject, dict[str, float]]:
        """The metrics of a finished trial's evaluations, but for that of its SAE with its own encoder."""
        evaluations = TrialDirectory(Path(outcome.run_id)).evaluations(self.request(outcome.tags[LAUNCH]))
        return {
            subject: {name.partition("/")[2]: value for name, value in _finite(found["metrics"]).items()}
            for subject, found in evaluations.items()
            if subject is not None
        }

    def references(self, launch: str | None) -> list[Outcome]:
        found: list[Outcome] = []
        for launch_id in [launch] if launch is not None else self.launches():
            folder, fingerprint = self.folder(launch_id), self.request(launch_id).fingerprint
            references, damaged = references_of(folder)
            self.notes += damaged
            for reference in references:
                evaluation = evaluation_of(folder.parents[2], reference, fingerprint)
                if evaluation is None:  # it was not, so far
                    continue
                tags = {LAUNCH: launch_id, IDENTITY: reference_id(reference), EVALUATION: fingerprint}
                tags |= {ORIGIN: reference["origin"], SOURCE: reference["source"], CONTENT: reference["sae"]}
                tags |= {SCHEMA: str(schema_of(evaluation))}
                params = {key: str(value) for key, value in reference_params(reference).items()}
                path = folder_of(folder.parents[2], reference)
                found.append(Outcome(str(path), tags, params, _finite(evaluation["metrics"])))
        return found

    def folder(self, launch: str) -> Path:
        """A launch's folder in the storage."""
        return self._launches[launch][0]

    def _trials(self, launch: str | None) -> Iterator[Outcome]:
        """The trials of a launch, or of all, that have begun; those that are finished have the tag `EVALUATION`."""
        for launch_id in [launch] if launch is not None else self.launches():
            if launch_id not in self._outcomes:
                self._outcomes[launch_id] = list(self._trials_of(launch_id))
            yield from self._outcomes[launch_id]

    def _trials_of(self, launch_id: str) -> Iterator[Outcome]:
        folder, identities = self._launches[launch_id]
        request = self.request(launch_id)
        for name, identity in identities.items():
            path = find_trial(folder.parent.parent, identity)
            if path is None:
                continue
            directory = TrialDirectory(path)
            tags = {TRIAL: name, IDENTITY: identity, LAUNCH: launch_id}
            metrics: dict[str, float] = {}
            evaluations = directory.evaluations(request)
            status = directory.status_with(evaluations, request)
            if request.encoders and status.evaluated:
                tags |= {EVALUATION: request.fingerprint, SCHEMA: str(min(map(schema_of, evaluations.values())))}
                for row in (*directory.rows()[0], *evaluations.values()):
                    metrics |= _finite(row["metrics"])
                if (ratings := directory.ratings(request.fingerprint)) is not None:
                    tags[RATINGS] = json.dumps(summary_of(ratings))
            elif status.failure is not None:
                tags[FAILURE] = status.failure
            elif not status.trained and (stop := StoppedTrials(folder).get(name)) is not None:
                tags |= {STOPPED: json.dumps(stop), EVALUATION: request.fingerprint}
                for row in directory.rows()[0]:
                    metrics |= _finite(row["metrics"])
            yield Outcome(str(path), tags, _params(path), metrics)

    def request(self, launch_id: str) -> EvaluationRequest:
        """What a launch asks of its SAEs; no evaluation at all where that is not known."""
        file = self._launches[launch_id][0] / "evaluation.json"
        if launch_id not in self._requests:
            self._requests[launch_id] = EvaluationRequest("", ())
            if (found := self._read(EVALUATED, file)) is not None:
                self._requests[launch_id] = asked_in(found)
            elif not file.exists():
                self.notes.append(f"launch {launch_id} does not say how it evaluates ({file} is missing); run it again")
        return self._requests[launch_id]

    def _read(self, kind: JSONFile[T], file: Path) -> T | None:
        """Reads a file of a launch; None where there is none, or where it is damaged, which becomes a note."""
        try:
            return kind.read(file)
        except DamagedError as error:
            self.notes.append(str(error))
            return None


def left_stopped(outcomes: Outcomes, launch: str | None) -> list[Outcome]:
    """The trials that a scheduler has stopped, each once, without those that another launch has trained on."""
    trained = {outcome.identity for outcome in outcomes.finished(launch)}
    found = {outcome.identity: outcome for outcome in reversed(outcomes.stopped(launch))}
    return [outcome for identity, outcome in reversed(found.items()) if identity not in trained]


def describe_failures(outcomes: Outcomes, failed: Sequence[Outcome]) -> str:
    """`2 trials failed (a: why; b: why); …`: how many, and why."""
    shown = "; ".join(outcome.failure[:300] for outcome in failed[:SHOWN_FAILURES])
    more = f"; and {len(failed) - SHOWN_FAILURES} more" if len(failed) > SHOWN_FAILURES else ""
    return f"{len(failed)} trial{'s' * (len(failed) > 1)} failed ({shown}{more}); why: {outcomes.failures}"


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that are finite: others are not sent to MLflow."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _params(path: Path) -> dict[str, str]:
    """The parameters of a trial, as MLflow has them; none where its description is damaged."""
    try:
        trial = TrialSpec.from_json(json.loads((path / "trial.json").read_bytes()))
        return {key: str(value) for key, value in trial_params(trial).items()}
    except (OSError, ValueError, TypeError, KeyError):
        return {}
