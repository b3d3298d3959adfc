"""Whatever fails, the SAEs are those of the undisturbed sweep, bit for bit, and MLflow has all of it once (law 5)."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from faults import (
    ONE_PRODUCER,
    SWEEP,
    TOKENS,
    Home,
    Outcome,
    assert_undisturbed,
    disturbed,
    position,
    processes,
    send,
    stop,
    wait_until,
)

from gsae_ray.errors import INTERRUPTED, SweepStoppedError
from gsae_ray.storage.driver_lock import LOCK_STALE_S
from gsae_ray.storage.trial_directory import TrialDirectory

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path, ONE_PRODUCER)


def test_sigkill_of_a_trial(home: Home, quiet: Outcome, rng: random.Random) -> None:
    came_to: list[int] = []

    def strike(trial: str) -> None:
        os.kill(home.pid(trial), signal.SIGKILL)
        came_to.append(home.tokens(trial))

    with disturbed(home, position(rng), strike):
        result = home.run()
    assert result.failures == {} and result.forward_ratio == 1.0 and result.repeated_rows == 0
    assert sorted(d.newest_attempt for d in home.trials.values()) == [1, 1, 1, 2]
    assert "died" in home.events
    (again_from,) = re.findall(r"tried again from ([\d,]+) tokens", home.events)
    assert 0 <= came_to[0] - int(again_from.replace(",", "")) <= SWEEP["training"]["checkpoint_every_tokens"]
    assert_undisturbed(home, quiet)


def test_sigkill_of_a_trial_that_comes_past_its_snapshot_again(home: Home, quiet: Outcome) -> None:
    """What it kept stays; the one after it is kept by its successor."""
    first = SWEEP["training"]["snapshots_at"][0]
    kept: list[tuple[str, int]] = []

    def strike(trial: str) -> None:
        os.kill(home.pid(trial), signal.SIGKILL)
        kept.append((trial, (home.trials[trial].snapshots.path(first) / "cfg.json").stat().st_mtime_ns))

    with disturbed(home, first / TOKENS, strike):
        result = home.run()
    assert result.failures == {} and "died" in home.events
    ((trial, written),) = kept
    assert (home.trials[trial].snapshots.path(first) / "cfg.json").stat().st_mtime_ns == written
    assert_undisturbed(home, quiet)


def test_sigkill_of_a_producer(home: Home, quiet: Outcome) -> None:
    home.sweep = SWEEP
    # Early, while there are blocks to make still.
    with disturbed(home, 0.03, lambda _: send(signal.SIGKILL, processes("ProducerActor")[:1])):
        result = home.run()
    assert "of 2 is gone" in home.events
    assert result.forward_ratio == 1.0 and result.repeated_rows == 0, "what it had made is not lost with it"
    assert_undisturbed(home, quiet)


def test_sigkill_of_all_producers(home: Home, quiet: Outcome) -> None:
    home.sweep = SWEEP
    with disturbed(home, 0.03, lambda _: send(signal.SIGKILL, processes("ProducerActor"))):
        result = home.run()
    assert "producer 1 of 2 is gone" in home.events and "producer 2 of 2 is gone" in home.events
    assert result.forward_ratio == 1.0
    assert_undisturbed(home, quiet)


def test_sigkill_of_the_store(home: Home, quiet: Outcome, rng: random.Random) -> None:
    with disturbed(home, position(rng), lambda _: send(signal.SIGKILL, processes("StoreActor"))):
        result = home.run()
    assert "store's process died" in home.events
    assert result.forward_ratio == 1.0 and result.repeated_rows > 0, "counted apart"
    assert {d.newest_attempt for d in home.trials.values()} == {1}, "trials wait for it"
    assert_undisturbed(home, quiet)


@pytest.mark.parametrize("woken", [False, True])
def test_sigstop_of_a_producer(home: Home, quiet: Outcome, woken: bool) -> None:
    home.sweep = {**SWEEP, "producers": {"count": 2, "timeout_s": 30}}

    def strike(_: str) -> None:
        producers = processes("ProducerActor")
        send(signal.SIGSTOP, producers)  # both, so that the sweep needs one of them
        if woken:
            wait_until(lambda: "is gone (no answer" in home.events)
            for process in producers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGCONT)

    with disturbed(home, 0.03, strike):
        result = home.run()
    assert "no answer to produce" in home.events
    assert result.forward_ratio == 1.0
    assert_undisturbed(home, quiet)


def test_sigstop_of_a_trial_never_woken(home: Home, quiet: Outcome, rng: random.Random) -> None:
    with disturbed(home, position(rng), lambda trial: os.kill(home.pid(trial), signal.SIGSTOP)):
        result = home.run()
    assert result.failures == {} and result.forward_ratio == 1.0
    assert "no trial waits for it any more" in home.events and "its process is killed" in home.events
    assert_undisturbed(home, quiet)


def test_sigstop_of_a_trial_woken_after_its_successor_started(home: Home, quiet: Outcome, rng: random.Random) -> None:
    """Its driver and the rest of its machine sleep and wake with it: else Ray would end the stopped process at once."""
    first = home.command()
    at = position(rng)
    sleeping: list[psutil.Process] = []
    try:
        wait_until(lambda: home.furthest()[0] >= at * TOKENS)
        _, trial = home.furthest()
        zombie = home.pid(trial)
        sleeping = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
        for process in sleeping:
            process.suspend()
        time.sleep(LOCK_STALE_S + 1)
        successor = home.command("--resume")
        wait_until(lambda: home.trials[trial].newest_attempt == 2)
        assert psutil.Process(zombie).status() == psutil.STATUS_STOPPED
        for process in sleeping:
            process.resume()
        assert first.wait(200) == INTERRUPTED, home.said(0)
        assert "has taken the sweep over" in home.said(0)
        assert successor.wait(200) == 0, home.said()
    finally:
        for process in sleeping:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        stop(first)
    assert_undisturbed(home, quiet)


def test_truncated_newest_checkpoint(home: Home, quiet: Outcome, rng: random.Random) -> None:
    """The one before is used."""
    found: list[tuple[int, int]] = []

    def strike(trial: str) -> None:
        directory = home.trials[trial]
        os.kill(home.pid(trial), signal.SIGSTOP)
        # Of the whole ones: the trial may have been stopped while it wrote the next.
        whole = [path.parent for path in directory.path.glob("checkpoints/*/manifest.json")]
        before, newest = sorted(whole, key=lambda p: int(p.name))[-2:]
        state = newest / "state.safetensors"
        os.truncate(state, state.stat().st_size // 2)
        os.kill(home.pid(trial), signal.SIGKILL)
        wait_until(lambda: directory.newest_attempt == 2)
        wait_until(lambda: not newest.exists())
        found.append((int(before.name), directory.newest_checkpoint))

    with disturbed(home, rng.uniform(0.4, 0.8), strike):
        home.run()
    assert found and found[0][0] == found[0][1]
    assert_undisturbed(home, quiet)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_disk_full(home: Home, quiet: Outcome, rng: random.Random) -> None:
    home.storage.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", home.storage], check=False)
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    filler = home.storage / "filler"
    try:

        def strike(_: str) -> None:
            with contextlib.suppress(OSError), filler.open("wb") as file:
                while file.write(bytes(2**16)):
                    file.flush()

        with (
            disturbed(home, position(rng), strike),
            pytest.raises(SweepStoppedError, match="storage is full: .*--resume"),
        ):
            home.run()
        filler.unlink()
        assert any(directory.newest_checkpoint for directory in home.trials.values())
        home.run(resume=True)
        assert_undisturbed(home, quiet)
    finally:
        subprocess.run(["umount", "-l", home.storage], check=True)


def test_trial_that_dies_at_the_same_row_every_time_fails_and_the_sweep_goes_on(home: Home, quiet: Outcome) -> None:
    victim: list[str] = []
    at = 15_360  # after the checkpoint at 10,240, before the next

    def strike(trial: str) -> None:
        victim.append(trial)
        directory = TrialDirectory(home.trials[trial].path)
        while directory.failure is None:
            if home.tokens(trial) >= at:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(home.pid(trial), signal.SIGKILL)
                attempt = directory.newest_attempt
                wait_until(lambda: directory.newest_attempt > attempt or directory.failure)  # noqa: B023
            time.sleep(0.02)

    with disturbed(home, at / TOKENS, strike):
        result = home.run()
    assert list(result.failures) == victim
    assert "died 5 times without a checkpoint after 10,240 tokens" in result.failures[victim[0]]
    assert_undisturbed(home, quiet, but_for=victim)
