"""A sweep on a cluster, as a user meets it: real servers that want a login, the real command, a real browser."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from servers import MLflowServer, RayHead, http_status

from gsae_ray.storage.trial_directory import TrialDirectory
from gsae_ray.tracking.pages import artifact_page, run_page, trials_page

SWEEPS = Path(__file__).parents[2] / "sweeps"
TOKEN = "a-token-of-this-cluster-0123456789"
PASSWORD = "a-password-of-mlflow-0123456789"
LOOK_EVERY_S = 5
"""A look is a process of its own, which takes seconds of a core from what it looks at."""
PLANTED = {"HF_TOKEN": "hf_planted0123456789", "MLFLOW_TRACKING_PASSWORD": PASSWORD, "RAY_AUTH_TOKEN": TOKEN}
"""Credentials that must be nowhere but in the environment."""
LAPTOP = {"HF_TOKEN": "hf_of_the_laptop_0123456789"}
"""Of whoever submits."""
LOGIN = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": PASSWORD}
SHORT = ["sites.layers=[2]", "saes.0.l1_coefficient=[2,4]", "saes.1.l1_coefficient=[1,2]", "evaluation.tokens=4_096"]
SHORT += ["training.tokens=1_203_200", "training.checkpoint_every_tokens=102_400", "dataset.shuffle_tokens=100_000"]
"""Fewer trials than the quickstart, and long enough to be looked at."""
SCREENSHOTS = Path(os.environ.get("GSAE_SCREENSHOTS", "/tmp/gsae-screenshots"))


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    login = {"MLFLOW_AUTH_ADMIN_USERNAME": "admin", "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD}
    server = MLflowServer(tmp_path_factory.mktemp("mlflow"), login | {"MLFLOW_FLASK_SERVER_SECRET_KEY": "f" * 64})
    yield server
    server.kill()


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    """Of a cluster whose environment has the credentials, as `cluster.yaml` has it."""
    secrets = LOGIN | {"HF_TOKEN": PLANTED["HF_TOKEN"], "HF_HUB_OFFLINE": "1", "RAY_NODE_TYPE_NAME": "head"}
    head = RayHead(tmp_path_factory.mktemp("ray"), TOKEN, secrets)
    yield head
    head.stop()


class User:
    """Somebody with a laptop: the real command in processes of their own."""

    def __init__(self, folder: Path, head: RayHead, server: MLflowServer) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.storage = folder / "storage"
        own = {"RAY_API_SERVER_ADDRESS": head.address, "RAY_AUTH_TOKEN": TOKEN, "MLFLOW_TRACKING_URI": server.uri}
        self.environment = os.environ | LOGIN | LAPTOP | own

    def run(self, *arguments: str, code: int = 0) -> str:
        """What `gsae-ray …` prints; its exit code must be this one."""
        command = [sys.executable, "-m", "gsae_ray", *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=280, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def submit(self, *arguments: str, sets: list[str] = SHORT, code: int = 0, resume: bool = False) -> str:
        overrides = [word for value in sets for word in ("--set", value)]
        return self.run(*readme("gsae-ray submit", self, resume), *overrides, *arguments, code=code)

    def status(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("status", job, "--json"))
        return found

    def wait(self, job: str, *states: str, patience_s: float = 240) -> dict[str, Any]:
        """Until a job is in one of the states."""
        deadline = time.monotonic() + patience_s
        while (found := self.status(job))["state"] not in states:
            assert found["state"] in ("pending", "running"), self.run("logs", job)
            assert time.monotonic() < deadline, self.run("logs", job)
            time.sleep(LOOK_EVERY_S)
        return found


def readme(start: str, user: User, resume: bool = False) -> list[str]:
    """The words of the README's line that starts so, with this test's storage and sweep file in their places."""
    section = (SWEEPS.parent / "README.md").read_text().split("## On a cluster")[1].split("```bash")[1].split("```")[0]
    assert len(section.strip().splitlines()) <= 15
    (line,) = [line for line in section.splitlines() if line.startswith(start) and resume == ("--resume" in line)]
    line = line.replace("/mnt/gsae/runs", str(user.storage)).replace("sweeps/", f"{SWEEPS}/")
    return shlex.split(line, comments=True)[1:]


def job_id(said: str) -> str:
    found = re.search(r"^job: +(\S+)", said, re.MULTILINE)
    assert found, said
    return found[1]


def client_of(server: MLflowServer, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    for name, value in LOGIN.items():
        monkeypatch.setenv(name, value)
    return MlflowClient(server.uri)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_from_the_laptop_to_the_cluster_to_the_notebook(
    head: RayHead, mlflow_server: MLflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert head.unauthenticated() == 401
    assert http_status(f"{mlflow_server.uri}/api/2.0/mlflow/experiments/search?max_results=1") == 401
    user = User(tmp_path / "user", head, mlflow_server)
    client = client_of(mlflow_server, monkeypatch)

    # It is submitted, and begins.
    started = time.monotonic()
    job = job_id(user.submit())
    print(f"submit took {time.monotonic() - started:.1f} s")  # noqa: T201
    while not metrics_of(client, "quickstart"):
        assert time.monotonic() < started + 250, user.run("logs", job)
        time.sleep(2)
    print(f"from submit to the first metric: {time.monotonic() - started:.1f} s")  # noqa: T201

    # It is stopped: trials save where they are, runs end as KILLED.
    said = user.run(*readme("gsae-ray stop", user))
    assert f"{job}: stopped" in said, said
    parents = runs_of(client, "quickstart", "launch")
    assert [run.info.status for run in parents] == ["KILLED"]
    assert {run.info.status for run in runs_of(client, "quickstart", "trial")} <= {"KILLED", "FINISHED"}
    assert_saved(user, "quickstart")

    # It goes on, as the same launch; is refused a second time; and is followed to its end.
    again = job_id(user.submit(resume=True, sets=[]))  # the launch has them
    assert f"is running already, as {again}" in user.submit(code=2)
    assert {job, again} <= set(user.run(*readme("gsae-ray list", user)).split())
    assert again in user.run(*readme("gsae-ray status", user))

    deadline = time.monotonic() + 240  # it trains, or has: on a loaded machine it may be over before the second look
    while (status := user.wait(again, "running", "succeeded"))["forward_ratio"] is None:
        assert time.monotonic() < deadline, status
        time.sleep(LOOK_EVERY_S)
    assert status["forward_ratio"] == 1.0
    log = user.run(*readme("gsae-ray logs", user))
    assert "forward ratio 1.00" in log, log
    assert user.wait(again, "succeeded")["progress"]["trials"]["done"] == 4
    assert [run.info.status for run in runs_of(client, "quickstart", "launch")] == ["FINISHED"]

    # The best SAE, in a process that has no Ray.
    _, best = readme("python -c", user)
    notebook = (
        f"import sys; sys.modules['ray'] = None\n{best}\nimport torch; print(sae.encode(torch.zeros(1, sae.cfg.d_in)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", notebook], env=user.environment, cwd=user.folder, capture_output=True, text=True
    )
    assert done.returncode == 0 and "tensor" in done.stdout, done.stderr

    find_secrets(head, mlflow_server, user, [job, again])
    look_at_mlflow(mlflow_server, parents[0].info.experiment_id, parents[0].info.run_id)


def directories_of(user: User, sweep: str) -> list[TrialDirectory]:
    return [TrialDirectory(path) for path in (user.storage / sweep / "trials").glob("*")]


def assert_saved(user: User, sweep: str) -> None:
    """Whether trials that were stopped have their last row in a checkpoint."""
    begun = [directory for directory in directories_of(user, sweep) if not directory.ended and directory.rows()[0]]
    assert begun, "it was over before it was stopped"
    for directory in begun:
        assert directory.newest_checkpoint == directory.rows()[0][-1]["step"], "it would go on from further back"


def runs_of(client: MlflowClient, experiment: str, kind: str) -> list[Any]:
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id], f"tags.`gsae.kind` = '{kind}'") if found else []


def metrics_of(client: MlflowClient, experiment: str) -> list[Any]:
    return [run for run in runs_of(client, experiment, "trial") if "train/loss" in run.data.metrics]


def look_at_mlflow(server: MLflowServer, experiment_id: str, run_id: str) -> None:
    """The trials, the parent run, metrics and the frontier's picture on the pages of the UI."""
    browser = shutil.which("chromium")
    if browser is None:
        warnings.warn("Debian's chromium is not installed (.ci/run installs it): no look at the pages", stacklevel=1)
        return
    from playwright.sync_api import HttpCredentials, sync_playwright

    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        try:
            credentials = HttpCredentials(username="admin", password=PASSWORD)
            page = chromium.new_page(http_credentials=credentials, viewport={"width": 1600, "height": 1000})
            page.set_default_timeout(60_000)
            page.goto(trials_page(server.uri, experiment_id))
            page.get_by_text("gated w").first.wait_for()
            page.screenshot(path=SCREENSHOTS / "runs.png")
            page.goto(run_page(server.uri, experiment_id, run_id))
            page.get_by_text("forward_ratio").first.wait_for()
            page.get_by_text("rows_produced").first.wait_for()
            page.screenshot(path=SCREENSHOTS / "launch.png")
            page.locator("img[src*='get-artifact']").wait_for()  # in its note
            page.goto("about:blank")
            page.goto(artifact_page(server.uri, experiment_id, run_id, "frontier.png"))
            picture = page.locator("img[src^='blob:'], img[src*='frontier.png'], .image-outer-container img").first
            picture.wait_for()
            page.screenshot(path=SCREENSHOTS / "frontier.png")
            assert picture.evaluate("image => image.complete && image.naturalWidth > 300")
        finally:
            chromium.close()


def find_secrets(head: RayHead, server: MLflowServer, user: User, jobs: list[str]) -> None:
    """Credentials are in no file of MLflow, storage or Ray's logs, nor in what Ray says of the jobs."""
    told = [head.ask("/api/jobs/")]
    told += [user.run("logs", job) for job in jobs]
    for folder in (server.folder / "artifacts", user.storage, head.temporary, head.folder):
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                told.append(path.read_bytes().decode("latin-1"))
    told.append((server.folder / "mlflow.db").read_bytes().decode("latin-1"))
    assert any(jobs[0] in text for text in told), "that is where jobs are told of"
    for name, secret in (*PLANTED.items(), *LAPTOP.items()):
        assert not any(secret in text for text in told), f"{name} was written down"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_sweeps_at_once_and_one_of_them_fails(head: RayHead, mlflow_server: MLflowServer, tmp_path: Path) -> None:
    user = User(tmp_path / "user", head, mlflow_server)
    small = [*SHORT, "training.tokens=20_480", "training.checkpoint_every_tokens=10_240"]
    small += ["training.log_every_tokens=5_120"]
    good = job_id(user.submit(sets=[*small, "name=good"]))
    bad = job_id(user.submit(sets=[*small, "name=bad", "training.lr=1e30"]))  # on the same nodes
    failed = user.wait(bad, "failed")
    assert re.match(r"failed: \S+: .*(nan|NaN|finite)", failed["message"]), failed["message"]
    assert failed["progress"]["trials"]["failed"] == 4
    done = user.wait(good, "succeeded")
    assert done["progress"]["trials"] == {"waiting": 0, "running": 0, "evaluating": 0, "done": 4, "failed": 0}
    assert done["forward_ratio"] == 1.0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_is_stopped_without_mlflow(
    head: RayHead, mlflow_server: MLflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tunnel to MLflow is down: trials save a checkpoint all the same, for which they have the job's grace."""
    user = User(tmp_path / "user", head, mlflow_server)
    longer = [*SHORT, "name=unasked", "training.tokens=2_000_000"]  # on a quick machine SHORT is over before the stop
    job = job_id(user.submit("--grace", "100", sets=longer))
    deadline = time.monotonic() + 200
    while not any(directory.rows()[0] for directory in directories_of(user, "unasked")):
        assert time.monotonic() < deadline, user.run("logs", job)
        time.sleep(0.5)
    user.environment["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:1"
    said = user.run("stop", job)
    assert "trials that run save a checkpoint (at most 100 s)" in said and f"{job}: stopped" in said
    assert_saved(user, "unasked")
    assert "the launch was asked to stop" in user.run("logs", job)
    runs = runs_of(client_of(mlflow_server, monkeypatch), "unasked", "launch")
    assert [run.info.status for run in runs] == ["KILLED"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_plan_looks_at_the_cluster_and_at_its_file(head: RayHead, mlflow_server: MLflowServer, tmp_path: Path) -> None:
    user = User(tmp_path / "user", head, mlflow_server)
    command = ["plan", str(SWEEPS / "quickstart.yaml"), "--json", "--address", head.address]
    here = json.loads(user.run(*command))
    assert here["slots"] == 2 and 0 < here["budget_bytes"] <= 0.6 * 3_000_000_000
    file = tmp_path / "cluster.yaml"
    types = "head: {resources: {CPU: 2}}, worker: {resources: {CPU: 2}, max_workers: 1}"
    file.write_text(f"head_node_type: head\navailable_node_types: {{{types}}}\n")
    at_most = json.loads(user.run(*command, "--cluster", str(file)))
    assert at_most["slots"] == 4 and at_most["budget_bytes"] == here["budget_bytes"]
    file.write_text("available_node_types: {another: {resources: {CPU: 2}}}")
    said = user.run(*command, "--cluster", str(file), code=2)
    assert f"--cluster: no node at {head.address} is of a type of {file}: leave one of them out" in said
