"""Documents to contexts: packed end to end or, of token ids, each row as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from gsae_ray.config.sections import DatasetSettings
from gsae_ray.data.documents import Documents
from gsae_ray.data.tokens import PADDING
from gsae_ray.errors import UserError


def packed(documents: Iterable[list[int]], context_size: int, bos: int | None, have_bos: bool) -> Iterator[list[int]]:
    """Contexts of documents end to end; a last incomplete context is dropped.

    Args:
        documents: token ids of each.
        context_size: tokens of a context.
        bos: the token that each context begins with; None for none.
        have_bos: whether documents may begin with BOS themselves: a context that does gets no second one.
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
    """Each row as a context of its own, with PADDING after it where it is short.

    Raises:
        UserError: a row is longer than a context.
    """
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
        UserError: rows of token ids have one length, and the sweep file does not say which they are.
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
