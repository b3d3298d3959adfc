"""MLflow beside a launch: how it is opened, and how it ends, whatever the server and the launch do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NoReturn, cast

import pytest

from gsae_ray.errors import StopAskedError, UserError
from gsae_ray.tracking import session
from gsae_ray.tracking.session import OPENINGS, Tracking


class Mirror:
    """What `Tracking` needs of a mirror, noting what is done."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.done: list[Any] = []

    def sync(self, _trials: object) -> None:
        if self.fails:
            raise ConnectionError("the server is gone")
        self.done.append("sync")

    def report(self, progress: dict[str, Any]) -> None:
        self.done.append(progress)

    def close(self, status: str) -> None:
        self.done.append(status)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "OPENING_PAUSE_S", 0.0)


def tracking(
    open_mirror: Callable[[], Any], progress: Callable[[], dict[str, Any]] | None = None, ours: bool = True
) -> Tracking:
    return Tracking(open_mirror, [], progress, lambda: ours)


def refuse() -> NoReturn:
    raise UserError("--tracking-uri: it is full")


def test_what_is_left_is_sent_at_the_end_and_the_run_stays_open() -> None:
    mirror = Mirror()
    with tracking(lambda: mirror, lambda: {"tokens": 1}) as track:
        track.start_mirroring()
    assert mirror.done == [{"tokens": 1}, "sync"] and track.last_error is None
    assert cast(Any, track.mirror) is mirror


def test_the_opening_goes_on_beside_the_rest() -> None:
    go_on = threading.Event()

    def open_mirror() -> Any:
        go_on.wait()
        return Mirror()

    with tracking(open_mirror) as track:
        track.check()
        go_on.set()
        track.start_mirroring()


def test_a_server_that_is_gone_for_a_moment_is_tried_again() -> None:
    tries: list[int] = []

    def open_mirror() -> Any:
        tries.append(1)
        return Mirror() if len(tries) == OPENINGS else refuse()

    with tracking(open_mirror) as track:
        track.start_mirroring()
    assert len(tries) == OPENINGS


def test_an_opening_that_fails_for_good_is_told_while_the_rest_starts() -> None:
    tries: list[int] = []

    def open_mirror() -> Any:
        tries.append(1)
        refuse()

    with pytest.raises(UserError, match="it is full"), tracking(open_mirror) as track:
        while True:
            track.check()
    assert len(tries) == OPENINGS


def test_a_launch_that_is_interrupted_leaves_killed_runs() -> None:
    mirror = Mirror()
    with pytest.raises(KeyboardInterrupt), tracking(lambda: mirror) as track:
        track.start_mirroring()
        raise KeyboardInterrupt
    assert mirror.done == ["sync", "KILLED"]


def test_a_launch_that_is_interrupted_before_it_mirrors_leaves_a_killed_run() -> None:
    mirror = Mirror()
    with pytest.raises(KeyboardInterrupt), tracking(lambda: mirror):
        raise KeyboardInterrupt
    assert mirror.done == ["KILLED"]


@pytest.mark.parametrize("ends", [lambda: None, refuse], ids=["after a clean end", "for the second time"])
def test_a_launch_that_is_interrupted_while_it_reports_its_end_leaves_killed_runs(ends: Callable[[], None]) -> None:
    class Hangs(Mirror):
        def report(self, _progress: dict[str, Any]) -> NoReturn:
            raise KeyboardInterrupt

    mirror = Hangs()
    with pytest.raises(KeyboardInterrupt), tracking(lambda: mirror, lambda: {}) as track:
        track.start_mirroring()
        ends()
    assert mirror.done == ["sync", "KILLED"]


def test_the_wait_for_an_opening_that_hangs_ends_where_the_launch_has_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "CHECK_INTERVAL_S", 0.0)
    mirror, go_on = Mirror(), threading.Event()

    def open_mirror() -> Any:
        go_on.wait()
        return mirror

    def check() -> NoReturn:
        go_on.set()  # else the end would wait for it
        raise StopAskedError("asked to stop")

    with pytest.raises(StopAskedError), tracking(open_mirror) as track:
        track.start_mirroring(check)
    assert mirror.done == ["KILLED"]


@pytest.mark.parametrize("mirroring", [False, True])
def test_a_driver_that_was_replaced_writes_nothing(mirroring: bool) -> None:
    mirror = Mirror()
    with pytest.raises(KeyboardInterrupt), tracking(lambda: mirror, lambda: {}, ours=False) as track:
        if mirroring:
            track.start_mirroring()
        raise KeyboardInterrupt
    assert mirror.done == []


def test_a_server_that_is_gone_at_the_end_is_told() -> None:
    with tracking(lambda: Mirror(fails=True)) as track:
        track.start_mirroring()
    assert track.last_error == "the server is gone"


def test_an_opening_is_given_up_when_the_launch_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "OPENING_PAUSE_S", 1e6)
    with pytest.raises(KeyboardInterrupt), tracking(refuse):
        raise KeyboardInterrupt
