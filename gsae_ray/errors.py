"""Errors that a user can act on: one line that names the key or thing, the value, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

REFUSED, FAILED, INTERRUPTED = 2, 3, 75
"""Exit codes of the command line beside 0: the command has to be mended; some trials have failed for good; a sweep was
stopped before its end, and the same command goes on (75 is EX_TEMPFAIL of sysexits.h)."""


class UserError(Exception):
    """Something in the sweep file, the command or the surroundings is wrong. The command line exits with 2."""


class NoTokenizerError(UserError):
    """A model brings no tokenizer."""


class DataEndedError(UserError):
    """A data set holds fewer tokens than the sweep asks for."""


class DamagedError(UserError):
    """A file in storage does not hold what was written to it; the line names it, and what to do."""


class SweepStoppedError(RuntimeError):
    """A sweep cannot go on for now. What is finished is kept, and --resume goes on; the command line exits with 75."""


class ProductionError(SweepStoppedError):
    """Producers could not make a block: an error in the forward pass, or no producer alive for too long."""


class StorageFullError(SweepStoppedError):
    """There is no room where trials keep their state."""


class ReplacedError(SweepStoppedError):
    """Another driver has taken the sweep over."""


class StopAskedError(SweepStoppedError):
    """Somebody has asked for it."""


class StaleAttemptError(RuntimeError):
    """An older attempt of a trial wrote or asked after a newer one had started; what it sends is refused."""


class NumericError(ArithmeticError):
    """A number is not finite, or exploded: a final result, since the same rows would give the same again."""


def not_finite(what: str, where: str, dtype: str) -> NumericError:
    """`what` the language model computes in `dtype` is not finite somewhere."""
    if dtype == "float16":
        cause = "numbers of model.dtype: float16 end at 65,504, those of many models do not; take bfloat16 or float32"
    else:
        cause = f"model.dtype: {dtype} does not overflow easily, so the model's weights are the likely cause"
    return NumericError(f"{what} are not finite in {where}; {cause}")


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line; never empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def reason(error: BaseException) -> str:
    """An error in one line: of one that crossed processes, the cause's own message."""
    error = getattr(error, "cause", None) or error
    lines = str(error).strip().splitlines()
    return lines[-1].rpartition("Error: ")[2] if lines else type(error).__name__


ECHOED = 200
"""Characters of what was given that a message repeats."""


def shown(value: object, quoted: bool = True) -> str:
    """A value as an error line repeats it: on one line, and cut where it is long.

    Args:
        value: what was given.
        quoted: as Python writes it; else as text.
    """
    try:
        text = f"{value:g}" if isinstance(value, int) and abs(value) > 10**20 else repr(value) if quoted else str(value)
    except (ArithmeticError, ValueError, RecursionError):  # Python writes no int of more than 4300 digits
        text = "what is too large to write"
    text = " ".join(text.split()) if not text.isprintable() else text
    return text if len(text) <= ECHOED else f"{text[:ECHOED]}…"


def one_of(names: Sequence[str], most: int | None = None) -> str:
    """`"one of: a, b, x"`, for the end of an error line; of more than `most` names the first ones."""
    more = f", … ({len(names)} in all)" if most is not None and len(names) > most else ""
    return f"one of: {', '.join(names[:most])}{more}"


def suggest(value: object, known: Iterable[object], most: int | None = None) -> str:
    """`"did you mean 'x'? (one of: a, b, x)"`, or `"one of: a, b, x"` as `one_of`, for the end of an error line."""
    names = [str(name) for name in known]
    nearest = difflib.get_close_matches(shown(value, quoted=False), names, n=1, cutoff=0.5)
    known_names = one_of(names, most)
    return f"did you mean {nearest[0]!r}? ({known_names})" if nearest else known_names
