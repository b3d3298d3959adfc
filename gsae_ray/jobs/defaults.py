"""Defaults of a submission. They do without Ray, which takes seconds to load: `--help` shows them too."""

from __future__ import annotations

DASHBOARD = "http://127.0.0.1:8265"
"""The dashboard of this machine, or this machine's end of a tunnel (`ray dashboard cluster.yaml`)."""
STORAGE = "~/gsae_runs"
"""A folder of the cluster."""
GRACE_S = 240
"""Seconds that a job has between SIGTERM, at which trials save a checkpoint, and SIGKILL: a minute for trials that do
not end (TUNE_FORCE_TRIAL_CLEANUP_S of `driver.tune_settings`), and two last calls of either thread that writes to an
MLflow server that hangs, each as long as `tracking.connection.quick_failure` waits."""
