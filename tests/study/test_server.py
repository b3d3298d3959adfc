"""The raters' page as it is sent: to whom, and without a word of what is rated."""

from __future__ import annotations

import http.client
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from studies import SECRETS, couple_at, done, make_study, served

from gsae_ray.errors import UserError
from gsae_ray.study.answers import raters
from gsae_ray.study.server import LARGEST, StudyServer


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    text: str

    @property
    def told(self) -> Any:
        return json.loads(self.text)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudyServer]:
    path = tmp_path_factory.mktemp("served") / "study.db"
    make_study(path, [couple_at(1), couple_at(2, "mlp_out")], pairs=2, raters=6)
    with served(path) as server:
        yield server


def ask(server: StudyServer, path: str, body: Any = None, method: str = "", **headers: str) -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    kind = {"Content-Type": "application/json"} if body is not None else {}
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, sent, {**kind, **headers})
        reply = connection.getresponse()
        return Reply(reply.status, dict(reply.getheaders()), reply.read().decode())
    finally:
        connection.close()


def page_of(server: StudyServer, rater: int) -> str:
    return f"/r/{raters(server.path)[rater].token}"


def answer(place: int = 1, version: int = 0, label: str | None = None, **other: Any) -> dict[str, Any]:
    body = {"place": place, "version": version, "label": label, "window": "w", "explanation": "e", "seconds": 2.5}
    return {**body, **other}


def test_what_is_sent_tells_no_sae_site_layer_or_architecture(server: StudyServer) -> None:
    """Of every item, of both architectures and sites; and of the page itself."""
    page = page_of(server, 0)
    sent = [
        ask(server, f"{page}/{name}") for name in ("", "page.css", "page.js", *(f"item?place={n}" for n in range(1, 9)))
    ]
    sent.append(ask(server, f"{page}/answer", answer()))
    for reply in sent:
        assert reply.status == 200
        told = (reply.text + json.dumps(reply.headers)).lower()
        assert not [secret for secret in SECRETS if secret in told]
    items = [reply.told["item"] for reply in sent[3:-1]]
    assert all(item.keys() == {"place", "version", "explanation", "label", "texts"} for item in items)
    assert {len(item["texts"]) for item in items} == {10}, "their number tells nothing"
    assert {len(text["tokens"]) for item in items for text in item["texts"]} == {16}, "nor does their length"
    for item in items:
        assert all(text.keys() == {"tokens", "shades"} for text in item["texts"])
        shades = [shade for text in item["texts"] for shade in text["shades"]]
        assert max(shades) == 1 and min(shades) == 0, "an activation's size would tell the site"


def test_an_item_is_explained_then_rated_and_the_next_one_is_told(server: StudyServer) -> None:
    page = page_of(server, 1)
    assert ask(server, f"{page}/item").told["next"] == 1
    early = ask(server, f"{page}/answer", answer(label="yes"))
    assert early.status == 400 and "explanation comes before" in early.told["error"]
    explained = ask(server, f"{page}/answer", answer(explanation="numbers <b>&</b>")).told
    assert (explained["done"], explained["item"]["version"], explained["item"]["label"]) == (0, 1, None)
    rated = ask(server, f"{page}/answer", answer(version=1, label="maybe")).told
    assert (rated["done"], rated["total"], rated["next"], rated["item"]["label"]) == (1, 8, 2, "maybe")
    with sqlite3.connect(server.path) as database:
        seconds = "SELECT sum(seconds) FROM answers JOIN items ON id = item WHERE rater = 2"
        assert database.execute(seconds).fetchone() == (5.0,)


def test_a_second_window_is_told_what_the_first_one_answered(server: StudyServer) -> None:
    page = page_of(server, 2)
    for body in (answer(explanation="first"), answer(version=1, label="no", explanation="first")):
        assert ask(server, f"{page}/answer", body).status == 200
    refused = ask(server, f"{page}/answer", answer(window="v", explanation="second"))
    assert refused.status == 409
    assert refused.told["item"]["explanation"] == "first" and refused.told["item"]["label"] == "no"
    again = ask(server, f"{page}/answer", answer(window="v", version=2, label="yes", explanation="second"))
    assert again.status == 200 and again.told["done"] == 1, "counted once"


def test_all_rated_is_said(server: StudyServer) -> None:
    page = page_of(server, 3)
    for place in range(1, 9):
        for body in (answer(place), answer(place, 1, "yes")):
            last = ask(server, f"{page}/answer", body).told
    assert last["next"] is None and last["done"] == last["total"] == 8
    assert ask(server, f"{page}/item").told["item"] is None
    assert done(server.path)[3] == 8


@pytest.mark.parametrize("path", ["/", "/r/", "/r/guessed/", "/r/guessed/item", "/page.js", "/r/%2e%2e/", "/item"])
def test_who_has_no_token_gets_a_page_that_says_what_to_do(server: StudyServer, path: str) -> None:
    reply = ask(server, path)
    assert reply.status == 403 and reply.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "Open the link that you were given as it is" in reply.text and "gsae-ray study serve" in reply.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example:80"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:9999"}, 200),  # a tunnel
        ({"Host": "[::1]:80", "Origin": "http://[::1]:80"}, 200),
    ],
)
def test_only_who_asks_for_this_machine_by_its_name_is_answered(
    server: StudyServer, headers: dict[str, str], status: int
) -> None:
    page = page_of(server, 4)
    assert ask(server, f"{page}/item", **headers).status == status
    assert ask(server, f"{page}/answer", {}, **headers).status == (403 if status == 403 else 400)


def test_nothing_from_elsewhere_may_be_loaded_or_frame_the_page(server: StudyServer) -> None:
    page = page_of(server, 4)
    for path in (f"{page}/", f"{page}/item", "/"):
        headers = ask(server, path).headers
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["Referrer-Policy"] == "no-referrer" and headers["Cache-Control"] == "no-store"
        assert headers["Server"] == "gsae-ray"
    assert ask(server, page).headers["Location"] == f"{page}/"
    for name in ("page.html", "page.css", "page.js"):
        assert "//" not in (Path(__file__).parents[2] / "gsae_ray/study" / name).read_text().replace("// ", "")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (answer(label="perhaps"), 400),
        (answer(place=0), 400),
        (answer(place=99), 404),
        (answer(version=-1), 400),
        (answer(seconds=-1), 400),
        (answer(seconds=1e300), 400),
        (answer(explanation="x" * 4001), 400),
        (answer(explanation=1), 400),
        (answer(more=1), 400),
        (b" " * (LARGEST + 1), 413),
    ],
)
def test_what_is_no_answer_is_refused_and_nothing_is_written(server: StudyServer, body: Any, status: int) -> None:
    page = page_of(server, 5)
    reply = ask(server, f"{page}/answer", body)
    assert reply.status == status and reply.told["error"]
    with sqlite3.connect(server.path) as database:
        assert database.execute("SELECT count(*) FROM answers JOIN items ON id = item WHERE rater = 6").fetchone() == (
            0,
        )


def test_other_requests_are_refused(server: StudyServer) -> None:
    page = page_of(server, 5)
    text = {"Content-Type": "text/plain"}
    assert ask(server, f"{page}/answer", answer(), **text).status == 415
    assert ask(server, f"{page}/elsewhere", answer()).status == 404
    assert ask(server, f"{page}/elsewhere").status == 404
    assert ask(server, f"{page}/item?place=99").status == 404
    assert ask(server, f"{page}/item?place=x").told["item"]["place"] == 1
    assert ask(server, f"{page}/answer", answer(), method="DELETE").status == 501


def test_a_file_that_cannot_be_written_to_is_said_and_the_page_may_try_again(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    make_study(path, [couple_at(1)])
    with served(path) as server:
        page = page_of(server, 0)
        path.rename(tmp_path / "away.db")
        reply = ask(server, f"{page}/answer", answer())
        assert reply.status == 503 and "cannot be used just now" in reply.told["error"]
        (tmp_path / "away.db").rename(path)
        assert ask(server, f"{page}/answer", answer()).status == 200


def test_it_is_told_once_that_a_rater_has_finished(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    make_study(path, [couple_at(1)], pairs=1, raters=2)
    with served(path) as server:
        finished: list[str] = []
        server.finished = lambda rater: finished.append(rater.name)
        page = page_of(server, 1)
        for body in (answer(1), answer(1, 1, "yes"), answer(2)):
            assert ask(server, f"{page}/answer", body).status == 200
        assert finished == []
        for body in (answer(2, 1, "no"), answer(2, 1, "no"), answer(2, 2, "yes")):
            assert ask(server, f"{page}/answer", body).status == 200
        assert finished == ["rater 2"]


def test_an_address_that_cannot_be_had_is_said(server: StudyServer) -> None:
    with pytest.raises(UserError, match=r"--host, --port: 127.0.0.1:\d+ cannot be had"):
        StudyServer(server.path, port=server.server_address[1])
    for every in ("0.0.0.0", "::", ""):
        with pytest.raises(UserError, match="every address of this machine"):
            StudyServer(server.path, every)
