"""Jobs of a cluster: which are ours, which is meant, what is told of them and what they are told."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from gsae_ray.cli.main import main
from gsae_ray.errors import UserError
from gsae_ray.jobs.job import Job, JobStatus, _chosen, jobs_of


def test_jobs_that_are_no_whole_ones_of_a_sweep_are_left_out() -> None:
    """Somebody's own, with one of our words."""
    whole = {"gsae.sweep": "s", "gsae.experiment": "e", "gsae.tracking_uri": "", "gsae.storage": "~"}

    class Client:
        """As Ray's answers."""

        def get_address(self) -> str:
            return "http://host"

        def list_jobs(self) -> list[Any]:
            metadata = [whole, {"gsae.sweep": "s"}, {}, None]
            return [SimpleNamespace(submission_id=str(i), metadata=m, start_time=i) for i, m in enumerate(metadata)]

    assert [job.id for job, _ in jobs_of(Client())] == ["0"]


@pytest.mark.parametrize(("launch_id", "said"), [(None, "again:"), ("20260101-000000-abcd", "go on:")])
def test_status_of_a_job_that_never_began_a_launch_does_not_advise_to_resume_one(
    monkeypatch: pytest.MonkeyPatch, launch_id: str | None, said: str
) -> None:
    ended = JobStatus("s-1", "s", "failed", "no such model", 27.0, launch_id, "http://host", None, None)
    monkeypatch.setattr("gsae_ray.jobs.job.find", lambda *_: SimpleNamespace(status=lambda: ended))
    line = CliRunner().invoke(main, ["status"]).output.splitlines()[-1]
    assert line.startswith(said) and "gsae-ray submit …" in line and "--resume" not in line


def test_a_job_is_chosen_by_its_id_or_as_the_newest_of_its_sweep() -> None:
    def job(job_id: str, sweep: str) -> Job:
        told = {"gsae.sweep": sweep, "gsae.experiment": sweep, "gsae.tracking_uri": "", "gsae.storage": "~"}
        return Job(None, job_id, told)

    known = [(job("a-2", "a"), True), (job("b-1", "b"), True), (job("a-1", "a"), False)]

    def chosen(name: str | None, running: bool = False) -> str:
        return _chosen(known, name, running, "http://host").id

    assert [chosen(None), chosen("a"), chosen("a-1"), chosen("b")] == ["a-2", "a-2", "a-1", "b-1"]
    assert [chosen("a", running=True), chosen("b-1", running=True)] == ["a-2", "b-1"]
    with pytest.raises(UserError, match="several of these run; give the id of one: a-2, b-1"):
        chosen(None, running=True)
    with pytest.raises(UserError, match=r"no sweep runs on http://host as 'a-1' \(there are: a-2, b-1, a-1\)"):
        chosen("a-1", running=True)
    with pytest.raises(UserError, match="no sweep was submitted on http://host as 'c'"):
        chosen("c")


def test_a_login_goes_only_to_the_server_that_it_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job names its server itself; it may be somebody else's."""
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".mlflow").mkdir()
    login = "[mlflow]\nmlflow_tracking_username = me\nmlflow_tracking_password = secret\n"
    (tmp_path / ".mlflow" / "credentials").write_text(login)
    told = {"gsae.sweep": "s", "gsae.experiment": "s", "gsae.tracking_uri": "http://127.0.0.1:1/", "gsae.storage": "~"}
    job = Job(None, "job", told)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:2")
    with pytest.raises(UserError, match="set MLFLOW_TRACKING_URI to it"):
        job._launch()
    given = Job(None, "job", told, trusted=True)
    with pytest.raises(UserError, match="does not answer"):  # it was asked: `submit` was told of the server
        given._launch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")  # the same, but for a slash
    with pytest.raises(UserError, match="does not answer"):
        job._launch()


@pytest.mark.parametrize(
    ("grace", "running", "said"),
    [
        ({"gsae.grace_s": "7"}, True, ["asked s-1 to stop; trials that run save a checkpoint (at most 7 s)"]),
        ({}, True, ["asked s-1 to stop; trials that run save a checkpoint (at most 240 s)"]),  # of an older version
        (
            {"gsae.grace_s": "a while"},  # of another tool
            True,
            ["asked s-1 to stop; trials that run save a checkpoint (at most 240 s)"],
        ),
        ({}, False, []),
    ],
)
def test_a_job_is_stopped_by_ray_and_has_its_own_grace(
    monkeypatch: pytest.MonkeyPatch, grace: dict[str, str], running: bool, said: list[str]
) -> None:
    """MLflow is not asked, nor waited for: nothing listens there."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    told = {"gsae.sweep": "s", "gsae.experiment": "s", "gsae.tracking_uri": "http://127.0.0.1:1", "gsae.storage": "~"}

    class Client:
        """As Ray's answers; a job ends when it is told to."""

        status = "RUNNING" if running else "SUCCEEDED"

        def get_address(self) -> str:
            return "http://host"

        def get_job_info(self, _: str) -> Any:
            return SimpleNamespace(status=SimpleNamespace(value=self.status), driver_exit_code=None)

        def stop_job(self, _: str) -> None:
            assert self.status == "RUNNING"
            self.status = "STOPPED"

    heard: list[str] = []
    assert Job(Client(), "s-1", told | grace).stop(heard.append) == ("stopped" if running else "succeeded")
    assert heard == said


@pytest.mark.parametrize("login", ["", "a-token"])
def test_the_secrets_of_a_jobs_server_are_not_told(monkeypatch: pytest.MonkeyPatch, login: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", login)
    address = "http://127.0.0.1:1?key=secret"
    told = {"gsae.sweep": "s", "gsae.experiment": "s", "gsae.tracking_uri": address, "gsae.storage": "~"}
    details = SimpleNamespace(
        status=SimpleNamespace(value="RUNNING"), driver_exit_code=None, message="", start_time=1, end_time=None
    )
    status = Job(None, "s-1", told)._status(details)
    assert "http://127.0.0.1:1?key=***" in status.message and status.link == "http://127.0.0.1:1?key=***"
    assert "secret" not in json.dumps(status.to_json())
