"""A trial's directory in storage: the truth about it. Safetensors and JSON only.

trial.json                   the TrialSpec
attempts/{number}.json       an attempt: number, session (`ledger`) of its driver, where it runs; what an older one than
                             the newest still writes is refused, and a new one of an older session
metrics-{attempt}.jsonl      {"step": tokens, "timestamp": ms, "metrics": {name: value}} a line; the newest file counts
checkpoints/{tokens}/        state.safetensors, then manifest.json with its hash; the last two are kept
sae/                         the finished SAE
DONE                         training has finished and sae/ is whole
FAILED                       {"reason": …}: training ended for good, e.g. in NaN
evaluations/{fingerprint}.json   the finished SAE on the held-out contexts of that fingerprint: {"step", "timestamp",
                             "metrics": {name: value}, "sequences": {sum: [of each context]}}
evaluations/{fingerprint}-pursuit-{l0}.json   the same with gradient pursuit in its encoder's place; step is its L0
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from gsae_ray.errors import ReplacedError, StaleAttemptError
from gsae_ray.evaluation.metrics import Evaluation
from gsae_ray.files import file_hash, read_json, write_atomically, write_json
from gsae_ray.saes import SAE
from gsae_ray.trial import TrialSpec

KEPT_CHECKPOINTS = 2

Cursor = tuple[int, int]
"""A place in a file of rows: (attempt, byte)."""
START: Cursor = (0, 0)


class TrialDirectory:
    """Reading is free; writing needs `begin_attempt` first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.attempt = 0

    # ---- reading ----

    @property
    def done(self) -> bool:
        return (self.path / "DONE").exists()

    @property
    def failure(self) -> str | None:
        """Why training ended for good, if it did."""
        failed = read_json(self.path / "FAILED")
        return None if failed is None else failed["reason"]

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to train: it is done, or failed for good."""
        return self.done or self.failure is not None

    @property
    def newest_attempt(self) -> int:
        """Number of the newest attempt; 0 before the first."""
        files = (self.path / "attempts").glob("*.json")
        return max((int(path.stem) for path in files if path.stem.isdecimal()), default=0)

    @property
    def newest_begun(self) -> dict[str, Any]:
        """What `begin_attempt` wrote last: {"attempt", "session", …}."""
        attempt = self.newest_attempt
        try:
            facts = read_json(self.path / "attempts" / f"{attempt}.json")
        except ValueError:  # it has been claimed only
            facts = None
        return {"session": 0} | (facts or {}) | {"attempt": attempt}

    @property
    def newest_checkpoint(self) -> int:
        """Tokens of the newest checkpoint, whole or not; 0 where there is none."""
        return max((int(path.name) for path in self._checkpoints()), default=0)

    def rows(self, cursor: Cursor = START) -> tuple[list[dict[str, Any]], Cursor]:
        """Whole metric rows from a cursor on, and the cursor after them.

        A new attempt has a file of its own, with the rows that it keeps; a cursor into an older one begins again at
        the first row.
        """
        files = self._rows_files()
        if not files:
            return [], START
        attempt, path = max(files.items())
        offset = cursor[1] if cursor[0] == attempt else 0
        try:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:  # a newer attempt has just taken it away
            return [], START
        whole = data[: data.rfind(b"\n") + 1]
        return [json.loads(line) for line in whole.splitlines()], (attempt, offset + len(whole))

    def _rows_files(self) -> dict[int, Path]:
        """Of each attempt that has one, by number."""
        return {int(path.stem.removeprefix("metrics-")): path for path in self.path.glob("metrics-*.jsonl")}

    def evaluation(self, fingerprint: str, pursuit_l0: int | None = None) -> dict[str, Any] | None:
        """{"step", "timestamp", "metrics", "sequences"} of the finished SAE, if it was evaluated on those contexts.

        Args:
            pursuit_l0: by gradient pursuit with that target, instead of its own encoder.
        """
        value: dict[str, Any] | None = read_json(self._evaluation_path(fingerprint, pursuit_l0))
        return value

    def missing(self, fingerprint: str, encoders: Sequence[int | None]) -> list[int | None]:
        """Those of the evaluations asked for that the SAE does not have (`EvaluationSettings.encoders`)."""
        return [l0 for l0 in encoders if not self._evaluation_path(fingerprint, l0).exists()]

    def _evaluation_path(self, fingerprint: str, pursuit_l0: int | None) -> Path:
        pursuit = "" if pursuit_l0 is None else f"-pursuit-{pursuit_l0}"
        return self.path / "evaluations" / f"{fingerprint[:16]}{pursuit}.json"

    def newest_state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint that is whole: (tensors, the rest). The metric rows after it are not kept.

        Without one, no row is. An attempt calls this before it writes anything else.
        """
        rows, _ = self.rows()
        for checkpoint in reversed(list(self._checkpoints())):
            if (state := self._state_of(checkpoint, rows)) is not None:
                self._keep_rows(rows, int(checkpoint.name))
                return state
            shutil.rmtree(checkpoint, ignore_errors=True)  # half-written or damaged: the one before is used
        self._keep_rows(rows, 0)
        return None

    def _state_of(
        self, checkpoint: Path, rows: list[dict[str, Any]]
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What a checkpoint holds; None where it is not whole."""
        # Before a checkpoint its row was written, which a crash of the whole machine may have lost still.
        if not any(row["step"] == int(checkpoint.name) for row in rows):
            return None
        try:
            manifest = json.loads((checkpoint / "manifest.json").read_text())
            if file_hash(checkpoint / "state.safetensors") == manifest["sha256"]:
                return safetensors.torch.load_file(checkpoint / "state.safetensors"), manifest["state"]
        except (FileNotFoundError, ValueError, KeyError):  # other errors of a file system may pass
            pass
        return None

    def _checkpoints(self) -> Iterator[Path]:
        folder = self.path / "checkpoints"
        numbered = [p for p in folder.iterdir() if p.name.isdigit()] if folder.exists() else []
        return iter(sorted(numbered, key=lambda p: int(p.name)))

    # ---- writing ----

    def begin_attempt(self, trial: TrialSpec, session: int = 0, **where: Any) -> int:
        """Makes this the attempt that may write. Returns its number, from 1.

        Args:
            session: number of the driver's session, which a later one supersedes.
            where: what is to be known of the process, as JSON values.
        Raises:
            ReplacedError: a later session has begun an attempt.
        """
        (self.path / "attempts").mkdir(parents=True, exist_ok=True)
        while True:
            before = self.newest_begun
            if before["session"] > session:
                raise ReplacedError(f"{self.path.name}: another driver has taken the sweep over from this one")
            number = before["attempt"] + 1
            file = self.path / "attempts" / f"{number}.json"
            try:
                file.touch(exist_ok=False)  # a number belongs to one process, whoever is suspended halfway
            except FileExistsError:
                continue
            write_json(file, {"attempt": number, "session": session, **where})
            write_json(self.path / "trial.json", trial.to_json())
            self.attempt = number
            return number

    def _check_attempt(self) -> None:
        if self.newest_attempt != self.attempt:
            raise StaleAttemptError(
                f"{self.path.name}: attempt {self.attempt} writes after {self.newest_attempt} began"
            )

    def append(self, tokens: int, metrics: dict[str, float]) -> None:
        """Adds a metric row."""
        self._check_attempt()
        row = {"step": tokens, "timestamp": time.time_ns() // 1_000_000, "metrics": metrics}
        with self._rows_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _keep_rows(self, rows: list[dict[str, Any]], tokens: int) -> None:
        """Begins this attempt's rows with those up to `tokens`; what an older one still writes is not among them."""
        self._check_attempt()
        kept = "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= tokens)
        write_atomically(self._rows_path, kept.encode())
        for attempt, path in self._rows_files().items():
            if attempt < self.attempt:
                path.unlink(missing_ok=True)

    @property
    def _rows_path(self) -> Path:
        return self.path / f"metrics-{self.attempt}.jsonl"

    def checkpoint(self, tokens: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Saves a training state; older ones than the last two go."""
        self._check_attempt()
        target = self.path / "checkpoints" / str(tokens)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        write_atomically(target / "state.safetensors", safetensors.torch.save(tensors))
        self._check_attempt()  # again: that took a while
        write_json(target / "manifest.json", {"sha256": file_hash(target / "state.safetensors"), "state": state})
        for old in list(self._checkpoints())[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old, ignore_errors=True)

    def finish(self, sae: SAE) -> None:
        """Saves the finished SAE and marks the trial as done; its checkpoints are needed no more."""
        self._check_attempt()
        temporary = self.path / f".sae-{self.attempt}"
        sae.save(temporary)
        self._check_attempt()  # again: that took a while
        shutil.rmtree(self.path / "sae", ignore_errors=True)
        temporary.rename(self.path / "sae")
        write_json(self.path / "DONE", {"attempt": self.attempt})
        for left in (self.path / "checkpoints", *self.path.glob(".sae-*")):
            shutil.rmtree(left, ignore_errors=True)

    def fail(self, reason: str) -> None:
        """Marks the trial as failed for good."""
        self._check_attempt()
        write_json(self.path / "FAILED", {"reason": reason})

    def forget_failure(self) -> None:
        """Before a new launch tries again."""
        (self.path / "FAILED").unlink(missing_ok=True)

    def save_evaluation(
        self, fingerprint: str, tokens: int, evaluation: Evaluation, pursuit_l0: int | None = None
    ) -> None:
        """Of the finished SAE: whoever evaluates it comes to the same numbers, so any process may write them."""
        path = self._evaluation_path(fingerprint, pursuit_l0)
        path.parent.mkdir(exist_ok=True)
        kind, step = ("eval", tokens) if pursuit_l0 is None else ("pursuit", pursuit_l0)
        metrics = {f"{kind}/{name}": value for name, value in evaluation.metrics.items()}
        timestamp = time.time_ns() // 1_000_000
        value = {"step": step, "timestamp": timestamp, "metrics": metrics, "sequences": evaluation.sequences}
        write_atomically(path, (json.dumps(value) + "\n").encode())  # in one line: there may be many contexts
