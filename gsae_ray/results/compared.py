"""What `compare` returns: a table, and the sentences that it comes to."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

NUMBERS = {1: "one", 2: "two"}
"""Numbers that sentences write as words."""
MEASURES = {
    "l0_ratio_at_loss_recovered": "L0 ÷ L0 of {base} at equal loss recovered",
    "l0_ratio_at_fvu": "L0 ÷ L0 of {base} at equal FVU",
    "loss_recovered_gap_at_l0": "loss recovered − that of {base} at equal L0",
    "explained_variance_gap_at_l0": "explained variance − that of {base} at equal L0",
    "median_gamma": "median γ",
    "median_gamma_difference": "median γ − that of {base}",
    "hypervolume": "hypervolume",
    "hypervolume_difference": "hypervolume − that of {base}",
}
"""Measure -> what a reader sees, in this order."""
RATIOS = ("l0_ratio_at_loss_recovered", "l0_ratio_at_fvu")
"""What a sentence is about: the first that there is."""


def count(number: int, thing: str) -> str:
    """`one seed`, `two seeds`, `3 seeds`."""
    return f"{NUMBERS.get(number, f'{number:,}')} {thing}" + ("" if number == 1 else "s")


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    """Kinds of SAEs, compared with one of them."""

    by: str
    """The column whose values are compared."""
    base: str
    """The one that the others are compared with."""
    table: pd.DataFrame
    """A row for each site, measure (`MEASURES`) and `group`, a value of `by`: `value`; `low` and `high`, the ends of
    its 95 % interval, NaN where there is none, and what that `covers`; `saes` and `base_saes`, numbers of SAEs of the
    group and of the base; `contexts` that were drawn, 0 without an interval; `seeds` of the setting with the fewest, 0
    where that is not known. `base` is empty where a number is the group's own, not a comparison. `kind` is the
    architecture and variant of all SAEs that a number is of, where each is compared for itself, else empty."""
    notes: list[str]
    """What a reader should know, as lines of text."""

    @property
    def sentences(self) -> list[str]:
        """For each group and site: how many active features it needs, compared with the base, at equal quality."""
        parts = self._compared().groupby(["site", "kind", "group"], sort=False)
        return [self._sentence(rows) for _, rows in parts]

    def _compared(self) -> pd.DataFrame:
        """The table rows that sentences are made of."""
        return self.table[self.table["measure"].isin(RATIOS)]

    def _sentence(self, rows: pd.DataFrame) -> str:
        known = rows[rows["value"].notna()]
        row = (known if len(known) else rows).iloc[0]
        quality = MEASURES[row["measure"]].partition(" at equal ")[2]
        place = "".join(f", {row[name]}" for name in ("kind", "site") if row[name])
        if pd.isna(row["value"]):
            return f"{row['group']} and {self.base} share no range of {quality}{place}"
        on = row["covers"] or "without an interval"
        ratio = f"{row['value']:.2f}×" + (f" [{row['low']:.2f}, {row['high']:.2f}]" if row["covers"] else "")
        return f"{row['group']} needs {ratio} the active features of {self.base} at equal {quality}{place}; {on}"

    def _tables(self) -> Iterator[tuple[str, pd.DataFrame, str]]:
        """For each site (and kind) a title, the numbers of each group, and what their intervals cover."""
        for (site, kind), rows in self.table.groupby(["site", "kind"], sort=False):
            groups = list(rows["group"].unique())
            measures = [name for name in MEASURES if name in set(rows["measure"])]
            cells = pd.DataFrame("", index=[MEASURES[name].format(base=self.base) for name in measures], columns=groups)
            for row in rows.to_dict("records"):
                cells.loc[MEASURES[row["measure"]].format(base=self.base), row["group"]] = _cell(row)
            yield ", ".join(name for name in (kind, site) if name) or self.by, cells, self._told(rows)

    def _told(self, rows: pd.DataFrame) -> str:
        """What the intervals of a site cover."""
        covers = rows[rows["covers"] != ""]
        if covers.empty:
            return "no intervals"
        contexts = count(int(covers["contexts"].max()), "context")
        texts = covers["covers"].unique()
        if len(texts) == 1:
            return f"95 % intervals: {texts[0]} ({contexts})"
        of = covers["group"] + (" ÷ " + covers["base"]).where(covers["base"] != "", "")
        told = [f"{text} ({', '.join(of[covers['covers'] == text].unique())})" for text in texts]
        return f"95 % intervals: {'; '.join([*told, contexts])}"

    def __repr__(self) -> str:
        lines = list(self.sentences)
        for title, cells, told in self._tables():
            lines += ["", title, cells.to_string(), told]
        return "\n".join([*lines, *([""] if self.notes else []), *self.notes])

    def _repr_html_(self) -> str:
        """As a notebook shows it."""
        parts = [_paragraphs(self.sentences)]
        for title, cells, told in self._tables():
            parts += [f"<h4>{html.escape(title)}</h4>", cells.to_html(), _paragraphs([told])]
        return "".join([*parts, _paragraphs(self.notes)])


def _cell(row: dict[str, Any]) -> str:
    ends = f" [{row['low']:.4g}, {row['high']:.4g}]" if row["covers"] else ""
    return "" if pd.isna(row["value"]) else f"{row['value']:.4g}{ends}"


def _paragraphs(lines: Sequence[str]) -> str:
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines)
