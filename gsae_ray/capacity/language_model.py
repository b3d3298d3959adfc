"""What a language model costs as the source of a sweep, measured on its skeleton: shapes without weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from gsae_ray.capacity.dtypes import dtype_notices
from gsae_ray.capacity.memory import Memory, feature_groups, keeps_log_probs, producer_memory, states_bytes
from gsae_ray.config.sae_settings import targets
from gsae_ray.config.scheduler import compared_evaluations
from gsae_ray.config.site import Site
from gsae_ray.config.sweep import Sweep
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import UserError, first_line
from gsae_ray.evaluation.evaluator import STATES_BYTES
from gsae_ray.language_model.hooks import capture, check_targets, forward, layers_of, site_widths
from gsae_ray.language_model.loading import layer_count, load_skeleton
from gsae_ray.language_model.partial_pass import layers_before, run_whole, shares_keys

TOKEN_BYTES = 4
"""Of a token in storage."""


class LanguageModelCost:
    """See `SourceCost`.

    Every position of a context counts as a row, but for the first ones that `dataset.skip_positions` drops. Special
    tokens make real blocks a little smaller, and perhaps one more of them.
    """

    name = "language model"

    def __init__(self, sweep: Sweep) -> None:
        """Runs one context through the model without weights.

        Raises:
            UserError: the model's configuration cannot be loaded, a site is not there, or it does not run without
                weights.
        """
        self._skeleton = load_skeleton(sweep.language_model)
        self.sweep = sweep.of_model(layer_count(self._skeleton))
        self.dtype = sweep.language_model.dtype
        self.widths, self._flops = _measure(self._skeleton, self.sweep)

    @property
    def block_flops(self) -> float:
        """Those of passes that stop at the deepest site."""
        return self._flops.to_deepest_site * self.sweep.block_contexts

    def evaluation_flops(self, trials: Sequence[TrialSpec]) -> float:
        """Those of passes over the held-out contexts.

        Whole passes: the model as it is, with each site ablated, and references. An SAE of the sweep takes the layers
        from its site on, and the head of the model as it is, where that is not kept; all layers where states are not.
        """
        sweep, flops = self.sweep, self._flops
        heldout = sweep.evaluation.tokens / sweep.rows_a_context
        a_site = 1 if sweep.text.max_norm is None else 2  # ablated; before that for the norms of its rows
        whole_passes = len(sweep.references) + a_site * len(sweep.trained_sites) + 1
        text = self._skeleton.config.get_text_config()
        kept = min(1.0, STATES_BYTES / states_bytes(sweep, text, self._by_name()))
        head, passes_of_clean = (0, 0) if keeps_log_probs(sweep, text) else (flops.head, 1)
        further = compared_evaluations(trials, sweep.scheduler)
        saes = sum(
            (len(sweep.evaluation.encoders) + len(trial.training.snapshots_at) + further.get(trial.name, 0))
            * (kept * (flops.from_sites[trial.site] + head) + (1 - kept) * flops.whole * (1 + passes_of_clean))
            for trial in trials
        )
        looked = 2 * len(feature_groups(sweep, trials)) * flops.to_deepest_site
        return (flops.whole * whole_passes + saes + looked) * heldout

    def producer_memory(self, block_bytes: int, trials: Sequence[TrialSpec]) -> Memory:
        """That of the model, a block, and what evaluations keep."""
        return producer_memory(self.sweep, self._skeleton, self._by_name(), block_bytes, trials)

    def disk_bytes(self, blocks: int) -> int:
        """Those of the tokens."""
        return TOKEN_BYTES * blocks * self.sweep.block_contexts * self.sweep.language_model.context_size

    def notices(self) -> list[str]:
        """Lines on `model.dtype`, and on sites where evaluations run the whole model."""
        return dtype_notices(self.sweep) + _run_whole(self._skeleton, self.sweep.trained_sites)

    def _by_name(self) -> dict[str, int]:
        return {site.name: width for site, width in self.widths.items()}


class _Flops(NamedTuple):
    """FLOPs of the model on one context."""

    to_deepest_site: int
    whole: int
    head: int
    """Those after the last layer."""
    from_sites: dict[str, int]
    """Site -> those of the layers from it on, and of the head; where evaluations cannot begin there, of all."""


def _measure(skeleton: PreTrainedModel, sweep: Sweep) -> tuple[dict[Site, int], _Flops]:
    """Runs one context through the model without weights.

    Returns:
        The width of the activations at each used site, and FLOPs.

    Raises:
        UserError: a site is not there, or the model does not run without weights.
    """
    tokens_BT = torch.zeros(1, sweep.language_model.context_size, dtype=torch.long, device="meta")

    to_deepest_site, whole = FlopCounterMode(display=False), FlopCounterMode(display=False)
    check_targets(skeleton, targets(sweep.saes, sweep.sites.sites()))
    try:
        d_in = site_widths(skeleton, sweep.used_sites)
        with to_deepest_site:
            capture(skeleton, tokens_BT, sweep.used_sites)
        with whole:
            forward(skeleton, tokens_BT)
    except (RuntimeError, NotImplementedError) as error:  # some kinds of layers need their weights
        raise UserError(
            f"model.name: {sweep.language_model.name!r} cannot be forecast, since it does not run without its weights "
            f"({first_line(error)})"
        ) from error
    total, names = whole.get_total_flops(), {module: name for name, module in skeleton.named_modules()}
    by_module = {key.partition(".")[2]: sum(counts.values()) for key, counts in whole.get_flop_counts().items()}
    layers = [by_module.get(names[layer], 0) for layer in layers_of(skeleton) or ()]
    skips = {site.name: layers_before(skeleton, site.source) for site in sweep.trained_sites}
    skips = {name: 0 if shares_keys(skeleton.config, skip) else skip for name, skip in skips.items()}
    from_sites = {name: total - sum(layers[:skip]) for name, skip in skips.items()}
    return d_in, _Flops(to_deepest_site.get_total_flops(), total, total - sum(layers), from_sites)


def _run_whole(skeleton: PreTrainedModel, sites: Sequence[Site]) -> list[str]:
    """Lines on sites where evaluations run the whole model, as far as its configuration tells; producers find out."""
    layers, why = len(layers_of(skeleton) or ()), "some of those take keys and values from layers before them"
    skips = sorted({layers_before(skeleton, site.source) for site in sites})
    return [run_whole(skip, layers, why) for skip in skips if shares_keys(skeleton.config, skip)]
