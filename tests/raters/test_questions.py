"""Which pieces of text a rater sees, what it is asked, and how its answers are read and scored."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from random_feature_tables import random_tables
from word_tables import word_tables

from gsae_ray.raters.examples import Examples, Piece, draw, examples_of
from gsae_ray.raters.prompts import ask_for_explanation, marked, read_choices, read_explanation
from gsae_ray.raters.questions import LISTED, questions_of
from gsae_ray.raters.scores import balanced_accuracy, with_interval


def test_pieces_of_explanation_and_scores_are_others() -> None:
    tables = word_tables(contexts=20)
    examples = examples_of(tables, 3, tables.texts())
    assert examples is not None
    assert (len(examples.explained), len(examples.held)) == (5, 10), "every other one of ten top ones; of 15 others ten"
    pieces = [*examples.explained, *examples.held, *examples.off]
    assert len({piece.tokens for piece in pieces}) == len(pieces)
    for piece in (*examples.explained, *examples.held):
        assert piece.tokens[piece.on.index(True)] == " word3" and sum(piece.on) == 1
    assert len(examples.off) <= len(examples.held)
    assert not any(" word3" in piece.tokens or any(piece.on) for piece in examples.off)


def test_overlapping_pieces_are_left_out() -> None:
    tables = word_tables()
    rows = tables.contexts.to_pylist()
    same = [{**row, "context": 7, "start": 4 * row["rank"]} for row in rows]  # each overlaps with the next one
    overlapping = dataclasses.replace(tables, contexts=pa.Table.from_pylist(same, schema=tables.contexts.schema))
    assert examples_of(overlapping, 3, tables.texts()) is None
    assert draw(overlapping, 5, 0) == []


def test_features_are_drawn_uniformly_of_those_that_can_be() -> None:
    tables = word_tables(d_sae=12, dead=3)
    all_of_them = [examples.feature for examples in draw(tables, 50, 0)]
    assert sorted(all_of_them) == list(range(3, 12)), "the first three never fire"
    assert [examples.feature for examples in draw(tables, 4, 0)] == all_of_them[:4], "a larger number has these, too"
    first = [draw(tables, 1, seed)[0].feature for seed in range(300)]
    counts = np.bincount(first, minlength=12)[3:]
    assert counts.min() > 15 and counts.max() < 55, "33 each, give or take four standard deviations"


def test_questions_show_each_piece_once_and_as_many_of_either_kind() -> None:
    tables = word_tables(contexts=20)
    examples = draw(tables, 1, 0)[0]
    asked = questions_of(examples, "on a word", 0)
    assert asked == questions_of(examples, "on a word", 0) != questions_of(examples, "on a word", 1)
    detection, fuzzing = ([q for q in asked if q.score == score] for score in ("detection", "fuzzing"))
    right = [value for question in detection for value in question.right]
    assert sum(right) == len(right) / 2 == len(examples.off)
    assert all(len(question.right) <= LISTED for question in asked)
    assert sum(fuzzing[0].right) == 5 and len(fuzzing[0].right) == 10
    text = fuzzing[0].messages[1]["content"]
    assert text.count("<<") == text.count(">>") == 10, "one token is marked in each, rightly or not"
    assert text.count(f"<< word{examples.feature}>>") == 5
    assert "on a word" in text and "<< word" not in detection[0].messages[1]["content"]
    explained = ask_for_explanation(examples.explained)[1]["content"]
    assert explained.count(f"<< word{examples.feature}>>") == len(examples.explained)


def test_as_many_tokens_are_marked_wrongly_as_fire() -> None:
    """Pieces of which most fires have no room for that, and are only marked rightly."""
    mostly = Piece((" a", " b", " c", " d"), (True, True, True, False))
    some = Piece((" a", " b", " c", " d"), (True, False, True, False))
    off = Piece((" x",), (False,))
    asked = questions_of(Examples(0, (), (mostly, some, mostly), (off, off, off)), "so", 0)
    (fuzzing,) = (question for question in asked if question.score == "fuzzing")
    pieces = fuzzing.messages[1]["content"].splitlines()[3:]
    wrong = [piece for piece, right in zip(pieces, fuzzing.right, strict=True) if not right]
    assert len(wrong) == 1 and wrong[0].endswith('" a<< b>> c<< d>>"')
    asked = questions_of(Examples(0, (), (mostly, mostly, mostly), (off, off, off)), "so", 0)
    assert {question.score for question in asked} == {"detection"}


def test_marks() -> None:
    assert marked([" a", " b", " c", " d"], [True, True, False, True]) == "<< a b>> c<< d>>"
    assert marked(["1 <<", "< 2"], [False, True]) == "1 < <<<< 2>>"
    assert marked([" <<", ">>"], [True, False]) == "<< < <>>> >", "the text's own are no marks"


@pytest.mark.parametrize(
    ("answer", "choices"),
    [
        ("[1, 0, 1]", [True, False, True]),
        ("```json\n[1,0,\n1]\n```", [True, False, True]),
        ("<think>[0, 0, 0] or so</think>\n[1, 0, 1]", [True, False, True]),
        ("not [1, 1] but [1, 0, 1]", [True, False, True]),
        ("[1, 0]", None),
        ("[1, 0, 2]", None),
        ("[1 0 1]", None),
        ("[10, 0, 1]", None),
        ("[[1, 0, 1]", [True, False, True]),
        ("<think>[1, 0, 1]", None),
        ("is it [0, 0, 0]?</think>\n[1, 0, 1]", [True, False, True]),  # where the template ends with <think>
        ("is it [1, 0, 1]?</think>", None),
        ("[1, 0, 1]\n<think>or [0, 0, 0]</think>", [True, False, True]),
        ("yes, no, yes", None),
        ("", None),
    ],
)
def test_choices_are_read(answer: str, choices: list[bool] | None) -> None:
    assert read_choices(answer, 3) == choices


def test_explanations_are_read() -> None:
    assert read_explanation('<think>hm</think>\n "On  the word\nsum" ') == "On the word sum"
    assert read_explanation("first\nthat</think>\n\nOn the word sum") == "On the word sum"
    assert read_explanation(" \n") is None and read_explanation("<think>on and on") is None
    assert read_explanation("x" * 2001) is None


def test_scores_by_hand() -> None:
    assert balanced_accuracy([True, True, False, False], [True, False, False, False]) == 0.75
    assert balanced_accuracy([True, False, False, False], [True, True, True, True]) == 0.5
    assert balanced_accuracy([True, True], [True, True]) is None and balanced_accuracy([], []) is None
    assert with_interval("detection", []) == {} and with_interval("detection", [0.7]) == {"detection": 0.7}
    found = with_interval("detection", [0.5, 1.0] * 50)
    assert found["detection"] == 0.75
    # A mean of a hundred values with a standard deviation of 0.25 has one of 0.025.
    assert found["detection_low"] == pytest.approx(0.75 - 1.96 * 0.025, abs=0.01)
    assert found["detection_high"] == pytest.approx(0.75 + 1.96 * 0.025, abs=0.01)


def test_tables_without_places_where_features_are_off_give_none() -> None:
    tables = random_tables(6, contexts=10)
    column = tables.features.schema.get_field_index("off")
    field = tables.features.schema.field(column)
    none = pa.array([[]] * 6, field.type)
    assert draw(dataclasses.replace(tables, features=tables.features.set_column(column, field, none)), 3, 0) == []
