"""A launch of before, found in its storage, and what it ran on, had again in this process without Ray."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydantic
import torch

from gsae_ray.activations.producer import Producer
from gsae_ray.activations.task import ProducerTask
from gsae_ray.config.explain import explain
from gsae_ray.config.sweep import Sweep
from gsae_ray.driver.prepare import PreparedSweep, prepare, producer_spec
from gsae_ray.errors import UserError
from gsae_ray.names import local_path
from gsae_ray.results.frontier import choose_launch
from gsae_ray.results.outcomes import StorageOutcomes
from gsae_ray.storage.launch_directory import LAUNCH


@dataclasses.dataclass(frozen=True)
class Launched:
    """A launch in its storage."""

    root: Path
    outcomes: StorageOutcomes
    id: str
    fingerprint: str
    """Of its held-out contexts."""
    option: str
    """What errors name: where the user has given its experiment."""

    @property
    def folder(self) -> Path:
        return self.outcomes.folder(self.id)

    def sweep(self, say: Callable[[str], None]) -> Sweep:
        """Its sweep file, resolved, without references of its own; for the CPU where there is no GPU.

        Raises:
            UserError: it is damaged, or of another version of this program.
        """
        found = LAUNCH.read(self.folder / "launch.json")
        assert found is not None, "that is how it was found"
        try:
            evaluation = {**found["sweep"].get("evaluation", {}), "probes": None}  # whose data may be gone
            described = {**found["sweep"], "references": [], "evaluation": evaluation}
            sweep = Sweep.model_validate_json(json.dumps(described))
        except pydantic.ValidationError as error:
            said = explain(error, Sweep).replace("\n", ";")
            raise UserError(
                f"{self.option}: launch {self.id} was begun by another version of gsae-ray ({said})"
            ) from error
        if sweep.producers.gpus and not torch.cuda.is_available():
            say("there is no GPU here, as the launch had: this takes longer, and the last digits may differ")
            producers = sweep.producers.model_copy(update={"gpus": 0.0})
            sweep = sweep.model_copy(update={"producers": producers})
        return sweep

    def prepared(self, sweep: Sweep, say: Callable[[str], None], tracking_uri: str | None) -> PreparedSweep:
        """What it ran on, as it can be had here.

        Args:
            sweep: as `sweep` gives it.
            say: is told what is done.
            tracking_uri: of MLflow.

        Raises:
            UserError: model or data cannot be had, or are others now.
        """
        say(f"checking launch {self.id}: {sweep.source}")
        prepared = prepare(sweep, self.root, say, tracking_uri)
        if prepared.evaluation.fingerprint != self.fingerprint:
            raise UserError(
                f"{self.option}: the model, its data or gsae-ray has changed since launch {self.id}, so its held-out "
                "tokens cannot be had any more; run its sweep again, and give that launch"
            )
        return prepared


def find_launched(
    experiment: str, launch: str | None, storage: str | Path | None, option: str, why_one: str
) -> Launched:
    """A launch of an experiment.

    Args:
        experiment: whose launch.
        launch: its id; default: the newest.
        storage: where it is; default: `gsae_runs` in the working directory.
        option: what errors name: where the user gives the experiment.
        why_one: ends the error of "all" launches.

    Raises:
        UserError: it is not there, or does not say how it evaluates.
    """
    root = local_path("gsae_runs" if storage is None else storage, "--storage").resolve()
    outcomes = StorageOutcomes(root, experiment)
    launch_id = choose_launch(outcomes, experiment, launch)
    if launch_id is None:
        raise UserError(f"launch: name one; {why_one}")
    fingerprint = outcomes.request(launch_id).fingerprint
    if not fingerprint:
        raise UserError("; ".join(outcomes.notes))
    return Launched(root, outcomes, launch_id, fingerprint, option)


@contextlib.contextmanager
def own_producer(prepared: PreparedSweep, say: Callable[[str], None]) -> Iterator[Callable[[ProducerTask], Any]]:
    """Has a producer like the launch's, with as many threads, run tasks in this process."""
    told: set[str] = set()

    def say_once(line: str) -> None:
        if line not in told:
            told.add(line)
            say(line)

    threads = torch.get_num_threads()
    say(f"starting a producer: {prepared.sweep.source}")
    try:
        producer = Producer(producer_spec(prepared))
        yield lambda task: producer.run(task, say_once)
    finally:
        torch.set_num_threads(threads)
