"""The frontier as text: a table a site, with every setting in which SAEs differ, that fits the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from gsae_ray.results import labels
from gsae_ray.training.recipe import show

SETTINGS = ("recipe", "lr", "seed", "batch_size", "l1_units", "tokens")
"""Shown where SAEs differ in them, beside those that are always shown."""
LAST_RESORT = ("parent", "launch")
"""Shown where nothing else tells two SAEs apart."""
MEASURED = ("l0", "loss_recovered", "gamma", "fvu", "alive_fraction")
EXPENDABLE = ("alive_fraction", "fvu", "gamma")
"""Measurements that are left out, in this order, where there is no room for them."""
TEXTS = ("architecture", "recipe", "parent", "launch")
"""May be broken into lines; numbers may not."""
NARROW, NARROWEST = 14, 8
"""Widths of broken texts."""


def print_frontier(rows: pd.DataFrame, console: Console, mixed_tokens: bool = False) -> None:
    """A table for each frontier; a star marks the SAEs on it.

    Args:
        rows: as `results.frontier` returns them.
        mixed_tokens: SAEs of different numbers of tokens share a frontier.
    """
    shared = mixed_tokens or rows["tokens"].nunique() < 2
    rows = rows.assign(architecture=labels(rows))
    settings = _settings(rows, ["site"] if shared else ["site", "tokens"])
    for (site, *tokens), group in rows.groupby(["site"] if shared else ["site", "tokens"]):
        budget = "".join(f", {n:,} tokens" for n in tokens)
        console.print(f"{site}{budget} (* on the frontier)", style="italic", highlight=False, markup=False)
        _print_table(group, settings, console)


def _settings(rows: pd.DataFrame, elsewhere: Sequence[str]) -> list[str]:
    """The columns that tell SAEs apart, beside those that are shown `elsewhere`."""
    names = ["architecture", "d_sae", "sparsity"] + (["pursuit_l0"] if "pursuit_l0" in rows else [])
    names += [name for name in SETTINGS if name not in elsewhere and rows[name].nunique() > 1]
    for name in LAST_RESORT:
        if rows.duplicated([*elsewhere, *names]).any() and rows[name].nunique() > 1:
            names.append(name)
    return names


def _print_table(rows: pd.DataFrame, settings: Sequence[str], console: Console) -> None:
    """As much as there is room for. What there is none for at all makes lines too long, and is never cut."""
    tables = [(_width(table, console), table, left_out) for table, left_out in _tables(rows, settings)]
    width, table, left_out = next((found for found in tables if found[0] <= console.width), tables[-1])
    Console(file=console.file, width=max(width, console.width)).print(table)
    if left_out:
        names = ", ".join(name.replace("_", " ") for name in left_out)
        console.print(f"no room for {names}: a wider terminal or --json shows them", style="dim", highlight=False)
    console.print()


def _width(table: Table, console: Console) -> int:
    """What it takes, whatever the console has."""
    return Measurement.get(console, console.options.update_width(10_000), table).maximum


def _tables(rows: pd.DataFrame, settings: Sequence[str]) -> Iterator[tuple[Table, Sequence[str]]]:
    """From the widest to the narrowest: spaces go first, then texts are broken, then measurements left out."""
    everything = [*settings, *MEASURED, "on_frontier"]
    yield _table(rows, everything, None, padding=1), ()
    yield _table(rows, everything, None), ()
    for count in range(len(EXPENDABLE) + 1):
        columns = [name for name in everything if name not in EXPENDABLE[:count]]
        yield _table(rows, columns, NARROW), EXPENDABLE[:count]
    yield _table(rows, columns, NARROWEST), EXPENDABLE


def _table(rows: pd.DataFrame, columns: Sequence[str], text_width: int | None, padding: int = 0) -> Table:
    """Every column is as wide as its longest value and the longest word of its head."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, padding, 0, 0), pad_edge=False)
    for name in columns:
        head = "*" if name == "on_frontier" else name.replace("_", " ")
        width = max(map(len, [*(_text(name, value) for value in rows[name]), *head.split()]))
        if name in TEXTS:
            table.add_column(head, width=min(width, text_width or width), overflow="fold")
        else:
            table.add_column(head, width=width, justify="right")
    for row in rows[[*columns]].itertuples(index=False):
        table.add_row(*(_text(name, value) for name, value in zip(columns, row, strict=True)))
    return table


def _text(name: str, value: Any) -> str:
    if name == "on_frontier":
        return "*" if value else ""
    if name == "tokens":
        return f"{value:,}"
    return f"{value:.4g}" if name in MEASURED else show(value)
