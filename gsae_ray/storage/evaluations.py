"""What is asked of a finished SAE, and what its evaluation left in storage."""

from __future__ import annotations

import dataclasses
import time
from typing import NamedTuple

from typing_extensions import NotRequired, TypedDict

from gsae_ray.evaluation.bootstrap import intervals_of
from gsae_ray.evaluation.metrics import Evaluation
from gsae_ray.files import JSONFile

Asked = int | str | None
"""An evaluation that is asked for. None: one with the SAE's own encoder; a number: one by gradient pursuit with that
target L0; text: probes, by the fingerprint of what is probed (`data.probe_set`)."""


class EvaluationRequest(NamedTuple):
    """What a launch asks of every finished SAE."""

    fingerprint: str
    """Of the held-out contexts."""
    encoders: tuple[Asked, ...]


class EvaluationRecord(TypedDict):
    """An evaluation of the finished SAE."""

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


def evaluation_suffix(asked: Asked) -> str:
    """What the names of files have that hold an evaluation: nothing where it is with the SAE's own encoder."""
    if asked is None:
        return ""
    return f"-pursuit-{asked}" if isinstance(asked, int) else f"-probes-{asked[:16]}"


def evaluation_record(evaluation: Evaluation, kind: str, step: int, sae_hash: str) -> EvaluationRecord:
    """What is kept of an evaluation.

    Args:
        evaluation: what was measured.
        kind: what the names of its metrics begin with: "eval" or "pursuit".
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


def with_intervals(record: EvaluationRecord) -> EvaluationRecord:
    """A record with the ends of its intervals: the same one where it has some, else from the sums that it kept."""
    if any(name.endswith("_low") for name in record["metrics"]):
        return record
    kind = next(iter(record["metrics"]), "").partition("/")[0]
    ends = {f"{kind}/{name}": value for name, value in intervals_of(record["sequences"]).items()}
    return {**record, "metrics": {**record["metrics"], **ends}} if ends else record


@dataclasses.dataclass(frozen=True)
class TrialStatus:
    """Where a trial stands, for a launch that asks for certain evaluations."""

    trained: bool
    """Whether its SAE is finished."""
    missing: tuple[Asked, ...]
    """The evaluations asked for that the SAE has not; all of them before it is trained."""
    outdated: tuple[Asked, ...]
    """Those of the missing for which there is an evaluation of an older schema, without some metrics of now."""
    failure: str | None
    """Why training, or the evaluation, failed for good; None where it did not, or where `evaluated`."""

    @property
    def done(self) -> bool:
        """Whether there is nothing left to train or to evaluate."""
        return self.trained and not self.missing

    @property
    def evaluated(self) -> bool:
        """Whether there is an evaluation with every encoder asked for, be it of an older schema."""
        return self.trained and self.missing == self.outdated
