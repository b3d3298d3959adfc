"""Lines of a plan on what a sweep file asks for beside trials: tables of features, probes, a scheduler."""

from __future__ import annotations

from collections.abc import Sequence

from gsae_ray.capacity.memory import feature_groups
from gsae_ray.config.scheduler import compared, rungs
from gsae_ray.config.sweep import Sweep
from gsae_ray.config.trial import TrialSpec

PROBE_S, FIRST_PROBE_S = 3, 9
"""Seconds that the built-in tasks take an SAE, and the first at a site besides: docs/probes.md."""


def extra_notices(sweep: Sweep, trials: Sequence[TrialSpec], here: bool) -> list[str]:
    """Lines on what is asked for.

    Args:
        sweep: as its file says it.
        trials: of it.
        here: whether it is to run on this machine, which then has the data sets of its probes.

    Raises:
        UserError: a data set of probes is not there, or not labelled as one.
    """
    return [*_features(sweep, trials), *_probes(sweep, here), *_scheduler(sweep, trials)]


def _features(sweep: Sweep, trials: Sequence[TrialSpec]) -> list[str]:
    if (settings := sweep.evaluation.features) is None:
        return []
    passes = 2 * len(feature_groups(sweep, trials))
    which = "if all SAEs were on the frontier" if settings.saes == "frontier" else "of all SAEs"
    return [
        f"evaluation.features: at the end {passes} passes over the held-out text up to the deepest site, {which}, and "
        "each SAE encodes it twice"
    ]


def _probes(sweep: Sweep, here: bool) -> list[str]:
    if sweep.evaluation.probes is None:
        return []
    tasks = ""
    if here:
        from gsae_ray.data.probe_data import count_tasks  # here: it imports what reads data sets

        tasks = f"up to {count_tasks(sweep.evaluation.probes)} tasks; "
    return [
        f"evaluation.probes: {tasks}the built-in ones take about {PROBE_S} seconds an SAE, and {FIRST_PROBE_S} more "
        "for the first at a site, which the time above leaves out"
    ]


def _scheduler(sweep: Sweep, trials: Sequence[TrialSpec]) -> list[str]:
    if not (able := compared(trials, sweep.scheduler)):
        return []
    at = sorted({rung for trial in able for rung in rungs(trial, sweep.scheduler)})
    return [
        f"scheduler: {len(able)} of {len(trials)} trials are compared after {', '.join(f'{rung:,}' for rung in at)} "
        "rows, and those that are beaten are stopped; all costs above are without that"
    ]
