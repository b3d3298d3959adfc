"""Kinds of damage that files take: by crashes, full disks, editors and people."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

Damage = Callable[[Path], None]


def cut(path: Path) -> None:
    """The end was lost."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """One bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _becomes(data: bytes) -> Damage:
    def damage(path: Path) -> None:
        path.write_bytes(data)

    return damage


def _nul(path: Path) -> None:
    """As file systems leave what was not on disk when the machine crashed."""
    path.write_bytes(bytes(path.stat().st_size))


def _nul_line(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(bytes(40) + b"\n" + data)


def _json(value: Any) -> Damage:
    return _becomes(json.dumps(value).encode())


WRONG: list[Any] = [[], {"reason": 1}, None, True, 7, "text", {"attempt": "1"}]
"""JSON that is whole, and nothing that a file of ours could hold."""
DAMAGES: dict[str, Damage] = {
    "truncated": cut,
    "one bit": flip,
    "deleted": Path.unlink,
    "NUL": _nul,
    "a NUL line": _nul_line,
    "random": _becomes(Random(0).randbytes(100)),
    "{}": _json({}),
    "[1]": _json([1]),
    "empty": _becomes(b""),
    "no UTF-8": _becomes(b'{"reason": "\xff"}'),
    "deep": _becomes(b"[" * 100_000),
    "digits": _becomes(b'{"attempt": ' + b"9" * 10_000 + b"}"),
    **{repr(value): _json(value) for value in WRONG},
}
"""By name."""
COMMON = {name: DAMAGES[name] for name in list(DAMAGES)[:8]}
"""Those that are tried on every file."""
