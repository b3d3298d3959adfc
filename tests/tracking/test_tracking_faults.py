"""The mirror's promise, kept against a real MLflow server that is killed, hangs, or is behind a network that fails."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from faults import seed
from mirrors import TRIALS, Server, append, pair
from mlflow.exceptions import MlflowException
from servers import MLflowServer, serving
from trials import begin, evaluation, finish, logged

from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import UserError
from gsae_ray.storage.trial_directory import Trial, TrialDirectory
from gsae_ray.tracking.background import MirrorThread
from gsae_ray.tracking.connection import quick_failure
from gsae_ray.tracking.mirror import Mirror
from gsae_ray.tracking.tags import TRIAL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(autouse=True)
def _as_in_a_launch() -> Iterator[None]:
    with quick_failure():
        yield


@contextlib.contextmanager
def hanging(process: MLflowServer, timeout_s: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(timeout_s))
        os.killpg(process.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(process.process.pid, signal.SIGCONT)


def wait_until(reached: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 300  # on a loaded machine a server starts in minutes
    while not reached():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    process = MLflowServer(tmp_path_factory.mktemp("mlflow"))
    yield process
    process.kill()


@contextlib.contextmanager
def mirroring(server: Server, pairs: list[Trial]) -> Iterator[MirrorThread]:
    """A thread that hurries. Each trial has its first rows in MLflow already."""
    thread = MirrorThread(server.mirror(), pairs, interval_s=0.02)
    thread.start()
    try:
        for trial, directory in pairs:
            wait_for_row(server, trial, directory.rows()[0][-1]["step"])
        yield thread
    finally:
        thread.finish()


def wait_for_error(thread: MirrorThread) -> None:
    wait_until(lambda: thread.last_error is not None, "the mirror to notice")


def wait_for_row(server: Server, trial: TrialSpec, step: int) -> None:
    wait_until(lambda: step in times(server, trial), f"row {step} of {trial.name}")


def times(server: Server, trial: TrialSpec) -> dict[int, int]:
    """The timestamps of its rows in MLflow, by step."""
    runs = [run for run in server.runs() if run.data.tags[TRIAL] == trial.name]
    return {step: timestamp for run in runs for step, timestamp, _ in server.history(run, "train/loss")}


def crash(root: Path, trial: TrialSpec) -> TrialDirectory:
    """Its process dies; a new attempt begins at the newest checkpoint, the rows after it are cut."""
    directory = begin(root, trial)
    directory.newest_state()
    time.sleep(0.002)  # what is written again has another time
    return directory


def older_in_mlflow(server: Server, trial: TrialSpec, directory: TrialDirectory) -> int:
    """How many of its rows were cut and written again after MLflow had them."""
    written = {row["step"]: row["timestamp"] for row in directory.rows()[0]}
    return sum(timestamp < written[step] for step, timestamp in times(server, trial).items())


def check_all_is_there_once(server: Server, pairs: list[Trial]) -> None:
    (parent,) = server.runs("launch")
    runs = {run.data.tags[TRIAL]: run for run in server.runs()}
    assert len(server.runs()) == len(runs) == len(pairs)
    for trial, directory in pairs:
        run = runs[trial.name]
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        expected = {name: [(1024, value)] for name, value in logged(evaluation()).items()}
        for row in directory.rows()[0]:
            for name, value in row["metrics"].items():
                expected.setdefault(name, []).append((row["step"], value))
        found = {name: [(step, value) for step, _, value in server.history(run, name)] for name in run.data.metrics}
        assert found == expected
        artifacts = server.client.list_artifacts(run.info.run_id, "sae")
        sizes = {f"sae/{path.name}": path.stat().st_size for path in (directory.path / "sae").iterdir()}
        assert {file.path: file.file_size for file in artifacts} == sizes
        assert len(server.client.list_artifacts(run.info.run_id, "evaluation")) == 1


# ---- killed, hanging, gone ------------------------------------------------------------------------------------------


def test_all_is_there_once_when_the_server_is_killed_again_and_again(process: MLflowServer, tmp_path: Path) -> None:
    draw = random.Random(seed())
    server = Server(process.uri)
    pairs = [pair(tmp_path, 1, trial) for trial in TRIALS]
    writers = [directory for _, directory in pairs]
    end = 1
    with mirroring(server, pairs) as thread:
        for number, (trial, directory) in enumerate(pairs):  # the one that crashes while the server is gone
            for writer in writers:
                writer.checkpoint(64 * end, {}, {})
            start, sent, end = end, end + draw.randint(2, 6), end + draw.randint(7, 12)
            for step in range(start + 1, end + 1):
                for writer in writers:
                    append(writer, step)
                    time.sleep(draw.uniform(0, 0.02))  # so that the server is killed wherever the mirror is then
                if step == sent:
                    wait_for_row(server, trial, 64 * sent)
            process.kill()
            wait_for_error(thread)
            writers[number] = crash(tmp_path, trial)
            append(writers[number], *range(start + 1, end + 1))
            end += 1
            for (other, _), writer in zip(pairs, writers, strict=True):
                append(writer, end)
                if number == len(pairs) - 1:
                    finish(writer, other)
            process.start()
            wait_for_row(server, trial, 64 * end)
            assert older_in_mlflow(server, trial, directory) >= sent - start
        assert thread.finish()
    check_all_is_there_once(server, pairs)


def test_a_server_that_hangs_and_wakes_is_brought_up_to_date(process: MLflowServer, tmp_path: Path) -> None:
    server = Server(process.uri)
    trial, directory = pair(tmp_path, 2)
    directory.checkpoint(128, {}, {})
    append(directory, 3, 4)
    with mirroring(server, [Trial(trial, directory)]) as thread:
        with hanging(process, timeout_s=2):
            append(directory, 5)
            wait_for_error(thread)
            directory = crash(tmp_path, trial)
            append(directory, 3, 4, 5, 6)
        wait_for_row(server, trial, 384)
        assert older_in_mlflow(server, trial, directory) >= 2
        finish(directory, trial)
        assert thread.finish()
    check_all_is_there_once(server, [Trial(trial, directory)])


def test_a_server_that_hangs_at_the_end_costs_two_timeouts_and_is_brought_up_to_date_later(
    process: MLflowServer, tmp_path: Path
) -> None:
    server = Server(process.uri)
    trial, directory = pair(tmp_path, 2)
    with mirroring(server, [Trial(trial, directory)]) as thread:
        with hanging(process, timeout_s=3):
            append(directory, 3)
            finish(directory, trial)
            time.sleep(0.5)  # the thread is in a call
            started = time.monotonic()
            assert not thread.finish()
            assert 3 < time.monotonic() - started < 2 * 3 + 5
            assert "timeout" in (thread.last_error or "")
        server.mirror().sync([Trial(trial, directory)])
    check_all_is_there_once(server, [Trial(trial, directory)])


def test_a_server_that_is_gone_at_the_end_costs_no_time_and_is_brought_up_to_date_later(
    process: MLflowServer, tmp_path: Path
) -> None:
    server = Server(process.uri)
    trial, directory = pair(tmp_path, 2)
    with mirroring(server, [Trial(trial, directory)]) as thread:
        process.kill()
        append(directory, 3)
        finish(directory, trial)
        started = time.monotonic()
        assert not thread.finish()
        assert time.monotonic() - started < 10
        process.start()
        server.mirror().sync([Trial(trial, directory)])
    check_all_is_there_once(server, [Trial(trial, directory)])


# ---- any request goes wrong -----------------------------------------------------------------------------------------

LATER = 4
"""Requests after which one that was given up is carried out."""

Request = tuple[str, str, bytes, dict[str, str]]


class Wire(ThreadingHTTPServer):
    """Passes requests on to the server, except one: there the client's connection breaks.

    The server has not seen it ("request lost"), has carried it out ("reply lost"), or carries it out later ("late").
    """

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Relay)
        self.port_behind = port
        self.cut(0, "")

    def cut(self, number: int, how: str) -> None:
        """Which one, counted from here on; 0: none."""
        self.number, self.how = number, how
        self.count = 0
        self.broken: str | None = None
        self.late: list[Request] = []

    def pass_on(self, request: Request) -> tuple[int, str, bytes] | None:
        """The reply, if the client gets one."""
        self.count += 1
        if self.count == self.number:
            self.broken = "/".join(request[1].partition("?")[0].split("/")[-2:])
            if self.how == "reply lost":
                self._carry_out(request)
            elif self.how == "late":
                self.late.append(request)
            return None
        reply = self._carry_out(request)
        if self.count >= self.number + LATER:
            self.carry_out_late()
        return reply

    def carry_out_late(self) -> None:
        while self.late:
            self._carry_out(self.late.pop())

    def _carry_out(self, request: Request) -> tuple[int, str, bytes]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port_behind)) as connection:
            connection.request(*request)
            reply = connection.getresponse()
            return reply.status, reply.headers["Content-Type"] or "", reply.read()


class _Relay(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Wire

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        reply = self.server.pass_on((self.command, self.path, body, dict(self.headers)))
        if reply is None:
            self.close_connection = True
            return
        status, content_type, content = reply
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def wire(process: MLflowServer) -> Iterator[Wire]:
    with serving(Wire(process.port)) as wire:
        yield wire


@pytest.mark.parametrize("again", ["the same mirror", "another mirror"])
@pytest.mark.parametrize("how", ["request lost", "reply lost", "late"])
def test_all_is_there_once_whichever_request_goes_wrong(wire: Wire, tmp_path: Path, how: str, again: str) -> None:
    broken: set[str] = set()
    older = 0
    for number in itertools.count(1):
        server = Server(f"http://127.0.0.1:{wire.server_port}")
        root = tmp_path / str(number)
        trial, directory = pair(root, 2)
        directory.checkpoint(128, {}, {})
        append(directory, 3, 4, 5)
        wire.cut(number, how)
        mirror: Mirror | None = None
        for part in range(3):
            try:
                mirror = mirror or server.mirror()
                mirror.sync([Trial(trial, directory)])
            except (MlflowException, UserError):
                assert wire.broken
                if mirror is None:
                    wire.carry_out_late()  # a launch that could not begin takes its time to come back
                if again == "another mirror":
                    mirror = None
            if part == 0:
                if how != "late":
                    directory = crash(root, trial)
                    append(directory, 3, 4, 5, 6)
                finish(directory, trial)
        if wire.broken is None:
            break
        broken.add(wire.broken)
        wire.carry_out_late()
        wire.cut(0, "")
        check_all_is_there_once(server, [Trial(trial, directory)])
        older += older_in_mlflow(server, trial, directory)
    calls = {"experiments/create", "runs/create", "runs/search", "runs/log-batch", "runs/update", "sae/cfg.json"}
    assert broken >= calls
    assert older > 0 or how == "late", "no row was in MLflow before it was cut"
