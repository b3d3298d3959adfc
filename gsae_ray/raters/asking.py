"""Many requests at a time, each made once: what was answered before is looked up, what it costs is counted."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gsae_ray.errors import UserError
from gsae_ray.files import digest
from gsae_ray.raters.answers import Answers
from gsae_ray.raters.endpoint import KEPT, Answer, Endpoint, NotTakenError, estimated_tokens
from gsae_ray.raters.prompts import Messages

USUAL_ANSWER = 60
"""Tokens of an answer, about, before there are any."""
IN_VAIN = 5
"""Requests that give nothing before the first that does: then it is not these requests that are wrong."""


class Prices(NamedTuple):
    """Of a million tokens that are sent and got, in any currency."""

    sent: float
    got: float

    def of(self, sent: int, got: int) -> float:
        return (sent * self.sent + got * self.got) / 1e6


class Asker:
    """Asks an endpoint, a bounded number of requests at a time."""

    def __init__(
        self,
        endpoint: Endpoint,
        answers: Answers,
        threads: int = 8,
        prices: Prices | None = None,
        budget: float | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Takes what all requests share.

        Args:
            endpoint: who is asked.
            answers: what was answered before, and where answers are kept.
            threads: requests at a time.
            prices: of its tokens.
            budget: by these prices; no request is begun that would go beyond it.
            say: takes lines about what it waits for.
        """
        self.endpoint, self.answers, self.threads, self._say = endpoint, answers, threads, say
        self.prices, self.budget = prices, budget
        self.requests = self.sent = self.got = 0
        """Of this process: requests that were answered, and their tokens."""
        self._missing: dict[int, tuple[int, str]] = {}
        """Requests that gave nothing: by status, how many, and what the endpoint said to the first."""
        self._gives = False
        """Whether there is an answer to any of these requests, of now or of before."""
        self._lock = threading.Lock()
        self._on_their_way = 0
        self._begun = 0.0
        """What the requests that are on their way may cost."""

    @property
    def cost(self) -> float:
        """What the answers cost so far."""
        return 0.0 if self.prices is None else self.prices.of(self.sent, self.got)

    @property
    def notes(self) -> list[str]:
        """Why some requests have no answer, a line each kind."""
        return [
            f"{count:,} requests were refused: the endpoint {said}; the same command asks them again"
            for count, said in self._missing.values()
        ]

    def known(self, messages: Messages) -> str | None:
        """What was answered before."""
        if (found := self.answers.get(self.endpoint.body(messages))) is None:
            return None
        self._gives = True
        return found.text

    def ask(self, requests: Sequence[Messages]) -> list[str | None]:
        """The answer to each request; None where the endpoint does not take that one (`notes` says why).

        Raises:
            UserError: the endpoint cannot be asked, or takes none of these, or the budget is spent. The answers until
                then are kept.
        """
        found = [self.known(messages) for messages in requests]
        open_: dict[str, list[int]] = {}  # of equal requests one is made
        for number, text in enumerate(found):
            if text is None:
                open_.setdefault(digest(requests[number]), []).append(number)
        todo: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[list[int], str | None | BaseException]] = queue.SimpleQueue()
        for numbers in open_.values():
            todo.put(numbers)

        def work() -> None:
            while not self.endpoint.stopped.is_set():
                try:
                    numbers = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((numbers, self._ask(requests[numbers[0]])))
                except BaseException as error:
                    done.put((numbers, error))  # before others say that they were stopped
                    self.endpoint.stopped.set()

        # Threads of a pool would keep the process until they are done, whoever presses Ctrl-C how often.
        workers = [threading.Thread(target=work, daemon=True) for _ in range(min(self.threads, len(open_)))]
        try:
            for worker in workers:
                worker.start()
            for _ in open_:
                numbers, text = done.get()
                if isinstance(text, BaseException):
                    raise text
                for number in numbers:
                    found[number] = text
        except KeyboardInterrupt:
            self.endpoint.stopped.set()
            self._say(f"waiting for {self._on_their_way} answers that are on their way; Ctrl-C again leaves them")
            self._join(workers)
            raise
        except Exception:
            self._join(workers)
            raise
        self._join(workers)
        return found

    def _join(self, workers: Sequence[threading.Thread]) -> None:
        """Begins nothing more; the answers to what is on its way are kept."""
        self.endpoint.stopped.set()
        for worker in workers:
            worker.join()
        self.endpoint.stopped.clear()

    def _ask(self, messages: Messages) -> str | None:
        cost = 0.0
        if self.prices is not None:
            cost = self.prices.of(estimated_tokens(messages), USUAL_ANSWER)
        with self._lock:
            if self.budget is not None and self.cost + self._begun + cost > self.budget:
                raise UserError(
                    f"--budget: {self.budget:g} does not allow another request ({self.cost:.4g} is spent); give more: "
                    f"{KEPT}"
                )
            self._begun += cost
            self._on_their_way += 1
        answer: Answer | None = None
        try:
            answer = self.endpoint.ask(messages)
            self.answers.keep(self.endpoint.body(messages), answer)
        except NotTakenError as error:
            self._miss(error)
            return None
        finally:
            with self._lock:
                self._begun -= cost
                self._on_their_way -= 1
                if answer is not None:
                    self._gives = True
                    self.requests, self.sent, self.got = (
                        self.requests + 1,
                        self.sent + answer.sent,
                        self.got + answer.got,
                    )
        return answer.text

    def _miss(self, error: NotTakenError) -> None:
        """Counts a request that gave nothing; raises where none gives anything."""
        with self._lock:
            count, said = self._missing.get(error.status, (0, error.said))
            self._missing[error.status] = count + 1, said
            if not self._gives and sum(count for count, _ in self._missing.values()) >= IN_VAIN:
                raise UserError(f"--endpoint: {self.endpoint.url} {said}; nothing was answered so far")
