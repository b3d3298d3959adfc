"""SIGTERM, with which a cluster ends a job."""

from __future__ import annotations

import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from gsae_ray.driver.stop import stopped_by_signals
from gsae_ray.errors import StopAskedError


def test_sigterm_stops_a_launch_and_a_second_one_ends_it() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stopped_by_signals() as stop:
        stop.check()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StopAskedError, match="the same command with --resume goes on"):
            stop.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_interrupts_a_launch_that_is_shutting_down() -> None:
    """Nothing would see it otherwise, since nothing checks any more."""
    with stopped_by_signals() as stop:
        stop.shutting_down = True
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert stop.reason is None


def test_an_interrupt_stops_a_launch_where_somebody_types_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with stopped_by_signals(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    before = signal.getsignal(signal.SIGINT)
    with stopped_by_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(StopAskedError):
            stop.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    def handler() -> object:
        with stopped_by_signals():
            return signal.getsignal(signal.SIGTERM)

    with ThreadPoolExecutor() as pool:
        assert pool.submit(handler).result() is signal.getsignal(signal.SIGTERM)
