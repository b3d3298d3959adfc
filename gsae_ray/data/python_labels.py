"""What each character of Python source is, exactly: by the standard library's own tokenizer and parser.

in_string           of a string literal, its prefix and quotes too; an f-string is one as a whole
in_comment          of a comment, from its #
in_decorator        of a decorator, from its @ to the end of its expression
in_brackets         within (, [ or {, these and their closing ones too
in_nested_brackets  within two or more
before_keyword      of tokens: the next one begins a keyword, True, False and None among them, soft ones not
definition          of tokens of names: where the name is bound (def, class, argument, assignment, loop, import,
                    except), against where it is read; other tokens take no part

Labels of tokens are those of their first character that is no white space, of white space alone of its first.
"""

from __future__ import annotations

import ast
import io
import keyword
import re
import tokenize
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsae_ray.data.probe_set import NO_PART

TASKS = (
    "in_string",
    "in_comment",
    "in_decorator",
    "in_brackets",
    "in_nested_brackets",
    "before_keyword",
    "definition",
)
Mask = NDArray[np.bool_]
_STRING_STARTS, _STRING_ENDS = (
    {getattr(tokenize, f"{kind}STRING_{end}", None) for kind in "FT"} - {None} for end in ("START", "END")
)


class _Lines:
    """Places in a text, as offsets of characters."""

    def __init__(self, text: str) -> None:
        lines = io.StringIO(text).readlines()
        self._starts = np.concatenate([[0], np.cumsum([len(line) for line in lines])])
        self._bytes = [line.encode() for line in lines]

    def at(self, place: tuple[int, int]) -> int:
        """Of (line from 1, character from 0), as `tokenize` counts."""
        return int(self._starts[min(place[0] - 1, len(self._starts) - 1)]) + place[1]

    def of_ast(self, line: int, column: int) -> int:
        """Of (line from 1, byte from 0), as `ast` counts."""
        return int(self._starts[line - 1]) + len(self._bytes[line - 1][:column].decode(errors="ignore"))


def labels_of(text: str, offsets: Sequence[tuple[int, int]]) -> NDArray[np.int8] | None:
    """The labels of a language model's tokens of Python source.

    Args:
        text: a whole document.
        offsets: (start, end) of each token in it, in characters.

    Returns:
        [tasks, tokens]; None where this Python does not read the text as its source.
    """
    if "\r" in text:
        return None
    try:
        tree = ast.parse(text)
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError):
        return None
    lines = _Lines(text)
    masks, keywords = _by_token(tokens, lines, len(text))
    masks["in_decorator"] = _decorators(tree, lines, text, masks["in_string"] | masks["in_comment"])
    first_T = first_characters(text, offsets)
    labels = np.zeros((len(TASKS), len(offsets)), np.int8)
    for row, task in enumerate(TASKS[:5]):
        labels[row] = masks[task][first_T]
    begins_T = np.isin(first_T, sorted(keywords))
    labels[TASKS.index("before_keyword"), :-1] = begins_T[1:]
    labels[TASKS.index("definition")] = _names(tree, lines, text, masks["in_string"] | masks["in_comment"])[first_T]
    return labels


def first_characters(text: str, offsets: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """The offset of each token's first character that is no white space; of white space alone, of its first."""
    found = []
    for start, end in offsets:
        blank = len(text[start:end]) - len(text[start:end].lstrip())
        found.append(min(start + (blank if blank < end - start else 0), max(len(text) - 1, 0)))
    return np.array(found, np.int64)


def _by_token(tokens: Sequence[tokenize.TokenInfo], lines: _Lines, size: int) -> tuple[dict[str, Mask], set[int]]:
    """What Python's tokens tell of each character; and where keywords begin."""
    masks = {name: np.zeros(size, bool) for name in ("in_string", "in_comment", "in_brackets", "in_nested_brackets")}
    keywords: set[int] = set()
    nested = begin = 0  # f-strings that are open, and where the outermost began
    open_at: list[int] = []  # brackets
    for token in tokens:
        start, end = lines.at(token.start), lines.at(token.end)
        if token.type in _STRING_STARTS:
            begin = begin if nested else start
            nested += 1
        elif token.type in _STRING_ENDS:
            nested -= 1
            if not nested:
                masks["in_string"][begin:end] = True
        elif nested:
            continue
        elif token.type == tokenize.STRING:
            masks["in_string"][start:end] = True
        elif token.type == tokenize.COMMENT:
            masks["in_comment"][start:end] = True
        elif token.type == tokenize.NAME and keyword.iskeyword(token.string):
            keywords.add(start)
        elif token.type == tokenize.OP and token.string in "([{":
            open_at.append(start)
        elif token.type == tokenize.OP and token.string in ")]}" and open_at:
            masks["in_brackets" if len(open_at) == 1 else "in_nested_brackets"][open_at.pop() : end] = True
    masks["in_brackets"] |= masks["in_nested_brackets"]
    return masks, keywords


def _decorators(tree: ast.AST, lines: _Lines, text: str, no_code: Mask) -> Mask:
    """Which characters are of decorators."""
    mask = np.zeros(len(text), bool)
    for node in ast.walk(tree):
        for decorator in getattr(node, "decorator_list", ()):
            at = lines.of_ast(decorator.lineno, decorator.col_offset) - 1
            while text[at] != "@" or no_code[at]:  # white space, or a bracket, may stand between
                at -= 1
            mask[at : lines.of_ast(decorator.end_lineno, decorator.end_col_offset)] = True
    return mask


def _names(tree: ast.AST, lines: _Lines, text: str, no_code: Mask) -> NDArray[np.int8]:
    """Of each character of a name, whether it is bound there (1) or read (0); of others NO_PART."""
    labels = np.full(len(text), NO_PART, np.int8)

    def mark(name: str, at: int, label: int) -> None:
        if text.startswith(name, at):  # else it is written with other characters of the same meaning
            labels[at : at + len(name)] = label

    def after(start: int, word: str) -> int:
        """Where a word stands first, in code, from a place on."""
        found = re.compile(rf"\b{re.escape(word)}\b").finditer(text, start)
        return next((one.start() for one in found if not no_code[one.start()]), len(text))

    for node in _outside_strings(tree):
        if isinstance(node, ast.Name):
            mark(node.id, lines.of_ast(node.lineno, node.col_offset), int(isinstance(node.ctx, ast.Store)))
        elif isinstance(node, ast.arg):
            mark(node.arg, lines.of_ast(node.lineno, node.col_offset), 1)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            kind = "class" if isinstance(node, ast.ClassDef) else "def"
            keyword_at = after(lines.of_ast(node.lineno, node.col_offset), kind)
            mark(node.name, after(keyword_at + len(kind), node.name), 1)
        elif isinstance(node, ast.alias):
            start = lines.of_ast(node.lineno, node.col_offset)
            if node.name == "*":
                continue  # it defines names, and is none
            if node.asname is None:
                mark(node.name.partition(".")[0], start, 1)
            else:
                mark(node.asname, after(after(start, "as") + len("as"), node.asname), 1)
        elif isinstance(node, ast.ExceptHandler) and node.type is not None and node.name is not None:
            end = lines.of_ast(node.type.end_lineno or 1, node.type.end_col_offset or 0)
            mark(node.name, after(after(end, "as") + len("as"), node.name), 1)
    return labels


def _outside_strings(tree: ast.AST) -> Iterator[Any]:
    """All nodes but those in f-strings, whose places are not known before Python 3.12."""
    left = [tree]
    while left:
        node = left.pop()
        yield node
        left += [n for n in ast.iter_child_nodes(node) if type(n).__name__ not in ("JoinedStr", "TemplateStr")]
