"""Ray Tune's shell round the trainer: one trial, one process (reused by the next trial on CPU)."""

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
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import NumericError, StaleAttemptError, SweepStoppedError, reason
from gsae_ray.files import room_needed
from gsae_ray.hardware import machine
from gsae_ray.saes import SAE, load, to_bytes
from gsae_ray.storage.trial_directory import TrialDirectory
from gsae_ray.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class TrialContext:
    """What all trials of a launch share."""

    launch: Path
    """Its folder in storage."""
    session: int
    """Number of the driver's session."""
    directories: dict[str, Path]
    """Of each trial, by name."""
    parents: dict[str, Path]
    """Of the trials that start from a finished SAE, by name: its folder."""
    layout: Layout
    threads: int
    gpu: bool
    evaluate_every_tokens: int | None
    metadata: dict[str, Any]
    """Goes to the `cfg.json` of every SAE."""


class SAETrial(tune.Trainable):
    """Trains to the end and saves the SAE; all state lives in the trial's directory."""

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
        self.failure = self.directory.failure  # the driver may have given it up
        self.stopped: str | None = None
        self._rows_end = 0  # tokens of the newest row: training is between two intervals where the trainer stands there

    def _start(self) -> None:
        """Begins an attempt: at the first step, since Tune may set up two processes for a trial and use one of them."""
        if not self.context.launch.exists():
            raise SweepStoppedError(
                f"{self.context.launch} is not there on node {socket.gethostname()}: every node of the cluster must "
                "see --storage at the same path"
            )
        where = {"pid": os.getpid(), "node": ray.get_runtime_context().get_node_id(), "host": socket.gethostname()}
        attempt = self.directory.begin_attempt(self.trial, self.context.session, **where, machine=machine())
        self.source = StoreBlockReader(self.store, self.trial.name, attempt)
        state = self.directory.newest_state()
        stream = RowStream(self.source, self.context.layout, self.trial.site)
        parent = self.context.parents.get(self.trial.name)
        device = "cuda" if self.context.gpu else "cpu"
        trainer = Trainer(self.trial, stream, device, load(parent) if parent is not None else None)
        if state is not None:
            trainer.restore(*state)
        self.trainer = trainer

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        """What ends a trial is a result and not an exception: trying again at once would not help."""
        try:
            with room_needed(self.directory.path):
                yield
        except NumericError as error:
            self.failure = reason(error)
        except SweepStoppedError as error:
            self.stopped = reason(error)

    def step(self) -> dict[str, Any]:
        if self.directory.done:  # a process before this one died after it had come to the end
            return {"tokens": self.trial.training.trained_tokens, "done": True}
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
        tokens = self.trainer.tokens if self.trainer else 0
        return {"tokens": tokens, "failure": self.failure, "stopped": self.stopped, "done": True}

    def _train(self, trainer: Trainer) -> dict[str, Any]:
        self._rows_end = -1  # within an interval, whatever ends it
        first = trainer.step == 0
        metrics = trainer.train_interval()
        row = {f"train/{name}": value for name, value in metrics.items()}
        if first:
            row["train/sink_share"] = trainer.norms.sink_share
        every = self.context.evaluate_every_tokens
        crossed = every is not None and trainer.tokens // every > (trainer.tokens - self._interval) // every
        if crossed and not trainer.done:
            row |= self._evaluate(trainer.finished_sae({}))
        self.directory.append(trainer.tokens, row)
        self._rows_end = trainer.tokens
        if not trainer.done and trainer.tokens % self.trial.training.checkpoint_every_tokens == 0:
            self.directory.checkpoint(trainer.tokens, *trainer.state())
        return {"tokens": trainer.tokens, "machine": machine(), "done": False}

    @property
    def _interval(self) -> int:
        return self.trial.training.log_every_tokens

    def _finish(self, trainer: Trainer) -> dict[str, Any]:
        metadata = {**self.context.metadata, "identity": self.trial.identity}
        metadata["training"] = {**self.trial.to_json()["training"], "recipe": self.trial.recipe}
        if self.trial.parent is not None:
            metadata["parent"] = self.trial.parent
        self.directory.finish(trainer.finished_sae(metadata))
        self._end()
        return {"tokens": trainer.tokens, "done": True}

    def _evaluate(self, sae: SAE) -> dict[str, float]:
        evaluation = self.store.evaluate(self.trial.site, *to_bytes(sae))
        return {f"eval/{name}": value for name, value in evaluation.metrics.items()}

    def _end(self) -> None:
        """Lets the trial's blocks go."""
        if self.source is not None:
            self.source.close(finished=self.directory.ended)
            self.source = None

    def _leave(self) -> None:
        """A trial that is stopped early keeps what it has: it saves a checkpoint, and holds no blocks any more."""
        trainer = self.trainer
        if trainer is not None and self.failure is None and self.stopped is None and not self.directory.ended:
            between = 0 < trainer.tokens == self._rows_end
            if between and self.directory.newest_checkpoint < trainer.tokens:
                with contextlib.suppress(StaleAttemptError, OSError):  # the checkpoint before it is still there
                    self.directory.checkpoint(trainer.tokens, *trainer.state())
        self._end()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._leave()
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        self._leave()
