"""A trial's directory in storage: the truth about it. Safetensors and JSON only.

trial.json                   the TrialSpec
attempts/{number}.json       an attempt: number, session of its driver, where it runs; what an older one than the newest
                             still writes is refused, and a new one of an older session
metrics-{attempt}.jsonl      {"step": tokens, "timestamp": ms, "metrics": {name: value}} and its hash a line; the newest
                             file counts
checkpoints/{tokens}/        state.safetensors (and more), then manifest.json with hashes; the last two are kept
sae/                         the finished SAE
DONE                         training has finished; hashes of what it vouches for, sae/ and the metric rows
FAILED                       {"reason": …}: training ended for good, e.g. in NaN; beside DONE: the evaluation did
evaluations/{fingerprint}.json   the finished SAE on the held-out contexts of that fingerprint: {"step", "timestamp",
                             "metrics": {name: value; the ends of intervals too}, "sequences": {sum: [of each context]},
                             "sae": its hash, "schema": version of the metrics, 1 where it is missing}
evaluations/{fingerprint}-pursuit-{l0}.json   the same with gradient pursuit in its encoder's place; step is its L0
snapshots/{tokens}/          the SAE as it was after so many tokens, finished; then snapshots/{tokens}.json, its hash
evaluations/{fingerprint}-snapshot-{tokens}.json   the same of a snapshot; step is its tokens
evaluations/{fingerprint}-probes-{hash}.json   the same of probes on labelled text with that hash; without sums
features/                    tables of what the finished SAE's features fire on (see `feature_tables`)
ratings.json                 what a language model says about some of them (see `storage.ratings`)

What is damaged is as if it were not there, and is made again: rows and checkpoints from the checkpoint before, the
finished SAE by training, an evaluation by evaluating. A snapshot is made again only by training that comes past it.
`DONE` and snapshots are checked against all that they vouch for once a launch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from typing_extensions import NotRequired, TypedDict

from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import DamagedError, ReplacedError, StaleAttemptError
from gsae_ray.evaluation.metrics import Evaluation, schema_version
from gsae_ray.files import LOCAL, JSONFile, Storage, file_hash, is_whole
from gsae_ray.saes.folder import content_hash
from gsae_ray.storage.checkpoints import Checkpoints, State
from gsae_ray.storage.evaluations import (
    EVALUATION,
    EvaluationRecord,
    EvaluationRequest,
    Snapshot,
    Subject,
    TrialStatus,
    evaluation_record,
    kind_and_step,
    schema_of,
    suffix_of,
)
from gsae_ray.storage.metric_rows import START, Cursor, MetricRows, Row, numbers
from gsae_ray.storage.ratings import RATINGS, RATINGS_FILE, Ratings
from gsae_ray.storage.snapshots import Snapshots

if TYPE_CHECKING:
    from torch import Tensor

    from gsae_ray.saes import SAE


class Attempt(TypedDict):
    """What `begin_attempt` wrote: the number, the session of its driver, and where it runs."""

    attempt: int
    session: int
    pid: NotRequired[int]
    node: NotRequired[str]
    host: NotRequired[str]
    machine: NotRequired[str]


class _Done(TypedDict):
    attempt: int
    sae: str
    files: dict[str, str]


class _Failed(TypedDict):
    reason: str


_AGAIN = "the same command trains this SAE again"
ATTEMPT = JSONFile(Attempt, "it counts as one of no session", sealed=True)
DONE = JSONFile(_Done, _AGAIN, sealed=True)
FAILED = JSONFile(_Failed, "the same command tries this trial again")


class TrialDirectory:
    """A trial's folder in storage. Any process may read it; that of the newest attempt writes (see `begin_attempt`)."""

    def __init__(self, path: Path, storage: Storage = LOCAL) -> None:
        self.path = path
        self.storage = storage
        self.attempt = 0
        self._rows = MetricRows(path, storage)
        self._checkpoints = Checkpoints(path / "checkpoints", storage)
        self.snapshots = Snapshots(path / "snapshots", storage)

    # ---- reading ----

    @property
    def features(self) -> Path:
        """The folder of its tables of features, which may be of an SAE of before."""
        return self.path / "features"

    @property
    def done(self) -> bool:
        """Whether training has finished, by DONE; `check_done` looks at what that vouches for."""
        return DONE.read_whole(self.path / "DONE", self.storage) is not None

    def check_done(self) -> str | None:
        """Looks at all that DONE vouches for. Returns the hash of the SAE (`saes.folder.content_hash`) if it is done.

        Raises:
            DamagedError: a file is not as it was when training finished.
        """
        if (done := DONE.read(self.path / "DONE", self.storage)) is None:
            return None
        for name, sha256 in done["files"].items():
            if not self._is_whole(name, sha256):
                raise DamagedError(f"{self.path / name}: this file is damaged; {_AGAIN}")
        return done["sae"]

    def _is_whole(self, name: str, sha256: str) -> bool:
        """Whether a file of the directory is there, with those contents."""
        try:
            return is_whole(self.storage.local(self.path / name), sha256)
        except FileNotFoundError:
            return False

    def check_failed(self) -> str | None:
        """Why training ended for good, if it did.

        Raises:
            DamagedError: it did, but it is not known why.
        """
        failed = FAILED.read(self.path / "FAILED", self.storage)
        return None if failed is None else failed["reason"]

    @property
    def failure(self) -> str | None:
        """Why training ended for good, if it did."""
        try:
            return self.check_failed()
        except DamagedError as error:
            return str(error)

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to train: it is done, or failed for good."""
        return self.done or self.failure is not None

    @property
    def newest_attempt(self) -> int:
        """Number of the newest attempt; 0 before the first."""
        begun = numbers(self.storage.names(self.path / "attempts"), "", ".json")
        return max([*begun, *self._rows.attempts()], default=0)

    @property
    def newest_begun(self) -> Attempt:
        """What `begin_attempt` wrote last."""
        attempt = self.newest_attempt
        found = ATTEMPT.read_whole(self._attempt_file(attempt), self.storage)  # None: it has been claimed only
        return found if found and found["attempt"] == attempt else {"attempt": attempt, "session": 0}

    @property
    def newest_checkpoint(self) -> int:
        """Tokens of the newest checkpoint, whole or not; 0 where there is none."""
        return max(self._checkpoints.tokens(), default=0)

    def rows(self, cursor: Cursor = START) -> tuple[list[Row], Cursor]:
        """Whole metric rows from a cursor on, up to a damaged one, and the cursor after them.

        A new attempt has a file of its own, with the rows that it keeps; a cursor into an older one begins again at
        the first row.
        """
        return self._rows.read(cursor)

    def evaluation(self, fingerprint: str, subject: Subject = None) -> EvaluationRecord | None:
        """An evaluation, of any schema; None where there is none.

        Args:
            fingerprint: of the held-out contexts.
            subject: of what; None: of the finished SAE with its own encoder.
        """
        evaluation = EVALUATION.read_whole(self._evaluation_path(fingerprint, subject), self.storage)
        return evaluation if evaluation and evaluation["sae"] == self._content(subject) else None

    def ratings(self, fingerprint: str) -> Ratings | None:
        """What was said about the finished SAE's features on that held-out text; None where nothing was."""
        ratings = RATINGS_FILE.read_whole(self.path / RATINGS, self.storage)
        return (
            ratings if ratings and (ratings["sae"], ratings["heldout"]) == (self._content(None), fingerprint) else None
        )

    def _content(self, subject: Subject) -> str | None:
        """The hash of the SAE that is evaluated; None where there is none."""
        if isinstance(subject, Snapshot):
            return self.snapshots.content(subject.tokens)
        done = DONE.read_whole(self.path / "DONE", self.storage)
        return None if done is None else done["sae"]

    def subjects(self, request: EvaluationRequest) -> tuple[Subject, ...]:
        """What a launch asks for, of snapshots those that there are."""
        there = self.snapshots.tokens() if request.snapshots else []
        return (*request.encoders, *(Snapshot(tokens) for tokens in request.snapshots if tokens in there))

    def evaluations(self, request: EvaluationRequest) -> dict[Subject, EvaluationRecord]:
        """Those that a launch asks for and the trial has, of any schema."""
        found = {subject: self.evaluation(request.fingerprint, subject) for subject in self.subjects(request)}
        return {subject: record for subject, record in found.items() if record is not None}

    def status(self, request: EvaluationRequest) -> TrialStatus:
        """Where the trial stands, for a launch that asks for those evaluations."""
        return self.status_with(self.evaluations(request), request)

    def status_with(self, evaluations: Mapping[Subject, EvaluationRecord], request: EvaluationRequest) -> TrialStatus:
        """As `status`, where `evaluations(request)` have been read already."""
        trained, asked = self.done, self.subjects(request)
        outdated = tuple(of for of, record in evaluations.items() if schema_of(record) < schema_version())
        missing = tuple(of for of in asked if of not in evaluations or of in outdated)
        # Beside an SAE that has them all, of whatever schema, FAILED is of an evaluation on other text.
        evaluated = trained and bool(asked) and missing == outdated
        return TrialStatus(trained, missing, outdated, None if evaluated else self.failure)

    def _evaluation_path(self, fingerprint: str, subject: Subject) -> Path:
        return self.path / "evaluations" / f"{fingerprint[:16]}{suffix_of(subject)}.json"

    def newest_state(self) -> State | None:
        """The newest checkpoint that is whole: (tensors, the rest). The metric rows after it are not kept.

        Without one, no row is. An attempt calls this before it writes anything else.
        """
        rows, _ = self.rows()
        steps = {row["step"] for row in rows}
        for tokens in reversed(self._checkpoints.tokens()):
            # Before a checkpoint its row was written, which a crash of the whole machine may have lost still.
            state = self._checkpoints.read(tokens) if tokens in steps else None
            if state is not None:
                self._keep_rows(rows, tokens)
                return state
            self._checkpoints.remove(tokens)  # half-written or damaged: the one before is used
        self._keep_rows(rows, 0)
        return None

    # ---- writing ----

    def begin_attempt(self, trial: TrialSpec, session: int = 0, **where: Any) -> int:
        """Makes this the attempt that may write. Returns its number, from 1.

        Args:
            trial: whose directory this is.
            session: number of the driver's session, which a later one supersedes.
            where: what is to be known of the process, as JSON values.

        Raises:
            ReplacedError: a later session has begun an attempt.
        """
        self.storage.make_folder(self.path / "attempts")
        while True:
            before = self.newest_begun
            if before["session"] > session:
                raise ReplacedError(f"{self.path.name}: another driver has taken the sweep over from this one")
            number = before["attempt"] + 1
            try:
                # A number belongs to one process, whoever is suspended halfway.
                self.storage.create(self._attempt_file(number))
            except FileExistsError:
                continue
            facts = cast(Attempt, {"attempt": number, "session": session, **where})
            ATTEMPT.write(self._attempt_file(number), facts, self.storage)
            self.storage.replace(self.path / "trial.json", json.dumps(trial.to_json(), indent=2).encode())
            self.attempt = number
            return number

    def _attempt_file(self, number: int) -> Path:
        return self.path / "attempts" / f"{number}.json"

    def _check_attempt(self) -> None:
        if self.newest_attempt != self.attempt:
            raise StaleAttemptError(
                f"{self.path.name}: attempt {self.attempt} writes after {self.newest_attempt} began"
            )

    def append(self, tokens: int, metrics: dict[str, float]) -> None:
        """Adds a metric row."""
        self._check_attempt()
        row: Row = {"step": tokens, "timestamp": time.time_ns() // 1_000_000, "metrics": metrics}
        self._rows.append(self.attempt, row)

    def _keep_rows(self, rows: list[Row], tokens: int) -> None:
        """Begins this attempt's rows with those up to `tokens`; what an older one still writes is not among them."""
        self._check_attempt()
        self._rows.begin(self.attempt, [row for row in rows if row["step"] <= tokens])

    def checkpoint(self, tokens: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Saves a training state, and removes all but the last two."""
        self._check_attempt()
        self._checkpoints.write(tokens, (tensors, state), check=self._check_attempt)  # again: writing takes a while

    def keep_snapshot(self, tokens: int, make: Callable[[], SAE]) -> None:
        """Saves the SAE as it is after so many tokens, which `make` gives, unless an attempt before has."""
        self._check_attempt()
        self.snapshots.write(tokens, make, self.attempt, self._check_attempt)

    def finish(self, sae: SAE) -> None:
        """Saves the finished SAE and marks the trial as done; its checkpoints are needed no more."""
        from gsae_ray.saes.serialise import saved_files  # here: what only reads results does without torch

        self._check_attempt()
        storage, final, temporary = self.storage, self.path / "sae", self.path / f".sae-{self.attempt}"
        storage.make_folder(temporary)
        for name, data in saved_files(sae).items():
            storage.replace(temporary / name, data)
        self._check_attempt()  # again: that took a while
        storage.remove_tree(final)
        storage.rename(temporary, final)
        self._rows.sync(self.attempt)
        files = [*(final / name for name in storage.names(final)), self._rows.path(self.attempt)]
        hashes = {str(path.relative_to(self.path)): file_hash(storage.local(path)) for path in files}
        done: _Done = {"attempt": self.attempt, "sae": content_hash(storage.local(final)), "files": hashes}
        DONE.write(self.path / "DONE", done, storage)
        left = [name for name in storage.names(self.path) if name.startswith(".sae-")]
        for name in ("checkpoints", *left):
            storage.remove_tree(self.path / name)
        self.snapshots.remove_unfinished()

    def fail(self, reason: str) -> None:
        """Marks the trial as failed for good."""
        self._check_attempt()
        FAILED.write(self.path / "FAILED", {"reason": reason}, self.storage)

    def fail_evaluation(self, reason: str) -> None:
        """Marks a finished SAE as one that cannot be evaluated. As with an evaluation, any process may."""
        FAILED.write(self.path / "FAILED", {"reason": reason}, self.storage)

    def forget_failure(self) -> None:
        """Removes the mark of a failure, so that a launch tries again."""
        self.storage.remove(self.path / "FAILED")

    def save_evaluation(self, fingerprint: str, tokens: int, evaluation: Evaluation, subject: Subject = None) -> None:
        """Saves an evaluation of a finished trial. Any process may: all that evaluate it come to the same numbers.

        Args:
            fingerprint: of the held-out contexts.
            tokens: that the trial was trained on.
            evaluation: what was measured.
            subject: of what.
        """
        path = self._evaluation_path(fingerprint, subject)
        if DONE.read(self.path / "DONE", self.storage) is None:
            raise DamagedError(f"{self.path / 'DONE'}: this file is missing; {_AGAIN}")
        if (content := self._content(subject)) is None:
            raise DamagedError(f"{path}: what was evaluated is not there any more; the same command goes on without it")
        self.storage.make_folder(path.parent)
        EVALUATION.write(path, evaluation_record(evaluation, *kind_and_step(subject, tokens), content), self.storage)


class Trial(NamedTuple):
    """A trial of a launch: what it is, and where it lies."""

    spec: TrialSpec
    directory: TrialDirectory

    @property
    def name(self) -> str:
        """Readable and unique within a sweep."""
        return self.spec.name


def forget_damaged(directories: Iterable[TrialDirectory]) -> list[str]:
    """Removes, before a launch, the DONE of trials whose files are damaged, a damaged FAILED, and damaged snapshots.

    Returns:
        a line about each.
    """

    def forget(directory: TrialDirectory) -> list[str]:
        told = []
        for name, look in (("DONE", directory.check_done), ("FAILED", directory.check_failed)):
            try:
                look()
            except DamagedError as error:
                directory.storage.remove(directory.path / name)
                told.append(str(error))
        for tokens in directory.snapshots.tokens():
            try:
                directory.snapshots.check(tokens)
            except DamagedError as error:
                directory.snapshots.forget(tokens)
                told.append(str(error))
        return told

    with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter to others
        return [line for lines in pool.map(forget, directories) for line in lines]
