"""The one place where producers, store, Tune and tracking meet: a launch, from a sweep to its frontier."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

# Read by Ray when it is imported.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
os.environ.setdefault("TUNE_FORCE_TRIAL_CLEANUP_S", "60")  # of trials that do not end when they are told to

import pandas as pd
import ray
from ray import tune
from rich.console import Console

from gsae_ray.activations.production_log import PRODUCTION_LOG, Counters, damage_of_log
from gsae_ray.activations.trial_positions import ReaderSpec
from gsae_ray.actors.store_actor import StoreClient
from gsae_ray.actors.trial_actor import SAETrial, TrialContext
from gsae_ray.capacity import fit
from gsae_ray.capacity.nodes import PRODUCER, TRAINER, selector
from gsae_ray.config.load import load_sweep
from gsae_ray.config.sweep import Sweep
from gsae_ray.config.trial import TrialSpec
from gsae_ray.driver import cluster_nodes as placement
from gsae_ray.driver.display import Display, clock
from gsae_ray.driver.evaluation_queue import EvaluationQueue
from gsae_ray.driver.prepare import Plan, prepare, producer_spec
from gsae_ray.driver.ray_session import connected
from gsae_ray.driver.start_actors import running_producers, start_store
from gsae_ray.driver.supervisor import DEATHS, StopWhenAsked, Supervisor, TrialWatch
from gsae_ray.errors import StopAskedError, SweepStoppedError, UserError, first_line, reason
from gsae_ray.evaluation.metrics import Evaluation
from gsae_ray.files import room_needed
from gsae_ray.names import local_path
from gsae_ray.results.best import best
from gsae_ray.results.frontier import frontier
from gsae_ray.saes import SAE
from gsae_ray.storage.driver_lock import Driver, driver_lock
from gsae_ray.storage.event_log import EventLog
from gsae_ray.storage.launch_directory import (
    EVALUATED,
    Resume,
    begin_launch,
    check_resume,
    finish_launch,
    recorded_overrides,
    trial_folder,
    versions,
)
from gsae_ray.storage.progress import STATES, ProgressReader
from gsae_ray.storage.trial_directory import Trial, TrialDirectory, forget_damaged
from gsae_ray.tracking.background import MirrorThread, ReportThread
from gsae_ray.tracking.connection import asking, quick_failure, resolve_uri
from gsae_ray.tracking.experiment import check as check_tracking
from gsae_ray.tracking.experiment import reserve
from gsae_ray.tracking.mirror import Mirror
from gsae_ray.tracking.tags import JOB_VARIABLE

OPENINGS, OPENING_PAUSE_S = 5, 5.0
"""How often MLflow is tried at the start, and the time between."""

Trials = list[Trial]


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """What a launch came to."""

    experiment: str
    launch_id: str
    tracking_uri: str
    storage: Path
    mirrored: bool
    """Whether all has arrived in MLflow; else the frontier is read from storage."""
    picture: Path | None
    """The frontier, if any trial finished."""
    failures: dict[str, str]
    """Trial -> why it failed."""
    forward_ratio: float
    """Rows that went through the language model ÷ distinct rows; NaN when nothing was trained."""
    repeated_rows: int
    """Rows that went through it again since a fault had taken them; not in the ratio."""
    seconds: float

    def frontier(self, site: str | None = None, encoder: str = "own", tokens: int | str | None = None) -> pd.DataFrame:
        """See `gsae_ray.frontier`."""
        storage = None if self.mirrored else self.storage
        return frontier(self.experiment, site, self.launch_id, self.tracking_uri, encoder, tokens, storage)

    def best(
        self,
        site: str | None = None,
        max_l0: float | None = None,
        min_loss_recovered: float | None = None,
        tokens: int | str | None = None,
    ) -> SAE:
        """See `gsae_ray.best`."""
        where = self.launch_id, self.tracking_uri, tokens, None if self.mirrored else self.storage
        return best(self.experiment, site, max_l0, min_loss_recovered, *where)


def run(
    sweep: str | Path | Sweep,
    *,
    overrides: Sequence[str] = (),
    address: str | None = None,
    tracking_uri: str | None = None,
    storage: str | Path | None = None,
    resume: Resume = False,
    console: Console | None = None,
) -> SweepResult:
    """Runs a sweep: every trial that is not done yet is trained and evaluated, and MLflow is brought up to date.

    Args:
        sweep: a sweep file, or a `Sweep`.
        overrides: `path.to.key=value`, for a sweep file.
        address: of a Ray cluster; default: RAY_ADDRESS, or a local one that ends with the sweep.
        tracking_uri: of MLflow; default: MLFLOW_TRACKING_URI, or `mlflow.db` in the working directory.
        storage: where trials keep their state; default: `gsae_runs` in the working directory.
        resume: go on with the newest launch of this sweep in the storage, instead of beginning another; it keeps the
            overrides that it was begun with. `"auto"`, for what starts a command again when it has ended: go on with
            the newest launch that is not finished, where there is one and the sweep is the same; else begin one. Trials
            that have failed for good are left so.
        console: where progress goes; default: standard error.
    Raises:
        UserError: something is wrong with the sweep or its surroundings; no trial was started.
        SweepStoppedError: the sweep cannot go on for now (the language model cannot be run, storage is full, trials
            have no room, another driver has taken over, somebody has asked for it); what is finished is kept, and
            `resume` goes on.
    """
    started = time.monotonic()
    root = local_path("gsae_runs" if storage is None else storage, "--storage").resolve()
    if not isinstance(sweep, Sweep):
        file, sweep = sweep, load_sweep(sweep, overrides)
        if resume is True and (recorded := recorded_overrides(root / sweep.name)):
            overrides = [*recorded, *overrides]
            sweep = load_sweep(file, overrides)
    uri = resolve_uri(tracking_uri)
    check_tracking(uri, sweep.experiment_name)
    with Display(console or Console(stderr=True)) as display:
        display.phase(f"checking {sweep.name}: model {sweep.model.name}, data {sweep.dataset.name}")
        plan = prepare(sweep, root, display, uri)
        folder = root / sweep.name
        with contextlib.ExitStack() as stack:
            stack.enter_context(room_needed(folder))
            stack.enter_context(quick_failure())
            driver = stack.enter_context(driver_lock(folder, display.phase if resume == "auto" else None))
            trials = [Trial(t, TrialDirectory(trial_folder(folder, t))) for t in plan.trials]
            damaged = forget_damaged(trial.directory for trial in trials)
            for line in damaged:
                display.phase(line)
            status = {trial.name: trial.directory.status(plan.evaluation) for trial in trials}
            pending = [trial for trial in trials if not status[trial.name].done]
            if len(pending) < len(trials):
                display.phase(f"{len(trials) - len(pending)} of {len(trials)} trials are done already")
            if resume == "auto" and (failed := sum(status[t.name].failure is not None for t in pending)):
                display.phase(f"{failed} of {len(trials)} trials failed for good before; --resume tries them again")
                pending = [trial for trial in pending if status[trial.name].failure is None]
            readers = {
                t.name: ReaderSpec(t.spec.site, t.spec.training.trained_tokens)
                for t in pending
                if not status[t.name].trained
            }
            allotment = _Allotment()
            check_resume(folder, plan.sweep, plan.trials, resume)
            reserve(uri, sweep.experiment_name)
            if pending:
                stack.enter_context(connected(address))
                placement.check_shared(folder)
                allotment = _check_cluster(plan, readers)
            launch_id, notices = begin_launch(folder, plan.sweep, plan.trials, resume, overrides)
            own_folder = folder / "launches" / launch_id
            notices += damage_of_log(own_folder / "record.json")
            fingerprint, encoders = plan.evaluation
            EVALUATED.write(own_folder / "evaluation.json", {"fingerprint": fingerprint, "encoders": list(encoders)})
            log = EventLog(own_folder / "events.jsonl", display.phase)
            stack.enter_context(log.session(f"{len(pending)} of {len(trials)} trials to train or to evaluate"))
            for line in damaged:
                log.say(line, show=False)
            for notice in (*notices, *allotment.notices):
                log.say(notice)
            launch = _Launch(plan, launch_id, folder, driver, trials, pending, readers, allotment, display, log)
            try:
                with room_needed(folder):
                    return launch.run(uri, started)
            except OSError as error:  # not a mistake to mend, as before the launch began
                raise SweepStoppedError(
                    f"{error.filename or folder}: {error.strerror or error}; what was saved before is whole: the same "
                    "command with --resume goes on"
                ) from error


@dataclasses.dataclass(frozen=True)
class _Allotment:
    """What a launch asks of the cluster."""

    budget: int = 0
    """Bytes of activations to keep."""
    trials: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    """Of each trial to train, by name: what it asks Ray for."""
    producer_bytes: int = 0
    """Of its node's memory that each producer asks Ray for."""
    producer_labels: dict[str, str] = dataclasses.field(default_factory=dict)
    """The selector of the nodes that producers may go to."""
    notices: tuple[str, ...] = ()
    """What is to be told."""


@dataclasses.dataclass
class _Launch:
    """One start of a sweep, after everything has been checked."""

    plan: Plan
    id: str
    folder: Path
    driver: Driver
    trials: Trials
    pending: Trials
    """Those to train, or to evaluate."""
    readers: dict[str, ReaderSpec]
    """Those to train, as the store knows them."""
    allotment: _Allotment
    display: Display
    log: EventLog

    @property
    def own_folder(self) -> Path:
        return self.folder / "launches" / self.id

    def run(self, uri: str, started: float) -> SweepResult:
        """Trains and evaluates what is pending, and publishes the frontier."""
        sweep = self.plan.sweep
        for trial in self.pending:
            trial.directory.forget_failure()
        reader = ProgressReader(self.trials, self.plan.evaluation)
        supervisor: Supervisor | None = None
        give_up, asked = threading.Event(), threading.Event()

        def progress() -> dict[str, Any]:
            reader.update()
            counters = self._counters() if supervisor is None else Counters.of(supervisor.record, self.plan.layout)
            ratio = counters.forward_ratio if counters is not None and counters.rows_distinct else None
            return {**dataclasses.asdict(self.display.progress(reader)), "forward_ratio": ratio}

        def stop() -> None:
            asked.set()
            if supervisor is not None:
                supervisor.stop(_asked())

        def check() -> None:
            """Until there is a supervisor, which looks after that: whether the sweep can go on."""
            with contextlib.suppress(OSError):  # a hiccup of storage
                self.driver.check()
            if opening.done():
                opening.result()
            if asked.is_set():
                raise _asked()

        with ThreadPoolExecutor(1) as pool:
            thread: MirrorThread | None = None
            # Beside the rest: a new SQLite store takes as long as the language model.
            opening = pool.submit(_patiently, lambda: self._open_mirror(uri), give_up)
            try:
                with contextlib.ExitStack() as stack:
                    if self.pending:
                        reports = ReportThread(
                            lambda said: opening.result().report(said), progress, stop, allowed=self._leads
                        )
                        reports.start()
                        stack.callback(reports.finish)
                    stack.callback(give_up.set)
                    if self.pending:
                        supervisor = stack.enter_context(self._fleet(check))
                        if asked.is_set():  # since the last check
                            supervisor.stop(_asked())
                    thread = MirrorThread(opening.result(), self.trials, allowed=self._leads)
                    thread.start()
                    if supervisor is not None:
                        self.display.follow(reader)
                        with _stopped_by_sigterm(supervisor):
                            self._train(supervisor)
            except BaseException:
                give_up.set()
                with contextlib.suppress(Exception):  # the server may be what failed; storage has everything
                    # Not where another driver has taken over: the launch, if it was resumed, is that one's.
                    if self._leads() if thread is None else thread.finish():
                        opening.result().close("KILLED")
                raise
            finally:
                self.display.stop()
        assert thread is not None
        states = {state: sum(trial.state == state for trial in reader.update()) for state in STATES}
        self.log.say(f"trials: {', '.join(f'{count} {state}' for state, count in states.items())}", show=False)
        arrived, mirror = thread.finish(), thread.mirror
        picture = None
        counters = self._counters()
        try:
            if arrived:  # else every further call would wait for a server that hangs
                picture = self._publish(mirror, counters, supervisor.machines if supervisor else [])
        except Exception as error:  # an MLflow server that is gone at the end loses nothing: storage has it
            logging.getLogger(__name__).debug("publishing failed", exc_info=True)
            arrived, thread.last_error = False, first_line(error)
        status = {trial.name: trial.directory.status(self.plan.evaluation) for trial in self.trials}
        failures = {name: found.failure for name, found in status.items() if found.failure is not None}
        failures |= mirror.damaged
        if arrived and not failures:
            finish_launch(self.folder, self.id, self.driver.session)
        if not arrived:
            self.log.say(
                f"MLflow at {uri} is not up to date ({thread.last_error}); nothing is lost: "
                "the same command with --resume brings it up to date"
            )
            picture, _ = self._draw_frontier(storage=self.folder.parent)
        return SweepResult(
            experiment=sweep.experiment_name,
            launch_id=self.id,
            tracking_uri=uri,
            storage=self.folder.parent,
            mirrored=arrived,
            picture=picture,
            failures=failures,
            forward_ratio=counters.forward_ratio if counters else float("nan"),
            repeated_rows=counters.rows_repeated if counters else 0,
            seconds=time.monotonic() - started,
        )

    def _leads(self) -> bool:
        """Whether no other driver has taken the sweep over."""
        return not self.driver.replaced_by

    def _counters(self) -> Counters | None:
        """What was produced for this launch, in all of its sessions; None where nothing was."""
        record = PRODUCTION_LOG.read_whole(self.own_folder / "record.json")
        return None if record is None else Counters.of(record, self.plan.layout)

    def _open_mirror(self, uri: str) -> Mirror:
        sweep = self.plan.sweep
        with asking(uri):
            mirror = Mirror(uri, sweep.experiment_name, self.id, self.plan.evaluation)
            mirror.open_launch(sweep.name, _launch_params(self.plan), os.environ.get(JOB_VARIABLE))
            mirror.log_launch({}, [self.own_folder / "sweep.yaml", self.own_folder / "versions.json"])
        return mirror

    @contextlib.contextmanager
    def _fleet(self, check: Callable[[], None]) -> Iterator[Supervisor]:
        """Producers, the store that calls them and the supervisor that watches it, for the length of the context.

        Args:
            check: see `running_producers`.
        """
        settings, allotment = self.plan.sweep.producers, self.allotment
        count = settings.count
        self.log.say(f"starting {count} producer{'s' if count > 1 else ''} and {len(self.pending)} trials")
        spec = producer_spec(self.plan)
        fleet = running_producers(
            count,
            settings.gpus,
            allotment.producer_bytes,
            allotment.producer_labels,
            spec,
            settings.timeout_s,
            self.log.say,
            check,
        )
        with fleet as (producers, machines):
            store = start_store(self.plan.layout, allotment.budget, settings.timeout_s)
            supervisor = Supervisor(
                store,
                producers,
                self.readers,
                {trial.name: trial.directory for trial in self.trials},
                self.driver,
                self.own_folder / "record.json",
                self.plan.sweep.trials,
                self.log,
                self.display.show_waits,
            )
            for kind in machines:
                supervisor.met(kind)
            supervisor.start()
            try:
                yield supervisor
            finally:
                supervisor.finish()
                ray.kill(store)  # a cluster, or a notebook's Ray, goes on after the sweep

    def _train(self, supervisor: Supervisor) -> None:
        """Runs the trials to the end, and has them evaluated.

        Raises:
            SweepStoppedError: the sweep cannot go on.
        """
        store = StoreClient(supervisor.store)
        pool = ThreadPoolExecutor(thread_name_prefix="evaluations")

        def evaluate(site: str, cfg: str, weights: bytes, encoders: Sequence[int | None]) -> list[Future[Evaluation]]:
            return [pool.submit(store.evaluate, site, cfg, weights, pursuit_l0) for pursuit_l0 in encoders]

        sweep = self.plan.sweep
        queue = EvaluationQueue(
            self.pending,
            self.plan.evaluation,
            evaluate,
            at_a_time=sweep.producers.count + 1,
        )
        queue.start()
        try:
            for follow in (False, True):  # those that start from another's SAE come when all the others are finished
                phase = [t for t in self.pending if not t.directory.done and t.spec.follows == follow]
                phase = self._with_parents(phase, store)
                self._to_the_end(supervisor, phase)
            queue.finish(check=supervisor.check)
        finally:
            queue.stop()
            pool.shutdown(wait=False, cancel_futures=True)

    def _to_the_end(self, supervisor: Supervisor, trials: Trials) -> None:
        """Runs trials until each is done or has failed; one that cannot be started has.

        Raises:
            SweepStoppedError: the sweep cannot go on.
        """
        errors: dict[str, str] = {}
        for _ in range(DEATHS):  # Tune gives a trial up whose process dies while it is made ready for it
            trials = [trial for trial in trials if not trial.directory.ended]
            if not trials:
                return
            results = self._tune(supervisor, trials)
            supervisor.check()
            errors = {(r.config or {})["trial"]["name"]: reason(r.error) for r in results if r.error is not None}
        for trial in trials:
            if not trial.directory.ended:
                self._fail(trial, errors.get(trial.name, "it did not end"))

    def _parent(self, spec: TrialSpec) -> Path | None:
        """The folder of the finished SAE that a trial starts from; None where there is none."""
        if spec.parent in self.plan.parents:
            return self.plan.parents[spec.parent]
        found = [trial.directory for trial in self.trials if trial.name == spec.parent and trial.directory.done]
        return found[0].path / "sae" if found else None

    def _with_parents(self, trials: Trials, store: StoreClient) -> Trials:
        """The trials without those whose parent has failed; they fail too."""
        going: Trials = []
        for trial in trials:
            if trial.spec.parent is None or self._parent(trial.spec) is not None:
                going.append(trial)
            else:
                self._fail(trial, "skipped: parent failed")
                store.call("abandon", trial.name)
        return going

    def _fail(self, trial: Trial, why: str) -> None:
        """Has a trial that does not run fail for good."""
        trial.directory.begin_attempt(trial.spec, self.driver.session)
        trial.directory.fail(why)

    def _tune(self, supervisor: Supervisor, trials: Trials) -> tune.ResultGrid:
        plan, sweep = self.plan, self.plan.sweep
        context = TrialContext(
            launch=self.own_folder,
            session=self.driver.session,
            directories={trial.name: trial.directory.path for trial in trials},
            parents={t.name: parent for t in trials if (parent := self._parent(t.spec)) is not None},
            layout=plan.layout,
            threads=sweep.trials.cpus,
            gpu=sweep.trials.gpus != 0,
            evaluate_every_tokens=sweep.evaluation.every_tokens,
            metadata={
                "sweep": sweep.name,
                "model": sweep.model.model_dump(),
                "dataset": sweep.dataset.model_dump(),
                "versions": versions(),
            },
        )
        needs, labels = self.allotment.trials, placement.selector(TRAINER)

        def resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
            return tune.PlacementGroupFactory([needs[config["trial"]["name"]]], bundle_label_selector=[labels])

        for name in ("ray.tune", "ray.train", "ray.air"):
            logging.getLogger(name).setLevel(logging.ERROR)
        with tempfile.TemporaryDirectory(prefix="gsae-tune-") as scratch:
            tuner = tune.Tuner(
                tune.with_resources(
                    tune.with_parameters(SAETrial, store=supervisor.store, context=context),
                    resources,
                ),
                param_space={"trial": tune.grid_search([trial.spec.to_json() for trial in trials])},
                tune_config=tune.TuneConfig(
                    reuse_actors=sweep.trials.gpus == 0, max_concurrent_trials=sweep.trials.max_concurrent
                ),
                run_config=tune.RunConfig(
                    callbacks=[TrialWatch(supervisor)],
                    stop=StopWhenAsked(supervisor),
                    storage_path=scratch,  # Tune's own state is not used: trials keep theirs
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=-1),  # TrialWatch knows when it is enough
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            )
            return tuner.fit()

    def _draw_frontier(self, **where: Any) -> tuple[Path | None, list[Path]]:
        """The frontier as a picture and as tables, in storage; no picture where there is none.

        Args:
            where: `tracking_uri` or `storage`, that it is read from.
        """
        folder, experiment = self.own_folder, self.plan.sweep.experiment_name
        pursuit: pd.DataFrame | None = None
        try:
            rows = frontier(experiment, launch=self.id, **where)
            if self.plan.sweep.evaluation.pursuit_l0:
                pursuit = frontier(experiment, launch=self.id, encoder="pursuit", **where)
        except UserError as error:  # no trial came through
            self.log.say(str(error))
            return None, []
        for note in rows.attrs["notes"]:
            self.log.say(note)
        if rows.empty:
            return None, []
        from gsae_ray.results import plots  # here: matplotlib takes a second to load

        picture = folder / "frontier.png"
        files = [folder / "frontier.csv", picture]
        rows.to_csv(folder / "frontier.csv", index=False)
        plots.save_frontier(rows, picture, pursuit)
        if pursuit is not None:
            files.append(folder / "pursuit.csv")
            pursuit.to_csv(files[-1], index=False)
        return picture, files

    def _publish(self, mirror: Mirror, counters: Counters | None, machines: Sequence[str]) -> Path | None:
        """The frontier as table and picture, in storage and on the parent run, which ends."""
        picture, artifacts = self._draw_frontier(tracking_uri=mirror.client.tracking_uri)
        metrics: dict[str, float] = {}
        if counters is not None:
            metrics = {
                "forward_ratio": counters.forward_ratio,
                "rows_produced": counters.rows_produced,
                "rows_distinct": counters.rows_distinct,
                "rows_repeated": counters.rows_repeated,
                "peak_activation_bytes": counters.peak_bytes,
                "evaluations": counters.evaluations,
            }
        log = [self.log.path] if self.log.path.exists() else []
        mirror.log_launch(metrics, [*log, *artifacts], machines)
        mirror.close("FINISHED")
        return picture


def _patiently(open_mirror: Callable[[], Mirror], give_up: threading.Event) -> Mirror:
    """Tries again when the server has just gone: it was there when the sweep was checked."""
    tries = 0
    while True:
        try:
            return open_mirror()
        except Exception:
            tries += 1
            if tries == OPENINGS or give_up.wait(OPENING_PAUSE_S):
                raise


def _asked() -> StopAskedError:
    return StopAskedError("the launch was asked to stop; the same command with --resume goes on")


@contextlib.contextmanager
def _stopped_by_sigterm(supervisor: Supervisor) -> Iterator[None]:
    """Within the context SIGTERM, with which a cluster ends a job, stops the sweep as `gsae-ray stop` does.

    Trials save a checkpoint. A sweep that is stopping already ends at once.
    """
    if threading.current_thread() is not threading.main_thread():  # handlers are the main thread's
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if supervisor.stopped is not None:
            signal.default_int_handler(number, frame)
        supervisor.stop(_asked())

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _check_cluster(plan: Plan, readers: dict[str, ReaderSpec]) -> _Allotment:
    """Whether the sweep fits the cluster, and what it asks of it.

    Raises:
        UserError: a trial, the producers or a block do not fit.
    """
    layout, sweep, nodes = plan.layout, plan.sweep, placement.nodes()
    trials = [trial for trial in plan.trials if trial.name in readers]
    requests = fit.trial_requests(sweep, nodes, trials)
    a_producer = fit.producer_request(sweep, nodes, plan.producer)
    notices = fit.check_producers(sweep, nodes, plan.producer)
    notices += fit.check_requests(sweep, nodes, fit.largest(sweep, requests.values()), a_producer)
    sites = tuple(sorted({reader.site for reader in readers.values()}))
    blocks = range(layout.blocks_for(max((reader.rows for reader in readers.values()), default=0)))
    sizes = [layout.nbytes(block, sites) for block in blocks]
    return _Allotment(
        budget=fit.budget(sweep, nodes, max(sizes, default=0), sum(sizes), len(sites)),
        trials={name: request.to_ray() for name, request in requests.items()},
        producer_bytes=a_producer.memory,
        producer_labels=selector(PRODUCER, nodes),
        notices=tuple(notices),
    )


def _launch_params(plan: Plan) -> dict[str, Any]:
    sweep = plan.sweep
    return {
        "model": sweep.model.name,
        "dataset": sweep.dataset.name,
        "context_size": sweep.model.context_size,
        "dtype": sweep.model.dtype,
        "skip_positions": sweep.dataset.skip_positions,
        "skip_special_tokens": sweep.dataset.skip_special_tokens,
        "max_norm": sweep.dataset.max_norm,
        "trials": len(plan.trials),
        "rows_per_block": plan.layout.rows[0],
        "blocks": len(plan.layout.rows),
        "heldout_rows": plan.tokens.heldout_rows,
    }


def describe_end(result: SweepResult) -> str:
    """One line: how long it took, and how often the model ran."""
    ratio = f", forward ratio {result.forward_ratio:.2f}" if result.forward_ratio == result.forward_ratio else ""
    if result.repeated_rows:
        ratio += f" and {result.repeated_rows:,} rows again after faults"
    return f"launch {result.launch_id} took {clock(result.seconds)}{ratio}"
