"""The evaluation of an SAE as a task of a producer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gsae_ray.config.site import Site
from gsae_ray.evaluation.metrics import Evaluation
from gsae_ray.saes import from_bytes

if TYPE_CHECKING:
    from gsae_ray.evaluation.evaluator import Evaluator
    from gsae_ray.evaluation.row_evaluator import RowEvaluator
    from gsae_ray.language_model.source import ActivationSource

TOGETHER = 4
"""SAEs of an `EvaluateTogether` at most: trials wait for their blocks while it runs."""
TOGETHER_BYTES = 2**28
"""With so many bytes of weights it gets no further SAE."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluates an SAE as it is saved, on the held-out data of the source; see `ProducerTask`."""

    site: str
    cfg: str
    """Its `cfg.json`."""
    weights: bytes
    """Its weights file."""
    pursuit_l0: int | None = None
    """As of `reconstruct`; None: by its own encoder."""

    name = "evaluate"

    def run(self, source: ActivationSource, cache: dict[str, Any], say: Callable[[str], None]) -> Evaluation:
        """Evaluates it.

        What takes no SAE is computed once a producer and site, and stays in the cache. The user is told where the model
        cannot begin at the site.

        Raises:
            NumericError: the site's activations, or the model's losses without the SAE, are not finite.
        """
        (evaluation,) = EvaluateTogether((self,)).run(source, cache, say)
        return evaluation


@dataclasses.dataclass(frozen=True)
class EvaluateTogether:
    """Evaluates SAEs at one site, each as alone; what is needed of the clean model's head is computed once for all."""

    tasks: tuple[Evaluate, ...]
    """At least one."""

    name = "evaluate"

    def run(self, source: ActivationSource, cache: dict[str, Any], say: Callable[[str], None]) -> list[Evaluation]:
        """Evaluates them; see `Evaluate.run`. Returns their evaluations, in the order of the tasks."""
        if "evaluator" not in cache:
            cache["evaluator"] = evaluator_of(source)
        (site,) = {task.site for task in self.tasks}
        saes = [(from_bytes(task.cfg, task.weights).to(source.device), task.pursuit_l0) for task in self.tasks]
        evaluations: list[Evaluation] = cache["evaluator"].evaluate_together(Site(site), saes)
        for line in cache["evaluator"].notices():
            say(line)
        return evaluations


def evaluator_of(source: ActivationSource) -> Evaluator | RowEvaluator:
    """Evaluates SAEs spliced into the source's model, where there is one, else on rows alone."""
    # Here: trials, which name this task, load neither transformers nor datasets.
    from gsae_ray.evaluation.evaluator import Evaluator
    from gsae_ray.evaluation.row_evaluator import RowEvaluator
    from gsae_ray.language_model.source import HeldOutContexts

    heldout = source.heldout()
    if isinstance(heldout, HeldOutContexts):
        return Evaluator(heldout.model, heldout.tokens_ET, heldout.kept, heldout.batch, source.max_norm)
    return RowEvaluator(heldout, source.device, source.max_norm)
