"""The log of a launch: what happened to it and when, a line of a file each."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gsae_ray.errors import first_line


class EventLog:
    """Tells the events of a launch to the display, and appends them to a file as lines `{"time", "event"}`."""

    def __init__(self, path: Path, show: Callable[[str], None]) -> None:
        self.path = path
        self.show = show

    def say(self, event: str, show: bool = True) -> None:
        """Writes an event down; `show=False` keeps it off the display."""
        if show:
            self.show(event)
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event})
        with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8") as file:  # not what a sweep ends for
            file.write(line + "\n")

    @contextlib.contextmanager
    def session(self, what: str) -> Iterator[None]:
        """Logs the begin of a session of the launch, and how the session ends.

        Args:
            what: the work that is left to do.
        """
        if self.path.exists():
            self.say(f"launch {self.path.parent.name} goes on: {what}")
        else:
            self.say(f"begins: {what}", show=False)
        try:
            yield
        except BaseException as error:
            self.say(f"ends before it is done: {type(error).__name__}: {first_line(error)}", show=False)
            raise
        self.say("ends", show=False)
