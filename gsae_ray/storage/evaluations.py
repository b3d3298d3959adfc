"""What is asked of a finished SAE, and what its evaluation left in storage."""

from __future__ import annotations

import dataclasses
import time
from typing import NamedTuple

from typing_extensions import NotRequired, TypedDict

from gsae_ray.evaluation.bootstrap import intervals_of
from gsae_ray.evaluation.metrics import Evaluation
from gsae_ray.files import JSONFile


class Snapshot(NamedTuple):
    """A trial's SAE as it was after some of the tokens (`storage.snapshots`), with its own encoder."""

    tokens: int


Subject = int | str | Snapshot | None
"""What of a trial is evaluated. None: its finished SAE with its own encoder; a number: that SAE by gradient pursuit
with that target L0; text: that SAE by probes, the fingerprint of what is probed (`data.probe_set`); or a snapshot."""


def suffix_of(subject: Subject) -> str:
    """What tells the files of evaluations apart: `-pursuit-8`, `-snapshot-1000000`, nothing for the SAE itself."""
    if isinstance(subject, Snapshot):
        return f"-snapshot-{subject.tokens}"
    if isinstance(subject, str):
        return f"-probes-{subject[:16]}"
    return "" if subject is None else f"-pursuit-{subject}"


def kind_and_step(subject: Subject, tokens: int) -> tuple[str, int]:
    """What the names of an evaluation's metrics begin with, and the step at which MLflow shows them.

    Args:
        subject: what was evaluated.
        tokens: that the trial was trained on.
    """
    if isinstance(subject, Snapshot):
        return "snapshot", subject.tokens
    return ("pursuit", subject) if isinstance(subject, int) else ("eval", tokens)


class EvaluationRequest(NamedTuple):
    """What a launch asks of every finished trial."""

    fingerprint: str
    """Of the held-out contexts."""
    encoders: tuple[int | str | None, ...]
    """None: an evaluation with the SAE's own encoder; a number: one by gradient pursuit with that target L0; text: by
    probes, see `Subject`."""
    snapshots: tuple[int, ...] = ()
    """Tokens of the snapshots that are evaluated, too, of the trials that have them."""


class EvaluationRecord(TypedDict):
    """An evaluation of a finished SAE, or of a snapshot."""

    step: int
    timestamp: int
    metrics: dict[str, float]
    """Those of the evaluation, and the ends of their intervals (`evaluation.bootstrap.intervals_of`), which records of
    before do not have."""
    sequences: dict[str, list[float]]
    sae: str
    schema: NotRequired[int]
    """`evaluation.metrics.schema_version` when it was made; 1 where it does not say."""


EVALUATION = JSONFile(EvaluationRecord, "the same command evaluates this SAE again", sealed=True)


def evaluation_record(evaluation: Evaluation, kind: str, step: int, sae_hash: str) -> EvaluationRecord:
    """What is kept of an evaluation.

    Args:
        evaluation: what was measured.
        kind: what the names of its metrics begin with: "eval", "pursuit" or "snapshot".
        step: at which MLflow shows them.
        sae_hash: of the SAE, which tells whether the record is of that one.
    """
    measured = {**evaluation.metrics, **intervals_of(evaluation.sequences), **evaluation.ends}
    return {
        "step": step,
        "timestamp": time.time_ns() // 1_000_000,
        "metrics": {f"{kind}/{name}": value for name, value in measured.items()},
        "sequences": evaluation.sequences,
        "sae": sae_hash,
        "schema": evaluation.schema,
    }


def schema_of(evaluation: EvaluationRecord) -> int:
    """The schema version of a record, by which it is known which metrics it carries."""
    return evaluation.get("schema", 1)


@dataclasses.dataclass(frozen=True)
class TrialStatus:
    """Where a trial stands, for a launch that asks for certain evaluations."""

    trained: bool
    """Whether its SAE is finished."""
    missing: tuple[Subject, ...]
    """What was asked for and was not evaluated; all of it before the SAE is trained."""
    outdated: tuple[Subject, ...]
    """Those of the missing for which there is an evaluation of an older schema, without some metrics of now."""
    failure: str | None
    """Why training, or the evaluation, failed for good; None where it did not, or where `evaluated`."""

    @property
    def done(self) -> bool:
        """Whether there is nothing left to train or to evaluate."""
        return self.trained and not self.missing

    @property
    def evaluated(self) -> bool:
        """Whether all that was asked for was evaluated, be it by an older schema."""
        return self.trained and self.missing == self.outdated
