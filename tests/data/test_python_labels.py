"""The labels of Python source, worked out by hand for a small text."""

from __future__ import annotations

import re

import numpy as np
import pytest

from gsae_ray.builtin import TEXT_FILES
from gsae_ray.data.probe_set import NO_PART
from gsae_ray.data.python_labels import TASKS, first_characters, labels_of

TEXT = """\
import os.path as p, sys
# not 'a string'
@cache(max=1)
def f(a, é='x # ü'):
    if a:  # one
        return [g(b"y"), f"{a}"]
    for i in sys.x: i.z = (i)
"""
TOKENS = [match.span() for match in re.finditer(r"\s*(\w+|[^\w\s])", TEXT)]
"""As of a tokenizer whose tokens begin with the white space before them."""
WORDS = [TEXT[start:end].strip() for start, end in TOKENS]


def tokens_with(task: str, label: int = 1) -> str:
    labels = labels_of(TEXT, TOKENS)
    assert labels is not None
    return " ".join(word for word, found in zip(WORDS, labels[TASKS.index(task)], strict=True) if found == label)


def test_each_label_is_as_by_hand() -> None:
    assert tokens_with("in_string") == '\' x # ü \' b " y " f " { a } "'
    assert tokens_with("in_comment") == "# not ' a string ' # one"
    assert tokens_with("in_decorator") == "@ cache ( max = 1 )"
    everything = '( max = 1 ) ( a , é = \' x # ü \' ) [ g ( b " y " ) , f " { a } " ] ( i )'
    assert tokens_with("in_brackets") == everything
    assert tokens_with("in_nested_brackets") == '( b " y " )'


def test_a_keyword_is_labelled_on_the_token_before_it() -> None:
    """`as` after path, `def` after the decorator, `if`, `return` after a comment, `for` after a bracket, `in`."""
    assert tokens_with("before_keyword") == "path ) : one ] i"


def test_names_are_bound_or_read_and_nothing_else_takes_part() -> None:
    assert tokens_with("definition") == "p sys f a é i"
    assert tokens_with("definition", 0) == "cache a g sys i i"  # of i.z = i, the object i is read


def test_a_star_that_is_imported_is_no_name() -> None:
    labels = labels_of("from os import *\n", [(0, 4), (5, 7), (8, 14), (15, 16)])
    assert labels is not None and (labels[TASKS.index("definition")] == NO_PART).all()


def test_a_token_is_labelled_by_its_first_character_that_is_no_white_space() -> None:
    assert first_characters("ab  c", [(0, 2), (2, 5), (2, 3), (5, 5)]).tolist() == [0, 4, 2, 4]


@pytest.mark.parametrize("text", ["def f(:\n", "x = 1\r\n", "x = '\0'"])
def test_what_is_no_python_has_no_labels(text: str) -> None:
    assert labels_of(text, [(0, 1)]) is None


def test_an_empty_document_has_no_tokens() -> None:
    labels = labels_of("", [])
    assert labels is not None and labels.shape == (len(TASKS), 0)


def test_labels_do_not_depend_on_how_text_is_cut() -> None:
    """By characters, one token each, on a document of the built-in text."""
    import pyarrow.parquet

    text = pyarrow.parquet.read_table(TEXT_FILES["heldout"]).column("text")[0].as_py()
    each = labels_of(text, [(i, i + 1) for i in range(len(text))])
    pairs = labels_of(text, [(i, min(i + 2, len(text))) for i in range(0, len(text), 2)])
    assert each is not None and pairs is not None
    assert set(np.unique(each)) == {NO_PART, 0, 1}
    visible = [not text[2 * i].isspace() for i in range(pairs.shape[1])]
    rows = [row for row, task in enumerate(TASKS) if task != "before_keyword"]
    assert np.array_equal(pairs[rows][:, visible], each[rows][:, ::2][:, visible])
