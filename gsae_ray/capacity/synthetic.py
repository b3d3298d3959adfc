"""What synthetic activations cost as the source of a sweep."""

from __future__ import annotations

from collections.abc import Sequence

from gsae_ray.capacity.memory import Memory, rows_producer_memory
from gsae_ray.config.scheduler import compared_evaluations
from gsae_ray.config.sweep import Sweep
from gsae_ray.config.synthetic import SITE
from gsae_ray.config.trial import TrialSpec
from gsae_ray.storage.references import Reference
from gsae_ray.synthetic.dictionary import dictionary
from gsae_ray.synthetic.rows import batch_rows

COSINES = 2
"""Arrays of cosines, of every true feature with every latent, that the matching of the two has at a time."""
FEW_ROWS = 10
"""A feature that is active on fewer rows is not learnt."""
FLOPS_A_NUMBER = 16
"""Of drawing a random number and comparing it, in the time that so many FLOPs of a product take, about."""


class SyntheticCost:
    """See `SourceCost`."""

    name = "synthetic rows"
    dtype = "float32"

    def __init__(self, sweep: Sweep) -> None:
        """Makes the dictionary.

        Raises:
            UserError: it cannot be had.
        """
        self._frequency_G = dictionary(sweep.synthetic).frequency_G
        self.sweep = sweep
        self.widths = {SITE: sweep.synthetic.d_in}

    @property
    def _row_flops(self) -> float:
        """Those of drawing a row: a number for each feature, and a sum of directions."""
        model = self.sweep.synthetic
        return FLOPS_A_NUMBER * (model.features + (model.d_in if model.noise else 0)) + 2 * model.active * model.d_in

    @property
    def block_flops(self) -> float:
        """Those of drawing its rows."""
        return self._row_flops * self.sweep.rows_a_block

    def evaluation_flops(self, trials: Sequence[TrialSpec]) -> float:
        """Held-out rows are drawn anew for each SAE, twice; and twice for their norms and mean."""
        encoders, references = len(self.sweep.evaluation.encoders), len(self.sweep.references)
        further = compared_evaluations(trials, self.sweep.scheduler)
        each = (encoders + len(trial.training.snapshots_at) + further.get(trial.name, 0) for trial in trials)
        evaluations = sum(each) + references
        return self._row_flops * self.sweep.evaluation.tokens * (2 * evaluations + 2)

    def producer_memory(
        self, block_bytes: int, trials: Sequence[TrialSpec], references: Sequence[Reference] = ()
    ) -> Memory:
        """That of a block, and of an evaluation."""
        model = self.sweep.synthetic
        rows = batch_rows(model)
        drawn = 4 * model.features * (model.d_in + 3 * rows)  # the dictionary; numbers, comparisons, indices
        widest = max((trial.d_sae for trial in trials), default=0)
        drawn += COSINES * 8 * model.features * max([widest, *(reference["d_sae"] for reference in references)])
        return rows_producer_memory(drawn, rows, block_bytes, trials, references)

    def disk_bytes(self, blocks: int) -> int:  # noqa: ARG002
        """None: rows are drawn whenever they are asked for."""
        return 0

    def notices(self) -> list[str]:
        """Whether some of the true features are too rare to be learnt."""
        rows = self.sweep.longest_tokens
        rare = int((self._frequency_G * rows < FEW_ROWS).sum())
        if not rare:
            return []
        features = len(self._frequency_G)
        return [
            f"model: {rare:,} of {features:,} true features are expected on fewer than {FEW_ROWS} of {rows:,} rows: no "
            f"SAE can learn them, and the largest mcc is about {1 - rare / features:.2f}"
        ]
