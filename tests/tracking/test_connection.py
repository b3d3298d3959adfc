"""A store that cannot be recorded to is known before anything starts, in one line and within seconds."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import CliRunner
from mlflow.server import get_app_client
from selection import quick
from servers import MLflowServer, serving
from trials import REQUEST, begin, expand, finish

from gsae_ray.cli.main import main
from gsae_ray.errors import UserError
from gsae_ray.jobs.remote_launch import RemoteLaunch
from gsae_ray.results.best import best
from gsae_ray.results.frontier import frontier
from gsae_ray.storage.trial_directory import Trial
from gsae_ray.tracking import connection as tracking_store
from gsae_ray.tracking.connection import PATIENCE_S, connect
from gsae_ray.tracking.experiment import check, reserve
from gsae_ray.tracking.mirror import Mirror

QUICKSTART = Path(__file__).parents[2] / "sweeps/quickstart.yaml"
Answer = tuple[int, dict[str, Any]] | None
"""Status and JSON; None: it hangs."""


def refusal(ask: Callable[[], Any]) -> str:
    """The one line with which it is refused."""
    with pytest.raises(UserError) as error:
        ask()
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
    return str(error.value)


def refused_run(*arguments: str) -> str:
    """The line with which the real command refuses, having begun nothing."""
    result = CliRunner().invoke(main, ["run", str(QUICKSTART), *arguments])
    assert result.exit_code == 2, result.output
    assert not list(Path().rglob("launches")), "a launch was begun"
    return result.stderr.splitlines()[-1]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_folder() -> Iterator[Path]:
    """Of a user to whom file permissions apply: root is another one for the length of the test."""
    folder = Path(tempfile.mkdtemp(prefix="gsae-test-"))
    user = os.geteuid()
    if user == 0:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    try:
        if not os.access(mlflow.__file__, os.R_OK, effective_ids=True):
            pytest.skip("this environment lies in a folder that only root may read")
        yield folder
    finally:
        os.seteuid(user)
        shutil.rmtree(folder)


def record(folder: Path) -> str:
    """A store with a finished trial."""
    uri = f"sqlite:///{folder}/mlflow.db"
    mirror = Mirror(uri, "small", "20260101-000000-abcd", REQUEST)
    mirror.open_launch("small", {})
    (trial,) = expand(l1_coefficient=1.0)
    directory = begin(folder / "trials", trial, 2)
    finish(directory, trial)
    mirror.sync([Trial(trial, directory)])
    return uri


def test_a_store_that_is_read_only_is_refused_before_anything_starts_and_still_read(own_folder: Path) -> None:
    uri = record(own_folder)
    check(uri, "small")
    database = own_folder / "mlflow.db"
    before = database.read_bytes()
    check(uri, "small")
    assert database.read_bytes() == before, "nothing stays of what was tried"
    database.chmod(0o400)
    assert "takes no writes (attempt to write a readonly database); make it and its folder writable" in refusal(
        lambda: check(uri, "small")
    )
    assert len(frontier("small", tracking_uri=uri)) == 1
    assert best("small", max_l0=1000, tracking_uri=uri).cfg.d_sae == 16
    database.chmod(0o600)
    own_folder.chmod(0o500)  # where SQLite writes its journal
    assert "--tracking-uri: " in (said := refusal(lambda: check(uri, "another"))) and "takes no" in said
    database.chmod(0o000)
    for ask in (lambda: check(uri, "small"), lambda: frontier("small", tracking_uri=uri)):
        assert "cannot be used (unable to open database file)" in refusal(ask)
    own_folder.chmod(0o700)


def test_a_folder_that_takes_no_files_is_refused_before_anything_starts(own_folder: Path) -> None:
    uri = f"sqlite:///{own_folder}/mlflow.db"
    check(uri, "small")
    assert list(own_folder.iterdir()) == [], "nothing stays of what was tried"
    own_folder.chmod(0o500)
    assert f"--tracking-uri: {own_folder} takes no files of MLflow (Permission denied)" in refusal(
        lambda: check(uri, "small")
    )
    own_folder.chmod(0o700)
    record(own_folder)
    (own_folder / "mlruns").chmod(0o500)  # the artifacts'
    assert f"{own_folder}/mlruns takes no files of MLflow" in refusal(lambda: check(uri, "another"))


@pytest.mark.timeout(60)  # MLflow tries for 110 s
def test_a_folder_or_a_file_that_is_no_database_is_known_at_once(here: Path) -> None:
    Path("mlflow.db").write_bytes(b"is not a database" * 100)
    assert "(file is not a database)" in refused_run()
    uri = f"sqlite:///{here}"
    asks: list[Callable[[], Any]] = [
        lambda: check(uri, "small"),
        lambda: connect(uri),
        lambda: frontier("small", tracking_uri=uri),
        lambda: best("small", tracking_uri=uri, max_l0=40),
    ]
    for ask in asks:
        assert refusal(ask) == f"--tracking-uri: {here} is a folder; give a file: sqlite:///{here}/mlflow.db"
    assert f"give a file: sqlite:///{here}/mlflow.db" in refused_run("--tracking-uri", uri)
    for uri in (str(here), f"file://{here}"):
        assert "is a folder, to which MLflow does not record; give a file" in refusal(lambda: check(uri, "small"))  # noqa: B023
    assert sorted(path.name for path in here.iterdir()) == ["mlflow.db"]


def test_a_name_that_mlflow_has_no_room_for_is_refused_before_anything_starts(here: Path) -> None:
    """Its databases hold 256 characters."""
    assert "experiment: " in (said := refused_run("--set", f"experiment={'x' * 251}")) and "250" in said
    uri = f"sqlite:///{here}/mlflow.db"
    longest = "é" * 250
    check(uri, longest)
    assert list(here.iterdir()) == [], "nothing is made"
    Mirror(uri, longest, "20260101-000000-abcd", REQUEST).open_launch("small", {})
    check(uri, longest)


# ---- servers --------------------------------------------------------------------------------------------------------


class Impostor(ThreadingHTTPServer):
    """Answers what it is told to, by the last words of a path; all else it finds nowhere."""

    daemon_threads, block_on_close = True, False

    def __init__(self, answers: dict[str, Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Replies)
        self.answers: dict[str, Answer] = {"experiments/search": (200, {})} | answers
        self.asked: list[str] = []
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"
        self.over = threading.Event()


class _Replies(BaseHTTPRequestHandler):
    server: Impostor

    def _reply(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        missing = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "there is none"}
        answer = next((a for end, a in self.server.answers.items() if path.endswith(end)), (404, missing))
        if answer is None:
            self.server.over.wait()
            return
        body = json.dumps(answer[1]).encode()
        self.send_response(answer[0])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = _reply

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def impostor(answers: dict[str, Answer]) -> Iterator[Impostor]:
    with serving(Impostor(answers)) as server:
        try:
            yield server
        finally:
            server.over.set()


PATHS = ["experiments/search", "experiments/get-by-name", "runs/search"]
EXPERIMENT = {"experiment_id": "1", "name": "quickstart", "lifecycle_stage": "active"}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("path", quick(PATHS, lambda path: path == PATHS[-1]))
@pytest.mark.parametrize(("answer", "reason"), [(None, "timed out"), ((500, {}), "too many 500 error responses")])
def test_a_server_that_hangs_or_fails_is_said_to_be_away(
    monkeypatch: pytest.MonkeyPatch, path: str, answer: Answer, reason: str
) -> None:
    assert PATIENCE_S == 15
    monkeypatch.setattr(tracking_store, "PATIENCE_S", 1)
    found: Answer = (200, {"experiment": EXPERIMENT | {"artifact_location": "mlflow-artifacts:/1"}})
    with impostor({"experiments/get-by-name": found, path: answer}) as server:
        asks: list[Callable[[], Any]] = [
            lambda: frontier("quickstart", tracking_uri=server.uri),
            lambda: best("quickstart", tracking_uri=server.uri, max_l0=40),
            lambda: RemoteLaunch.find(server.uri, "quickstart", "job"),
        ]
        asks += [lambda: check(server.uri, "quickstart")] if path != "runs/search" else []
        for ask in asks:
            assert f"the MLflow server at '{server.uri}' does not answer ({reason})" in refusal(ask)


@pytest.mark.parametrize(
    "location",
    quick(["/etc/gsae", "file:///etc/gsae", "file://host/etc/gsae", "relative"], lambda path: path == "/etc/gsae"),
)
def test_a_server_does_not_choose_a_path_of_this_machine(here: Path, location: str) -> None:
    target = location.replace("/etc", f"{here}/etc")
    (here / "etc").mkdir()
    found: Answer = (200, {"experiment": EXPERIMENT | {"artifact_location": target}})
    with impostor({"experiments/get-by-name": found}) as server:
        said = refused_run("--tracking-uri", server.uri)
        assert f"wants artifacts written to {target!r}" in said and "--artifacts-destination" in said
        assert not any("runs" in path for path in server.asked)
    made: dict[str, Answer] = {"experiments/create": (200, {"experiment_id": "1"}), "experiments/get": found}
    with impostor(made) as server:
        assert "wants artifacts written to" in refusal(lambda: reserve(server.uri, "quickstart"))
    run = {"info": {"run_id": "r", "run_uuid": "r", "experiment_id": "1", "artifact_uri": target}, "data": {}}
    fine: Answer = (200, {"experiment": EXPERIMENT | {"artifact_location": "mlflow-artifacts:/1"}})
    answers: dict[str, Answer] = {"get-by-name": fine, "runs/search": (200, {}), "runs/create": (200, {"run": run})}
    with impostor(answers) as server:  # or for a single run
        mirror = Mirror(server.uri, "quickstart", "20260101-000000-abcd", REQUEST)
        assert "wants artifacts written to" in refusal(lambda: mirror.open_launch("quickstart", {}))
    assert [path.name for path in here.rglob("*")] == ["etc"]


@pytest.mark.usefixtures("here")
def test_a_server_that_refuses_the_experiment_leaves_no_launch_behind() -> None:
    denied: Answer = (403, {"error_code": "PERMISSION_DENIED", "message": "not you"})
    with impostor({"experiments/create": denied}) as server:
        said = refused_run("--tracking-uri", server.uri)
        assert f"{server.uri!r} does not permit that to this login (PERMISSION_DENIED: not you)" in said
        assert "experiment: NAME" in said


@pytest.mark.slow
def test_a_wrong_login_and_a_missing_permission_are_told_before_anything_starts(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a server as cluster.yaml starts it: whoever has made an experiment writes to it, others read."""
    users = {"admin": "a-password-of-mlflow-0123456789", "other": "another-password-0123456789"}
    login = {"MLFLOW_AUTH_ADMIN_USERNAME": "admin", "MLFLOW_AUTH_ADMIN_PASSWORD": users["admin"]}
    monkeypatch.setenv("HOME", str(here))  # without ~/.mlflow/credentials

    def log_in(name: str, password: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)

    server = MLflowServer(here / "server", login | {"MLFLOW_FLASK_SERVER_SECRET_KEY": "f" * 64})
    try:
        assert "wants a login; set MLFLOW_TRACKING_USERNAME" in refusal(lambda: connect(server.uri))
        log_in("admin", "a-wrong-password")
        for ask in (lambda: connect(server.uri), lambda: frontier("quickstart", tracking_uri=server.uri)):
            assert f"the MLflow server at '{server.uri}' refuses the login" in refusal(ask)
        log_in("admin", users["admin"])
        check(server.uri, "quickstart")
        reserve(server.uri, "quickstart")
        check(server.uri, "quickstart")
        get_app_client("basic-auth", server.uri).create_user("other", users["other"])
        log_in("other", users["other"])
        said = refused_run("--tracking-uri", server.uri)
        assert "does not permit that to this login" in said and "experiment: NAME" in said
        assert "'quickstart' has no runs" in refusal(lambda: frontier("quickstart", tracking_uri=server.uri))
        check(server.uri, "another")
        reserve(server.uri, "another")
    finally:
        server.kill()
