"""The SAEs of frontiers in MLflow's model registry: a registered model a site, a version an SAE, aliases for the best.

A version is found by the hash of its SAE before it is made, so that entering twice changes nothing, whichever launch
does it. It points to the artifacts of the SAE's run: nothing is copied.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from gsae_ray.storage.references import evaluation_of, references_of
from gsae_ray.tracking.registry_names import ALIASES, EXPLAINED, L0, RECOVERED, model_name
from gsae_ray.tracking.tags import CONTENT, EVALUATION, EXPERIMENT, IDENTITY, KIND, LAUNCH, RUN, SITE, TRIAL

PARAMS = ("architecture", "variant", "recipe", "sparsity", "lr", "seed", "tokens")
"""Parameters of the run that are tags of a version; `d_sae` is its `width`."""


@dataclasses.dataclass(frozen=True)
class Entered:
    """What came of entering a launch's SAEs."""

    models: list[str]
    """Names of the registered models of its sites."""
    notices: list[str]
    """What the user should know."""


class Registry:
    """Enters SAEs of one launch."""

    def __init__(
        self, client: MlflowClient, experiment_id: str, experiment: str, launch: Path, fingerprint: str
    ) -> None:
        """Asks for nothing yet.

        Args:
            client: of MLflow.
            experiment_id: of the launch.
            experiment: its name.
            launch: the launch's folder in storage.
            fingerprint: of the held-out contexts that the launch's SAEs are evaluated on.
        """
        self.client, self.experiment_id, self.experiment = client, experiment_id, experiment
        self.launch, self.fingerprint = launch, fingerprint
        self._there: dict[str, bool] = {}
        """Run -> whether it is there, and not deleted."""

    def enter(self, on_frontier: Collection[str]) -> Entered:
        """Enters the SAEs of the frontier, and moves aliases to the best ones.

        Args:
            on_frontier: ids of their runs.

        Raises:
            MlflowException: there is no registry, or it refuses.
        """
        runs: dict[str, list[Run]] = {}
        for run in self._finished():
            self._there[run.info.run_id] = True
            runs.setdefault(run.data.params["site"], []).append(run)
        references = self._references()
        models, notices = [], []
        for site, found in runs.items():
            name = model_name(self.experiment, site)
            versions = self._versions(name)
            if not versions:
                if not any(run.info.run_id in on_frontier for run in found):
                    continue
                self._make(name, site)
            versions = self._enter_all(name, found, on_frontier, versions)
            for version in versions:
                if (evaluation := references.get((site, version.run_id))) is not None:
                    self._update(version, _measured(evaluation) | {EVALUATION: self.fingerprint})
            notices += self._move_aliases(name, site, versions)
            models.append(name)
        return Entered(models, notices)

    def _finished(self) -> Iterator[Run]:
        """The launch's trials whose SAEs have arrived: a run is said to be finished after all of it was sent."""
        query = f"tags.`{LAUNCH}` = '{self.launch.name}' and tags.`{KIND}` = 'trial' and attributes.status = 'FINISHED'"
        token: str | None = None
        while token != "":
            page = self.client.search_runs([self.experiment_id], query, page_token=token)
            yield from (run for run in page if CONTENT in run.data.tags and "site" in run.data.params)
            token = page.token or ""

    def _references(self) -> dict[tuple[str, str], Mapping[str, float]]:
        """(site, source) -> metrics of the launch's references, of which the SAEs of other runs are some."""
        found: dict[tuple[str, str], Mapping[str, float]] = {}
        for reference in references_of(self.launch)[0]:
            evaluation = evaluation_of(self.launch.parents[2], reference, self.fingerprint)
            if evaluation is not None:
                found[reference["site"], reference["source"]] = evaluation["metrics"]
        return found

    def _versions(self, name: str) -> list[ModelVersion]:
        """All versions of a registered model, none where there is no such model; the newest first."""
        found: list[ModelVersion] = []
        token: str | None = None
        while token != "":
            page = self.client.search_model_versions(f"name = '{name}'", page_token=token)
            found += page
            token = page.token or ""
        return found

    def _make(self, name: str, site: str) -> None:
        """Makes a registered model, unless there is one."""
        try:
            self.client.create_registered_model(
                name,
                {EXPERIMENT: self.experiment, SITE: site},
                f"SAEs at {site} on frontiers of the experiment {self.experiment}, entered by gsae-ray.",
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _enter_all(
        self, name: str, runs: Sequence[Run], on_frontier: Collection[str], versions: Sequence[ModelVersion]
    ) -> list[ModelVersion]:
        """Makes the versions that are missing, and writes this launch's numbers to those that are there."""
        by_sae = {version.tags.get(CONTENT): version for version in reversed(versions)}
        made = []
        for run in runs:
            tags, version = _tags(run), by_sae.get(run.data.tags[CONTENT])
            if version is not None and self._is_there(version):
                self._update(version, tags)
            elif run.info.run_id in on_frontier:
                source = f"{run.info.artifact_uri.rstrip('/')}/sae"
                where = name, source, run.info.run_id
                made.append(self.client.create_model_version(*where, tags, await_creation_for=0))
        return [*versions, *made]

    def _is_there(self, version: ModelVersion) -> bool:
        """Whether the run of a version is there, with its artifacts."""
        run_id = version.run_id or ""
        if run_id not in self._there:
            try:
                self._there[run_id] = bool(run_id) and self.client.get_run(run_id).info.lifecycle_stage == "active"
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                self._there[run_id] = False
        return self._there[run_id]

    def _update(self, version: ModelVersion, tags: Mapping[str, str]) -> None:
        """Writes the tags of a version that are not so yet."""
        for key, value in tags.items():
            if version.tags.get(key) != value:
                self.client.set_model_version_tag(version.name, version.version, key, value)
                version.tags[key] = value

    def _move_aliases(self, name: str, site: str, versions: Sequence[ModelVersion]) -> list[str]:
        """Moves each alias to the best version within its L0, of those that were evaluated on this launch's contexts.

        Returns:
            a line about those that stay since nobody knows whether their SAEs are still the best.
        """
        aliases = self.client.get_registered_model(name).aliases
        by_number = {str(version.version): version for version in versions}
        known = [version for version in versions if version.tags.get(EVALUATION) == self.fingerprint]
        kept: dict[str, list[str]] = {}
        for alias, most in ALIASES.items():
            while (best := best_within(known, most)) is not None and not self._is_there(best):
                known.remove(best)
            holder = by_number.get(str(aliases.get(alias)))
            if best is None or best is holder:
                continue
            if holder is not None and holder not in known and self._is_there(holder):
                kept.setdefault(str(holder.version), []).append(alias)
            else:
                self.client.set_registered_model_alias(name, alias, best.version)
        if not kept:
            return []
        held = ", ".join(alias for found in kept.values() for alias in found)
        sources = ", ".join(f"{{source: {by_number[number].run_id}, site: {site}}}" for number in kept)
        return [
            f"{name} keeps {held} where they are: these SAEs were not evaluated on this launch's tokens; to have them "
            f"compared, add to references, and run again with --resume: {sources}"
        ]


def best_within(versions: Sequence[ModelVersion], most: float) -> ModelVersion | None:
    """The version with the highest quality and at most so much L0; of equal ones the lower L0, then the older one.

    The quality is loss recovered; where no version has that, explained variance.
    """
    quality = RECOVERED if any(_number(version, RECOVERED) is not None for version in versions) else EXPLAINED
    ranked = [
        (-value, l0, int(version.version), version)
        for version in versions
        if (l0 := _number(version, L0)) is not None and l0 <= most and (value := _number(version, quality)) is not None
    ]
    return min(ranked, key=lambda found: found[:3])[-1] if ranked else None


def _number(version: ModelVersion, tag: str) -> float | None:
    try:
        value = float(version.tags[tag])
    except (KeyError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _tags(run: Run) -> dict[str, str]:
    """What a version says of its SAE."""
    tags, params = run.data.tags, run.data.params
    told: dict[str, Any] = {**_measured(run.data.metrics), "width": params.get("d_sae", "")}
    told |= {name: params.get(name, "") for name in PARAMS}
    told |= {key: tags.get(key, "") for key in (TRIAL, IDENTITY, LAUNCH, EVALUATION, CONTENT)} | {RUN: run.info.run_id}
    return {key: str(value) for key, value in told.items() if value != ""}


def _measured(metrics: Mapping[str, float]) -> dict[str, str]:
    """The metrics that choose among versions, as tags; from a run's or an evaluation's."""
    found = {L0: metrics.get("eval/l0"), RECOVERED: metrics.get("eval/loss_recovered")}
    found[EXPLAINED] = 1 - metrics["eval/fvu"] if "eval/fvu" in metrics else None
    return {name: repr(float(value)) for name, value in found.items() if value is not None and math.isfinite(value)}
