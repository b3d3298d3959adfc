"""Addresses of pages in MLflow's UI. Does not import MLflow."""

from __future__ import annotations

from gsae_ray.tracking.credentials import redacted

_TRAINING = "?workflowType=machine_learning"
"""Without it MLflow 3.17 opens an experiment on an empty page of traces, whatever kind its tags say that it is of."""


def experiment_page(server: str, experiment_id: str) -> str:
    """The runs of an experiment."""
    return f"{redacted(server).rstrip('/')}/#/experiments/{experiment_id}/runs{_TRAINING}"


def run_page(server: str, experiment_id: str, run_id: str) -> str:
    """A run."""
    return f"{redacted(server).rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}{_TRAINING}"
