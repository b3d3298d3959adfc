"""Tables that fit the terminal without cutting anything, and the console that they go to."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

NARROW, NARROWEST = 14, 8
"""Widths of texts that are broken into lines."""

Columns = Mapping[str, Sequence[str]]
"""Head -> cells."""


def console() -> Console:
    """Standard output. Pipes and files get whole lines, however long."""
    return Console(width=None if sys.stdout.isatty() else 200)


def print_table(columns: Columns, console: Console, texts: Sequence[str] = (), expendable: Sequence[str] = ()) -> None:
    """Prints as many columns as the console is wide enough for. Cells are never cut: lines get too long instead.

    Args:
        columns: head -> cells.
        console: where the table goes.
        texts: columns that may be broken into lines; what is in the others is whole.
        expendable: columns that may be left out, the first one first; `--json` has to have them.
    """
    tables = [(_width(table, console), table, left_out) for table, left_out in _tables(columns, texts, expendable)]
    width, table, left_out = next((found for found in tables if found[0] <= console.width), tables[-1])
    Console(file=console.file, width=max(width, console.width)).print(table)
    if left_out:
        missing = ", ".join(left_out)
        console.print(f"no room for {missing}: a wider terminal or --json shows them", style="dim", highlight=False)


def _width(table: Table, console: Console) -> int:
    """The width that a table needs, however wide the console is."""
    return Measurement.get(console, console.options.update_width(10_000), table).maximum


def _tables(columns: Columns, texts: Sequence[str], expendable: Sequence[str]) -> Iterator[tuple[Table, Sequence[str]]]:
    """The same table from the widest to the narrowest, each with the columns that it leaves out.

    Heads are broken first, then spaces go, texts are broken, columns left out.
    """
    yield _table(columns, texts, None, padding=1, whole_heads=True), ()
    yield _table(columns, texts, None, padding=1), ()
    yield _table(columns, texts, None), ()
    for count in range(len(expendable) + 1):
        left = {head: cells for head, cells in columns.items() if head not in expendable[:count]}
        yield _table(left, texts, NARROW), expendable[:count]
    yield _table(left, texts, NARROWEST), expendable


def _table(
    columns: Columns, texts: Sequence[str], text_width: int | None, padding: int = 0, whole_heads: bool = False
) -> Table:
    """A table whose columns are as wide as their longest cell and their head, or the longest word of that."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, padding, 0, 0), pad_edge=False)
    for head, cells in columns.items():
        width = max(map(len, [*cells, *([head] if whole_heads else head.split())]))
        if head in texts:
            table.add_column(head, width=min(width, text_width or width), overflow="fold")
        else:
            table.add_column(head, width=width, justify="right")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table
