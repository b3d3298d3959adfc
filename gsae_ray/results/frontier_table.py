"""A frontier as notebooks and consoles show it: the columns that tell its SAEs apart, and a picture."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable

import numpy as np
import pandas as pd

from gsae_ray.evaluation.bootstrap import low_and_high
from gsae_ray.results.columns import ALWAYS, WHERE_THEY_DIFFER
from gsae_ray.results.compared import count
from gsae_ray.results.comparison import STOPPED_AT, labels, table_metrics, without_stopped

NEEDED = {"site", "architecture", "variant", "recipe", "d_sae", "tokens", "l0", "loss_recovered", "fvu", "on_frontier"}
"""Columns without which a table is shown as any other: it is a part of a frontier, or something computed from one."""


class FrontierTable(pd.DataFrame):
    """A `pandas.DataFrame` that shows itself as a frontier, as long as it has the columns of one."""

    @property
    def _constructor(self) -> type[FrontierTable]:
        return FrontierTable  # rows that were chosen of a frontier are one, too

    def _compact(self) -> pd.DataFrame:
        """The columns by which its SAEs are told apart, and what was measured, with 95 % intervals, as text."""
        shown = pd.DataFrame({name: self[name] for name in (*differing(self, WHERE_THEY_DIFFER), *ALWAYS)})
        shown["architecture"] = labels(self)
        for name in table_metrics(self):
            shown[name] = with_intervals(self, name)
        shown["*"] = ["*" if on_frontier else "" for on_frontier in self["on_frontier"]]
        if STOPPED_AT in self and self[STOPPED_AT].notna().any():
            shown["stopped at"] = ["" if pd.isna(at) else f"{at:,.0f} tokens" for at in self[STOPPED_AT]]
        return shown

    def _is_frontier(self) -> bool:
        return not self.empty and set(self) >= NEEDED

    def __repr__(self) -> str:
        if not self._is_frontier():
            return str(super().__repr__())
        notes = "".join(f"\n{note}" for note in self.attrs.get("notes", []))
        size = f"{count(len(self), 'SAE')}, * on the frontier; {self.shape[1]} columns: list(rows) names them"
        return f"{self._compact().to_string()}\n{size}{notes}"

    def _repr_html_(self) -> str | None:
        """As a notebook shows it: table, picture, and what a reader should know."""
        if not self._is_frontier():
            shown: str | None = super()._repr_html_()
            return shown
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.attrs.get("notes", []))
        size = f"<p>{count(len(self), 'SAE')}, * on the frontier; {self.shape[1]} columns</p>"
        return f"{self._compact().to_html()}{size}{picture_html(self)}{notes}"


def differing(rows: pd.DataFrame, names: Iterable[str]) -> list[str]:
    """The columns among these in which table rows differ."""
    return [name for name in names if name in rows and rows[name].nunique(dropna=False) > 1]


def picture_html(rows: pd.DataFrame) -> str:
    """The picture of a frontier as an HTML element; nothing where all its trials were stopped."""
    if without_stopped(rows).empty:
        return ""
    from gsae_ray.results.plots import plot_frontier  # here: matplotlib takes a second to load

    data = io.BytesIO()
    plot_frontier(rows).savefig(data, format="png", dpi=80)
    return f'<img src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}" alt="the frontier"/>'


def with_intervals(rows: pd.DataFrame, metric: str) -> list[str]:
    """A metric of each table row as text, with its interval where it has one: `22.53 [21.9, 23.2]`."""
    low, high = low_and_high(metric)
    ends = rows[[low, high]].to_numpy() if low in rows else np.full((len(rows), 2), np.nan)
    return [
        f"{value:.4g}" + (f" [{low:.4g}, {high:.4g}]" if low == low else "")
        for value, (low, high) in zip(rows[metric], ends, strict=True)
    ]
