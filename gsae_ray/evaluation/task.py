"""The evaluation of an SAE, and probes on its features, as tasks of a producer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gsae_ray.config.site import Site
from gsae_ray.data.probe_set import ProbeSets
from gsae_ray.evaluation.metrics import Evaluation
from gsae_ray.saes import from_bytes

if TYPE_CHECKING:
    from gsae_ray.evaluation.evaluator import Evaluator
    from gsae_ray.evaluation.row_evaluator import RowEvaluator
    from gsae_ray.language_model.source import ActivationSource


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
    share: float = 1.0
    """Of the held-out contexts, the first ones; the rest is left out."""

    name = "evaluate"

    def run(self, source: ActivationSource, cache: dict[str, Any], say: Callable[[str], None]) -> Evaluation:
        """Evaluates it.

        What takes no SAE is computed once a producer and site, and stays in the cache. The user is told where the model
        cannot begin at the site.

        Raises:
            NumericError: the site's activations, or the model's losses without the SAE, are not finite.
        """
        if "evaluator" not in cache:
            cache["evaluator"] = evaluator_of(source)
        sae = from_bytes(self.cfg, self.weights).to(source.device)
        evaluation: Evaluation = cache["evaluator"].evaluate(Site(self.site), sae, self.pursuit_l0, self.share)
        for line in cache["evaluator"].notices():
            say(line)
        return evaluation


@dataclasses.dataclass(frozen=True)
class Probe:
    """Fits and scores sparse probes on the features of an SAE as it is saved; see `ProducerTask`."""

    site: str
    cfg: str
    """Its `cfg.json`."""
    weights: bytes
    """Its weights file."""
    probes: ProbeSets

    name = Evaluate.name  # it counts as one

    def run(self, source: ActivationSource, cache: dict[str, Any], say: Callable[[str], None]) -> Evaluation:  # noqa: ARG002
        """Probes it. What takes no SAE is computed once a producer and site, and stays in the cache.

        Raises:
            NumericError: the site's activations are not finite.
        """
        from gsae_ray.evaluation.probing import Prober  # here, as below
        from gsae_ray.language_model.source import HeldOutContexts

        key = f"prober {self.probes.fingerprint}"
        if key not in cache:
            heldout = source.heldout()
            assert isinstance(heldout, HeldOutContexts), "other sources are refused with the sweep file"
            cache[key] = Prober(heldout, source.max_norm, self.probes, source.device)
        sae = from_bytes(self.cfg, self.weights).to(source.device)
        evaluation: Evaluation = cache[key].measure(Site(self.site), sae)
        return evaluation


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
