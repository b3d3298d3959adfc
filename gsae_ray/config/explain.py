"""What is wrong with settings, in words: one line for each problem, which begins with its key."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import pydantic
from pydantic import BaseModel
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from gsae_ray.errors import shown, suggest

MAX_LINES = 6
"""The most lines of a refusal: further problems are only counted."""
_SHOULD_BE = {
    **dict.fromkeys(("int_type", "int_from_float", "int_parsing_size"), "an integer"),
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a string",
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
    **dict.fromkeys(("model_type", "dict_type"), "a mapping of keys"),
}
Key = tuple[int | str, ...]
T = TypeVar("T", bound=BaseModel)


def explain(error: pydantic.ValidationError, root: type[BaseModel], where: str = "") -> str:
    """The problems of settings in words: one in one line, several in a line each; of many, the first.

    Args:
        error: what pydantic found.
        root: the model of the settings.
        where: what the settings are, for the beginning, such as the name of a file.
    """
    return listed(problems(error, root), where)


def listed(found: Sequence[tuple[Key, str]], where: str = "") -> str:
    """Problems, as (key, what is wrong with it), in the form that `explain` gives them."""
    lines = list(dict.fromkeys(f"{_dotted(key)}: {text}" if key else text for key, text in found))
    before = f"{where}: " if where else ""
    if len(lines) == 1:
        return before + lines[0]
    head, most = f"{before}{len(lines)} problems", MAX_LINES - 1
    if len(lines) > most:
        lines = [*lines[: most - 1], f"and {len(lines) - most + 1} more"]
    return "\n  ".join([head, *lines])


def problems(error: pydantic.ValidationError, root: type[BaseModel]) -> list[tuple[Key, str]]:
    """Problems, as (key, what is wrong with it)."""
    found = error.errors(include_url=False)
    misspelt = [p["loc"] for p in found if p["type"] == "extra_forbidden"]

    def is_misspelling(problem: ErrorDetails) -> bool:
        """Whether a missing key is there, but misspelt: then the misspelling is told, not that it is missing."""
        if problem["type"] != "missing":
            return False
        *place, name = problem["loc"]
        there = [str(key[-1]) for key in misspelt if list(key[:-1]) == place]
        return bool(difflib.get_close_matches(str(name), there, n=1, cutoff=0.5))

    return [(problem["loc"], _text(problem, root)) for problem in found if not is_misspelling(problem)]


def refusal(found: Sequence[tuple[Key, str]]) -> pydantic.ValidationError:
    """The error that a validator raises to name keys below its own."""
    return pydantic.ValidationError.from_exception_data(
        "settings",
        [
            InitErrorDetails(type=PydanticCustomError("refused", "{text}", {"text": text}), loc=key, input=None)
            for key, text in found
        ],
    )


def read_as(model: type[T], value: object) -> T:
    """Settings of one of several kinds, once it is known which they are.

    Raises:
        ValidationError: something is wrong with them, said with the keys of that kind.
    """
    try:
        return model.model_validate(value)
    except pydantic.ValidationError as error:
        raise refusal(problems(error, model)) from error


def _text(problem: ErrorDetails, root: type[BaseModel]) -> str:
    kind, key, value = problem["type"], problem["loc"], problem["input"]
    match kind:
        case "extra_forbidden":
            return f"unknown key; {suggest(key[-1], _fields_at(root, key[:-1]))}"
        case "missing":
            field = _fields_at(root, key[:-1]).get(str(key[-1]))
            return f"missing; {field.description}" if field is not None and field.description else "missing"
        case "refused":
            return problem["msg"]
        case "value_error":
            return str(problem["ctx"]["error"])
        case "literal_error":
            return f"{shown(value)} should be {problem['ctx']['expected']}"
        case "too_long" | "too_short":
            limit = problem["ctx"].get("max_length", problem["ctx"].get("min_length"))
            return f"{shown(value)} should have {'at most' if kind == 'too_long' else 'at least'} {limit} values"
    if kind in _SHOULD_BE:
        quote = kind == "string_type" and isinstance(value, (int, float))
        return f"{shown(value)} should be {_SHOULD_BE[kind]}{'; put it in quotes' if quote else ''}"
    _, _, what = problem["msg"].partition(" should ")
    return f"{shown(value)} should {what}" if what else f"{shown(value)}: {problem['msg']}"


def _dotted(key: Key) -> str:
    return shown(".".join(map(str, key)), quoted=False)


def _fields_at(root: type[BaseModel], key: Key) -> Mapping[str, pydantic.fields.FieldInfo]:
    """The fields known at a place below `root`, for suggestions."""
    model: Any = root
    for part in key:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        if field is None:
            return {}
        model = next(iter(models_in(field.annotation)), None)
    return getattr(model, "model_fields", {})


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models within a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from models_in(argument)
