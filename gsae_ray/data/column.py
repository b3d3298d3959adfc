"""The column of a data set that holds its documents: text, or lists of token ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gsae_ray.errors import UserError, suggest

MASK = "attention_mask"
"""The column beside token ids that is 0 where they are padding."""


@dataclasses.dataclass(frozen=True)
class Column:
    """The column that holds the documents: text, or lists of token ids."""

    name: str
    vocabulary: int | None
    """How many token ids the model has; None where the column is text."""

    @property
    def is_text(self) -> bool:
        return self.vocabulary is None

    @property
    def key(self) -> str:
        """Where the sweep file names it."""
        return "dataset.text_column" if self.is_text else "dataset.tokens_column"

    @property
    def wanted(self) -> tuple[str, ...]:
        """The columns to read, if they are there."""
        return (self.name,) if self.is_text else (self.name, MASK)

    def missing(self, columns: Iterable[str]) -> UserError:
        return UserError(f"{self.key}: no column {self.name!r}; {suggest(self.name, columns)}")

    def check(self, example: Mapping[str, Any], where: Callable[[], str]) -> None:
        """Checks that an example holds a document: text, or token ids of this model with a mask that fits.

        Args:
            example: a row of the data set.
            where: file and row, for the message.

        Raises:
            UserError: it holds something else.
        """
        document = example.get(self.name)
        if document is None:
            return
        if not isinstance(document, str if self.is_text else list):
            what = "text" if self.is_text else "a list of token ids"
            raise UserError(f"{self.key}: {self.name!r} holds {_shown(document)} ({where()}), not {what}")
        if self.vocabulary is None:
            return
        for position, value in enumerate(document):
            if type(value) is not int or not 0 <= value < self.vocabulary:  # a bool is an int too
                raise UserError(
                    f"{self.key}: {self.name!r} holds {_shown(value)} ({where()}, position {position}); token ids of "
                    f"this model are 0 to {self.vocabulary - 1}"
                )
        mask = example.get(MASK)
        if mask is not None and (
            not isinstance(mask, list) or len(mask) != len(document) or any(m not in (0, 1) for m in mask)
        ):
            raise UserError(f"{self.key}: {MASK} is not a 0 or 1 for each of the ids of {self.name!r} ({where()})")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
