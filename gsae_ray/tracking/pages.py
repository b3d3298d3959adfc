"""Addresses of pages in MLflow's UI. Does not import MLflow."""

from __future__ import annotations

from urllib.parse import urlsplit

from gsae_ray.tracking.credentials import HTTP, redacted

_TRAINING = "?workflowType=machine_learning"
"""Without it MLflow 3.17 opens an experiment on an empty page of traces, whatever kind its tags say that it is of."""


def experiment_page(server: str, experiment_id: str) -> str:
    """The runs of an experiment."""
    return f"{redacted(server).rstrip('/')}/#/experiments/{experiment_id}/runs{_TRAINING}"


def page_of(server: str, experiment_id: str, run_id: str) -> str | None:
    """The page of a run, where what records has pages: a server, no SQLite file or database."""
    return run_page(server, experiment_id, run_id) if urlsplit(server).scheme in HTTP else None


def run_page(server: str, experiment_id: str, run_id: str) -> str:
    """A run."""
    return f"{redacted(server).rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}{_TRAINING}"
