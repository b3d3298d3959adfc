"""Tables that fit the terminal without cutting anything; of the frontier: one a site, with all in which SAEs differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from gsae_ray.config.recipe import show

SETTINGS = ("recipe", "lr", "seed", "batch_size", "l1_units", "tokens")
"""Shown where SAEs differ in them, beside those that are always shown."""
LAST_RESORT = ("parent", "launch")
"""Shown where nothing else tells two SAEs apart."""
MEASURED = ("l0", "loss_recovered", "gamma", "fvu", "alive_fraction")
EXPENDABLE = ("alive fraction", "fvu", "gamma")
"""Measurements that are left out, in this order, where there is no room for them."""
TEXTS = ("architecture", "recipe", "parent", "launch")
NARROW, NARROWEST = 14, 8
"""Widths of texts that are broken into lines."""

Columns = Mapping[str, Sequence[str]]
"""Head -> cells."""


def print_frontier(rows: pd.DataFrame, console: Console, mixed_tokens: bool = False) -> None:
    """A table for each frontier; a star marks the SAEs on it.

    Args:
        rows: as `results.frontier` returns them.
        mixed_tokens: SAEs of different numbers of tokens share a frontier.
    """
    shared = mixed_tokens or rows["tokens"].nunique() < 2
    rows = rows.assign(architecture=labels(rows))
    names = [*_settings(rows, ["site"] if shared else ["site", "tokens"]), *MEASURED]
    for (site, *tokens), group in rows.groupby(["site"] if shared else ["site", "tokens"]):
        budget = "".join(f", {n:,} tokens" for n in tokens)
        console.print(f"{site}{budget} (* on the frontier)", style="italic", highlight=False, markup=False)
        columns = {name.replace("_", " "): [_text(name, value) for value in group[name]] for name in names}
        columns["*"] = ["*" if on_frontier else "" for on_frontier in group["on_frontier"]]
        print_table(columns, console, texts=TEXTS, expendable=EXPENDABLE)
        console.print()


def labels(rows: pd.DataFrame) -> pd.Series[Any]:
    """What each row is: architecture and variant."""
    return rows["architecture"] + rows["variant"].map(lambda variant: f" {variant}" if variant else "")


def _settings(rows: pd.DataFrame, elsewhere: Sequence[str]) -> list[str]:
    """The columns that tell SAEs apart, beside those that are shown `elsewhere`."""
    names = ["architecture", "d_sae", "sparsity"] + (["pursuit_l0"] if "pursuit_l0" in rows else [])
    names += [name for name in SETTINGS if name not in elsewhere and rows[name].nunique() > 1]
    for name in LAST_RESORT:
        if rows.duplicated([*elsewhere, *names]).any() and rows[name].nunique() > 1:
            names.append(name)
    return names


def _text(name: str, value: Any) -> str:
    if name == "tokens":
        return f"{value:,}"
    return f"{value:.4g}" if name in MEASURED else show(value)


def print_table(columns: Columns, console: Console, texts: Sequence[str] = (), expendable: Sequence[str] = ()) -> None:
    """As much as there is room for. What there is none for at all makes lines too long, and is never cut.

    Args:
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
    """What it takes, whatever the console has."""
    return Measurement.get(console, console.options.update_width(10_000), table).maximum


def _tables(columns: Columns, texts: Sequence[str], expendable: Sequence[str]) -> Iterator[tuple[Table, Sequence[str]]]:
    """From the widest to the narrowest: heads are broken first, then spaces go, texts are broken, columns left out."""
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
    """Every column is as wide as its longest cell and its head, or the longest word of that."""
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
