"""What a feature's scores ask of a rater, with the right answers."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import numpy as np

from gsae_ray.raters.examples import Examples, Piece
from gsae_ray.raters.prompts import Messages, ask_which_are_on, ask_which_are_right, marked

Score = Literal["detection", "fuzzing"]
SCORES: tuple[Score, ...] = ("detection", "fuzzing")
LISTED = 10
"""Pieces of a request at most."""


@dataclasses.dataclass(frozen=True)
class Question:
    """A list of pieces about which a rater says yes or no."""

    score: Score
    messages: Messages
    right: tuple[bool, ...]
    """The right answer for each of them."""


class _Shown(NamedTuple):
    piece: Piece
    text: str
    """With marks."""
    right: bool


def questions_of(examples: Examples, explanation: str, seed: int) -> list[Question]:
    """All that a feature's scores take.

    Detection: in which of as many pieces with the feature on as with it off is it on? Fuzzing: of pieces with the
    feature on, half have marks on the tokens on which it fires, half on as many others, drawn at random; which are
    right? Each piece is shown once in each.

    Args:
        examples: its pieces.
        explanation: the only thing that the rater knows of the feature.
        seed: the same gives the same order and marks.
    """
    rng = np.random.default_rng([seed, examples.feature])
    count = min(len(examples.held), len(examples.off))
    chosen = [examples.held[place] for place in rng.permutation(len(examples.held))[:count]]
    detection = [_Shown(p, "", True) for p in chosen] + [_Shown(p, "", False) for p in examples.off[:count]]
    found = []
    for shown in _lists(detection, rng):
        messages = ask_which_are_on(explanation, [one.piece for one in shown])
        found.append(Question("detection", messages, tuple(one.right for one in shown)))
    for shown in _lists(_fuzzed(examples, rng), rng):
        messages = ask_which_are_right(explanation, [one.text for one in shown])
        found.append(Question("fuzzing", messages, tuple(one.right for one in shown)))
    return found


def _fuzzed(examples: Examples, rng: np.random.Generator) -> list[_Shown]:
    """The held pieces with right and wrong marks; none where no wrong ones can be made.

    As many tokens are marked wrongly as fire, so that the number of marks tells nothing: a piece of which more than
    half fires can only be marked rightly.
    """
    order = [examples.held[place] for place in rng.permutation(len(examples.held))]
    wrong = [piece for piece in order if 2 * sum(piece.on) <= len(piece.on)][: len(order) // 2]
    if not wrong:
        return []
    right = [piece for piece in order if not any(piece is one for one in wrong)][: len(wrong) + 1]
    return [_Shown(piece, marked(*piece), True) for piece in right] + [
        _Shown(piece, marked(piece.tokens, _elsewhere(piece, rng)), False) for piece in wrong
    ]


def _elsewhere(piece: Piece, rng: np.random.Generator) -> list[bool]:
    """As many tokens of a piece as fire, none of which does."""
    drawn = rng.choice(np.flatnonzero(~np.array(piece.on)), sum(piece.on), replace=False)
    return [place in drawn for place in range(len(piece.on))]


def _lists(shown: list[_Shown], rng: np.random.Generator) -> list[list[Any]]:
    """Them in random order, as lists of about equal length."""
    order = [shown[place] for place in rng.permutation(len(shown))]
    parts = -(-len(order) // LISTED)
    ends = np.linspace(0, len(order), parts + 1).round().astype(int)
    return [order[begin:end] for begin, end in zip(ends[:-1], ends[1:], strict=True)] if parts else []
