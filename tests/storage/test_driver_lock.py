"""One driver at a time for a sweep's folder, whatever became of the ones before."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gsae_ray.errors import ReplacedError, UserError
from gsae_ray.storage.driver_lock import LOCK_STALE_S, Driver, driver_lock


def driver_file(folder: Path, session: int, **changes: Any) -> Path:
    """As a driver leaves it that is alive on another machine, but for `changes`."""
    path = folder / "drivers" / f"{session}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"host": "another", "pid": 7, "ended": False, "heartbeat": time.time()} | changes
    path.write_text(json.dumps(state))
    return path


def dead_process() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture(autouse=True)
def begun(tmp_path: Path) -> None:
    """A driver whose sweep has not begun leaves nothing behind; these have."""
    (tmp_path / "launches").mkdir()


@pytest.fixture
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsae_ray.storage.driver_lock.LOCK_HEARTBEAT_S", 0.01)


def run_in_threads(work: Callable[[], None], count: int) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_second_driver_is_refused_while_the_first_is_alive(tmp_path: Path) -> None:
    with driver_lock(tmp_path) as first:
        for _ in range(2):
            refused = pytest.raises(UserError, match=rf"another driver \(process {os.getpid()} on .*--storage")
            with refused, driver_lock(tmp_path):
                pass
        assert first.replaced_by is None


def test_a_driver_on_another_machine_is_alive_while_its_heartbeat_is_fresh(tmp_path: Path) -> None:
    driver_file(tmp_path, 3, heartbeat=time.time() - LOCK_STALE_S + 10)
    with pytest.raises(UserError, match=r"another driver \(process 7 on another\)"), driver_lock(tmp_path):
        pass


def test_a_driver_whose_process_belongs_to_another_user_is_alive(tmp_path: Path) -> None:
    driver_file(tmp_path, 3, host=socket.gethostname(), pid=1)
    with pytest.raises(UserError, match="process 1 on"), driver_lock(tmp_path):
        pass


@pytest.mark.parametrize("host", ["another", socket.gethostname()])
@pytest.mark.parametrize("beat_s", [-LOCK_STALE_S - 1, 1e9], ids=["stale", "of a damaged file"])
def test_a_driver_whose_heartbeat_is_not_of_now_is_replaced(tmp_path: Path, host: str, beat_s: float) -> None:
    driver_file(tmp_path, 3, host=host, pid=os.getpid(), heartbeat=time.time() + beat_s)
    with driver_lock(tmp_path) as driver:
        assert driver.session == 4


def test_a_driver_whose_process_is_dead_is_replaced_at_once(tmp_path: Path) -> None:
    driver_file(tmp_path, 3, host=socket.gethostname(), pid=dead_process())
    with driver_lock(tmp_path) as driver:
        assert driver.session == 4


def test_a_driver_that_was_killed_is_replaced_at_once(tmp_path: Path) -> None:
    source = (
        "import pathlib, sys, time; from gsae_ray.storage.driver_lock import driver_lock\n"
        "with driver_lock(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", source, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {process.pid} on"), driver_lock(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()
    with driver_lock(tmp_path) as driver:
        assert driver.session == 2


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, UserError])
def test_a_driver_that_has_ended_lets_the_next_one_begin_at_once(
    tmp_path: Path, error: type[BaseException] | None
) -> None:
    with contextlib.suppress(KeyboardInterrupt, UserError), driver_lock(tmp_path):
        if error is not None:
            raise error
    with driver_lock(tmp_path) as driver:
        assert driver.session == 2


def test_a_sweep_that_has_not_begun_leaves_nothing_behind(tmp_path: Path) -> None:
    with contextlib.suppress(UserError), driver_lock(tmp_path / "small"):
        raise UserError
    assert not (tmp_path / "small").exists()


def test_a_sweep_that_has_not_begun_leaves_what_others_have_put_there(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    done = folder / "trials/t0-12345678/DONE"
    done.parent.mkdir(parents=True)
    done.touch()
    with driver_lock(folder) as driver:
        other = driver_file(folder, 2)  # it has taken over, and has not begun either
    assert driver.session == 1
    assert done.exists()
    with pytest.raises(UserError, match="process 7 on another"), driver_lock(folder):
        pass
    assert other.exists()


@pytest.mark.usefixtures("quick_beats")
def test_a_driver_says_again_and_again_that_it_lives(tmp_path: Path) -> None:
    with driver_lock(tmp_path):
        path = tmp_path / "drivers/1.json"
        before = json.loads(path.read_text())
        until(lambda: json.loads(path.read_text())["heartbeat"] > before["heartbeat"])
        assert before["pid"] == os.getpid()
    assert json.loads(path.read_text())["ended"]


def test_a_driver_that_was_replaced_notices(tmp_path: Path) -> None:
    with driver_lock(tmp_path) as first:
        path = tmp_path / "drivers/1.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"heartbeat": 0, "host": "another"}))
        assert first.replaced_by is None
        with driver_lock(tmp_path) as second:
            assert first.replaced_by == f"process {os.getpid()} on {socket.gethostname()}"
            assert second.replaced_by is None
            first.beat()  # it was suspended, and goes on for a moment
            assert second.replaced_by is None
    assert first.replaced_by is not None
    with pytest.raises(ReplacedError, match="another one .* has taken the sweep over"):
        first.check()


def test_what_a_replaced_driver_still_writes_does_not_keep_the_next_one_out(tmp_path: Path) -> None:
    path = driver_file(tmp_path, 1, heartbeat=0)
    with driver_lock(tmp_path) as second:
        driver_file(tmp_path, 1)
    with driver_lock(tmp_path) as third:
        assert (second.session, third.session) == (2, 3)
    assert not path.exists(), "only the newest ones are kept"


def test_of_drivers_that_race_for_a_number_exactly_one_gets_it(tmp_path: Path) -> None:
    rounds, racers = 30, 4
    begin = threading.Barrier(racers)
    won: list[int] = []

    def race() -> None:
        for session in range(1, rounds + 1):
            begin.wait()
            with contextlib.suppress(FileExistsError):
                Driver(tmp_path, session)
                won.append(session)

    run_in_threads(race, racers)
    assert won == list(range(1, rounds + 1))


def test_of_drivers_that_begin_at_the_same_time_one_runs_and_the_others_are_refused(tmp_path: Path) -> None:
    driver_file(tmp_path, 5, heartbeat=0)
    racers = 6
    begin, end = threading.Barrier(racers), threading.Barrier(racers)
    outcomes: list[str] = []

    def drive() -> None:
        begin.wait()
        with contextlib.ExitStack() as stack:
            try:
                driver = stack.enter_context(driver_lock(tmp_path))
                outcomes.append(f"session {driver.session}")
            except UserError as error:
                outcomes.append("refused" if "another driver (" in str(error) else str(error))
            end.wait()

    run_in_threads(drive, racers)
    assert sorted(outcomes) == ["refused"] * (racers - 1) + ["session 6"]


DAMAGED = [
    '{"host": "another", "pid": 1e99, "ended": false, "heartbeat": 1e999}',
    "",
    '{"host": "ano',
    "null",
    "[]",
    "{}",
    '{"host": "another", "pid": 7}',
    "\x00" * 40,
    '{"ended": "',
    "7",
]


@pytest.mark.parametrize("contents", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_drivers_file_counts_as_a_live_driver_while_it_is_new_and_as_none_later(
    tmp_path: Path, contents: str
) -> None:
    path = driver_file(tmp_path, 3)
    path.write_text(contents)
    with pytest.raises(UserError, match="another driver"), driver_lock(tmp_path):  # it may be being written
        pass
    old = time.time() - LOCK_STALE_S - 1
    os.utime(path, (old, old))
    with driver_lock(tmp_path) as driver:
        assert driver.session == 4


def test_a_driver_notices_one_that_has_only_half_written_its_file(tmp_path: Path) -> None:
    with driver_lock(tmp_path) as driver:
        (tmp_path / "drivers/2.json").write_text('{"host"')
        assert driver.replaced_by is not None


def test_a_driver_that_found_no_room_for_its_file_is_in_nobodys_way(small_disk: Path) -> None:
    (small_disk / "launches").mkdir()
    with driver_lock(small_disk):
        pass
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize))
    with pytest.raises(OSError, match="No space left"), driver_lock(small_disk):
        pass
    ballast.unlink()
    with driver_lock(small_disk) as driver:
        assert driver.session == 2


def test_a_driver_that_ends_on_a_full_disk_lets_the_next_one_begin_at_once(small_disk: Path) -> None:
    (small_disk / "launches").mkdir()
    ballast = small_disk / "ballast"
    with driver_lock(small_disk):
        ballast.write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize))
    ballast.unlink()
    with driver_lock(small_disk) as driver:
        assert driver.session == 2


def test_other_files_among_the_drivers_are_left_alone(tmp_path: Path) -> None:
    driver_file(tmp_path, 3, ended=True)
    others = [tmp_path / "drivers" / name for name in ("3 (copy).json", "notes.json", ".4.json.123", "5.json.part")]
    for path in others:
        path.write_text("?")
    with driver_lock(tmp_path) as driver:
        assert driver.session == 4
        assert driver.replaced_by is None
    assert all(path.exists() for path in others)


@pytest.mark.parametrize("beats", [False, True])
def test_a_driver_whose_machine_was_lost_is_waited_for_and_one_that_lives_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beats: bool
) -> None:
    monkeypatch.setattr("gsae_ray.storage.driver_lock.LOCK_STALE_S", 3.0)
    drivers = tmp_path / "drivers"
    drivers.mkdir()

    def beat() -> None:
        facts = {"host": "elsewhere", "pid": 1, "ended": False, "heartbeat": time.time()}
        (drivers / "1.json").write_text(json.dumps(facts))

    beat()
    with pytest.raises(UserError, match=r"another driver \(process 1 on elsewhere\) runs"), driver_lock(tmp_path):
        pass
    said: list[str] = []

    def wait(text: str) -> None:
        said.append(text)
        if beats:
            threading.Timer(0.5, beat).start()

    with contextlib.ExitStack() as stack:
        if beats:
            stack.enter_context(pytest.raises(UserError, match=r"another driver \(process 1 on elsewhere\) runs"))
        assert stack.enter_context(driver_lock(tmp_path, wait)).session == 2
    assert len(said) == 1 and "process 1 on elsewhere" in said[0]
