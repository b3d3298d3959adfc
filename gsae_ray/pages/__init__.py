"""What our HTML pages share: their colours, how activations shade a text, and JSON that may stand in a page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any


def page_file(name: str, package: str = "gsae_ray.pages") -> str:
    """The text of a file of a page: `colours.css`, `shading.css`, `shading.js`, or one of the package that it is of."""
    return resources.files(package).joinpath(name).read_text("utf-8")


def embedded(value: Mapping[str, Any] | Iterable[Any]) -> str:
    """JSON that may stand inside an HTML page or a script: no text in it can end its element, or begin another.

    Raises:
        ValueError: a number is not finite, which is no JSON.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
