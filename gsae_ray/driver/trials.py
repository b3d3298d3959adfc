"""Runs the trials of a launch under Ray Tune until each is done or has failed, and has their SAEs evaluated."""

from __future__ import annotations

import functools
import logging
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from ray import tune

from gsae_ray.actors.store_actor import StoreClient
from gsae_ray.actors.trial_actor import SAETrial, TrialContext
from gsae_ray.capacity.nodes import TRAINER
from gsae_ray.config.scheduler import middle_first
from gsae_ray.config.trial import TrialSpec
from gsae_ray.driver import cluster_nodes
from gsae_ray.driver.begin import Launch
from gsae_ray.driver.evaluation_queue import EvaluationQueue
from gsae_ray.driver.missing_features import feature_task
from gsae_ray.driver.references import evaluate_reference
from gsae_ray.driver.start_actors import Actors
from gsae_ray.driver.stop_dominated import Decisions, StopDominated
from gsae_ray.driver.tune_callbacks import StopWhenAsked, TrialCallbacks
from gsae_ray.driver.tune_settings import run_config
from gsae_ray.errors import NumericError, ProductionError, UserError, reason
from gsae_ray.evaluation.metrics import Evaluation
from gsae_ray.evaluation.task import Evaluate, Probe
from gsae_ray.storage.launch_directory import versions
from gsae_ray.storage.trial_directory import Trial

_LOG = logging.getLogger(__name__)


class TrialRunner:
    """Runs what is pending in a launch."""

    def __init__(self, launch: Launch, actors: Actors, tracking_uri: str) -> None:
        self.launch = launch
        self.tracking_uri = tracking_uri
        self.store_actor = actors.store_actor
        self.supervisor = actors.supervisor

    @functools.cached_property
    def decisions(self) -> Decisions:
        """Which trials the scheduler stops."""
        launch = self.launch
        return Decisions(launch.trials, launch.prepared.sweep.scheduler, launch.stopped, launch.log.say, launch.is_ours)

    def run(self) -> None:
        """Trains what is to be trained, has every finished SAE evaluated beside that, and after it the references.

        Raises:
            SweepStoppedError: the launch cannot go on, or was asked to stop.
            UserError: a reference is not where it was, or is another SAE now.
        """
        launch, store = self.launch, StoreClient(self.store_actor)
        pool = ThreadPoolExecutor(thread_name_prefix="evaluations")

        def submit(task: Evaluate | Probe) -> Future[Evaluation]:
            return pool.submit(store.run, task)

        at_a_time = launch.prepared.sweep.producers.count + 1
        prepared = launch.prepared
        queue = EvaluationQueue(launch.pending, prepared.evaluation, submit, prepared.source.probes, at_a_time)
        queue.start()
        try:
            # What trials have measured before decides before any of them begins.
            _LOG.info("the scheduler compares %d trials", len(self.decisions.rungs()))
            # Trials that start from another trial's SAE come when all the others are finished.
            for follows in (False, True):
                trials = [t for t in launch.pending if not t.directory.done and t.spec.follows == follows]
                self._train_to_the_end(self._with_parents(trials))
            _LOG.info("all trials have ended; waiting for their evaluations")
            queue.finish(check=self.supervisor.stop.check)
            self._evaluate_references(submit)
            self._make_feature_tables(store, pool)
        finally:
            queue.stop()
            pool.shutdown(wait=False, cancel_futures=True)

    def _evaluate_references(self, submit: Callable[[Evaluate], Future[Evaluation]]) -> None:
        """Has the SAEs from elsewhere evaluated, now that producers have nothing else to do."""

        def run(task: Evaluate) -> Evaluation:
            evaluation = submit(task)
            while not wait([evaluation], timeout=1).done:
                self.supervisor.stop.check()
            try:
                return evaluation.result()
            except NumericError:
                raise
            except Exception as error:
                raise ProductionError(reason(error)) from error

        launch = self.launch
        where = launch.folder.parent, launch.prepared.evaluation.fingerprint
        for reference in launch.references:
            try:
                evaluate_reference(reference, *where, run, launch.log.say, self.tracking_uri)
            except (NumericError, UserError) as error:  # of what the sweep itself has trained nothing is lost
                launch.log.say(f"reference {reference['origin']} is left out: {reason(error)}")

    def _make_feature_tables(self, store: StoreClient, pool: ThreadPoolExecutor) -> None:
        """Has a producer make the tables of features that are asked for and missing.

        Where that cannot be done, the launch is published without: what it has trained is whole.
        """
        launch, settings = self.launch, self.launch.prepared.sweep.evaluation.features
        if settings is None or not (missing := launch.missing_features()):
            return
        launch.log.say(f"making feature tables of {len(missing)} SAEs")
        model, fingerprint = launch.prepared.sweep.language_model, launch.prepared.evaluation.fingerprint
        task = feature_task(missing, settings, model, fingerprint)
        making = pool.submit(store.run, task, task.evaluations)
        while not wait([making], timeout=1).done:
            self.supervisor.stop.check()
        try:
            making.result()
        except (NumericError, ProductionError) as error:
            launch.log.say(f"feature tables are not made: {reason(error)}; the same command with --resume tries again")

    def _with_parents(self, trials: Sequence[Trial]) -> list[Trial]:
        """Returns the trials without those whose parent has failed; they fail, too."""
        orphans = [trial for trial in trials if trial.spec.parent is not None and self._parent(trial.spec) is None]
        for trial in orphans:
            self.supervisor.fail(trial, "skipped: parent failed")
        return [trial for trial in trials if trial not in orphans]

    def _parent(self, spec: TrialSpec) -> Path | None:
        """Returns the folder of the finished SAE that a trial starts from; None where there is none."""
        if spec.parent in self.launch.prepared.parents:
            return self.launch.prepared.parents[spec.parent]
        found = [trial.directory for trial in self.launch.trials if trial.name == spec.parent and trial.directory.done]
        return found[0].path / "sae" if found else None

    def _train_to_the_end(self, trials: Sequence[Trial]) -> None:
        """Runs trials until each is done or has failed for good.

        Tune tries a trial again whose process dies, but gives it up where it dies while it is made ready for the trial;
        then Tune runs once more. Each of these runs counts a death of every trial that it leaves, so they come to an
        end: `TrialDeaths` says when. Those that the launch's scheduler has stopped are left where they are, unless what
        they were beaten by fails before Tune ends.

        Raises:
            SweepStoppedError: the launch cannot go on, or was asked to stop.
        """
        for trial in trials:
            if self.supervisor.is_stopped(trial.name):  # by what it measured before: nobody will read its blocks
                self.supervisor.trial_ended(trial.name)
        while left := self._left(trials):
            _LOG.info("Tune runs %d trials", len(left))
            before = self.supervisor.deaths.total.copy()
            errors = self._tune(left)
            self.supervisor.stop.check()
            for trial in left:
                counted = self.supervisor.deaths.total[trial.name] > before[trial.name]  # by a callback of Tune's
                if not counted and not self._has_ended(trial):
                    self.supervisor.trial_died(trial.name, errors.get(trial.name, "it did not end"))

    def _left(self, trials: Sequence[Trial]) -> list[Trial]:
        """Those that have not ended."""
        self.decisions.take_back()
        return [trial for trial in trials if not self._has_ended(trial)]

    def _has_ended(self, trial: Trial) -> bool:
        """Whether it is done, has failed for good, or was stopped."""
        return trial.directory.ended or self.supervisor.is_stopped(trial.name)

    def _tune(self, trials: Sequence[Trial]) -> dict[str, str]:
        """Runs trials under Tune.

        Returns:
            trial -> the error for which Tune gave it up.
        """
        settings = self.launch.prepared.sweep.trials
        requests = self.launch.resources.trials
        labels = cluster_nodes.selector(TRAINER)

        def resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
            return tune.PlacementGroupFactory([requests[config["trial"]["name"]]], bundle_label_selector=[labels])

        trainable = tune.with_parameters(SAETrial, store=self.store_actor, context=self._context(trials))
        with tempfile.TemporaryDirectory(prefix="gsae-tune-") as scratch:
            tune_config = tune.TuneConfig(
                reuse_actors=settings.gpus == 0, max_concurrent_trials=settings.max_concurrent
            )
            specs = [trial.spec for trial in trials]
            if self.launch.prepared.sweep.scheduler.stop_dominated:
                tune_config.scheduler = StopDominated(self.decisions)
                specs = middle_first(specs)
            results = tune.Tuner(
                tune.with_resources(trainable, resources),
                param_space={"trial": tune.grid_search([spec.to_json() for spec in specs])},
                tune_config=tune_config,
                run_config=run_config(Path(scratch), [TrialCallbacks(self.supervisor)], StopWhenAsked(self.supervisor)),
            ).fit()
        return {(r.config or {})["trial"]["name"]: reason(r.error) for r in results if r.error is not None}

    def _context(self, trials: Sequence[Trial]) -> TrialContext:
        prepared, sweep = self.launch.prepared, self.launch.prepared.sweep
        return TrialContext(
            launch=self.launch.own_folder,
            session=self.launch.driver.session,
            directories={trial.name: trial.directory.path for trial in trials},
            parents={t.name: parent for t in trials if (parent := self._parent(t.spec)) is not None},
            layout=prepared.layout,
            threads=sweep.trials.cpus,
            gpu=sweep.trials.gpus != 0,
            rungs=self.decisions.rungs(),
            evaluate_every_tokens=sweep.evaluation.every_tokens,
            modules=dict(prepared.source.modules),
            metadata={"sweep": sweep.name, **prepared.source.metadata, "versions": versions()},
        )
