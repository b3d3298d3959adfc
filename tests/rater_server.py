"""A real server that speaks the protocol of chat completions, and rates by rules, so that scores are known by hand."""

from __future__ import annotations

import http.server
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import servers

Rule = Callable[[str, str, list[str]], str]
"""An answer to: "explain", "detection" or "fuzzing"; the explanation; the pieces of text."""


def perfect(kind: str, explanation: str, pieces: list[str]) -> str:
    """A rater for features that fire on each occurrence of one word and on nothing else: it is always right."""
    if kind == "explain":
        (word,) = {word for piece in pieces for word in re.findall(r"<< ?(\w+)>>", piece)}
        return f"on the word {word}"
    word = explanation.rpartition(" ")[2]
    if kind == "detection":
        assert not any(">>" in piece for piece in pieces), "marks would give it away"
        return json.dumps([int(word in piece.split()) for piece in pieces])
    return "I think so:\n```json\n" + json.dumps([int(f"<< {word}>>" in piece) for piece in pieces]) + "\n```"


def always(choice: int) -> Rule:
    def rule(kind: str, explanation: str, pieces: list[str]) -> str:  # noqa: ARG001
        return "something" if kind == "explain" else json.dumps([choice] * len(pieces))

    return rule


def nonsense(kind: str, explanation: str, pieces: list[str]) -> str:  # noqa: ARG001
    """Explains, and says nothing that can be read after that."""
    return f"{len(pieces)} pieces." if kind == "explain" else "[1, 0, maybe]"


class RaterServer(http.server.ThreadingHTTPServer):
    """Answers by a rule; `faults` come first, one a request: (status, headers), or a text in place of the JSON."""

    daemon_threads = True

    def __init__(self, rule: Rule) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.rule = rule
        self.faults: list[tuple[int, Mapping[str, str]] | str] = []
        self.key: str | None = None
        """The only one that is let in."""
        self.refuses: Callable[[dict[str, Any]], int | None] = lambda _: None
        """The status with which a request is refused, however often it is sent."""
        self.limit: int | None = None
        """Requests that are answered; then the server falls silent with 503."""
        self.thought_tokens = 0
        """That each answer begins with; more than a request allows cuts it off in them."""
        self.delay_s = 0.0
        self.bodies: list[dict[str, Any]] = []
        """Of the requests that were answered."""
        self.refused = 0
        self.most_at_once = self.at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


def serving(rule: Rule) -> AbstractContextManager[RaterServer]:
    """A server that answers by a rule, for the length of the context."""
    return servers.serving(RaterServer(rule))


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
            if fault is None and (status := server.refuses(body)) is not None:
                fault = status, {}
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
        kind = "explain" if "one short sentence" in system else "fuzzing" if "marked rightly" in system else "detection"
        explanation = re.search(r"^The feature is active so: (.*)$", user, re.MULTILINE)
        text, finish = self.server.rule(kind, explanation[1] if explanation else "", pieces), "stop"
        tokens, limit = self.server.thought_tokens + 10, body.get("max_tokens", body.get("max_completion_tokens"))
        if self.server.thought_tokens:  # as templates do that have put <think> into the prompt
            text = f"Is it [0, 0] or [1]? Perhaps.</think>\n{text}"
        if limit is not None and tokens > limit:
            text, tokens, finish = "Is it [1, 1] or", limit, "length"
        return {
            "object": "chat.completion",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
            "usage": {"prompt_tokens": 100, "completion_tokens": tokens},
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
