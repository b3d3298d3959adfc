"""The documents of a data set: where they are read from, and their token ids in a seeded order."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import datasets
import numpy as np

from gsae_ray.config.sections import DatasetSettings
from gsae_ray.data.column import MASK, Column
from gsae_ray.data.hub_data import HubData
from gsae_ray.data.local_data import LocalData, find_local_data
from gsae_ray.data.vocabulary import Vocabulary
from gsae_ray.errors import UserError, first_line

TOKENIZE_BATCH = 64
"""Documents that are tokenised at once: few, so that little is read beyond what is needed."""
STREAM_SHUFFLE_BUFFER = 10_000
"""Documents among which a stream is shuffled."""
LOOKED_AT = 1_000
"""Rows of token ids that are looked at, to see whether all have one length."""


def find_data(dataset: DatasetSettings) -> LocalData | HubData:
    """The data set that a sweep file names: local files, or one of the hub.

    Raises:
        UserError: no file matches, files are of several kinds, or a file is of two splits.
    """
    try:
        return find_local_data(dataset) or HubData(dataset)
    except (OSError, ValueError, RuntimeError) as error:  # no right to look, too long, ** within a name, no such ~
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise UserError(f"dataset.name: cannot look for {dataset.name[:100]!r}: {reason}") from error


def pinned_data(dataset: DatasetSettings) -> DatasetSettings:
    """The settings with the commit that a hub data set's revision stands for now; offline, and of files, unchanged."""
    source = find_data(dataset)
    return source.pinned() if isinstance(source, HubData) else dataset


def held_out_by_hash(document: str | list[int], fraction: float) -> bool:
    """Whether a document belongs to the held-out share: by a hash of its content, so independently of its place."""
    data = document.encode() if isinstance(document, str) else np.asarray(document, np.int64).tobytes()
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") < fraction * 2**64


class Documents:
    """The token ids of the documents of one split, in a seeded order.

    Text ends with the end-of-text token if there is one. Token ids are real ones: padding is gone, nothing is added.
    """

    def __init__(
        self,
        source: LocalData | HubData,
        dataset: DatasetSettings,
        vocabulary: Vocabulary,
        split: str,
        keep: Callable[[str | list[int]], bool],
        key: str,
    ) -> None:
        """Load a split.

        Args:
            source: the data set.
            dataset: its settings.
            vocabulary: the language model's.
            split: the split to read.
            keep: text or token ids of a document -> whether it is one of these documents.
            key: where the sweep file names the split.

        Raises:
            UserError: the split cannot be loaded, or has no such column.
        """
        is_text = dataset.tokens_column is None
        self.column = Column(dataset.tokens_column or dataset.text_column, None if is_text else vocabulary.size)
        self.data = source.load(split, self.column, key)
        if self.data.column_names is not None and self.column.name not in self.data.column_names:
            raise self.column.missing(self.data.column_names)
        self.source, self.split = source, split
        self.vocabulary = vocabulary
        self.keep = keep
        self.seen = 0
        """Documents that were read so far, also those that `keep` left out."""

    def one_length(self) -> int | None:
        """The length that all rows of token ids have, by the first LOOKED_AT of them; None where they differ."""
        rows = [row.get(self.column.name) for row in itertools.islice(self.data, LOOKED_AT)]
        lengths = {len(row) for row in rows if isinstance(row, list)}
        return lengths.pop() if len(lengths) == 1 and len(rows) > 1 else None

    def one_pass(self, number: int, seed: int) -> Iterator[list[int]]:
        """Each document once, in the order of (seed, pass number)."""
        documents = (d for d in self._read(number, seed) if self.keep(d))
        while batch := list(itertools.islice(documents, TOKENIZE_BATCH)):
            yield from self._tokenised(batch) if self.column.is_text else batch

    def _read(self, number: int, seed: int) -> Iterator[Any]:
        for row, example in self._examples(number, seed):
            if self.column.name not in example:  # a stream's columns are known only now
                raise self.column.missing(example)
            self.column.check(example, partial(self.source.place, self.split, row))
            document = example[self.column.name]
            if document and not self.column.is_text:
                document = self.vocabulary.without_padding(document, example.get(MASK))
            if document:
                self.seen += 1
                yield document

    def _examples(self, number: int, seed: int) -> Iterator[tuple[int | None, dict[str, Any]]]:
        """Each row of the data set with its number, which a stream does not have."""
        if isinstance(self.data, datasets.IterableDataset):
            shuffled = self.data.shuffle(seed=seed + number, buffer_size=STREAM_SHUFFLE_BUFFER)
            yield from ((None, example) for example in shuffled)
        else:
            # A permutation of indices: `Dataset.shuffle` would write a cache file into the user's home.
            order = np.random.RandomState([seed, number]).permutation(len(self.data))
            yield from ((int(i), self.data[int(i)]) for i in order)

    def _tokenised(self, texts: list[str]) -> Iterator[list[int]]:
        tokenizer, eos = self.vocabulary.tokenizer, self.vocabulary.eos
        assert tokenizer is not None
        for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
            document = ids if eos is None else [*ids, eos]
            self.vocabulary.check(document)
            yield document

    def passes(self, seed: int, repeat: bool) -> Iterator[list[int]]:
        """The documents of one pass, or with `repeat` of one pass after another without end."""
        for number in itertools.count():
            document = None
            for document in self.one_pass(number, seed):
                yield document
            if not repeat or document is None:
                return
