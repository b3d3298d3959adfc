"""The raters' page, served on this machine: a link for each rater, answers written at each click.

It answers to `/r/TOKEN/` (the page, its style and script), `item` (GET, a feature to rate as JSON) and `answer` (POST)
below that, and to nothing else. What it sends of a feature is texts and activations from 0 to 1: no number, SAE, site,
layer or architecture.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gsae_ray.errors import UserError
from gsae_ray.pages import page_file
from gsae_ray.study.answers import Answer, Item, OutdatedError, Rater, item_at, next_place, rater_of, save
from gsae_ray.study.database import LABELS

LOOPBACK, PORT = "127.0.0.1", 8765
LARGEST = 2**16
"""Bytes of a request's body."""
LONGEST = 4000
"""Characters of an explanation."""
SILENT_S = 30
"""Seconds after which a connection that says nothing is closed."""
_PATH = re.compile(r"/r/([A-Za-z0-9_-]{1,100})(/[a-z.]*)?")
_SHARED = {"page.html": (), "page.css": ("colours.css", "shading.css"), "page.js": ("shading.js",)}
"""The page's files, and what each begins with that our pages share."""
_FILES = {"/": ("page.html", "text/html"), "/page.css": ("page.css", "text/css")}
_FILES["/page.js"] = ("page.js", "text/javascript")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the token is in the address
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_REFUSED = (
    "This link opens nothing here. Open the link that you were given as it is, to its last character. If it still "
    "opens nothing, ask who runs the study for your link: `gsae-ray study serve` prints it. Your answers are not lost."
)


class Posted(BaseModel):
    """The JSON of an answer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    place: int = Field(ge=1, lt=2**31)
    version: int = Field(ge=0, lt=2**31)
    window: str = Field(min_length=1, max_length=64)
    explanation: str = Field(max_length=LONGEST)
    label: str | None
    seconds: float = Field(ge=0, le=10**7, allow_inf_nan=False)


class StudyServer(ThreadingHTTPServer):
    """Serves one study; `serve_forever` and `server_close` are those of `socketserver`."""

    daemon_threads = True

    def __init__(
        self, path: Path, host: str = LOOPBACK, port: int = 0, finished: Callable[[Rater], None] = lambda _: None
    ) -> None:
        """Listens, so that its address is known. `finished` is called with a rater who has just rated the last item.

        Raises:
            UserError: the address cannot be had, or is every address of the machine.
        """
        self.path, self.finished = path, finished
        if _is_every_address(host):
            raise UserError(
                f"--host: {host} is every address of this machine; name the one that raters open, or leave it out and "
                "have them come through a tunnel (ssh -L)"
            )
        self.hosts = {"localhost", LOOPBACK, "::1"} if _is_loopback(host) else {host.lower()}
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"--host, --port: {host}:{port} cannot be had on this machine ({error}); end what listens there, or "
                "give others"
            ) from error
        shown = f"[{host}]" if ":" in host else host
        self.address = f"http://{shown}:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of a browser that was closed while it was answered."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def link(self, rater: Rater) -> str:
        return f"{self.address}/r/{rater.token}/"


def _is_every_address(host: str) -> bool:
    try:
        return not host or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = SILENT_S
    server: StudyServer

    def log_message(self, *_: Any) -> None:
        """Says nothing: tokens are in the addresses."""

    def version_string(self) -> str:
        return "gsae-ray"

    def do_GET(self) -> None:
        self._answered(self._get)

    def do_POST(self) -> None:
        self._answered(self._post)

    def _answered(self, how: Callable[[Rater, str], None]) -> None:
        """Answers who is addressed by this server's name, and shows a rater's token."""
        if not self._is_addressed():
            self.close_connection = True  # there may be a body that nobody has read
            self._send(HTTPStatus.FORBIDDEN, _page("This is another server than the one that was asked for."))
            return
        try:
            found = _PATH.fullmatch(urlsplit(self.path).path)
            rater = rater_of(self.server.path, found[1]) if found else None
            if found is None or rater is None:
                self.close_connection = True
                self._send(HTTPStatus.FORBIDDEN, _page(_REFUSED))
            else:
                how(rater, found[2] or "")
        except UserError as error:
            self.close_connection = True
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"the study's file cannot be used just now ({error})")

    def _is_addressed(self) -> bool:
        """Whether the request is for this server by name, and not by a name that was bent to its address.

        A page of another site could otherwise ask for its own name, have it point here, and read what is sent. The port
        does not matter: it may be a tunnel's.
        """
        names = [self.headers.get("Host", ""), *(origin for origin in [self.headers.get("Origin")] if origin)]
        try:
            return all(urlsplit(name if "//" in name else f"//{name}").hostname in self.server.hosts for name in names)
        except ValueError:
            return False

    def _get(self, rater: Rater, what: str) -> None:
        if what == "":
            self._send(HTTPStatus.PERMANENT_REDIRECT, b"", location=f"/r/{rater.token}/")
        elif what in _FILES:
            name, kind = _FILES[what]
            shared = [page_file(part) for part in _SHARED[name]]
            self._send(HTTPStatus.OK, "".join([*shared, page_file(name, "gsae_ray.study")]).encode(), kind)
        elif what == "/item":
            self._send_item(rater, parse_qs(urlsplit(self.path).query).get("place", [""])[0])
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    def _send_item(self, rater: Rater, place: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        """An item, by default the first that is not rated; without one where all are."""
        upcoming = next_place(self.server.path, rater.id)
        at = int(place) if place.isascii() and place.isdigit() and len(place) < 10 else upcoming
        item = None if at is None else item_at(self.server.path, rater.id, at)
        if at is not None and item is None:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such item")
        else:
            self._send_json(status, _shown(rater, upcoming, item))

    def _post(self, rater: Rater, what: str) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > LARGEST:
            self.close_connection = True
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"an answer has at most {LARGEST} bytes")
            return
        body = self.rfile.read(int(length))
        if what != "/answer":
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")
        elif self.headers.get_content_type() != "application/json":
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "answers are JSON")
        else:
            self._save(rater, body)

    def _save(self, rater: Rater, body: bytes) -> None:
        try:
            answer = _answer(Posted.model_validate_json(body))
        except (ValidationError, ValueError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, f"this is no answer: {str(error).splitlines()[0]}")
            return
        try:
            save(self.server.path, rater.id, answer)
        except OutdatedError:
            self._send_item(rater, str(answer.place), HTTPStatus.CONFLICT)
        except LookupError:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such item")
        else:
            now = rater_of(self.server.path, rater.token) or rater
            if rater.done < now.done == now.total:
                self.server.finished(now)
            self._send_item(now, str(answer.place))

    def _send_json(self, status: HTTPStatus, value: Any) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _refuse(self, status: HTTPStatus, error: str) -> None:
        self._send_json(status, {"error": error})

    def _send(self, status: HTTPStatus, body: bytes, kind: str = "text/html", location: str | None = None) -> None:
        self.send_response(status)
        headers = {**_HEADERS, "Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body))}
        if location is not None:
            headers["Location"] = location
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _answer(posted: Posted) -> Answer:
    """An answer as it is written.

    Raises:
        ValueError: a label that there is none of, or one before the explanation.
    """
    if posted.label is not None and posted.label not in LABELS:
        raise ValueError(f"label is none of {', '.join(LABELS)}")
    if posted.label is not None and posted.version == 0:
        raise ValueError("the explanation comes before the label")
    label = None if posted.label is None else LABELS.index(posted.label)
    return Answer(posted.place, posted.version, posted.window, posted.explanation, label, posted.seconds)


def _shown(rater: Rater, upcoming: int | None, item: Item | None) -> dict[str, Any]:
    """What a rater's page is sent: nothing that tells an SAE, a site, a layer or an architecture.

    Activations are shares of the largest one that is shown, with two digits: their size is that of the site's.
    """
    told: dict[str, Any] = {"done": rater.done, "total": rater.total, "next": upcoming, "item": None}
    if item is not None:
        largest = max((value for text in item.texts for value in text["activations"]), default=0) or 1
        told["item"] = {
            "place": item.place,
            "version": item.version,
            "explanation": item.explanation,
            "label": None if item.label is None else LABELS[item.label],
            "texts": [
                {"tokens": text["tokens"], "shades": [round(value / largest, 2) for value in text["activations"]]}
                for text in item.texts
            ],
        }
    return told


def _page(text: str) -> bytes:
    """A page that says one thing, without a script."""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        '<meta name="color-scheme" content="light dark"><title>No study here</title>'
        f"<main><h1>No study here</h1><p>{text}</p></main></html>"
    ).encode()
