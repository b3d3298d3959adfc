"""The one place where producers, store, Tune and tracking meet: a launch, from a sweep to its frontier."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

# Read by Ray when it is imported.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")

import pandas as pd
import ray
from ray import tune
from ray.actor import ActorHandle
from rich.console import Console

from gsae_ray import results
from gsae_ray.activations.actors import running_producers, start_store
from gsae_ray.activations.store import Counters, ReaderSpec
from gsae_ray.display import Display, Observer, clock
from gsae_ray.errors import ProductionError, UserError, first_line, reason
from gsae_ray.evaluation.metrics import Evaluation
from gsae_ray.evaluation.queue import EvaluationQueue
from gsae_ray.ledger import begin_launch, driver_lock, trial_folder, versions
from gsae_ray.plan import Plan, prepare, producer_spec
from gsae_ray.saes import SAE
from gsae_ray.sweep import Sweep
from gsae_ray.sweep_file import load_sweep
from gsae_ray.tracking import Mirror, MirrorThread, quick_failure, resolve_uri
from gsae_ray.tracking import check as check_tracking
from gsae_ray.training.directory import TrialDirectory
from gsae_ray.training.trainable import SAETrial, TrialContext
from gsae_ray.trial import TrialSpec

OBJECT_STORE_SHARE = 0.6
"""Of the cluster's object store, for activations; the rest is headroom for readers that still hold a block."""
PROCESS_RETRIES = 3

Trials = list[tuple[TrialSpec, TrialDirectory]]


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """What a launch came to."""

    experiment: str
    launch_id: str
    tracking_uri: str
    picture: Path | None
    """The frontier, if any trial finished."""
    failures: dict[str, str]
    """Trial -> why it failed."""
    forward_ratio: float
    """Rows that went through the language model ÷ distinct rows; NaN when nothing was trained."""
    seconds: float

    def frontier(self, site: str | None = None, encoder: str = "own") -> pd.DataFrame:
        """See `gsae_ray.frontier`."""
        return results.frontier(self.experiment, site, self.launch_id, self.tracking_uri, encoder)

    def best(
        self, site: str | None = None, max_l0: float | None = None, min_loss_recovered: float | None = None
    ) -> SAE:
        """See `gsae_ray.best`."""
        return results.best(self.experiment, site, max_l0, min_loss_recovered, self.launch_id, self.tracking_uri)


def run(
    sweep: str | Path | Sweep,
    *,
    overrides: Sequence[str] = (),
    address: str | None = None,
    tracking_uri: str | None = None,
    storage: str | Path | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> SweepResult:
    """Runs a sweep: every trial that is not done yet is trained and evaluated, and MLflow is brought up to date.

    Args:
        sweep: a sweep file, or a `Sweep`.
        overrides: `path.to.key=value`, for a sweep file.
        address: of a Ray cluster; default: RAY_ADDRESS, or a local one that ends with the sweep.
        tracking_uri: of MLflow; default: MLFLOW_TRACKING_URI, or `mlflow.db` in the working directory.
        storage: where trials keep their state; default: `gsae_runs` in the working directory.
        resume: go on with the newest launch of this sweep in the storage, instead of beginning another.
        console: where progress goes; default: standard error.
    Raises:
        UserError: something is wrong with the sweep or its surroundings; nothing was started.
        ProductionError: the language model could not be run; what is finished is kept.
    """
    started = time.monotonic()
    if not isinstance(sweep, Sweep):
        sweep = load_sweep(sweep, overrides)
    uri = resolve_uri(tracking_uri)
    check_tracking(uri)
    root = Path(storage if storage is not None else "gsae_runs").expanduser().resolve()
    with Display(console or Console(stderr=True)) as display:
        display.phase(f"checking {sweep.name}: model {sweep.model.name}, data {sweep.dataset.name}")
        plan = prepare(sweep, root, display, uri)
        folder = root / sweep.name
        with quick_failure(timeout_s=120), driver_lock(folder), contextlib.ExitStack() as stack:
            trials = [(t, TrialDirectory(trial_folder(folder, t))) for t in plan.trials]
            fingerprint, encoders = plan.evaluation_fingerprint, plan.sweep.evaluation.encoders
            pending = [(t, d) for t, d in trials if not d.done or d.missing(fingerprint, encoders)]
            if len(pending) < len(trials):
                display.phase(f"{len(trials) - len(pending)} of {len(trials)} trials are done already")
            readers = {t.name: ReaderSpec(t.site, t.training.trained_tokens) for t, d in pending if not d.done}
            budget = 0
            if pending:
                stack.enter_context(_ray(address))
                budget = _check_cluster(plan, readers)
            launch_id = begin_launch(folder, plan.sweep, plan.trials, resume)
            launch = _Launch(plan, launch_id, folder, trials, pending, readers, budget, display)
            return launch.run(uri, started)


@dataclasses.dataclass
class _Launch:
    """One start of a sweep, after everything has been checked."""

    plan: Plan
    id: str
    folder: Path
    trials: Trials
    pending: Trials
    """Those to train, or to evaluate."""
    readers: dict[str, ReaderSpec]
    """Those to train, as the store knows them."""
    budget: int
    display: Display

    @property
    def own_folder(self) -> Path:
        return self.folder / "launches" / self.id

    def run(self, uri: str, started: float) -> SweepResult:
        """Trains and evaluates what is pending, and publishes the frontier."""
        sweep = self.plan.sweep
        for _, directory in self.pending:
            directory.forget_failure()
        counters: Counters | None = None
        crashes: dict[str, str] = {}
        with ThreadPoolExecutor(1) as pool:
            thread: MirrorThread | None = None
            opening = pool.submit(self._open_mirror, uri)  # a new SQLite store takes as long as the language model
            try:
                with self._fleet() if self.pending else contextlib.nullcontext() as store:
                    thread = MirrorThread(opening.result(), self.trials)
                    thread.start()
                    if store is not None:
                        fingerprint, encoders = self.plan.evaluation_fingerprint, sweep.evaluation.encoders
                        self.display.follow(Observer(self.trials, fingerprint, encoders))
                        crashes = self._train(store)
                        counters = ray.get(store.counters.remote())
            except BaseException:
                if thread is not None:
                    thread.finish()
                with contextlib.suppress(Exception):  # the server may be what failed; storage has everything
                    opening.result().close("KILLED")
                raise
            finally:
                self.display.stop()
        assert thread is not None
        arrived, mirror = thread.finish(), thread.mirror
        picture = None
        try:
            for trial, _ in self.trials:
                if trial.name in crashes:
                    mirror.fail(trial, crashes[trial.name])
            picture = self._publish(mirror, counters)
        except Exception as error:  # an MLflow server that is gone at the end loses nothing: storage has it
            logging.getLogger(__name__).debug("publishing failed", exc_info=True)
            arrived, thread.last_error = False, first_line(error)
        if not arrived:
            self.display.phase(
                f"MLflow at {uri} is not up to date ({thread.last_error}); nothing is lost: "
                "the same command with --resume brings it up to date"
            )
        return SweepResult(
            experiment=sweep.experiment_name,
            launch_id=self.id,
            tracking_uri=uri,
            picture=picture,
            failures={t.name: d.failure for t, d in self.trials if d.failure is not None} | crashes,
            forward_ratio=counters.forward_ratio if counters else float("nan"),
            seconds=time.monotonic() - started,
        )

    def _open_mirror(self, uri: str) -> Mirror:
        sweep = self.plan.sweep
        fingerprint, encoders = self.plan.evaluation_fingerprint, sweep.evaluation.encoders
        mirror = Mirror(uri, sweep.experiment_name, self.id, fingerprint, encoders)
        mirror.open_launch(sweep.name, _launch_params(self.plan))
        mirror.log_launch({}, [self.own_folder / "sweep.yaml", self.own_folder / "versions.json"])
        return mirror

    @contextlib.contextmanager
    def _fleet(self) -> Iterator[ActorHandle[Any]]:
        """Producers and the store that calls them, for the length of the context."""
        settings = self.plan.sweep.producers
        count = settings.count
        self.display.phase(f"starting {count} producer{'s' if count > 1 else ''} and {len(self.pending)} trials")
        spec = producer_spec(self.plan)
        with running_producers(count, settings.gpus, spec, settings.timeout_s) as producers:
            store = start_store(producers, spec, self.readers, self.budget, settings.timeout_s)
            try:
                yield store
            finally:
                ray.kill(store)  # a cluster, or a notebook's Ray, goes on after the sweep

    def _train(self, store: ActorHandle[Any]) -> dict[str, str]:
        """Runs the trials to the end, and has them evaluated. Returns those whose processes failed, with the reason.

        Raises:
            ProductionError: the language model could not be run.
        """

        def evaluate(site: str, cfg: str, weights: bytes, encoders: Sequence[int | None]) -> list[Future[Evaluation]]:
            ref = ray.put(weights)
            return [store.evaluate.remote(site, cfg, [ref], pursuit_l0).future() for pursuit_l0 in encoders]

        sweep = self.plan.sweep
        queue = EvaluationQueue(
            self.pending,
            self.plan.evaluation_fingerprint,
            sweep.evaluation.encoders,
            evaluate,
            at_a_time=sweep.producers.count + 1,
        )
        queue.start()
        crashes: dict[str, str] = {}
        try:
            for follow in (False, True):  # those that start from another's SAE come when all the others are finished
                phase = [(t, d) for t, d in self.pending if not d.done and t.follows == follow]
                phase = self._with_parents(phase, store)
                for result in self._tune(store, phase) if phase else ():
                    if result.error is not None:
                        crashes[(result.config or {})["trial"]["name"]] = reason(result.error)
                    elif (result.metrics or {}).get("stopped"):
                        raise ProductionError(result.metrics["stopped"])
            queue.finish()
        finally:
            queue.stop()
        return crashes

    def _parent(self, trial: TrialSpec) -> Path | None:
        """The folder of the finished SAE that a trial starts from; None where there is none."""
        if trial.parent in self.plan.parents:
            return self.plan.parents[trial.parent]
        found = [directory for other, directory in self.trials if other.name == trial.parent and directory.done]
        return found[0].path / "sae" if found else None

    def _with_parents(self, trials: Trials, store: ActorHandle[Any]) -> Trials:
        """The trials without those whose parent has failed; they fail too."""
        going: Trials = []
        for trial, directory in trials:
            if trial.parent is None or self._parent(trial) is not None:
                going.append((trial, directory))
            else:
                directory.begin_attempt(trial)
                directory.fail("skipped: parent failed")
                ray.get(store.abandon.remote(trial.name))
        return going

    def _tune(self, store: ActorHandle[Any], trials: Trials) -> tune.ResultGrid:
        plan, sweep = self.plan, self.plan.sweep
        context = TrialContext(
            directories={trial.name: directory.path for trial, directory in trials},
            parents={trial.name: parent for trial, _ in trials if (parent := self._parent(trial)) is not None},
            layout=plan.layout,
            threads=sweep.trials.cpus,
            gpu=sweep.trials.gpus > 0,
            evaluate_every_tokens=sweep.evaluation.every_tokens,
            metadata={
                "sweep": sweep.name,
                "model": sweep.model.model_dump(),
                "dataset": sweep.dataset.model_dump(),
                "versions": versions(),
            },
        )
        for name in ("ray.tune", "ray.train", "ray.air"):
            logging.getLogger(name).setLevel(logging.ERROR)
        with tempfile.TemporaryDirectory(prefix="gsae-tune-") as scratch:
            tuner = tune.Tuner(
                tune.with_resources(
                    tune.with_parameters(SAETrial, store=store, context=context),
                    {"cpu": sweep.trials.cpus, "gpu": sweep.trials.gpus},
                ),
                param_space={"trial": tune.grid_search([trial.to_json() for trial, _ in trials])},
                tune_config=tune.TuneConfig(
                    reuse_actors=sweep.trials.gpus == 0, max_concurrent_trials=sweep.trials.max_concurrent
                ),
                run_config=tune.RunConfig(
                    callbacks=[_AbandonCrashed(store)],
                    storage_path=scratch,  # Tune's own state is not used: trials keep theirs
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=PROCESS_RETRIES),
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            )
            return tuner.fit()

    def _publish(self, mirror: Mirror, counters: Counters | None) -> Path | None:
        """The frontier as table and picture, in storage and on the parent run, which ends."""
        folder = self.own_folder
        artifacts: list[Path] = []
        pursuit: pd.DataFrame | None = None
        where = self.plan.sweep.experiment_name, None, self.id, mirror.client.tracking_uri
        try:
            rows = results.frontier(*where)
            if self.plan.sweep.evaluation.pursuit_l0:
                pursuit = results.frontier(*where, encoder="pursuit")
        except UserError as error:  # no trial came through
            self.display.phase(str(error))
        else:
            for note in rows.attrs["notes"]:
                self.display.phase(note)
            from gsae_ray import plots  # here: matplotlib takes a second to load

            if not rows.empty:
                artifacts = [folder / "frontier.csv", folder / "frontier.png"]
                rows.to_csv(artifacts[0], index=False)
                plots.save_frontier(rows, artifacts[1], pursuit)
                if pursuit is not None:
                    artifacts.append(folder / "pursuit.csv")
                    pursuit.to_csv(artifacts[-1], index=False)
        metrics: dict[str, float] = {}
        if counters is not None:
            metrics = {
                "forward_ratio": counters.forward_ratio,
                "rows_produced": counters.rows_produced,
                "rows_distinct": counters.rows_distinct,
                "peak_activation_bytes": counters.peak_bytes,
                "evaluations": counters.evaluations,
            }
        mirror.log_launch(metrics, artifacts)
        mirror.close("FINISHED")
        return artifacts[1] if artifacts else None


class _AbandonCrashed(tune.Callback):
    """Tells the store of trials whose process is gone, so that nothing is kept or held back for them."""

    def __init__(self, store: ActorHandle[Any]) -> None:
        self.store = store

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.store.abandon.remote(trial.config["trial"]["name"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # It goes to the end of Tune's queue: those before it may need the room that it holds.
        self.store.abandon.remote(trial.config["trial"]["name"], finished=False)


# ---- Ray ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _ray(address: str | None) -> Iterator[None]:
    """A connection to Ray for the length of a launch; one that was there before is left as it was."""
    if ray.is_initialized():
        yield
        return
    # Without an address Ray would join any cluster of this machine's user; a sweep starts its own.
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"include_dashboard": False} if where == "local" else {}
    try:
        ray.init(address=where, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"--address: cannot connect to a Ray cluster at {where!r}: {first_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_cluster(plan: Plan, readers: dict[str, ReaderSpec]) -> int:
    """Whether the sweep fits the cluster. Returns the bytes of activations to keep.

    Raises:
        UserError: a trial, the producers or a block do not fit.
    """
    sweep, layout = plan.sweep, plan.layout
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needs = {"trials": sweep.trials.gpus, "producers": sweep.producers.gpus}
    for who, gpus in needs.items():
        cpus = sweep.trials.cpus if who == "trials" else 0
        if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
            largest = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)))
            raise UserError(
                f"{who}: each needs {f'cpus: {cpus} and ' if cpus else ''}gpus: {gpus:g} on one node; the largest has "
                f"{largest.get('CPU', 0):g} CPUs and {largest.get('GPU', 0):g} GPUs"
            )
    wanted, available = (
        needs["producers"] * sweep.producers.count + needs["trials"],
        sum(n.get("GPU", 0) for n in nodes),
    )
    if wanted > available:
        raise UserError(
            f"producers.gpus: {sweep.producers.gpus:g} for each of {sweep.producers.count} producers, and "
            f"{sweep.trials.gpus:g} for a trial, but the cluster has {available:g} GPUs"
        )
    sites = tuple(sorted({reader.site for reader in readers.values()}))
    blocks = range(layout.blocks_for(max((reader.rows for reader in readers.values()), default=0)))
    sizes = [layout.nbytes(block, sites) for block in blocks]
    given = sweep.producers.budget_gib
    share = OBJECT_STORE_SHARE * sum(node.get("object_store_memory", 0) for node in nodes)
    budget = int(given * 2**30) if given is not None else min(sum(sizes), int(share))
    if sizes and budget < max(sizes):
        raise UserError(
            f"dataset.shuffle_tokens: a block of {max(layout.rows):,} rows at {len(sites)} sites is "
            f"{max(sizes) / 2**30:.2f} GiB, more than the {budget / 2**30:.2f} GiB for activations; lower "
            "shuffle_tokens or raise producers.budget_gib"
        )
    return budget


def _launch_params(plan: Plan) -> dict[str, Any]:
    sweep = plan.sweep
    return {
        "model": sweep.model.name,
        "dataset": sweep.dataset.name,
        "context_size": sweep.model.context_size,
        "dtype": sweep.model.dtype,
        "skip_first_position": sweep.dataset.skip_first_position,
        "skip_special_tokens": sweep.dataset.skip_special_tokens,
        "trials": len(plan.trials),
        "rows_per_block": plan.layout.rows[0],
        "blocks": len(plan.layout.rows),
        "heldout_rows": plan.tokens.heldout_rows,
    }


def describe_end(result: SweepResult) -> str:
    """One line: how long it took, and how often the model ran."""
    ratio = f", forward ratio {result.forward_ratio:.2f}" if result.forward_ratio == result.forward_ratio else ""
    return f"launch {result.launch_id} took {clock(result.seconds)}{ratio}"
