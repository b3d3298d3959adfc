"""The process that runs a launch.

Sets what Ray and Tune read from the environment, partly while they are imported: here, so that it comes before
whichever module of this package imports them. What the user has set stays.
"""

from __future__ import annotations

import os

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
    # A result may be without the metric that a scheduler looks at: metrics of an evaluation are in some rows only, and
    # a trial that fails at once has no row.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
