"""A language model that reads text, as the source of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from gsae_ray.activations.language_model_source import LanguageModelSpec
from gsae_ray.capacity.memory import Memory, producer_memory
from gsae_ray.config.sae_settings import targets
from gsae_ray.config.sweep import Sweep
from gsae_ray.config.trial import TrialSpec
from gsae_ray.data.documents import find_data, pinned_data
from gsae_ray.data.prepare import Progress, prepare_tokens
from gsae_ray.data.probe_data import probe_sets
from gsae_ray.driver.sources.base import PreparedSource
from gsae_ray.language_model.hooks import by_module, check_targets, site_widths
from gsae_ray.language_model.loading import (
    check_weights,
    layer_count,
    load_model,
    load_skeleton,
    model_fingerprint,
    pinned,
)
from gsae_ray.language_model.transformer_lens import TransformerLensModel
from gsae_ray.storage.references import Reference


class LanguageModel:
    """See `Source`. Its weights are loaded only where layers do not run without them."""

    def __init__(self, sweep: Sweep, say: Callable[[str], None]) -> None:
        """Finds the model and the text.

        Raises:
            UserError: as `find_source`.
        """
        if (taken := find_data(sweep.text).notice(sweep.text.split)) is not None:
            say(taken)
        self._skeleton = load_skeleton(sweep.language_model)
        sweep = sweep.of_model(layer_count(self._skeleton))
        check_weights(sweep.language_model)
        self.sweep = sweep.model_copy(
            update={"model": pinned(sweep.language_model), "dataset": pinned_data(sweep.text)}
        )
        self.dtype = sweep.language_model.dtype
        check_targets(self._skeleton, targets(sweep.saes, sweep.sites.sites()))
        try:
            self.widths = site_widths(self._skeleton, sweep.used_sites)
        except (RuntimeError, NotImplementedError):  # a few kinds of layers cannot run without weights
            self.widths = site_widths(load_model(self.sweep.language_model), sweep.used_sites)

    def prepare(self, storage: Path, report: Progress) -> PreparedSource:
        """Tokenises the text."""
        sweep = self.sweep
        model, dataset = sweep.language_model, sweep.text
        probes = probe_sets(sweep)  # first: what is wrong with them is told before text is tokenised
        tokens = prepare_tokens(sweep, storage / "tokens", report)
        fingerprint = model_fingerprint(model)
        own_format = model.name == "builtin" or isinstance(self._skeleton, TransformerLensModel)
        spec = LanguageModelSpec(
            model=model,
            tokens=tokens,
            batch=sweep.producers.batch,
            evaluation_batch=sweep.evaluation.batch,
            gpus=sweep.producers.gpus,
            max_norm=dataset.max_norm,
        )
        return PreparedSource(
            spec=spec,
            rows=tokens.rows,
            seed=tokens.seed,
            provenance={"model": fingerprint, "tokens": tokens.fingerprint},
            heldout=(fingerprint, tokens.heldout_fingerprint),
            heldout_rows=tokens.heldout_rows,
            metadata={
                "model": model.model_dump(),
                "dataset": {**dataset.model_dump(), "prepend_bos": tokens.prepends_bos},
            },
            params={
                "model": model.name,
                "dataset": dataset.name,
                "context_size": model.context_size,
                "dtype": model.dtype,
                "skip_positions": dataset.skip_positions,
                "skip_special_tokens": dataset.skip_special_tokens,
            },
            probes=probes,
            modules={} if own_format else {site.name: by_module(self._skeleton, site).name for site in self.widths},
        )

    def producer_memory(self, block_bytes: int, trials: Iterable[TrialSpec], references: Iterable[Reference]) -> Memory:
        """That of the model, a block, and what evaluations keep."""
        widths = {site.name: width for site, width in self.widths.items()}
        return producer_memory(self.sweep, self._skeleton, widths, block_bytes, trials, references)
