"""The way to a cluster's dashboard: what is not one, or not ours, is one line."""

from __future__ import annotations

import json
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import ray
from servers import serving

from gsae_ray.errors import UserError
from gsae_ray.jobs import dashboard
from gsae_ray.jobs.job import find, overview
from gsae_ray.tracking.connection import PATIENCE_S


def test_another_ray_is_told_of_with_what_to_do() -> None:
    class Dashboard(BaseHTTPRequestHandler):
        """As one of another version introduces itself."""

        def do_GET(self) -> None:
            told = json.dumps(
                {"version": "4", "ray_version": "2.40.0", "ray_commit": "c", "session_name": "s"}
            ).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Dashboard)) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        with pytest.raises(
            UserError, match=rf"runs Ray 2.40.0, and .* pip install .*=={ray.__version__}' on its nodes"
        ):
            dashboard.connect(address)


@pytest.mark.timeout(60)  # Ray's client waits for ever
def test_a_dashboard_that_hangs_is_said_to_be_away(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PATIENCE_S == 15
    monkeypatch.setattr(dashboard, "PATIENCE_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        for ask in (find, overview, dashboard.nodes):
            with pytest.raises(UserError, match=f"--address: no Ray dashboard answers at {address}") as error:
                ask(address=address)
            assert "timed out" in str(error.value)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1?key=secret", "https://127.0.0.1:1/x?key=secret", "ray://secret@h"]
)
def test_the_secrets_of_an_address_are_not_told(address: str) -> None:
    with pytest.raises(UserError, match="^--address: ") as error:
        dashboard.connect(address)
    assert "secret" not in str(error.value) and "***" in str(error.value)
