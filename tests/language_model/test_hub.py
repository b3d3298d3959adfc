"""What a hub that refuses says is told, and the token goes there: a server on loopback that answers as the hub does.

In a process of its own, since the hub's library reads its address when it is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from servers import serving

MODEL = "Access to model some/gated is restricted. Visit https://hub.example/some/gated to ask for access."


class Hub(ThreadingHTTPServer):
    """Refuses everything; what it was asked with is kept."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Refusal)
        self.tokens: set[str | None] = set()
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"


class Refusal(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Hub)
        token = self.headers.get("Authorization")
        self.server.tokens.add(token)
        self.send_response(403 if token else 401)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("X-Error-Message", MODEL)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(Hub()) as server:
        yield server


REMEDIES = {"hf_mine": "see that HF_TOKEN is of an account that may have it", None: "set HF_TOKEN"}
PLAN = f"""
import json, os, sys
from click.testing import CliRunner
from gsae_ray.cli.main import main
for token in {list(REMEDIES)}:
    os.environ.pop("HF_TOKEN", None)
    os.environ |= {{"HF_TOKEN": token}} if token else {{}}
    result = CliRunner().invoke(main, ["plan", sys.argv[1]])
    print(json.dumps([result.exit_code, result.stderr]))
"""


def test_a_gated_model_is_told_of_in_the_hubs_words(hub: Hub, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    sweep = Path(__file__).parents[2] / "sweeps" / "quickstart.yaml"
    file.write_text(sweep.read_text().replace("name: builtin", "name: some/gated", 1))
    assert "some/gated" in file.read_text()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.uri, "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", PLAN, str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(REMEDIES), done.stderr
    for (exit_code, said), remedy in zip(answers, REMEDIES.values(), strict=True):
        (line,) = said.strip().splitlines()
        assert exit_code == 2 and f"({MODEL}); accept its licence on the hub, and {remedy}" in line, line
    assert hub.tokens == {"Bearer hf_mine", None}
