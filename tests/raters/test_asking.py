"""Requests against a real server: answers, errors, waiting, the file of answers."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from rater_server import RaterServer, always, serving

from gsae_ray.errors import UserError
from gsae_ray.raters.answers import Answers
from gsae_ray.raters.asking import Asker, Prices
from gsae_ray.raters.endpoint import TRIES, Endpoint, _seconds
from gsae_ray.raters.prompts import Messages, ask_which_are_right, read_choices


@pytest.fixture
def server() -> Iterator[RaterServer]:
    with serving(always(1)) as server:
        yield server


@pytest.fixture
def answers(tmp_path: Path) -> Iterator[Answers]:
    answers = Answers(tmp_path / "answers.db")
    yield answers
    answers.close()


def endpoint(server: RaterServer, key: str | None = None, pause_s: float = 0.01) -> Endpoint:
    return Endpoint(server.url, "rater", key, pause_s=pause_s)


def question(number: int) -> Messages:
    return ask_which_are_right(f"the number {number}", ["one", "two"])


def test_each_request_is_made_once_whoever_asks_again(server: RaterServer, answers: Answers, tmp_path: Path) -> None:
    asker = Asker(endpoint(server), answers, threads=4)
    server.delay_s = 0.02
    asked = [question(number) for number in range(12)]
    assert asker.ask([*asked, *asked[:3]]) == ["[1, 1]"] * 15
    assert 1 < server.most_at_once <= 4
    assert (asker.requests, asker.sent, asker.got) == (len(server.bodies), 100 * len(server.bodies), 120)
    assert len({str(body["messages"]) for body in server.bodies}) == len(server.bodies) == 12
    body = server.bodies[0]
    assert (body["model"], body["temperature"]) == ("rater", 0)
    later = Answers(tmp_path / "answers.db")
    assert Asker(endpoint(server), later).ask(asked) == ["[1, 1]"] * 12 and len(server.bodies) == 12
    other = Asker(Endpoint(server.url, "another"), later)
    assert other.ask(asked[:1]) == ["[1, 1]"] and len(server.bodies) == 13, "another model's answers are its own"
    later.close()


def test_what_passes_is_tried_again(server: RaterServer) -> None:
    server.faults = [(429, {}), (500, {}), (502, {}), (429, {"Retry-After": "0"})]
    assert endpoint(server).ask(question(0)).text == "[1, 1]"
    server.faults = [(408, {}), (409, {}), (425, {}), (504, {})]
    assert endpoint(server).ask(question(0)).text == "[1, 1]"
    assert server.refused == 8 and len(server.bodies) == 2


def test_a_server_is_left_alone_for_as_long_as_it_asks(server: RaterServer) -> None:
    server.faults = [(429, {"Retry-After": "0.3"})]
    began = time.monotonic()
    endpoint(server, pause_s=0).ask(question(0))
    assert time.monotonic() - began >= 0.3
    server.faults = [(429, {"Retry-After": "86400"})]
    with pytest.raises(UserError, match=r"asks to be left alone for 86,400 s; what was answered is kept"):
        endpoint(server).ask(question(0))
    assert _seconds(formatdate(1000, usegmt=True), now=lambda: 400.0) == 600
    assert _seconds("soon") == _seconds("") == _seconds("-3") == 0


def test_a_server_that_goes_on_failing_is_told_in_one_line(server: RaterServer, answers: Answers) -> None:
    server.limit = 3
    asker = Asker(endpoint(server, pause_s=0.001), answers, threads=1)
    with pytest.raises(UserError, match=r"^--endpoint: http://127.0.0.1:\d+/v1 answers 503 \(not now .*kept, and the"):
        asker.ask([question(number) for number in range(5)])
    server.limit = None
    asker.ask([question(number) for number in range(5)])
    assert len(server.bodies) == 5, "those three were kept"


def test_a_server_that_is_away(answers: Answers) -> None:
    with serving(always(1)) as server:
        url = server.url
    asker = Asker(Endpoint(url, "rater", pause_s=30), answers)
    began = time.monotonic()
    with pytest.raises(
        UserError,
        match=r"^--endpoint: http://127.0.0.1:\d+/v1 does not answer \(connection refused; is the server running\?\); ",
    ):
        asker.ask([question(0)])
    assert time.monotonic() - began < 20, "what nobody has answered is not tried again"


def test_a_connection_that_breaks_is_tried_again(answers: Answers) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    taken: list[bytes] = []

    def hang_up() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            taken.append(connection.recv(65536))
            connection.close()

    thread = threading.Thread(target=hang_up, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    with pytest.raises(UserError, match=r"/v1 does not answer \(the connection broke\); what was answered is kept"):
        Asker(Endpoint(url, "rater", pause_s=0.001), answers).ask([question(0)])
    assert len(taken) == TRIES == 6
    listener.shutdown(socket.SHUT_RDWR)  # ends what waits in accept
    listener.close()
    thread.join()


def test_no_answer_is_told_in_words() -> None:
    for url, said in (("http://nowhere.invalid/v1", "no host of this name is found"), ("https://{}/v1", "no TLS: ")):
        with serving(always(1)) as server, pytest.raises(UserError, match=rf"does not answer \({said}") as refused:
            Endpoint(url.format(server.url.split("/")[2]), "rater").ask(question(0))
        assert "HTTP" not in str(refused.value).partition("; what")[0].replace("http", "")


def test_a_wrong_key_is_told_without_it(server: RaterServer) -> None:
    server.key = "sk-right"
    assert endpoint(server, "sk-right").ask(question(0)).text == "[1, 1]"
    with pytest.raises(UserError, match="--api-key-env: .* refuses the key: it answers 401") as refused:
        endpoint(server, "sk-wrong").ask(question(0))
    assert "sk-wrong" not in str(refused.value) and "Bearer ***" in str(refused.value)
    with pytest.raises(UserError, match="--api-key-env: .* wants a key"):
        endpoint(server).ask(question(0))


def test_logins_of_other_programs_are_not_sent(
    server: RaterServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.key = "sk"
    assert endpoint(server, "sk").ask(question(0)).text == "[1, 1]"
    with pytest.raises(UserError, match=r"\(not now \(None\)\)"):
        endpoint(server).ask(question(0))


def test_what_does_not_speak_the_protocol(server: RaterServer) -> None:
    for said in ("<html>welcome</html>", "[]", '{"choices": []}', '{"choices": [{"message": {"content": 7}}]}'):
        server.faults = [said]
        with pytest.raises(UserError, match="answers what is no chat completion"):
            endpoint(server).ask(question(0))
    elsewhere = Endpoint(server.url.replace("/v1", "/api"), "rater")
    with pytest.raises(UserError, match=r"answers 404 .*; is it what /chat/completions follows"):
        elsewhere.ask(question(0))
    one = endpoint(server)
    one.ask(question(0))
    server.faults = ["<html>a proxy's page</html>"]
    assert one.ask(question(1)).text == "[1, 1]", "once it has spoken it, that passes"
    server.faults = ['{"choices": [{"message": {"content": null}}]}']
    assert one.ask(question(2)).text == "", "a model that says nothing has answered"


@pytest.mark.parametrize("place", [0, 5])
def test_one_request_that_is_refused_does_not_end_the_others(server: RaterServer, answers: Answers, place: int) -> None:
    asked = [question(number) for number in range(8)]
    server.refuses = lambda body: 400 if body["messages"] == asked[place] else None
    expected = [None if number == place else "[1, 1]" for number in range(8)]
    for _ in range(2):  # as two processes after each other
        asker = Asker(endpoint(server), answers, threads=1)
        assert asker.ask(asked) == expected
        assert asker.notes == [
            "1 requests have no answer: the endpoint answers 400 (not now (None)); the same command asks again"
        ]
    assert len(server.bodies) == 7 and server.refused == 2


def test_an_endpoint_that_takes_nothing_is_told(server: RaterServer, answers: Answers) -> None:
    asked = [question(number) for number in range(20)]
    server.refuses = lambda _: 422
    asker = Asker(endpoint(server), answers, threads=2)
    with pytest.raises(UserError, match=r"^--endpoint: http.* has answered nothing so far: the endpoint answers 422"):
        asker.ask(asked)
    assert server.refused < len(asked), "it is not asked for everything where it takes nothing"


def test_ctrl_c_keeps_what_is_on_its_way_and_says_that_it_waits(server: RaterServer, answers: Answers) -> None:
    server.delay_s = 0.5
    lines: list[str] = []
    asker = Asker(endpoint(server), answers, threads=3, say=lines.append)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.25, signal.pthread_kill, [main, signal.SIGINT])
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            asker.ask([question(number) for number in range(9)])
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
    assert lines == ["waiting for 3 answers that are on their way; Ctrl-C again leaves them"]
    assert len(server.bodies) == sum(asker.known(question(number)) is not None for number in range(9)) == 3


def test_what_is_of_no_single_request_ends_all(server: RaterServer, answers: Answers) -> None:
    asker = Asker(endpoint(server), answers, threads=1)
    asker.ask([question(0)])
    paid = r"answers 402 \(not now .*: it wants to be paid; what was answered is kept"
    for status, said in ((402, paid), (405, r"answers 405 .*; is it what /chat/completions follows")):
        server.faults = [(status, {})]
        with pytest.raises(UserError, match=f"^--endpoint: .*{said}"):
            asker.ask([question(1), question(2)])
        assert len(server.bodies) == 1
    assert asker.ask([question(1)]) == ["[1, 1]"] and not asker.notes


def test_answers_that_are_cut_do_not_count(server: RaterServer, answers: Answers) -> None:
    asked = [question(number) for number in range(8)]
    short, long = (Endpoint(server.url, "rater", max_tokens=tokens) for tokens in (100, 2000))
    server.thought_tokens = 1000
    asker = Asker(short, answers, threads=1)
    with pytest.raises(
        UserError, match=r"has answered nothing so far: the answer was cut at 100 tokens .* --max-tokens"
    ):
        asker.ask(asked)
    assert (asker.requests, asker.got) == (5, 500), "they cost what they cost"
    assert asker.usual_answer == 100 and answers.of_model("rater") == (0, 0)
    server.thought_tokens = 0
    assert Asker(short, answers, threads=1).ask(asked[:2]) == ["[1, 1]"] * 2
    server.thought_tokens, before = 1000, len(server.bodies)
    asker = Asker(short, answers, threads=1)
    assert asker.ask(asked) == ["[1, 1]"] * 2 + [None] * 6
    (note,) = asker.notes
    assert note.startswith("6 requests have no answer: the answer was cut at 100 tokens")
    asker = Asker(long, answers, threads=1)
    found = asker.ask(asked)
    assert all(read_choices(text or "", 2) == [True, True] for text in found) and not asker.notes
    assert len(server.bodies) - before == 6 + 6, "those that ended by themselves are not asked again"
    assert Asker(short, answers).ask(asked) == found, "nor are longer ones, by who would allow less"
    said = {"message": {"content": "[1"}, "finish_reason": "content_filter"}
    server.faults = [json.dumps({"choices": [said]})]
    assert asker.ask([question(9)]) == [None] and "the answer was filtered by the endpoint" in asker.notes[0]


def test_parameters_are_of_each_request_and_of_what_an_answer_depends_on(server: RaterServer, answers: Answers) -> None:
    def with_(parameters: dict[str, Any], max_tokens: int | None = None) -> Asker:
        return Asker(Endpoint(server.url, "rater", None, max_tokens, parameters), answers)

    with_({}).ask([question(0)])
    with_({"temperature": None, "max_completion_tokens": 4000, "reasoning": {"effort": "low"}}).ask([question(0)])
    first, second = ({name for name in body if name not in ("model", "messages")} for body in server.bodies)
    assert first == {"temperature", "max_tokens"} and second == {"max_completion_tokens", "reasoning"}
    assert with_({"temperature": 1}).known(question(0)) is None
    assert with_({"max_completion_tokens": 9}).known(question(0)) == "[1, 1]", "it had ended by itself"
    unlimited = with_({"max_tokens": None}).endpoint
    assert unlimited.limit is None and "max_tokens" not in unlimited.body(question(0))
    for parameters, max_tokens, said in (
        ({"model": "x"}, None, "--parameters: model cannot be set"),
        ({"max_tokens": 0}, None, "--parameters: max_tokens is 0; give a number of tokens, or null"),
        ({"max_completion_tokens": 9}, 9, "--parameters: --max-tokens is given, and max_completion_tokens here"),
    ):
        with pytest.raises(UserError, match=said):
            with_(parameters, max_tokens)


def test_the_estimate_follows_the_answers(server: RaterServer, answers: Answers) -> None:
    asker = Asker(endpoint(server), answers, threads=1)
    assert asker.usual_answer == 60
    server.thought_tokens = 190
    asker.ask([question(number) for number in range(3)])
    assert asker.usual_answer == 200 and Asker(endpoint(server), answers).usual_answer == 200
    assert Asker(Endpoint(server.url, "another"), answers).usual_answer == 60


def test_a_budget_is_not_exceeded(server: RaterServer, answers: Answers) -> None:
    prices = Prices(0, 1e4)  # 0.1 an answer, or 5 one of 500 tokens
    asker = Asker(endpoint(server), answers, threads=8, prices=prices, budget=6)
    with pytest.raises(
        UserError, match=r"--budget: 6 does not allow another request, which may cost 5 \(1.1 is spent\)"
    ):
        asker.ask([question(number) for number in range(20)])
    assert asker.cost == pytest.approx(1.1) and len(server.bodies) == 11
    server.thought_tokens, server.delay_s = 490, 0.05  # as long as may be, and many at once
    asker = Asker(endpoint(server), answers, threads=8, prices=prices, budget=21)
    with pytest.raises(UserError, match="--budget: 21 does not allow another request"):
        asker.ask([question(number) for number in range(20, 40)])
    assert asker.cost == 20 and len(server.bodies) == 11 + 4


def test_addresses_and_files_that_are_none(tmp_path: Path) -> None:
    for url in ("127.0.0.1:8000/v1", "ftp://127.0.0.1/v1", "http://", "http://h/v1?key=7"):
        with pytest.raises(UserError, match="--endpoint: .* is no address of a server"):
            Endpoint(url, "rater")
    with pytest.raises(UserError, match="--endpoint: there is a password in the address.*--api-key-env") as refused:
        Endpoint("http://me:secret@h/v1", "rater")
    assert "secret" not in str(refused.value)
    (tmp_path / "text.db").write_text("no database, but text that is long enough to be looked at " * 20)
    with pytest.raises(UserError, match=r"--answers: .*text.db cannot be used"):
        Answers(tmp_path / "text.db")
