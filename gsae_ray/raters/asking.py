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
"""Tokens of an answer, about, before there are any of the model."""
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
            budget: by these prices, of this process; no request is begun that might go beyond it, answered at length.
            say: takes lines about what it waits for.
        """
        self.endpoint, self.answers, self.threads, self._say = endpoint, answers, threads, say
        self.prices, self.budget = prices, budget
        self.requests = self.sent = self.got = 0
        """Of this process: requests that were answered, and their tokens."""
        self._before = answers.of_model(endpoint.model)
        self._missing: dict[int | str, tuple[int, str]] = {}
        """Requests that gave nothing: by status, or why the answer ended, how many, and a line about the first."""
        self._gives = False
        """Whether there is an answer to any of these requests, of now or of before."""
        self._lock = threading.Condition()
        self._on_their_way = 0
        self._begun = 0.0
        """What the requests that are on their way may cost."""

    @property
    def cost(self) -> float:
        """What the answers cost so far."""
        return 0.0 if self.prices is None else self.prices.of(self.sent, self.got)

    @property
    def usual_answer(self) -> int:
        """Tokens of an answer, about: the mean of those that the model has given, of now and of before."""
        count, got = self.requests + self._before[0], self.got + self._before[1]
        usual = round(got / count) if count else USUAL_ANSWER
        return usual if self.endpoint.limit is None else min(usual, self.endpoint.limit)

    @property
    def notes(self) -> list[str]:
        """Why some requests have no answer, a line each kind."""
        return [f"{count:,} requests have no answer: {said}" for count, said in self._missing.values()]

    def known(self, messages: Messages) -> str | None:
        """What was answered before."""
        if (found := self.answers.get(self.endpoint.identity(messages))) is None:
            return None
        self._gives = True
        return found.text

    def ask(self, requests: Sequence[Messages]) -> list[str | None]:
        """The answer to each request; None where there is none (`notes` says why).

        Raises:
            UserError: the endpoint cannot be asked, or answers none of these, or the budget is spent. The answers
                until then are kept.
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
                except BaseException as error:  # noqa: BLE001 - is raised where `ask` was called
                    done.put((numbers, error))  # before others say that they were stopped
                    self.endpoint.stopped.set()

        # Threads of a pool would keep the process until they are done, whoever presses Ctrl-C how often.
        workers = [threading.Thread(target=work, daemon=True) for _ in range(min(self.threads, len(open_)))]
        try:
            for worker in workers:
                worker.start()
            for _ in open_:
                numbers, answered = done.get()
                if isinstance(answered, BaseException):
                    raise answered
                for number in numbers:
                    found[number] = answered
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
        cost = self._begin(messages)
        answer: Answer | None = None
        try:
            answer = self.endpoint.ask(messages)
            if not answer.unfinished:
                self.answers.keep(self.endpoint.identity(messages), answer)
        except NotTakenError as error:
            self._miss(error.status, f"the endpoint {error.said}; the same command asks again")
            return None
        finally:
            self._end(cost, answer)
        if answer.unfinished:
            self._miss(answer.unfinished, self._why(answer.unfinished))
            return None
        return answer.text

    def _begin(self, messages: Messages) -> float:
        """Waits until the budget has room for a request, however long its answer; what that would cost."""
        cost = 0.0
        if self.prices is not None:
            longest = self.usual_answer if self.endpoint.limit is None else self.endpoint.limit
            cost = self.prices.of(estimated_tokens(messages), longest)
        with self._lock:
            while self.budget is not None and self.cost + self._begun + cost > self.budget:
                if not self._on_their_way:
                    raise UserError(
                        f"--budget: {self.budget:g} does not allow another request, which may cost {cost:.4g} "
                        f"({self.cost:.4g} is spent); give more: {KEPT}"
                    )
                self._lock.wait()  # for what those cost that are on their way, which is less than they may
            self._begun += cost
            self._on_their_way += 1
        return cost

    def _end(self, cost: float, answer: Answer | None) -> None:
        """Counts a request that is on its way no longer."""
        with self._lock:
            self._on_their_way -= 1
            self._begun = self._begun - cost if self._on_their_way else 0.0
            if answer is not None:
                self._gives = self._gives or not answer.unfinished
                self.requests, self.sent, self.got = (
                    self.requests + 1,
                    self.sent + answer.sent,
                    self.got + answer.got,
                )
            self._lock.notify_all()

    def _miss(self, kind: int | str, said: str) -> None:
        """Counts a request that gave nothing; raises where none gives anything."""
        with self._lock:
            count, said = self._missing.get(kind, (0, said))
            self._missing[kind] = count + 1, said
            if not self._gives and sum(count for count, _ in self._missing.values()) >= IN_VAIN:
                raise UserError(f"--endpoint: {self.endpoint.url} has answered nothing so far: {said}")

    def _why(self, unfinished: str) -> str:
        """A line about an answer that did not end by itself."""
        if unfinished == "length":
            where = "by the endpoint" if self.endpoint.limit is None else f"at {self.endpoint.limit:,} tokens"
            return (
                f"the answer was cut {where} (models that think take thousands); give a larger --max-tokens (or "
                "limit in --parameters), and the same command asks for these again"
            )
        return "the answer was filtered by the endpoint; the same command asks again"
