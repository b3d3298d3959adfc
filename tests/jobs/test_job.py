"""A sweep on a cluster, as a user meets it: real servers that want a login, the real command, a real browser."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import yaml
from click.testing import CliRunner
from mlflow.tracking import MlflowClient
from servers import MLflowServer, RayHead, http_status, serving

from gsae_ray.cli.main import main
from gsae_ray.errors import UserError
from gsae_ray.jobs import job as cluster
from gsae_ray.storage.trial_directory import TrialDirectory

SWEEPS = Path(__file__).parents[2] / "sweeps"
TOKEN = "a-token-of-this-cluster-0123456789"
PASSWORD = "a-password-of-mlflow-0123456789"
PLANTED = {"HF_TOKEN": "hf_planted0123456789", "MLFLOW_TRACKING_PASSWORD": PASSWORD, "RAY_AUTH_TOKEN": TOKEN}
"""Credentials that must be nowhere but in the environment."""
LAPTOP = {"HF_TOKEN": "hf_of_the_laptop_0123456789"}
"""Of whoever submits."""
LOGIN = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": PASSWORD}
SHORT = ["sites.layers=[2]", "saes.0.l1_coefficient=[2,4]", "saes.1.l1_coefficient=[1,2]", "evaluation.tokens=4_096"]
SHORT += ["training.tokens=480_000", "training.checkpoint_every_tokens=204_800", "dataset.shuffle_tokens=100_000"]
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
            time.sleep(1)
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
    while not ((status := user.wait(again, "running"))["progress"] and status["progress"]["trials"]["running"]):
        time.sleep(1)
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
    """The parent run, the nested ones, metrics and the frontier's picture on the pages of the UI."""
    browser = shutil.which("chromium")
    if browser is None:
        warnings.warn("Debian's chromium is not installed (.ci/run installs it): no look at the pages", stacklevel=1)
        return
    from playwright.sync_api import sync_playwright

    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        try:
            credentials = {"username": "admin", "password": PASSWORD}
            page = chromium.new_page(http_credentials=credentials, viewport={"width": 1600, "height": 1000})
            page.set_default_timeout(60_000)
            page.goto(f"{server.uri}/#/experiments/{experiment_id}/runs")
            page.get_by_text("quickstart 20").first.wait_for()
            page.screenshot(path=SCREENSHOTS / "runs.png")
            page.goto(f"{server.uri}/#/experiments/{experiment_id}/runs/{run_id}")
            page.get_by_text("forward_ratio").first.wait_for()
            page.get_by_text("rows_produced").first.wait_for()
            page.screenshot(path=SCREENSHOTS / "launch.png")
            page.goto(f"{server.uri}/#/experiments/{experiment_id}/runs/{run_id}/artifacts/frontier.png")
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
    """The tunnel to MLflow is down: Ray tells the driver, and trials save a checkpoint all the same."""
    user = User(tmp_path / "user", head, mlflow_server)
    job = job_id(user.submit(sets=[*SHORT, "name=unasked"]))
    deadline = time.monotonic() + 200
    while not any(directory.rows()[0] for directory in directories_of(user, "unasked")):
        assert time.monotonic() < deadline, user.run("logs", job)
        time.sleep(0.5)
    user.environment["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:1"
    said = user.run("stop", job)
    assert "MLflow cannot be asked (the job's MLflow server is" in said and f"{job}: stopped" in said
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


# ---- without a cluster ----------------------------------------------------------------------------------------------


def submit(**options: Any) -> cluster.Job:
    chosen = {"tracking_uri": "http://127.0.0.1:1", "address": "http://127.0.0.1:1"} | options
    return cluster.submit(SWEEPS / "quickstart.yaml", **chosen)


def test_another_ray_is_told_of_with_what_to_do() -> None:
    class Dashboard(BaseHTTPRequestHandler):
        """As one of another version introduces itself."""

        def do_GET(self) -> None:
            told = json.dumps(
                {"version": "4", "ray_version": "2.40.0", "ray_commit": "c", "session_name": "s"}
            ).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Dashboard)) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        with pytest.raises(
            UserError, match=rf"runs Ray 2.40.0, and .* pip install .*=={ray.__version__}' on its nodes"
        ):
            cluster.connect(address)


@pytest.mark.timeout(60)  # Ray's client waits for ever
def test_a_dashboard_that_hangs_is_said_to_be_away(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster.PATIENCE_S == 15
    monkeypatch.setattr(cluster, "PATIENCE_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        for ask in (cluster.find, cluster.overview, cluster.nodes):
            with pytest.raises(UserError, match=f"--address: no Ray dashboard answers at {address}") as error:
                ask(address=address)
            assert "timed out" in str(error.value)


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

    assert [job.id for job, _ in cluster._jobs(Client())] == ["0"]  # type: ignore[arg-type]


@pytest.mark.parametrize(("launch_id", "said"), [(None, "again:"), ("20260101-000000-abcd", "go on:")])
def test_status_of_a_job_that_never_began_a_launch_does_not_advise_to_resume_one(
    monkeypatch: pytest.MonkeyPatch, launch_id: str | None, said: str
) -> None:
    ended = cluster.JobStatus("s-1", "s", "failed", "no such model", 27.0, launch_id, "http://host", None, None)
    monkeypatch.setattr(cluster, "find", lambda job, address: SimpleNamespace(status=lambda: ended))
    line = CliRunner().invoke(main, ["status"]).output.splitlines()[-1]
    assert line.startswith(said) and "gsae-ray submit …" in line and "--resume" not in line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "no Ray dashboard answers at http://127.0.0.1:1"),
        ({"address": "127.0.0.1:6379"}, "give it as http://HOST:8265"),
        ({"tracking_uri": "sqlite:///mlflow.db"}, "not an MLflow server that the cluster can reach"),
        ({"tracking_uri": "http://me:secret@host:5000"}, "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ({"tracking_uri": "http://secret@host:5000"}, "there is a password in the address, "),
        ({"tracking_uri": "http://[secret"}, "--tracking-uri: what was given is not an address"),
        ({"address": "http://me:secret@127.0.0.1:1"}, "--address: there is a password in the address, "),
        ({"storage": "runs"}, "'runs' is relative"),
        ({"overrides": ["training.lr=no"]}, "training.lr"),
    ],
)
def test_what_cannot_be_submitted_is_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as error:
        submit(**options)
    assert "secret" not in str(error.value)


def test_a_job_is_chosen_by_its_id_or_as_the_newest_of_its_sweep() -> None:
    def job(job_id: str, sweep: str) -> cluster.Job:
        told = {"gsae.sweep": sweep, "gsae.experiment": sweep, "gsae.tracking_uri": "", "gsae.storage": "~"}
        return cluster.Job(None, job_id, told)  # type: ignore[arg-type]

    known = [(job("a-2", "a"), True), (job("b-1", "b"), True), (job("a-1", "a"), False)]

    def chosen(name: str | None, running: bool = False) -> str:
        return cluster._chosen(known, name, running, "http://host").id

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
    job = cluster.Job(None, "job", told)  # type: ignore[arg-type]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:2")
    with pytest.raises(UserError, match="set MLFLOW_TRACKING_URI to it"):
        job._launch()
    given = cluster.Job(None, "job", told, trusted=True)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="does not answer"):  # it was asked: `submit` was told of the server
        given._launch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")  # the same, but for a slash
    with pytest.raises(UserError, match="does not answer"):
        job._launch()


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
        submit(overrides=[f"{key}={json.dumps(path)}"])


def test_cluster_yaml_is_valid_and_its_commands_work(tmp_path: Path) -> None:
    """By Ray's own validator; the commands of set-up that need no cloud are run."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    repository = Path(__file__).parents[2]
    config = yaml.safe_load((repository / "cluster.yaml").read_text())
    prepared = prepare_config(config)
    validate_config(prepared)
    types = prepared["available_node_types"]
    assert types["head"]["resources"]["CPU"] == 0
    assert {t.get("labels", {}).get("gsae-role") for t in types.values()} == {None, "producer", "trainer"}
    assert config["provider"].get("security_group") is None  # Ray's own: SSH only
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    for command in starts:
        assert "ray start" not in command or "RAY_AUTH_MODE=token" in command
        assert "mlflow server" not in command or ("--app-name basic-auth" in command and "127.0.0.1" in command)
        assert "mlflow server" not in command or "$HOME/gsae-ray/.github/mlflow.ini" in command
        assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0
    (tmp_path / "gsae-ray").symlink_to(repository)
    environment = {**os.environ, "HOME": str(tmp_path), "PIP_NO_DEPS": "1"}  # what it needs is here already
    environment.pop("PYTHONPATH", None)
    for command in config["setup_commands"]:
        subprocess.run(["bash", "-c", command], check=True, env=environment, cwd=tmp_path, capture_output=True)
    version = [str(tmp_path / "gsae/bin/python"), "-c", "import gsae_ray; print(gsae_ray.__version__)"]
    import gsae_ray

    said = subprocess.run(version, check=True, env=environment, cwd=tmp_path, capture_output=True, text=True).stdout
    assert said.strip() == gsae_ray.__version__
