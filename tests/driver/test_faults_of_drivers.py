"""Law 5 for what is around trials: drivers, whole machines and the MLflow server that fail."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import (
    ONE_PRODUCER,
    PATIENCE_S,
    TOKENS,
    Home,
    Outcome,
    assert_undisturbed,
    disturbed,
    on_nodes,
    position,
    stop,
    wait_until,
)
from servers import MLflowServer

from gsae_ray.errors import INTERRUPTED

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path, ONE_PRODUCER)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_death_of_the_driver_then_resume(
    home: Home, quiet: Outcome, rng: random.Random, number: signal.Signals
) -> None:
    """SIGKILL, Ctrl-C, and what a cluster's `stop` sends; the storage is at another path afterwards."""
    driver = home.command()
    at = position(rng)
    try:
        wait_until(lambda: home.furthest()[0] >= at * TOKENS)
        os.kill(driver.pid, number)
        assert driver.wait(120) == (-9 if number == signal.SIGKILL else INTERRUPTED), home.said()
    finally:
        stop(driver)
    assert "Traceback" not in home.said()
    moved = home.path / "elsewhere"
    home.storage.rename(moved)  # as another machine may have it
    home.storage = moved
    kept = {name: directory.newest_checkpoint for name, directory in home.trials.items()}
    result = home.run(resume=True)
    assert result.failures == {} and result.forward_ratio == 1.0
    assert_undisturbed(home, quiet)
    assert any(0 < tokens < TOKENS for tokens in kept.values()), "it went on from checkpoints"


@pytest.mark.timeout(600)
def test_the_same_command_again_after_the_whole_head_was_lost(home: Home, quiet: Outcome, rng: random.Random) -> None:
    """As what retries a job does (Kubernetes, Slurm, SkyPilot): driver and Ray are gone, the storage is there."""
    first = home.command("--resume", "auto")
    try:
        at = position(rng)
        wait_until(lambda: home.furthest()[0] >= at * TOKENS)
    finally:
        stop(first)  # SIGKILL, of all its processes
    kept = {name: directory.newest_checkpoint for name, directory in home.trials.items()}
    again = home.command("--resume", "auto")
    try:
        assert again.wait(PATIENCE_S) == 0, home.said()
    finally:
        stop(again)
    assert len(list((home.storage / home.sweep["name"] / "launches").iterdir())) == 1
    assert any(0 < tokens < TOKENS for tokens in kept.values()), "it went on from checkpoints"
    assert_undisturbed(home, quiet)  # one launch in MLflow too


def test_nodes_with_roles_that_come_and_go(home: Home, quiet: Outcome) -> None:
    """Producers and trials run on their own nodes only; trials start on one that comes, and go on when one goes."""
    on_nodes("node_roles.py", home)
    assert_undisturbed(home, quiet)


def test_death_of_a_worker_node(home: Home, quiet: Outcome, rng: random.Random) -> None:
    """With producers, trials and chunks on it; another node is there."""
    said = on_nodes("node_death.py", home, str(position(rng)))
    assert "forward ratio 1.0" in said
    assert max(d.newest_attempt for d in home.trials.values()) == 2, "a trial died with its node"
    assert_undisturbed(home, quiet)


def test_second_driver_is_refused(home: Home, quiet: Outcome) -> None:
    first = home.command()
    try:
        wait_until(lambda: home.furthest()[0] > 0)
        second = home.command("--resume")
        assert second.wait(120) == 2
        assert f"another driver (process {first.pid} on" in home.said()
        assert first.wait(200) == 0
    finally:
        stop(first)
    assert_undisturbed(home, quiet)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    server = MLflowServer(tmp_path_factory.mktemp("mlflow"))
    yield server
    server.kill()


def test_tracking_server_down_for_a_while(
    home: Home, quiet: Outcome, rng: random.Random, server: MLflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def strike(_: str) -> None:
        server.kill()
        time.sleep(5)
        server.start()

    home.uri, home.sweep = server.uri, {**ONE_PRODUCER, "experiment": "for a while"}
    with disturbed(home, position(rng), strike):
        home.run()
    if "is not up to date" in capsys.readouterr().out:  # it takes longer to come back than the sweep had left
        home.run(resume=True)
    assert_undisturbed(home, quiet)


def test_tracking_server_gone_at_the_end_then_resume(
    home: Home, quiet: Outcome, rng: random.Random, server: MLflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    home.uri, home.sweep = server.uri, {**ONE_PRODUCER, "experiment": "at the end"}
    with disturbed(home, position(rng), lambda _: server.kill()):
        result = home.run()
    assert result.failures == {}
    assert "is not up to date" in capsys.readouterr().out
    server.start()
    home.run(resume=True)
    assert_undisturbed(home, quiet)
