"""How Ray Tune is used. What of it is switched off is here and, where environment variables do that, in `driver`.

Tune starts a process for each trial as resources become free, starts it again when it dies, hands its results to
callbacks (and to a scheduler, if there is one) and ends it. Trials keep their own state in storage, so that a launch
goes on without Tune's: nothing of what Tune saves is ever read, and nothing that is read is a pickle.

With `scheduler.stop_dominated` there is a scheduler (`driver.stop_dominated`): a trial that it stops is written down in
the launch's folder first. Without that `TrialRunner` would take such a trial for one that died.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ray import tune


def run_config(scratch: Path, callbacks: Sequence[tune.Callback], stop: tune.Stopper) -> tune.RunConfig:
    """Returns Tune's settings for a run of trials.

    Args:
        scratch: a temporary folder for what Tune writes nevertheless.
        callbacks: told of what happens to trials.
        stop: by which the run is ended.
    """
    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return tune.RunConfig(
        callbacks=list(callbacks),
        stop=stop,
        storage_path=str(scratch),
        verbose=0,
        progress_reporter=tune.CLIReporter(),  # in a notebook the default one clears what the cell has printed
        failure_config=tune.FailureConfig(max_failures=-1),  # `TrialDeaths` decides how often a trial is tried again
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # trials save their own
    )
