"""A trial as a trainable of Ray Tune: one trial, one process (on CPUs used again by the next trial)."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.actor import ActorHandle

from gsae_ray.activations.layout import Layout
from gsae_ray.activations.reader import RowStream
from gsae_ray.actors.store_actor import StoreBlockReader, StoreClient
from gsae_ray.config.scheduler import HELDOUT_SHARE, RUNG
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import NumericError, StaleAttemptError, SweepStoppedError, UserError, reason
from gsae_ray.evaluation.metrics import Evaluation
from gsae_ray.evaluation.task import Evaluate
from gsae_ray.files import disk_space_needed
from gsae_ray.hardware import machine
from gsae_ray.saes import SAE, load, to_bytes
from gsae_ray.storage.trial_directory import TrialDirectory
from gsae_ray.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class TrialContext:
    """What all trials of a launch share."""

    launch: Path
    """The launch's folder in storage."""
    session: int
    """Number of the driver's session."""
    directories: dict[str, Path]
    """Trial -> its directory."""
    parents: dict[str, Path]
    """Trial that starts from a finished SAE -> the folder of that SAE."""
    layout: Layout
    threads: int
    """Threads that PyTorch may use."""
    gpu: bool
    """Whether trials run on GPUs."""
    evaluate_every_tokens: int | None
    """Between two evaluations of an SAE in training; None: there are none."""
    metadata: dict[str, Any]
    """Written to the `cfg.json` of every SAE."""
    rungs: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    """Trial -> the tokens after which it is measured for the scheduler; none where it is never compared."""
    modules: dict[str, str] = dataclasses.field(default_factory=dict)
    """Site -> the same by module path, `model.layers.3:output`, where transformers alone loads the model."""


class SAETrial(tune.Trainable):
    """Trains to the end and saves the SAE; all state lies in the trial's directory.

    A step is an interval between two metric rows. Its result, which Tune's schedulers see, has the row's metrics under
    their names (the last result those of the newest row that this process has made), `tokens` as the time, and:

    done: the trial has come to its end, one way or another.
    failure: why it has failed for good (a loss that is not finite); None where it has not.
    stopped: why the whole sweep cannot go on (storage is full); None where it can.
    machine: the kind of machine that it runs on.
    """

    def setup(self, config: dict[str, Any], store: ActorHandle[Any], context: TrialContext) -> None:
        self.store = StoreClient(store)
        self.context = context
        torch.set_num_threads(context.threads)
        self._begin(config)

    def _begin(self, config: dict[str, Any]) -> None:
        self.trial = TrialSpec.from_json(config["trial"])
        self.directory = TrialDirectory(self.context.directories[self.trial.name])
        self.source: StoreBlockReader | None = None
        self.trainer: Trainer | None = None
        self.failure = self.directory.failure  # the driver may have declared it as failed
        self.stopped: str | None = None
        self._newest_row = 0  # in tokens; -1 within an interval
        self._newest_metrics: dict[str, float] = {}

    def _start(self) -> None:
        """Begins an attempt, at the first step: Tune may set up two processes for a trial and use only one of them."""
        if not self.context.launch.exists():
            raise SweepStoppedError(
                f"{self.context.launch} is not there on node {socket.gethostname()}: every node of the cluster must "
                "see --storage at the same path"
            )
        where = {"pid": os.getpid(), "node": ray.get_runtime_context().get_node_id(), "host": socket.gethostname()}
        attempt = self.directory.begin_attempt(self.trial, self.context.session, **where, machine=machine())
        self.source = StoreBlockReader(self.store, self.trial.name, attempt)
        state = self.directory.newest_state()
        stream = RowStream.of(self.source, self.context.layout, self.trial.sites)
        parent = self.context.parents.get(self.trial.name)
        device = "cuda" if self.context.gpu else "cpu"
        start = load(parent) if parent is not None else None
        try:
            trainer = Trainer(self.trial, stream, device, start)
        except UserError as error:  # this machine cannot run its engine, and would not the next time
            raise SweepStoppedError(f"{reason(error)} (trial {self.trial.name} on {socket.gethostname()})") from error
        if state is not None:
            trainer.restore(*state)
        self.trainer = trainer

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        """Turns errors that trying again would not help into the trial's result."""
        try:
            with disk_space_needed(self.directory.path):
                yield
        except NumericError as error:
            self.failure = reason(error)
        except SweepStoppedError as error:
            self.stopped = reason(error)

    def step(self) -> dict[str, Any]:
        if self.directory.done:  # a process before this one died after it had come to the end
            return self._end_result(self.trial.training.trained_tokens)
        if self.failure is None:
            with self._ending():
                if self.trainer is None:
                    self._start()
                assert self.trainer is not None
                return self._finish(self.trainer) if self.trainer.done else self._train(self.trainer)
        if self.failure is not None and self.directory.failure is None:
            with self._ending():
                self.directory.fail(self.failure)
        self._end()
        return self._end_result(self.trainer.tokens if self.trainer else 0)

    def _end_result(self, tokens: int) -> dict[str, Any]:
        end = {"tokens": tokens, "failure": self.failure, "stopped": self.stopped, "done": True}
        return {**self._newest_metrics, **end}

    def _train(self, trainer: Trainer) -> dict[str, Any]:
        self._newest_row = -1
        first, before = trainer.step == 0, trainer.tokens
        metrics = trainer.train_interval(self._keep_snapshot)
        row = {f"train/{name}": value for name, value in metrics.items()}
        if first:
            row["train/sink_share"] = trainer.norms.sink_share
        every, rungs = self.context.evaluate_every_tokens, self.context.rungs.get(self.trial.name, ())
        if every is not None and trainer.tokens // every > before // every and not trainer.done:
            row |= self._evaluate(trainer.finished_sae({}), "eval/")
        if any(before < rung <= trainer.tokens for rung in rungs) and not trainer.done:
            row |= self._evaluate(trainer.finished_sae({}), RUNG, HELDOUT_SHARE)
        self.directory.append(trainer.tokens, row)
        self._newest_row, self._newest_metrics = trainer.tokens, row
        if not trainer.done and trainer.tokens % self.trial.training.checkpoint_every_tokens == 0:
            self.directory.checkpoint(trainer.tokens, *trainer.state())
        return {**row, "tokens": trainer.tokens, "machine": machine(), "done": False}

    def _keep_snapshot(self, tokens: int) -> None:
        """Saves the SAE as it is after so many tokens."""
        trainer = self.trainer
        assert trainer is not None
        self.directory.keep_snapshot(
            tokens, lambda: trainer.finished_sae({**self._metadata(trainer), "snapshot_at": tokens})
        )

    def _finish(self, trainer: Trainer) -> dict[str, Any]:
        self.directory.finish(trainer.finished_sae(self._metadata(trainer)))
        self._end()
        return self._end_result(trainer.tokens)

    def _metadata(self, trainer: Trainer) -> dict[str, Any]:
        """Where an SAE comes from, for its `cfg.json`."""
        metadata = {**self.context.metadata, "identity": self.trial.identity}
        metadata["training"] = {**self.trial.to_json()["training"], "recipe": self.trial.recipe}
        metadata["training"].pop("snapshots_at")  # of other SAEs
        if trainer.controller is not None:
            metadata["training"]["found_coefficient"] = trainer.controller.found
        for key, place in zip(("module", "target_module"), self.trial.sites, strict=False):
            if (module := self.context.modules.get(place)) is not None:
                metadata[key] = module
        if self.trial.parent is not None:
            metadata["parent"] = self.trial.parent
        return metadata

    def _evaluate(self, sae: SAE, prefix: str, share: float = 1.0) -> dict[str, float]:
        evaluation: Evaluation = self.store.run(Evaluate(self.trial.site, *to_bytes(sae), share=share))
        return {f"{prefix}{name}": value for name, value in evaluation.metrics.items()}

    def _end(self) -> None:
        """Lets the trial's blocks go."""
        if self.source is not None:
            self.source.close(finished=self.directory.ended)
            self.source = None

    def _leave(self) -> None:
        """Saves a checkpoint of a trial that is stopped between two intervals, and lets its blocks go."""
        trainer = self.trainer
        if trainer is not None and self.failure is None and self.stopped is None and not self.directory.ended:
            between_intervals = 0 < trainer.tokens == self._newest_row
            if between_intervals and self.directory.newest_checkpoint < trainer.tokens:
                with contextlib.suppress(StaleAttemptError, OSError):  # the checkpoint before it is still there
                    self.directory.checkpoint(trainer.tokens, *trainer.state())
        self._end()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._leave()
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        self._leave()
