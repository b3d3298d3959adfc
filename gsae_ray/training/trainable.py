"""Ray Tune's shell round the trainer: one trial, one process (reused by the next trial on CPU)."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.actor import ActorHandle

from gsae_ray.activations.actors import StoreSource
from gsae_ray.activations.layout import Layout
from gsae_ray.activations.stream import RowStream
from gsae_ray.errors import ProductionError, reason
from gsae_ray.evaluation.metrics import Evaluation
from gsae_ray.saes import SAE, load, to_bytes
from gsae_ray.training.directory import TrialDirectory
from gsae_ray.training.trainer import NumericError, Trainer
from gsae_ray.trial import TrialSpec


@dataclasses.dataclass(frozen=True)
class TrialContext:
    """What all trials of a launch share."""

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
        self.store = store
        self.context = context
        torch.set_num_threads(context.threads)
        self._begin(config)

    def _begin(self, config: dict[str, Any]) -> None:
        self.trial = TrialSpec.from_json(config["trial"])
        self.directory = TrialDirectory(self.context.directories[self.trial.name])
        self.source: StoreSource | None = None
        self.trainer: Trainer | None = None
        self.failure: str | None = None
        self.stopped: str | None = None
        if self.directory.done:  # this trial's process died after it had come to the end
            self.store.abandon.remote(self.trial.name)
            return
        attempt = self.directory.begin_attempt(self.trial)
        self.source = StoreSource(self.store, self.trial.name, attempt)
        stream = RowStream(self.source, self.context.layout, self.trial.site)
        try:
            parent = self.context.parents.get(self.trial.name)
            device = "cuda" if self.context.gpu else "cpu"
            self.trainer = Trainer(self.trial, stream, device, load(parent) if parent is not None else None)
        except NumericError as error:
            self.failure = str(error)
        except ProductionError as error:
            self.stopped = reason(error)
        else:
            if (state := self.directory.newest_state()) is not None:
                self.trainer.restore(*state)

    def step(self) -> dict[str, Any]:
        if self.directory.done:
            return {"tokens": self.trial.training.trained_tokens, "done": True}
        if self.trainer is not None:
            try:
                return self._finish(self.trainer) if self.trainer.done else self._train(self.trainer)
            except NumericError as error:
                self.failure = str(error)
            except ProductionError as error:  # a result, not an exception: trying again at once would not help
                self.stopped = reason(error)
        if self.failure is not None:
            self.directory.fail(self.failure)
        self._end()
        tokens = self.trainer.tokens if self.trainer else 0
        return {"tokens": tokens, "failure": self.failure, "stopped": self.stopped, "done": True}

    def _train(self, trainer: Trainer) -> dict[str, Any]:
        metrics = trainer.train_interval()
        row = {f"train/{name}": value for name, value in metrics.items()}
        every = self.context.evaluate_every_tokens
        crossed = every is not None and trainer.tokens // every > (trainer.tokens - self._interval) // every
        if crossed and not trainer.done:
            row |= self._evaluate(trainer.finished_sae({}))
        self.directory.append(trainer.tokens, row)
        if not trainer.done and trainer.tokens % self.trial.training.checkpoint_every_tokens == 0:
            self.directory.checkpoint(trainer.tokens, *trainer.state())
        return {"tokens": trainer.tokens, "l0": metrics["l0"], "loss": metrics["loss"], "done": False}

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
        cfg, weights = to_bytes(sae)
        request = self.store.evaluate.remote(self.trial.site, cfg, [ray.put(weights)])
        evaluation: Evaluation = ray.get(request)
        return {f"eval/{name}": value for name, value in evaluation.metrics.items()}

    def _end(self) -> None:
        """Lets the trial's blocks go."""
        if self.source is not None:
            self.source.close(finished=self.directory.done or self.failure is not None)
            self.source = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        # A trial that was stopped early holds blocks still; the store may be gone already.
        with contextlib.suppress(ray.exceptions.RayError):
            self._end()
