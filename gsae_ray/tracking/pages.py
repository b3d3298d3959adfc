"""Addresses of pages in MLflow's UI. Does not import MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote, urlencode, urlsplit

from gsae_ray.tracking.credentials import HTTP, redacted
from gsae_ray.tracking.tags import KIND, LAUNCH

_TRAINING = "?workflowType=machine_learning"
"""Without it MLflow 3.17 opens an experiment on an empty page of traces, whatever kind its tags say that it is of."""
SHOWN_EXPERIMENTS = 5


def trials_page(server: str, experiment_id: str, launch: str | None = None) -> str:
    """The trials of an experiment, or of one of its launches, as a table, those with the lowest L0 first.

    Filtered, and in another order than that of time: else MLflow shows the runs of launches, with those of their trials
    folded away below them.
    """
    chosen = f"tags.`{KIND}` = 'trial'" + (f" and tags.`{LAUNCH}` = '{launch}'" if launch is not None else "")
    query = {"searchFilter": chosen, "orderByKey": "metrics.`eval/l0`", "orderByAsc": "true"}
    return f"{_base(server)}#/experiments/{experiment_id}/runs{_TRAINING}&{urlencode(query, quote_via=quote)}"


def page_of(server: str, experiment_id: str, run_id: str) -> str | None:
    """The page of a run, where what records has pages: a server, no SQLite file or database."""
    return run_page(server, experiment_id, run_id) if urlsplit(server).scheme in HTTP else None


def run_page(server: str, experiment_id: str, run_id: str) -> str:
    """A run."""
    return f"{_base(server)}#/experiments/{experiment_id}/runs/{run_id}{_TRAINING}"


def artifact_page(server: str, experiment_id: str, run_id: str, path: str) -> str:
    """A run's page that shows one of its artifacts."""
    return f"{_base(server)}#/experiments/{experiment_id}/runs/{run_id}/artifacts/{quote(path)}{_TRAINING}"


def artifact_file(run_id: str, path: str) -> str:
    """An artifact itself, as seen from any page of the UI; a picture may be shown from there."""
    return f"get-artifact?{urlencode({'path': path, 'run_id': run_id})}"


def model_page(server: str, name: str) -> str:
    """A registered model."""
    return f"{_base(server)}#/models/{quote(name, safe='')}{_TRAINING}"


def _base(server: str) -> str:
    """The address that pages are below; empty for links from one page of the UI to another."""
    return f"{redacted(server).rstrip('/')}/" if server else ""


def experiment_pages(server: str, ids: Mapping[str, str]) -> list[str]:
    """A line for each experiment, by name: the first ones, and how many more there are."""
    shown = [f"{name}: {trials_page(server, found)}" for name, found in [*ids.items()][:SHOWN_EXPERIMENTS]]
    more = len(ids) - len(shown)
    return [*shown, f"and {more} more"] if more else shown
