"""Many requests at a time, each made once: what was answered before is looked up, what it costs is counted."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import NamedTuple

from gsae_ray.errors import UserError
from gsae_ray.files import digest
from gsae_ray.raters.answers import Answers
from gsae_ray.raters.endpoint import KEPT, Answer, Endpoint, NotTakenError, estimated_tokens
from gsae_ray.raters.prompts import Messages

USUAL_ANSWER = 60
"""Tokens of an answer, about, before there are any."""


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
    ) -> None:
        """Takes what all requests share.

        Args:
            endpoint: who is asked.
            answers: what was answered before, and where answers are kept.
            threads: requests at a time.
            prices: of its tokens.
            budget: by these prices; no request is begun that would go beyond it.
        """
        self.endpoint, self.answers, self.threads = endpoint, answers, threads
        self.prices, self.budget = prices, budget
        self.requests = self.sent = self.got = 0
        """Of this process: requests that were answered, and their tokens."""
        self._lock = threading.Lock()
        self._begun = 0.0
        """What the requests that are on their way may cost."""

    @property
    def cost(self) -> float:
        """What the answers cost so far."""
        return 0.0 if self.prices is None else self.prices.of(self.sent, self.got)

    def known(self, messages: Messages) -> str | None:
        """What was answered before."""
        found = self.answers.get(self.endpoint.body(messages))
        return None if found is None else found.text

    def ask(self, requests: Sequence[Messages]) -> list[str | None]:
        """The answer to each request; None where the endpoint does not take that one.

        Raises:
            UserError: the endpoint cannot be asked, or the budget is spent. The answers until then are kept.
        """
        found = [self.known(messages) for messages in requests]
        open_: dict[str, list[int]] = {}  # of equal requests one is made
        for number, text in enumerate(found):
            if text is None:
                open_.setdefault(digest(requests[number]), []).append(number)
        pool = ThreadPoolExecutor(min(self.threads, max(len(open_), 1)), thread_name_prefix="rater")
        try:
            futures = {pool.submit(self._ask, requests[numbers[0]]): numbers for numbers in open_.values()}
            for future in as_completed(futures):
                for number in futures[future]:
                    found[number] = future.result()
        finally:
            self.endpoint.stopped.set()  # of those that wait to be sent again, where one of them has raised
            pool.shutdown(cancel_futures=True)  # the answers to those that are on their way are kept
            self.endpoint.stopped.clear()
        return found

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
        answer: Answer | None = None
        try:
            answer = self.endpoint.ask(messages)
            self.answers.keep(self.endpoint.body(messages), answer)
        except NotTakenError:
            return None
        finally:
            with self._lock:
                self._begun -= cost
                if answer is not None:
                    self.requests, self.sent, self.got = (
                        self.requests + 1,
                        self.sent + answer.sent,
                        self.got + answer.got,
                    )
        return answer.text
