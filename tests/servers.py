"""Real servers: MLflow, which can be killed and started again, and the head of a Ray cluster."""

from __future__ import annotations

import contextlib
import http.server
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
from mlflow_stores import new_store

AUTH_SETTINGS = Path(__file__).parent.parent / "deploy" / "mlflow.ini"
"""As `cluster.yaml` has them."""
PATIENCE_S = 300.0
"""On a loaded machine a server starts in minutes."""


class MLflowServer:
    """`mlflow server`, with the processes that it starts; it comes back on the same port with the same database.

    Args:
        folder: for its database, artifacts and log.
        login: MLFLOW_AUTH_… and MLFLOW_FLASK_SERVER_SECRET_KEY of a server that wants one.
    """

    def __init__(self, folder: Path, login: dict[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.login = login
        (self.port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self, wait: bool = True) -> None:
        command = f"server --host 127.0.0.1 --port {self.port} --workers 1".split()
        command += ["--backend-store-uri", new_store(self.folder)]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        command += ["--app-name", "basic-auth"] if self.login else []
        settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_AUTH_CONFIG_PATH": str(AUTH_SETTINGS)}
        environment = os.environ | settings | (self.login or {})
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *command],
                env=environment,
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.answers():
            assert time.monotonic() < deadline, "waited in vain for the MLflow server"
            time.sleep(0.05)

    def answers(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
            return True
        return False

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


_Server = TypeVar("_Server", bound=http.server.HTTPServer)


@contextlib.contextmanager
def serving(server: _Server) -> Iterator[_Server]:
    """A server of this process answers, in a thread, for the length of the context.

    A client that is gone, as one that was killed, is no error: its traceback would be in some other test's output.
    """
    told = server.handle_error

    def tell(request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            told(request, client_address)

    server.handle_error = tell  # type: ignore[method-assign]
    with server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()  # how soon it ends
        try:
            yield server
        finally:
            server.shutdown()


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for found in sockets:
            found.bind(("127.0.0.1", 0))
        return [found.getsockname()[1] for found in sockets]


class RayHead:
    """`ray start --head` with its dashboard, as `cluster.yaml` starts it: token authentication, loopback.

    Args:
        folder: for its log.
        token: what clients must send.
        environment: of the node, and so of drivers and trials.
        cpus: slots for trials.
    """

    def __init__(self, folder: Path, token: str, environment: dict[str, str], cpus: int = 2) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.token = token
        self.temporary = Path(tempfile.mkdtemp(prefix="gsae-ray-", dir="/tmp"))  # paths of sockets must be short
        port, dashboard, client, agent, agent_grpc, metrics = free_ports(6)
        self.address = f"http://127.0.0.1:{dashboard}"
        command = ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}"]
        command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--num-cpus={cpus}"]
        command += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
        command += [f"--dashboard-agent-grpc-port={agent_grpc}", f"--metrics-export-port={metrics}"]
        command += [f"--temp-dir={self.temporary}", "--object-store-memory=3000000000", "--disable-usage-stats"]
        binaries = str(Path(sys.executable).parent)
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "PATH": f"{binaries}:{os.environ['PATH']}"}
        own |= {"PYTHONPATH": ""}  # what drivers import is what was shipped, or installed
        with (folder / "ray.log").open("w") as log:
            self.process = subprocess.Popen(
                command,
                env=os.environ | own | environment,
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE_S
        while self.unauthenticated() != 401:
            assert self.process.poll() is None, (folder / "ray.log").read_text()
            assert time.monotonic() < deadline, "waited in vain for the Ray head"
            time.sleep(0.2)

    def unauthenticated(self, path: str = "/api/jobs/") -> int:
        """The status that a request without a token gets; 0 if nobody answers."""
        return http_status(self.address + path)

    def ask(self, path: str) -> str:
        """What it answers to whoever has the token. By hand: Ray's own client would leave the token in this process."""
        request = urllib.request.Request(self.address + path, headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            told: str = answer.read().decode()
            return told

    def stop(self) -> None:
        """Ends the node with all its processes."""
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            family = psutil.Process(self.process.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        for process in [psutil.Process(self.process.pid)] if self.process.poll() is None else []:
            process.kill()
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait(20)
        shutil.rmtree(self.temporary, ignore_errors=True)


def http_status(url: str) -> int:
    """The status of a request without credentials; 0 if nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0
