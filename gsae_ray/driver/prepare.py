"""Checks a sweep against its model and its data, and works out its tokens, layout and trials. Starts nothing."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import torch

from gsae_ray.activations.language_model_source import LanguageModelSpec
from gsae_ray.activations.layout import Layout
from gsae_ray.activations.producer import ProducerSpec
from gsae_ray.capacity.memory import Memory, producer_memory
from gsae_ray.config.sae_settings import targets
from gsae_ray.config.sweep import Sweep
from gsae_ray.config.trial import RUN, TrialSpec
from gsae_ray.data.documents import find_data, pinned_data
from gsae_ray.data.prepare import prepare_tokens
from gsae_ray.data.tokens import TokenStore
from gsae_ray.driver.references import read_references
from gsae_ray.errors import UserError
from gsae_ray.files import digest
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
from gsae_ray.storage.evaluations import EvaluationRequest
from gsae_ray.storage.launch_directory import recorded_engine
from gsae_ray.storage.references import Reference
from gsae_ray.tracking.parents import fetch_parents, parent_configs
from gsae_ray.training.engines import check_engine


@dataclasses.dataclass(frozen=True)
class PreparedSweep:
    """A sweep that is checked against its model and its data; nothing has been started."""

    sweep: Sweep
    tokens: TokenStore
    layout: Layout
    trials: list[TrialSpec]
    evaluation: EvaluationRequest
    """What every SAE is evaluated on, and with which encoders."""
    producer: Memory
    """What each producer needs."""
    modules: dict[str, str]
    """Site -> the same by module path, as `by_module`; none where transformers alone does not load the model."""
    parents: dict[str, Path]
    """Folders of finished SAEs of other sweeps that trials start from, by `TrialSpec.parent`."""
    references: tuple[Reference, ...] = ()
    """SAEs from elsewhere to be evaluated and shown beside the trials."""


def prepare(
    sweep: Sweep, storage: Path, say: Callable[[str], None] = lambda _: None, tracking_uri: str | None = None
) -> PreparedSweep:
    """Checks a sweep against its model and data, and tokenises.

    Args:
        sweep: as its file has it.
        storage: where tokens and parents are kept.
        say: is told what the user should know, and how far the tokens are.
        tracking_uri: where the parents and references that a sweep names by run are fetched from.

    Raises:
        UserError: what the sweep names is not there, or does not fit together.
    """
    taken = find_data(sweep.dataset).notice(sweep.dataset.split)
    for notice in (*sweep.notices(), *([taken] if taken else [])):
        say(notice)
    skeleton = load_skeleton(sweep.model)
    sweep = sweep.of_model(layer_count(skeleton))
    own_format = sweep.model.name == "builtin" or isinstance(skeleton, TransformerLensModel)
    check_weights(sweep.model)
    sweep = sweep.model_copy(update={"model": pinned(sweep.model), "dataset": pinned_data(sweep.dataset)})
    check_targets(skeleton, targets(sweep.saes, sweep.sites.sites()))
    try:
        widths = site_widths(skeleton, sweep.used_sites)
    except (RuntimeError, NotImplementedError):  # a few kinds of layers cannot run without weights
        widths = site_widths(load_model(sweep.model), sweep.used_sites)
    sweep = _with_engine(sweep, storage / sweep.name, say)
    parents = fetch_parents(sweep, storage / sweep.name / "parents", tracking_uri)
    configs = parent_configs(parents)
    references = read_references(sweep, widths, tracking_uri)
    # What does not fit, and what cannot be loaded, is told before tokens are prepared.
    for engine in {trial.training.engine for trial in sweep.expand(widths, {}, configs)}:
        if engine != "sparse-cuda" or torch.cuda.is_available():  # else its trials run on other machines
            check_engine(engine)
    tokens = prepare_tokens(sweep, storage / "tokens", _every_few_seconds(say))
    model = model_fingerprint(sweep.model)
    evaluation = [model, tokens.heldout_fingerprint, sweep.dataset.max_norm]
    layout = Layout(
        rows=tokens.rows,
        widths={site.name: width for site, width in widths.items()},
        dtype=sweep.model.dtype,
        chunk_bytes=sweep.producers.chunk_mib * 2**20,
    )
    trials = sweep.expand(widths, {"model": model, "tokens": tokens.fingerprint}, configs)
    block_bytes = max(layout.nbytes(block, tuple(layout.widths)) for block in range(len(layout.rows)))
    return PreparedSweep(
        sweep=sweep,
        tokens=tokens,
        layout=layout,
        trials=trials,
        producer=producer_memory(sweep, skeleton, layout.widths, block_bytes, trials, references),
        evaluation=EvaluationRequest(digest(evaluation), sweep.evaluation.encoders),
        modules={} if own_format else {site.name: by_module(skeleton, site).name for site in widths},
        parents={RUN + run_id: folder for run_id, folder in parents.items()},
        references=references,
    )


def _with_engine(sweep: Sweep, folder: Path, say: Callable[[str], None]) -> Sweep:
    """The sweep with an engine in place of `auto`: that of its newest launch, so that it goes on.

    Raises:
        UserError: this machine cannot run that one.
    """
    if sweep.training.engine != "auto":
        return sweep
    possible, recorded = sweep.possible_engines, recorded_engine(folder)
    for name in possible:
        if name == recorded:
            check_engine(name)
            if name != possible[-1]:
                say(f"training.engine: auto is {name}, as in the launch before")
            return sweep.with_engine(name)
    try:
        check_engine(possible[-1])
        return sweep.with_engine(possible[-1])
    except UserError as error:
        say(f"{error}; training.engine: auto is dense")
        return sweep.with_engine("dense")


def _every_few_seconds(say: Callable[[str], None], interval_s: float = 5) -> Callable[[str, int, int], None]:
    """Returns a reporter that says how far something is every few seconds; nothing of what is done at once."""
    last = time.monotonic()

    def report(what: str, done: int, needed: int) -> None:
        nonlocal last
        if time.monotonic() - last >= interval_s:
            last = time.monotonic()
            say(f"{what}: {done:,} of {needed:,} rows")

    return report


def producer_spec(prepared: PreparedSweep) -> ProducerSpec:
    """Returns what every producer of this sweep is made from."""
    sweep, tokens = prepared.sweep, prepared.tokens
    source = LanguageModelSpec(
        model=sweep.model,
        tokens=tokens,
        batch=sweep.producers.batch,
        evaluation_batch=sweep.evaluation.batch,
        gpus=sweep.producers.gpus,
        max_norm=sweep.dataset.max_norm,
    )
    return ProducerSpec(source, prepared.layout, seed=tokens.seed, threads=sweep.producers.cpus)
