"""Documents to contexts: in a seeded order, tokenised, packed end to end or, of token ids, each row as it is."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import datasets
import numpy as np

from gsae_ray.config.sections import DatasetSettings
from gsae_ray.data.documents import MASK, Column, HubData
from gsae_ray.data.local_data import LocalData
from gsae_ray.data.vocabulary import Vocabulary
from gsae_ray.errors import UserError

TOKENIZE_BATCH = 64  # documents; small enough that little is read beyond what is needed
STREAM_SHUFFLE_BUFFER = 10_000  # documents
LOOKED_AT = 1_000  # rows of token ids, whether all have one length
PADDING = -1
"""In place of a token id, after a context that is shorter than the others: no row, no target, never read."""


def held_out_by_hash(document: str | list[int], fraction: float) -> bool:
    """Whether a document belongs to the held-out share: by its content, so wherever it stands."""
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
        """
        Args:
            keep: text or token ids of a document -> whether it belongs here.
            key: where the sweep file names the split.
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
        """Documents so far, those that do not belong here too."""

    def one_length(self) -> int | None:
        """The length of all rows of token ids, as far as they are looked at, if there are several and it is one."""
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
        """Each with its row, which is not known of a stream."""
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
        """One pass, or as many as are drawn from it."""
        for number in itertools.count():
            document = None
            for document in self.one_pass(number, seed):
                yield document
            if not repeat or document is None:
                return


def packed(documents: Iterable[list[int]], context_size: int, bos: int | None, have_bos: bool) -> Iterator[list[int]]:
    """Contexts of documents end to end; a last incomplete context is dropped.

    Args:
        bos: begins each context; None for nothing.
        have_bos: documents may begin with BOS themselves: a context that does gets no second one.
    """
    buffer: list[int] = []
    for document in documents:
        buffer.extend(document)
        start = 0
        while True:
            lead = [] if bos is None or (have_bos and buffer[start : start + 1] == [bos]) else [bos]
            size = context_size - len(lead)
            if len(buffer) - start < size:
                break
            yield lead + buffer[start : start + size]
            start += size
        del buffer[:start]


def as_they_are(rows: Iterable[list[int]], context_size: int, bos: int | None) -> Iterator[list[int]]:
    """Each row as a context of its own, with PADDING after it where it is short."""
    for row in rows:
        context = row if bos is None or row[0] == bos else [bos, *row]
        if len(context) > context_size:
            raise UserError(
                f"model.context_size: {context_size} is less than the {len(context)} tokens of a row of "
                "dataset.tokens_column; raise it, or set dataset.tokens_are: documents"
            )
        yield context + [PADDING] * (context_size - len(context))


def are_contexts(dataset: DatasetSettings, documents: Callable[[], Documents]) -> bool:
    """Whether each row is a context of its own, rather than a document to be packed.

    Raises:
        UserError: of token ids it has to be said, and is not.
    """
    if dataset.tokens_column is None or dataset.tokens_are is not None:
        return dataset.tokens_are == "contexts"
    length = documents().one_length()
    if length is not None:
        raise UserError(
            f"dataset.tokens_are: missing; all rows of {dataset.tokens_column!r} have {length} tokens: say contexts, "
            "to read each as it is, or documents, to pack them one after the other"
        )
    return False
