"""A server that speaks OpenAI's protocol of chat completions: one request, tried again where that may help."""

from __future__ import annotations

import contextlib
import email.utils
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests

from gsae_ray.errors import UserError, shown
from gsae_ray.raters.failures import nobody_there, why_no_answer
from gsae_ray.raters.prompts import Messages
from gsae_ray.tracking.credentials import HTTP, refuse_password

TRIES = 6
"""Times that a request is sent at most."""
PAUSE_S = 1.0
"""After the first one; twice as long after each further one."""
LONGEST_PAUSE_S = 300.0
"""A server that asks for more than this (Retry-After) is not waited for."""
CONNECT_S, ANSWER_S = 10.0, 300.0
CHARACTERS = 4
"""Of a token, about: for what servers do not count, and before they have."""
ONE_REQUEST = (400, 413, 422)
"""Statuses that say that one request cannot be answered: too long, filtered, a parameter that is not known."""
PASSING = (408, 409, 425, 429)
"""Statuses beside 5xx that another try may change."""
MAX_TOKENS = 500
LIMITS = ("max_tokens", "max_completion_tokens")
"""Parameters that say how long an answer may be, on which one that ends by itself does not depend."""
FIXED = ("model", "messages", "stream")
"""Parts of a request that parameters may not set: `stream` has answers come in pieces, which are not read here."""
UNFINISHED = ("length", "content_filter")
"""Reasons to finish (`finish_reason`) of answers that did not end by themselves."""
KEPT = "what was answered is kept, and the same command goes on from there"


class Answer(NamedTuple):
    """What a model says, and the tokens that it took."""

    text: str
    sent: int
    got: int
    unfinished: str = ""
    """One of `UNFINISHED`, where it did not end by itself."""


class NotTakenError(Exception):
    """The endpoint does not take this one request, whatever it does with others: its status, and what it says."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status, self.said = status, said


class Endpoint:
    """A model behind a server's `/chat/completions`. Threads may share it."""

    def __init__(
        self,
        url: str,
        model: str,
        key: str | None = None,
        max_tokens: int | None = None,
        parameters: Mapping[str, Any] | None = None,
        pause_s: float = PAUSE_S,
    ):
        """Asks nothing yet.

        Args:
            url: what `/chat/completions` follows, e.g. `http://127.0.0.1:8000/v1`.
            model: as the server calls it.
            key: is sent as bearer token; None: none is.
            max_tokens: of an answer; None: `MAX_TOKENS`, where `parameters` do not say it.
            parameters: of each request, as JSON has them; None as a value leaves one out that would be sent.
            pause_s: as `PAUSE_S`.

        Raises:
            UserError: that is no such address, or it has a password in it; or these cannot be parameters.
        """
        refuse_password(url, "--endpoint")
        if urlsplit(url).scheme not in HTTP or not urlsplit(url).hostname or urlsplit(url).query:
            raise UserError(
                f"--endpoint: {shown(url)} is no address of a server; give what /chat/completions follows, e.g. "
                "http://127.0.0.1:8000/v1"
            )
        self.url, self.model = url.rstrip("/"), model
        self.stopped = threading.Event()
        """Set: no request is tried again, and none is begun."""
        given = {"temperature": 0, **_checked(parameters or {}, max_tokens)}
        if not any(name in given for name in LIMITS):
            given["max_tokens"] = MAX_TOKENS if max_tokens is None else max_tokens
        self._parameters = {name: value for name, value in given.items() if value is not None}
        self.limit: int | None = next((self._parameters[name] for name in LIMITS if name in self._parameters), None)
        """Tokens of an answer at most; None: as many as the server gives."""
        self._key, self._pause_s = key, pause_s
        self._sessions = threading.local()
        self._has_answered = False
        self._wait_until = 0.0

    def body(self, messages: Messages) -> dict[str, Any]:
        """What is sent."""
        return {"model": self.model, "messages": messages, **self._parameters}

    def identity(self, messages: Messages) -> dict[str, Any]:
        """What an answer that ends by itself depends on: not how long it may be."""
        return {name: value for name, value in self.body(messages).items() if name not in LIMITS}

    def ask(self, messages: Messages) -> Answer:
        """Sends a request until it is answered.

        Raises:
            NotTakenError: this request is refused.
            UserError: the server is away, refuses the key, wants to be paid, or does not speak the protocol.
        """
        said = ""
        for attempt in range(TRIES):
            self._pause(attempt)
            try:
                response = self._send(messages)
            except requests.RequestException as error:
                said = f"does not answer ({self._safe(why_no_answer(error))})"
                if not self._has_answered and nobody_there(error):
                    break
                continue
            if response.status_code == requests.codes.ok:
                if (answer := _read(response, messages)) is not None:
                    self._has_answered = True
                    return answer
                said = f"answers what is no chat completion ({self._safe(response.text)})"
                if not self._has_answered:
                    break
                continue
            said = f"answers {response.status_code} ({self._safe(_message(response))})"
            if response.status_code not in PASSING and response.status_code < 500:
                self._refuse(response.status_code, said)
            self._heed(response)
        raise UserError(f"--endpoint: {self.url} {said}; {KEPT}")

    def _send(self, messages: Messages) -> requests.Response:
        if not hasattr(self._sessions, "session"):
            self._sessions.session = requests.Session()
        return self._sessions.session.post(
            f"{self.url}/chat/completions",
            json=self.body(messages),
            auth=self._authorise,  # given, so that requests does not look for a login in ~/.netrc
            timeout=(CONNECT_S, ANSWER_S),
            allow_redirects=False,
        )

    def _authorise(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key is not None:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _pause(self, attempt: int) -> None:
        """Waits before a request: longer with each attempt, and as long as the server has asked all of them to."""
        pause = self._pause_s * 2 ** (attempt - 1) if attempt else 0.0
        if self.stopped.wait(max(pause, self._wait_until - time.monotonic(), 0.0)):
            raise UserError(f"stopped; {KEPT}")

    def _heed(self, response: requests.Response) -> None:
        """Has all requests wait as long as a server asks for."""
        asked = _seconds(response.headers.get("Retry-After", ""))
        if asked > LONGEST_PAUSE_S:
            raise UserError(
                f"--endpoint: {self.url} answers {response.status_code} and asks to be left alone for {asked:,.0f} s; "
                f"{KEPT}"
            )
        self._wait_until = max(self._wait_until, time.monotonic() + asked)

    def _refuse(self, status: int, said: str) -> None:
        """Raises the error of a status that another try would not change."""
        if status in (requests.codes.unauthorized, requests.codes.forbidden):
            remedy = "name the environment variable that has another: --api-key-env"
            what = "refuses the key" if self._key is not None else "wants a key"
            raise UserError(f"--api-key-env: {self.url} {what}: it {said}; {remedy}; {KEPT}")
        if status == requests.codes.payment_required:
            raise UserError(f"--endpoint: {self.url} {said}: it wants to be paid; {KEPT}")
        if status not in ONE_REQUEST:
            raise UserError(
                f"--endpoint: {self.url} {said}; is it what /chat/completions follows (…/v1), and is --model "
                f"{self.model} one of its models?"
            )
        raise NotTakenError(status, said)

    def _safe(self, text: str) -> str:
        """What a server says, short and without the key."""
        return shown(text if self._key is None else text.replace(self._key, "***"), quoted=False)


def _checked(parameters: Mapping[str, Any], max_tokens: int | None) -> Mapping[str, Any]:
    """Parameters of requests, where they can be that."""
    for name in FIXED:
        if name in parameters:
            raise UserError(f"--parameters: {name} cannot be set; leave it out")
    for name in LIMITS:
        if name not in parameters:
            continue
        if max_tokens is not None:
            raise UserError(f"--parameters: --max-tokens is given, and {name} here; leave one of them out")
        if (limit := parameters[name]) is not None and (type(limit) is not int or limit < 1):
            raise UserError(f"--parameters: {name} is {shown(limit)}; give a number of tokens, or null")
    return parameters


def estimated_tokens(messages: Messages) -> int:
    """About how many tokens a request has."""
    return sum(len(message["content"]) // CHARACTERS + 4 for message in messages)


def _read(response: requests.Response, messages: Messages) -> Answer | None:
    """The answer in a chat completion; None where it is none. A model that says nothing has answered, too."""
    try:
        found = response.json()
        choice = found["choices"][0]
        text, finish = choice["message"].get("content"), choice.get("finish_reason")
        usage = found.get("usage") or {}
        if not isinstance(text, str | None):
            return None
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    text = text or ""
    return Answer(
        text,
        _count(usage, "prompt_tokens", estimated_tokens(messages)),
        _count(usage, "completion_tokens", -(-len(text) // CHARACTERS)),
        finish if finish in UNFINISHED else "",
    )


def _count(usage: Any, name: str, otherwise: int) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and value >= 0 else otherwise


def _message(response: requests.Response) -> str:
    """What a server says about an error."""
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return str(response.json()["error"]["message"])
    return response.text or response.reason


def _seconds(asked: str, now: Callable[[], float] = time.time) -> float:
    """How long a Retry-After asks to wait, which is a number of seconds or a date; 0 where it says neither."""
    try:
        return max(float(asked), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(asked).timestamp() - now(), 0.0)
    except (ValueError, TypeError):
        return 0.0
