"""What Ray Tune calls while trials run: deaths and ends of trials go to the supervisor, a stop comes from there."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable
from typing import Any

from ray import tune

from gsae_ray.driver.cluster_nodes import TELL_AFTER_S, TELL_EVERY_S, describe_free_resources
from gsae_ray.driver.supervisor import Supervisor
from gsae_ray.errors import SweepStoppedError


def _guarded(hook: Callable[..., None]) -> Callable[..., None]:
    """Wraps a callback to log its errors: one that reached Tune would end the sweep."""

    @functools.wraps(hook)
    def wrapped(self: TrialCallbacks, **info: Any) -> None:
        try:
            hook(self, **info)
        except Exception:
            logging.getLogger(__name__).warning("%s failed", hook.__name__, exc_info=True)

    return wrapped


class TrialCallbacks(tune.Callback):
    """Tells the supervisor of trials' deaths and ends; stops a launch whose trials find no free resources."""

    def __init__(
        self,
        supervisor: Supervisor,
        describe_resources: Callable[[], str] = describe_free_resources,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.supervisor = supervisor
        self.describe_resources = describe_resources
        self.clock = clock
        self._idle_since: float | None = None
        """Since when trials wait for resources while none runs."""
        self._tell_at = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes its callbacks down for a restore, which is not used

    @_guarded
    def on_step_end(self, trials: list[Any], **_info: Any) -> None:
        """Stops a launch whose trials have waited too long for resources, with none of them running.

        Two sweeps whose producers hold what the other's trials need would else wait for each other for ever.
        """
        states, now = {trial.status for trial in trials}, self.clock()
        timeout_s = self.supervisor.settings.room_timeout_s
        if tune.experiment.Trial.RUNNING in states or tune.experiment.Trial.PENDING not in states:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since, self._tell_at = now, now + TELL_AFTER_S
        elif now - self._idle_since > timeout_s:
            self.supervisor.stop.set(
                SweepStoppedError(
                    f"no trial has had room on the cluster for trials.room_timeout_s = {timeout_s:g} s, so what the "
                    "producers hold is given back; the same command with --resume goes on when there is room"
                )
            )
        elif now > self._tell_at:
            self._tell_at = now + TELL_EVERY_S
            with contextlib.suppress(Exception):  # Ray may give no answer; an error here would end the sweep
                self.supervisor.log.say(f"no trial runs: {self.describe_resources()}")

    @_guarded
    def on_trial_result(self, result: dict[str, Any], **_info: Any) -> None:
        if "machine" in result:
            self.supervisor.saw_machine(result["machine"])

    @_guarded
    def on_trial_recover(self, trial: Any, **_info: Any) -> None:
        self._died(trial)

    @_guarded
    def on_trial_error(self, trial: Any, **_info: Any) -> None:
        # Tune calls this where a process dies that was to be used again for the next trial.
        self._died(trial)

    @_guarded
    def on_trial_complete(self, trial: Any, **_info: Any) -> None:
        self.supervisor.trial_ended(_name(trial))

    def _died(self, trial: Any) -> None:
        # Tune puts the trial to the end of its queue: those before it may need the resources that it holds.
        if self.supervisor.trial_died(_name(trial), _last_line(trial.get_error())):
            trial.max_failures = 0  # if it cannot even be started, that is its end


def _name(trial: Any) -> str:
    name: str = trial.config["trial"]["name"]
    return name


def _last_line(error: Any) -> str:
    """Returns what Tune wrote down of a trial's last failure, in a few words."""
    lines = [line.strip() for line in str(error or "").splitlines() if line.strip()]
    reasons = [line for line in lines if "Error" in line or "died" in line]
    return (reasons or lines or ["its process died"])[-1][:300]


class StopWhenAsked(tune.Stopper):
    """Ends all trials when the launch has to stop, or a trial's result says that it cannot go on."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as for TrialCallbacks

    def __call__(self, _trial_id: str, result: dict[str, Any]) -> bool:
        if result.get("stopped"):
            self.supervisor.stop.set(SweepStoppedError(result["stopped"]))
        return False

    def stop_all(self) -> bool:
        return self.supervisor.stop.reason is not None
