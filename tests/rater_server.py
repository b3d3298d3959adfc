"""A real server that speaks the protocol of chat completions, and rates by rules, so that scores are known by hand."""

from __future__ import annotations

import http.server
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

Rule = Callable[[str, list[str]], str]
"""From the system's message and the pieces of text that follow to an answer; `kind_of` tells what is asked."""


def kind_of(system: str) -> str:
    if "Answer with one short sentence" in system:
        return "explain"
    return "fuzzing" if "marked rightly" in system else "detection"


def knows(word: str) -> Rule:
    """A rater for features that fire on one word, and on each occurrence of it: it is always right."""

    def rule(system: str, pieces: list[str]) -> str:
        kind = kind_of(system)
        if kind == "explain":
            return f"on the word {word}"
        if kind == "detection":
            return json.dumps([int(word in piece) for piece in pieces])
        return json.dumps([int(f"<<{word}>>" in piece) for piece in pieces])

    return rule


def always(choice: int) -> Rule:
    def rule(system: str, pieces: list[str]) -> str:
        return "something" if kind_of(system) == "explain" else json.dumps([choice] * len(pieces))

    return rule


def nonsense(system: str, pieces: list[str]) -> str:
    """Explains, and answers no question after that."""
    return f"I cannot say that of {len(pieces)} pieces." if kind_of(system) == "explain" else "Yes, mostly!"


class RaterServer(http.server.ThreadingHTTPServer):
    """Answers by a rule; `faults` come first, one a request: (status, headers), or a text in place of the JSON."""

    daemon_threads = True

    def __init__(self, rule: Rule) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.rule = rule
        self.faults: list[tuple[int, Mapping[str, str]] | str] = []
        self.key: str | None = None
        """The only one that is let in."""
        self.limit: int | None = None
        """Requests that are answered; then the server falls silent with 503."""
        self.delay_s = 0.0
        self.bodies: list[dict[str, Any]] = []
        """Of the requests that were answered."""
        self.refused = 0
        self.most_at_once = self.at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


@contextmanager
def serving(rule: Rule) -> Iterator[RaterServer]:
    server = RaterServer(rule)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: RaterServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        time.sleep(server.delay_s)
        with server.lock:
            server.at_once -= 1
            fault = server.faults.pop(0) if server.faults else None
            if fault is None and server.key is not None and self.headers["Authorization"] != f"Bearer {server.key}":
                fault = 401, {}
            if fault is None and server.limit is not None and len(server.bodies) >= server.limit:
                fault = 503, {}
            if fault is None:
                server.bodies.append(body)
            else:
                server.refused += 1
        if self.path != "/v1/chat/completions":
            fault = 404, {}
        if isinstance(fault, str):
            self._answer(200, fault.encode(), {})
        elif fault is not None:
            said = {"error": {"message": f"not now ({self.headers['Authorization']})"}}
            self._answer(fault[0], json.dumps(said).encode(), fault[1])
        else:
            self._answer(200, json.dumps(self._completion(body)).encode(), {})

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        system, user = (message["content"] for message in body["messages"])
        pieces = [json.loads(found) for found in re.findall(r'^\d+\. (".*")$', user, re.MULTILINE)]
        text = self.server.rule(system, pieces)
        return {
            "object": "chat.completion",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10},
        }

    def _answer(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass
