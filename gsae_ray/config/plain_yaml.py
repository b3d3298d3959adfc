"""YAML as sweep files need it: mappings, lists and plain scalars, read as a tree in which nothing is shared.

Only what means the same to everybody is read: no tags, no octal (010 is text), no sexagesimal (1:30 is text), no
`yes`; 1e-3 is a number. Anchors, aliases and merge keys (<<) work; each alias is a copy.
"""

from __future__ import annotations

import copy
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

import yaml

from gsae_ray.errors import UserError, shown

MAX_CHARACTERS = 2**18
MAX_DEPTH = 20
TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels, which no key is"
MAX_VALUES = 20_000
"""The most values of a text, with aliases spelt out: far more than any sweep has, and still read in seconds."""
MAX_DIGITS = 40
"""The most characters of an integer, so that it fits into a float; what is longer is text."""

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)")
_FLOAT = re.compile(r"[-+]?([0-9]+(_[0-9]+)*(\.([0-9]+(_[0-9]+)*)?)?|\.[0-9]+(_[0-9]+)*)([eE][-+]?[0-9]{1,9})?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


class _NotPlainError(ValueError):
    """The text is not plain YAML: what is wrong, and in which line."""

    def __init__(self, problem: str, event: Any) -> None:
        super().__init__(problem)
        self.line = event.start_mark.line + 1


def load(text: str, where: str) -> Any:
    """The value that a text spells.

    Args:
        text: the YAML.
        where: what the text is, for the beginning of an error's line.

    Raises:
        UserError: it is not YAML, or not plain; with its line, and the key where there is one.
    """
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{where}: more than {MAX_CHARACTERS:,} characters; a sweep file is shorter")
    tree = _Tree(yaml.parse(text, Loader=yaml.SafeLoader))
    try:
        return tree.document()
    except _NotPlainError as error:
        in_mapping = tree.path and isinstance(tree.path[0], str)  # a text that is a list has no key, only lines
        key = ".".join(shown(part, quoted=False) for part in tree.path) if in_mapping else ""
        raise UserError(f"{where}, line {error.line}: {key + ': ' if key else ''}{error}") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{where}{line}: not valid YAML: {shown(error.problem, quoted=False)}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # e.g. escapes beyond Unicode
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{where}: not valid YAML: {shown(reason, quoted=False)}") from error


def scalar(text: str) -> Any:
    """The value that an unquoted word stands for."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text.replace("_", "")) if len(text) <= MAX_DIGITS else text
    if _FLOAT.fullmatch(text) and not _LEADING_ZERO.match(text):
        return float(text.replace("_", ""))
    return text


class _Tree:
    """Builds the value from the parser's events."""

    def __init__(self, events: Iterator[Any]) -> None:
        self.path: list[object] = []
        """Keys and indices of the value that is being built."""
        self._events = events
        self._anchors: dict[str, Any] = {}
        self._values = 0

    def document(self) -> Any:
        next(self._events)  # the stream's start
        start = next(self._events)
        if isinstance(start, yaml.StreamEndEvent):
            return None
        value = self._value(next(self._events))
        next(self._events)  # the document's end
        if not isinstance(end := next(self._events), yaml.StreamEndEvent):
            raise _NotPlainError("a second document begins; give one", end)
        return value

    def _value(self, event: Any) -> Any:
        self._count(1, event)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:  # also within the value that bears the anchor
                raise _NotPlainError(f"no value before it has the anchor &{shown(event.anchor, quoted=False)}", event)
            value = self._anchors[event.anchor]
            size, depth = _extent(value)
            self._count(size, event)
            if len(self.path) + depth > MAX_DEPTH:
                raise _NotPlainError(TOO_DEEP, event)
            return copy.deepcopy(value)
        if event.tag is not None:
            raise _NotPlainError(f"the tag {shown(event.tag)}: tags are not taken; write the plain value", event)
        if isinstance(event, yaml.ScalarEvent):
            value = _text(event.value, event) if event.style else scalar(_text(event.value, event))
        elif len(self.path) >= MAX_DEPTH:
            raise _NotPlainError(TOO_DEEP, event)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._list()
        else:
            value = self._mapping()
        if event.anchor is not None:
            self._anchors[event.anchor] = value
        return value

    def _list(self) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            self.path.append(len(values))
            values.append(self._value(event))
            self.path.pop()
        return values

    def _mapping(self) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] | None = None
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise _NotPlainError("a key that is no plain text", event)
            self.path.append(event.value)
            key = _text(event.value, event)
            if event.tag is not None:
                raise _NotPlainError("a key with a tag; leave the tag out", event)
            if event.anchor is not None:
                self._anchors[event.anchor] = key
            value = self._value(next(self._events))
            is_merge = key == "<<" and not event.style
            if key in own or (is_merge and merged is not None):
                raise _NotPlainError(f"key {shown(key)} stands twice", event)
            if is_merge:
                merged = {}
                for one in reversed(value if isinstance(value, list) else [value]):  # the first of a list wins
                    if not isinstance(one, dict):
                        raise _NotPlainError("<< takes a mapping, or a list of mappings", event)
                    merged |= one
            else:
                own[key] = value
            self.path.pop()
        return (merged or {}) | own

    def _count(self, values: int, event: Any) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            raise _NotPlainError(f"more than {MAX_VALUES:,} values, aliases spelt out", event)


def _extent(value: Any) -> tuple[int, int]:
    """How many values are within a value, and how deep it is nested."""
    if not isinstance(value, (dict, list)):
        return 0, 0
    inner = [_extent(item) for item in (value.values() if isinstance(value, dict) else value)]
    return len(inner) + sum(size for size, _ in inner), 1 + max((depth for _, depth in inner), default=0)


def _text(text: str, event: Any) -> str:
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs"):  # they break lines, paths and encodings
            raise _NotPlainError(f"text with the character U+{ord(character):04X}, which no key takes", event)
    return text


class _Dumper(yaml.SafeDumper):
    """Writes YAML in which text that `load` would read as something else is quoted."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if scalar(text) is text else "'")


_Dumper.add_representer(str, _quoted)


def dump(value: Any) -> str:
    """The inverse of `load`, for people to read."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
