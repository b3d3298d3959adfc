"""The producers of a store: which are idle, which are gone. Another answers a call that a producer did not survive.

No Ray here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from gsae_ray.activations.statistics import SiteStatistics
from gsae_ray.errors import NumericError, ProductionError, first_line
from gsae_ray.errors import reason as reason_of

Ref = Any
"""A reference to a chunk or to a task; the store passes it on and never looks inside."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 30.0
"""Between two attempts to reach a producer that is gone."""


class ProducerDied(Exception):
    """The producer's process is gone, or hangs; it may come back."""


class ProducerClient(Protocol):
    """How the store talks to a producer. Every call but `restart` raises ProducerDied."""

    async def produce(self, block: int, sites: Sequence[str]) -> tuple[dict[str, SiteStatistics], list[Ref]]:
        """As `Producer.produce`, with references in place of chunks."""

    async def run(self, task: Ref) -> Any:
        """As `Producer.run`, of a reference to a task."""

    async def ready(self) -> str:
        """The kind of machine it runs on, when the model is loaded."""

    async def restart(self) -> None:
        """Ends the process, also one that hangs; another takes its place."""


class ProducerPool:
    """Producers on one event loop. What happens to them is in `events`, one line each."""

    def __init__(self, producers: Sequence[ProducerClient], timeout_s: float, changed: Callable[[], None]) -> None:
        """Begins with all producers idle.

        Args:
            producers: all of them.
            timeout_s: a call that takes longer means that its producer hangs; without any producer for as long, the
                pool gives up (`error`).
            changed: called when a producer is idle again, and when the pool gives up.
        """
        self.timeout_s = timeout_s
        self.error: str | None = None
        self.events: list[str] = []
        self.machines: set[str] = set()
        """Kinds of machines that producers have come back on."""
        self._changed = changed
        self._names = {producer: f"producer {i + 1} of {len(producers)}" for i, producer in enumerate(producers)}
        self._idle = list(producers)
        self._gone: dict[ProducerClient, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def idle(self) -> bool:
        """Whether a producer can be taken."""
        return bool(self._idle)

    @property
    def all_gone(self) -> bool:
        return len(self._gone) == len(self._names)

    def take(self) -> ProducerClient:
        """An idle producer, for one `call`."""
        return self._idle.pop(0)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs `work` beside the rest; the pool keeps a reference, without which it might be collected halfway."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def call(self, producer: ProducerClient, method: str, *args: Any, what: str = "", times: int = 1) -> Any:
        """Calls a producer that was taken; afterwards it is idle again, or being revived.

        Args:
            producer: that was taken.
            method: of `ProducerClient`.
            *args: of the method.
            what: it is to do, in a word, for messages; by default the method's name.
            times: how many times the pool's timeout it may take.

        Returns:
            its answer.

        Raises:
            ProducerDied: it did not live to answer, or not in time; another may be asked.
            NumericError: so it raised; it would be so again.
            ProductionError: it raised; another would too.
        """
        what = what or method
        try:
            answer = await asyncio.wait_for(getattr(producer, method)(*args), times * self.timeout_s)
        except asyncio.TimeoutError:
            often = f"{times} times " if times > 1 else ""
            why = f"no answer to {what} in {often}producers.timeout_s = {self.timeout_s:g} s"
            self._lose(producer, why, hangs=True)
            raise ProducerDied("no answer") from None
        except ProducerDied as error:
            self._lose(producer, str(error), hangs=False)
            raise
        except Exception as error:
            self._idle.append(producer)
            if isinstance(error, NumericError):
                raise NumericError(reason_of(error)) from error
            raise ProductionError(f"{what} failed on a producer: {reason_of(error)}") from error
        self._idle.append(producer)
        return answer

    def _lose(self, producer: ProducerClient, why: str, hangs: bool) -> None:
        self.events.append(f"{self._names[producer]} is gone ({why}); it is started again")
        self._gone[producer] = time.monotonic()
        self.spawn(self._revive(producer, hangs))

    async def _revive(self, producer: ProducerClient, hangs: bool) -> None:
        """Waits until a process of the producer has loaded the model; one that takes too long is restarted."""
        pause, why = FIRST_PAUSE_S, "no answer"
        while True:
            try:
                if hangs:
                    await producer.restart()
                self.machines.add(await asyncio.wait_for(producer.ready(), self.timeout_s))
                break
            except asyncio.TimeoutError:
                hangs = True
            except Exception as error:  # dead still, or the model cannot be loaded where it came up
                hangs, why = False, first_line(error)
            if self.all_gone and time.monotonic() - max(self._gone.values()) > self.timeout_s and self.error is None:
                self.error = (
                    f"no producer was alive for producers.timeout_s = {self.timeout_s:g} s ({why}); finished work is "
                    "kept: when the cluster is well again, the same command with --resume goes on"
                )
                self._changed()
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
        self.events.append(f"{self._names[producer]} is back after {time.monotonic() - self._gone.pop(producer):.1f} s")
        self._idle.append(producer)
        self._changed()
