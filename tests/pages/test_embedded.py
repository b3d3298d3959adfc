"""What our pages share."""

from __future__ import annotations

import json

import pytest

from gsae_ray.pages import embedded


def test_json_cannot_end_its_element() -> None:
    value = {"a": "</script>\u2028<!--", "b": ["&amp;", "\u2029\t\n🙂"]}
    assert json.loads(embedded(value)) == value
    assert not set("<>&\u2028\u2029") & set(embedded(value))


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        embedded([float("nan")])
