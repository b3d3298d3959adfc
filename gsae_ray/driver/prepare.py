"""Checks a sweep against the source of its activations, and works out its layout and trials. Starts nothing."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import torch

from gsae_ray.activations.layout import Layout
from gsae_ray.activations.producer import ProducerSpec
from gsae_ray.capacity.memory import Memory
from gsae_ray.config.sweep import Sweep
from gsae_ray.config.trial import RUN, TrialSpec
from gsae_ray.driver.references import read_references
from gsae_ray.driver.sources import find_source
from gsae_ray.driver.sources.base import PreparedSource
from gsae_ray.errors import UserError
from gsae_ray.files import digest
from gsae_ray.storage.evaluations import EvaluationRequest
from gsae_ray.storage.launch_directory import recorded_engine
from gsae_ray.storage.references import Reference
from gsae_ray.tracking.parents import fetch_parents, parent_configs
from gsae_ray.training.engines import check_engine


@dataclasses.dataclass(frozen=True)
class PreparedSweep:
    """A sweep that is checked against the source of its activations; nothing has been started."""

    sweep: Sweep
    source: PreparedSource
    layout: Layout
    trials: list[TrialSpec]
    evaluation: EvaluationRequest
    """What every SAE is evaluated on, with which encoders, and at which snapshots."""
    producer: Memory
    """What each producer needs."""
    parents: dict[str, Path]
    """Folders of finished SAEs of other sweeps that trials start from, by `TrialSpec.parent`."""
    references: tuple[Reference, ...] = ()
    """SAEs from elsewhere to be evaluated and shown beside the trials."""


def prepare(
    sweep: Sweep, storage: Path, say: Callable[[str], None] = lambda _: None, tracking_uri: str | None = None
) -> PreparedSweep:
    """Checks a sweep against the source of its activations, and prepares that: of a language model, tokens.

    Args:
        sweep: as its file has it.
        storage: where tokens and parents are kept.
        say: is told what the user should know, and how far the tokens are.
        tracking_uri: where the parents and references that a sweep names by run are fetched from.

    Raises:
        UserError: what the sweep names is not there, or does not fit together.
    """
    for notice in sweep.notices():
        say(notice)
    source = find_source(sweep, say)
    widths = source.widths
    sweep = _with_engine(source.sweep, storage / sweep.name, say)
    parents = fetch_parents(sweep, storage / sweep.name / "parents", tracking_uri)
    configs = parent_configs(parents)
    references = read_references(sweep, widths, tracking_uri)
    # What does not fit, and what cannot be loaded, is told before rows are prepared.
    for engine in {trial.training.engine for trial in sweep.expand(widths, {}, configs)}:
        if engine != "sparse-cuda" or torch.cuda.is_available():  # else its trials run on other machines
            check_engine(engine)
    prepared = source.prepare(storage, every_few_seconds(say))
    layout = Layout(
        rows=prepared.rows,
        widths={site.name: width for site, width in widths.items()},
        dtype=source.dtype,
        chunk_bytes=sweep.producers.chunk_mib * 2**20,
    )
    trials = sweep.expand(widths, prepared.provenance, configs)
    block_bytes = max(layout.nbytes(block, tuple(layout.widths)) for block in range(len(layout.rows)))
    heldout = [*prepared.heldout, sweep.dataset.max_norm]
    snapshots = {tokens for trial in trials for tokens in trial.training.snapshots_at}
    probed = [] if prepared.probes is None else [prepared.probes.fingerprint]
    return PreparedSweep(
        sweep=sweep,
        source=prepared,
        layout=layout,
        trials=trials,
        producer=source.producer_memory(block_bytes, trials, references),
        evaluation=EvaluationRequest(digest(heldout), (*sweep.evaluation.encoders, *probed), tuple(sorted(snapshots))),
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


def every_few_seconds(say: Callable[[str], None], interval_s: float = 5) -> Callable[[str, int, int], None]:
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
    source = prepared.source
    return ProducerSpec(source.spec, prepared.layout, source.seed, threads=prepared.sweep.producers.cpus)
