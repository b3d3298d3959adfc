"""What may be submitted: checked before anything reaches the cluster."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gsae_ray.errors import UserError
from gsae_ray.jobs.job import Job
from gsae_ray.jobs.submit import submit

QUICKSTART = Path(__file__).parents[2] / "sweeps" / "quickstart.yaml"


def submit_quickstart(**options: Any) -> Job:
    chosen = {"tracking_uri": "http://127.0.0.1:1", "address": "http://127.0.0.1:1"} | options
    return submit(QUICKSTART, **chosen)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "no Ray dashboard answers at http://127.0.0.1:1"),
        ({"address": "127.0.0.1:6379"}, "give it as http://HOST:8265"),
        ({"tracking_uri": "sqlite:///mlflow.db"}, "not an MLflow server that the cluster can reach"),
        ({"tracking_uri": "postgresql://secret@h/db"}, "'postgresql://***@h/db' is not an MLflow server"),
        ({"tracking_uri": "http://me:secret@host:5000"}, "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ({"tracking_uri": "http://secret@host:5000"}, "there is a password in the address, "),
        ({"tracking_uri": "http://[secret"}, "--tracking-uri: what was given is not an address"),
        ({"address": "http://me:secret@127.0.0.1:1"}, "--address: there is a password in the address, "),
        ({"storage": "runs"}, "'runs' is relative"),
        ({"storage": "s3://key:secret@host/runs"}, "--storage: s3://…: addresses are not supported"),
        ({"overrides": ["training.lr=no"]}, "training.lr"),
    ],
)
def test_what_cannot_be_submitted_is_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as error:
        submit_quickstart(**options)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("dataset.name", "text.jsonl"),
        ("dataset.name", "*.jsonl"),
        ("model.name", "models/tiny"),
        ("model.name", "./models/not-here"),
        ("model.name", "."),
        ("model.tokenizer", "../models"),
        ("dataset.name", "a**b"),
        ("model.name", "a" * 1000),
    ],
)
def test_a_path_that_is_no_path_of_the_cluster_is_refused_by_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "models/tiny").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"^{key}: {re.escape(repr(path))} is a path of this machine"):
        submit_quickstart(overrides=[f"{key}={json.dumps(path)}"])
    probes = json.dumps([{"name": "own", "data": "text.jsonl"}])
    with pytest.raises(UserError, match=r"^evaluation\.probes\.0\.data: 'text\.jsonl' is a path of this machine"):
        submit_quickstart(overrides=[f"evaluation.probes={probes}"])
    reference = json.dumps({"source": "models/tiny", "site": "blocks.1.hook_resid_post"})
    with pytest.raises(UserError, match="^references.0.source: 'models/tiny' is a path of this machine"):
        submit_quickstart(overrides=[f"references=[{reference}]"])
