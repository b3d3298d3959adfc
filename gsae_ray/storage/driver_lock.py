"""One driver at a time for a sweep's folder: numbered sessions, each with a heartbeat.

drivers/{session}.json: {"host", "pid", "ended", "heartbeat"} of a driver. The newest session is the one that runs,
where its heartbeat is fresh.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field, FiniteFloat
from typing_extensions import TypedDict

from gsae_ray.errors import ReplacedError, UserError
from gsae_ray.files import LOCAL, JSONFile, Storage

LOCK_HEARTBEAT_S = 5.0
LOCK_STALE_S = 30.0


class _DriverState(TypedDict):
    host: str
    pid: Annotated[int, Field(ge=0, lt=2**31)]
    ended: bool
    heartbeat: FiniteFloat


_DRIVER = JSONFile(_DriverState, "it counts as gone when it is old")


class Driver:
    """A driver's hold on a sweep's folder.

    Sessions are numbered: the file of the next number can be made once only, and who finds a higher one than its own
    has been replaced (it was suspended, or cut off from storage).
    """

    def __init__(self, folder: Path, session: int, storage: Storage = LOCAL) -> None:
        self.folder = folder
        self.session = session
        self.storage = storage
        self._path = folder / f"{session}.json"
        storage.create(self._path)
        try:
            self.beat()
        except OSError:  # on a full disk: an empty file would look like a driver that is starting
            storage.remove(self._path)
            raise

    def beat(self, ended: bool = False) -> None:
        """Writes that the driver lives, or that it has come to its end."""
        mine = _DriverState(host=socket.gethostname(), pid=os.getpid(), ended=ended, heartbeat=time.time())
        _DRIVER.write(self._path, mine, self.storage)

    def end(self) -> None:
        """Writes that the driver has come to its end; on a full disk by a file that is empty and old."""
        try:
            self.beat(ended=True)
        except OSError:
            self.storage.expire(self._path)

    def leave(self) -> None:
        """Removes the driver's file, and the folders that are empty then."""
        self.storage.remove(self._path)
        self.storage.remove_empty(self.folder)
        self.storage.remove_empty(self.folder.parent)

    @property
    def replaced_by(self) -> str | None:
        """Who has taken the sweep over, if anybody has."""
        newest, other = _newest_driver(self.folder, self.storage)
        return None if other is None or newest <= self.session else _describe_driver(other)

    def check(self) -> None:
        """Looks whether this driver still leads.

        Raises:
            ReplacedError: another driver has taken the sweep over.
        """
        if (other := self.replaced_by) is not None:
            raise ReplacedError(f"this driver was not heard of, and another one ({other}) has taken the sweep over")


@contextlib.contextmanager
def driver_lock(folder: Path, wait: Callable[[str], None] | None = None, storage: Storage = LOCAL) -> Iterator[Driver]:
    """Holds a sweep's folder for one driver; a heartbeat tells a live driver from the remains of a dead one.

    Args:
        folder: of the sweep.
        wait: is told of another driver whose end cannot be seen from here (its machine was lost, say), which is then
            waited for: until it is heard of, or counts as gone. Without this it is refused at once.
        storage: in which the folder is.

    Raises:
        UserError: another driver runs the sweep.
    """
    drivers = folder / "drivers"
    storage.make_folder(drivers)
    newest, other = _newest_driver(drivers, storage)
    refused = (
        f"{folder}: another driver ({{}}) runs this sweep; wait for it or stop it (one that was killed on another "
        f"machine counts as gone after {LOCK_STALE_S:g} s), or give this sweep another name or --storage"
    )
    if other is not None and wait is not None and _runs(other):
        wait(f"{_describe_driver(other)} ran this sweep a moment ago; waiting until it is heard of, or counts as gone")
        heard = other["heartbeat"]
        while other is not None and other["heartbeat"] == heard and _runs(other):
            time.sleep(1)
            newest, other = _newest_driver(drivers, storage)
    if other is not None and _runs(other):
        raise UserError(refused.format(_describe_driver(other)))
    try:
        driver = Driver(drivers, newest + 1, storage)
    except FileExistsError:
        raise UserError(refused.format("it has begun this moment")) from None
    for session in _sessions(drivers, storage):
        if session < newest:
            storage.remove(drivers / f"{session}.json")
    done = threading.Event()

    def beat() -> None:
        while not done.wait(LOCK_HEARTBEAT_S):
            with contextlib.suppress(OSError):
                driver.beat()

    thread = threading.Thread(target=beat, name="driver-lock", daemon=True)
    thread.start()
    try:
        yield driver
    finally:
        done.set()
        thread.join()
        with contextlib.suppress(OSError):
            if storage.exists(folder / "launches"):
                driver.end()
            else:  # a sweep that has not begun leaves nothing behind; what others have put there stays
                driver.leave()


def _sessions(drivers: Path, storage: Storage) -> list[int]:
    """Numbers of the drivers that have a file."""
    names = [Path(name) for name in storage.names(drivers)]
    return [int(name.stem) for name in names if name.suffix == ".json" and name.stem.isdecimal()]


def _newest_driver(drivers: Path, storage: Storage) -> tuple[int, _DriverState | None]:
    """Session and description of the last driver that began; 0 and None before the first."""
    session = max(_sessions(drivers, storage), default=0)
    if session == 0:
        return 0, None
    path = drivers / f"{session}.json"
    try:
        written = storage.modified(path)
    except FileNotFoundError:  # a newer one has just cleared it away
        return session, None
    # A damaged one is being written, or its driver's machine crashed then.
    unknown = _DriverState(host="?", pid=0, ended=False, heartbeat=written)
    return session, _DRIVER.read_whole(path, storage) or unknown


def _describe_driver(driver: _DriverState) -> str:
    return f"process {driver['pid'] or '?'} on {driver['host']}"


def _runs(driver: _DriverState) -> bool:
    return not driver["ended"] and abs(time.time() - driver["heartbeat"]) < LOCK_STALE_S and _alive(driver)


def _alive(driver: _DriverState) -> bool:
    """Whether a driver's process is there; on another host only its heartbeat can tell."""
    if driver["host"] != socket.gethostname():
        return True
    try:
        os.kill(driver["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
