"""How Ray Tune is used, and all of it that is switched off, in one place.

Tune starts a process for each trial as resources become free, starts it again when it dies, hands its results to
callbacks (and to a scheduler, if there is one) and ends it. Trials keep their own state in storage, so that a launch
goes on without Tune's: nothing of what Tune saves is ever read, and nothing that is read is a pickle.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

_ENVIRONMENT = {
    # Output: the driver has a display of its own.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard files: metric rows lie in storage
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    # Signals: the driver stops at SIGTERM, and Ctrl-C is an exception of its own.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Paths: trials get absolute ones.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # A trial without a GPU sees the GPUs' variables as the node has them.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Seconds until a trial that does not end when it is told to is killed.
    "TUNE_FORCE_TRIAL_CLEANUP_S": "60",
}
for _name, _value in _ENVIRONMENT.items():  # before Ray is imported; what the user has set stays
    os.environ.setdefault(_name, _value)

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
        failure_config=tune.FailureConfig(max_failures=-1),  # `TrialDeaths` decides how often a trial is tried again
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # trials save their own
    )
