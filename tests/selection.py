"""Cases of which the quick suite runs some, and the slow one all others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import pytest
from _pytest.mark import ParameterSet

T = TypeVar("T")


def quick(values: Iterable[T], is_quick: Callable[[T], bool]) -> list[ParameterSet]:
    """The values, for `parametrize`. Those that are not quick are slow tests."""
    return [pytest.param(value, marks=() if is_quick(value) else pytest.mark.slow) for value in values]
