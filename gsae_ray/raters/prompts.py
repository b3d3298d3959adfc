"""What a rater is asked, and how its answers are read. The method is that of arXiv 2410.13928, the words are ours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from gsae_ray.raters.examples import Piece

Messages = list[dict[str, str]]
"""As chat completions take them: `role` and `content` of each."""
LEFT, RIGHT = "<<", ">>"

_EXPLAIN = f"""You explain features of a neural network that reads text token by token. A feature is active on some
tokens. You are shown pieces of text, as JSON strings, in which the tokens on which one feature is active stand between
{LEFT} and {RIGHT}. Find what these tokens, or the text before them, have in common. Answer with one short sentence that
tells when the feature is active, and nothing else: no list, no quotation of the pieces, no marks. Be as specific as all
of them allow."""

_DETECT = """You are told when a feature of a neural network that reads text token by token is active. Then you are
shown pieces of text, as JSON strings. Decide for each piece, by the explanation alone, whether the feature is active on
at least one of its tokens. Any number of the pieces may be such. Answer with a JSON list that has 1 (active) or 0 (not
active) for each piece, in their order, and nothing else."""

_FUZZ = f"""You are told when a feature of a neural network that reads text token by token is active. Then you are
shown pieces of text, as JSON strings, in each of which some tokens stand between {LEFT} and {RIGHT}. Decide for each
piece, by the explanation alone, whether the marked tokens are those on which the feature is active. In any number of
the pieces they may have been marked at random instead. Answer with a JSON list that has 1 (marked rightly) or 0 (marked
at random) for each piece, in their order, and nothing else."""

_THOUGHT = re.compile(r"\A(?:(?!<think>).)*?</think>|<think>.*?(?:</think>|\Z)", re.DOTALL)
"""What a model has thought; templates that end with `<think>` leave that out of the answer."""
_LIST = re.compile(r"\[[01,\s]*\]")
LONGEST = 2000
"""Characters of an explanation; more is none."""


def ask_for_explanation(pieces: Sequence[Piece]) -> Messages:
    """What makes a feature active that is marked in these pieces?"""
    return _chat(_EXPLAIN, _numbered(marked(piece.tokens, piece.on) for piece in pieces))


def ask_which_are_on(explanation: str, pieces: Sequence[Piece]) -> Messages:
    """In which of these pieces is a feature active that is explained so?"""
    return _chat(_DETECT, _explained(explanation, ["".join(piece.tokens) for piece in pieces]))


def ask_which_are_right(explanation: str, texts: Sequence[str]) -> Messages:
    """In which of these texts, as `marked` gives them, are the marks right for a feature that is explained so?"""
    return _chat(_FUZZ, _explained(explanation, texts))


def marked(tokens: Sequence[str], on: Sequence[bool]) -> str:
    """A text with marks round the tokens that are on, of a row together; such marks of its own are taken apart."""
    runs: list[tuple[bool, str]] = []
    for token, is_on in zip(tokens, on, strict=True):
        if runs and runs[-1][0] == is_on:
            runs[-1] = is_on, runs[-1][1] + token
        else:
            runs.append((is_on, token))
    texts = [text.replace(LEFT, "< <").replace(RIGHT, "> >") for _, text in runs]
    return "".join(f"{LEFT}{text}{RIGHT}" if on else text for (on, _), text in zip(runs, texts, strict=True))


def read_explanation(answer: str) -> str | None:
    """The explanation, on one line; None where there is none."""
    text = " ".join(_THOUGHT.sub("", answer).split()).strip('"')
    return text if 0 < len(text) <= LONGEST else None


def read_choices(answer: str, pieces: int) -> list[bool] | None:
    """A choice for each piece: the last list of so many 0 and 1 in the answer; None where there is none."""
    for found in reversed(_LIST.findall(_THOUGHT.sub("", answer))):
        try:
            choices = json.loads(found)
        except ValueError:
            continue
        if len(choices) == pieces and all(choice in (0, 1) for choice in choices):
            return [bool(choice) for choice in choices]
    return None


def _chat(system: str, user: str) -> Messages:
    return [
        {"role": "system", "content": " ".join(system.split("\n"))},
        {"role": "user", "content": user},
    ]


def _explained(explanation: str, texts: Sequence[str]) -> str:
    return f"The feature is active so: {explanation}\n\n{len(texts)} pieces of text:\n{_numbered(texts)}"


def _numbered(texts: Iterable[str]) -> str:
    return "\n".join(f"{number}. {json.dumps(text, ensure_ascii=False)}" for number, text in enumerate(texts, 1))
