"""Answers as they are kept: none is lost and none is counted twice, whatever ends and whoever else answers."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from studies import couple_at, done, item_of, make_study, rate

from gsae_ray.errors import UserError
from gsae_ray.study.answers import Answer, OutdatedError, item_at, next_place, rater_of, raters, save


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two raters, 20 items each."""
    path = tmp_path / "study.db"
    make_study(path, [couple_at(1)], pairs=10)
    return path


def test_a_rater_goes_on_where_he_was_and_can_go_back(path: Path) -> None:
    first = raters(path)[0]
    assert rater_of(path, first.token) == first and rater_of(path, "guessed") is None
    for place in (1, 2, 3):
        assert next_place(path, first.id) == place
        rate(path, first.id, place, label=place % 3)
    rate(path, first.id, 4, label=None)  # explained, not rated
    assert next_place(path, first.id) == 4 and done(path) == [3, 0]
    rate(path, first.id, 2, label=0, explanation="on second thoughts")
    item = item_at(path, first.id, 2)
    assert item is not None and (item.label, item.explanation) == (0, "on second thoughts")
    assert done(path) == [3, 0] and next_place(path, first.id) == 4
    with sqlite3.connect(path) as database:
        kept = database.execute("SELECT count(*) FROM answers").fetchone()
    assert kept == (9,), "what was replaced is still there"
    for place in range(4, 21):
        rate(path, first.id, place, label=1)
    assert next_place(path, first.id) is None and done(path) == [20, 0]
    assert item_at(path, first.id, 21) is None


def test_of_two_windows_one_is_told_and_nothing_of_the_other_is_overwritten(path: Path) -> None:
    save(path, 1, Answer(1, 0, "one", "mine", None, 1.0))
    with pytest.raises(OutdatedError):
        save(path, 1, Answer(1, 0, "two", "yours", None, 1.0))
    with pytest.raises(OutdatedError):  # a version that there never was
        save(path, 1, Answer(1, 5, "two", "yours", 2, 1.0))
    save(path, 1, Answer(1, 1, "one", "mine", 2, 1.0))
    item = item_at(path, 1, 1)
    assert item is not None and (item.explanation, item.label, item.version) == ("mine", 2, 2)
    assert done(path) == [1, 0]


def test_an_answer_whose_reply_was_lost_is_taken_once(path: Path) -> None:
    answer = Answer(1, 0, "one", "mine", None, 1.0)
    assert save(path, 1, answer) == save(path, 1, answer) == 1
    with pytest.raises(OutdatedError):
        save(path, 1, Answer(1, 0, "two", "mine", None, 1.0))
    with pytest.raises(LookupError):
        save(path, 1, Answer(99, 0, "one", "", None, 1.0))


def test_many_answers_at_once_are_each_there_once(path: Path) -> None:
    """Eight windows answer the same 10 items: of each item one gets through."""

    def window(number: int) -> list[int]:
        through = []
        for place in range(1, 11):
            try:
                save(path, 1, Answer(place, 0, f"window {number}", f"{number}", None, 1.0))
                through.append(place)
            except OutdatedError:
                pass
        return through

    with ThreadPoolExecutor(8) as pool:
        through = [place for places in pool.map(window, range(8)) for place in places]
    assert sorted(through) == list(range(1, 11))


def test_what_was_answered_survives_a_kill_between_clicks(path: Path) -> None:
    """A process answers until it is killed; each answer that it told of is there, and the file is whole."""
    code = textwrap.dedent(
        """
        import itertools, pathlib, sys
        from gsae_ray.study.answers import Answer, save
        for version in itertools.count():
            save(pathlib.Path(sys.argv[1]), 1, Answer(1, version, "one", str(version), 1, 0.5))
            print(version + 1, flush=True)
        """
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(20)]
        os.kill(process.pid, signal.SIGKILL)
        told += [int(line) for line in process.stdout if line.endswith("\n")]
    assert item_of(path, 1, 1) in (told[-1], told[-1] + 1), "the last one may have been written and not told"
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert done(path) == [1, 0]


def test_what_is_no_study_is_said_so(tmp_path: Path, path: Path) -> None:
    with pytest.raises(UserError, match="STUDY: there is no file .*gsae-ray study create"):
        raters(tmp_path / "missing.db")
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE x (y)")
    with pytest.raises(UserError, match="STUDY: .*other.db is no study"):
        raters(other)
    (tmp_path / "text.db").write_text("not a database, for " + 100 * "long ")
    with pytest.raises(UserError, match=r"STUDY: .*text.db is damaged, or no study"):
        raters(tmp_path / "text.db")
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 2")
    with pytest.raises(UserError, match="a study of version 2, not 1"):
        raters(path)
