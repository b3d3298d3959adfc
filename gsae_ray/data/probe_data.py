"""Labelled text to probe sets: documents are read, tokenised, labelled by characters, and split in halves."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import numpy as np
import pyarrow.parquet
import torch
from numpy.typing import NDArray

from gsae_ray.builtin import TEXT_FILES
from gsae_ray.config.probes import BUILTIN, ProbeSettings
from gsae_ray.config.sections import DatasetSettings
from gsae_ray.config.sweep import Sweep
from gsae_ray.data.prepare import bos_token
from gsae_ray.data.probe_set import NO_PART, ProbeSet, ProbeSets
from gsae_ray.data.python_labels import TASKS, first_characters, labels_of
from gsae_ray.data.tokens import PADDING, kept_mask
from gsae_ray.data.vocabulary import Vocabulary
from gsae_ray.errors import UserError, first_line, shown

VERSION = 2
"""Of how documents are chosen and labelled, and how probes are fitted and scored: others are other numbers."""
SHARE = 200
"""Of the rows asked for a document gives at most this part, but one context at least; more where there are fewer."""
LEAST_DOCUMENTS = 4
"""Documents with a label, and without it, of each half. Built-in tasks of which there are fewer are left out."""
MOST_TASKS = 32
_NOT_IN_NAMES = r"[^A-Za-z0-9_.-]"
"""Characters that names of metrics cannot have in MLflow."""


@dataclasses.dataclass
class _Document:
    """A document as token ids, with labels [tasks, tokens], or [tasks] where it is labelled as a whole."""

    ids: list[int]
    labels: NDArray[np.int8]


Example = dict[str, Any]
Made = TypeVar("Made")


def probe_sets(sweep: Sweep) -> ProbeSets | None:
    """What `evaluation.probes` asks for; None where it asks for nothing.

    Raises:
        UserError: a data set cannot be read, is not labelled, has one class only, or too few documents.
    """
    if sweep.evaluation.probes is None:
        return None
    vocabulary = Vocabulary.of(sweep.language_model, is_text=True)
    if not getattr(vocabulary.tokenizer, "is_fast", False):
        raise UserError(
            f"evaluation.probes: the tokenizer of {sweep.language_model.name!r} does not tell which characters a token "
            "is of, so that labels cannot be carried to tokens; leave the probes out"
        )
    builder = _Builder(sweep, vocabulary)
    return ProbeSets.of(tuple(_of_each(sweep.evaluation.probes, builder.build)), VERSION)


def count_tasks(probes: Sequence[ProbeSettings]) -> int:
    """How many tasks labelled data sets have at most, read without a tokenizer.

    Raises:
        UserError: a data set cannot be read, is not labelled, or has one class only.
    """

    def tasks(settings: ProbeSettings) -> int:
        return len(TASKS if settings.data == BUILTIN else _labelled_examples(settings.data)[2])

    return sum(_of_each(probes, tasks))


def _of_each(probes: Sequence[ProbeSettings], make: Callable[[ProbeSettings], Made]) -> list[Made]:
    """What is made of each data set; errors say of which."""
    found = []
    for index, settings in enumerate(probes):
        try:
            found.append(make(settings))
        except UserError as error:
            raise UserError(f"evaluation.probes.{index}: {error}") from error
    return found


class _Builder:
    """Makes probe sets for a sweep's language model."""

    def __init__(self, sweep: Sweep, vocabulary: Vocabulary) -> None:
        dataset: DatasetSettings = sweep.text
        self.vocabulary = vocabulary
        self.size = sweep.language_model.context_size
        self.bos = bos_token(dataset, vocabulary, are_contexts=False)
        self.special_ids = vocabulary.special_ids if dataset.skip_special_tokens else ()
        self.skip_positions = dataset.skip_positions
        self.room = self.size - (self.bos is not None)
        """Tokens of a document that fit into a context."""

    def build(self, settings: ProbeSettings) -> ProbeSet:
        """The probe set of a data set.

        Raises:
            UserError: as `probe_sets`.
        """
        if settings.data == BUILTIN:
            texts = pyarrow.parquet.read_table(TEXT_FILES["heldout"]).column("text").to_pylist()
            found = self._make(settings, TASKS, texts, self._python, pooled=False)
            return _with_whole_tasks(found, settings)
        examples, pooled, positive = _labelled_examples(settings.data)
        names = _task_names(settings.name, positive)

        def labelled(example: Example) -> _Document | None:
            return self._labelled(example, positive, pooled)

        found = self._make(settings, names, examples, labelled, pooled)
        _check(found, settings, [f"label {shown(label)}" for label in positive])
        return found

    def _make(
        self,
        settings: ProbeSettings,
        tasks: Sequence[str],
        examples: Sequence[Any],
        read: Callable[[Any], _Document | None],
        pooled: bool,
    ) -> ProbeSet:
        """Takes documents, in an order drawn from a fixed seed, until there are as many rows as are asked for."""
        contexts: list[list[int]] = []
        labels: list[NDArray[np.int8]] = []
        document_C: list[int] = []
        rows = documents = 0
        most = max(1, settings.tokens // SHARE // self.size, settings.tokens // (self.size * len(examples)))
        for index in np.random.RandomState(0).permutation(len(examples)):
            if rows >= settings.tokens:
                break
            document = read(examples[index])
            if document is None or not document.ids:
                continue
            self.vocabulary.check(document.ids)
            cut = range(0, len(document.ids), self.room)
            chosen = [0] if pooled else _telling(document.labels, cut, self.room)[:most]
            for start in chosen:
                ids = document.ids[start : start + self.room]
                lead = [] if self.bos is None else [self.bos]
                contexts.append([*lead, *ids, *[PADDING] * (self.room - len(ids))])
                rows += self._kept(contexts[-1:]).sum()
                if pooled:
                    labels.append(document.labels)
                    continue
                context = np.full((len(tasks), self.size), NO_PART, np.int8)
                context[:, len(lead) : len(lead) + len(ids)] = document.labels[:, start : start + self.room]
                labels.append(context)
            document_C += [documents] * len(chosen)
            documents += 1
        if not contexts:
            raise UserError(f"no document of {settings.data} can be used")
        kept_CT = self._kept(contexts)
        stacked = np.stack(labels, 1)
        stacked = np.where(kept_CT.any(1) if pooled else kept_CT, stacked, NO_PART).astype(np.int8)
        ids_CT, of_C = np.array(contexts, np.int32), np.array(document_C, np.int32)
        return ProbeSet(
            settings.name, ids_CT, kept_CT, of_C, _halves(stacked, pooled, documents), tuple(tasks), stacked, pooled
        )

    def _kept(self, contexts: list[list[int]]) -> NDArray[np.bool_]:
        return kept_mask(torch.tensor(contexts), self.special_ids, self.skip_positions).numpy()

    def _tokenised(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        assert self.vocabulary.tokenizer is not None
        found = self.vocabulary.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return found["input_ids"], found["offset_mapping"]

    def _python(self, text: str) -> _Document | None:
        ids, offsets = self._tokenised(text)
        labels = labels_of(text, offsets)
        return None if labels is None else _Document(ids, labels)

    def _labelled(self, example: Example, positive: Sequence[str], pooled: bool) -> _Document | None:
        text = example["text"]
        if not text:
            return None
        ids, offsets = self._tokenised(text)
        if pooled:
            return _Document(ids, np.array([str(example["label"]) == label for label in positive], np.int8))
        first_T = first_characters(text, offsets)
        labels = np.zeros((len(positive), len(ids)), np.int8)
        for start, end, label in example["spans"]:
            labels[positive.index(str(label)), (first_T >= start) & (first_T < end)] = 1
        return _Document(ids, labels)


def _telling(labels: NDArray[np.int8], cut: range, room: int) -> list[int]:
    """Where the contexts of a document begin: first those in which most tasks have a token of class 1.

    Else what is rare would be missed in long documents. Of equal ones those nearest to the middle come first.
    """
    has = [int((labels[:, start : start + room] == 1).any(1).sum()) for start in cut]
    middle = (len(cut) - 1) / 2
    return [cut[i] for i in sorted(range(len(cut)), key=lambda i: (-has[i], abs(i - middle), i))]


def _halves(labels: NDArray[np.int8], pooled: bool, documents: int) -> NDArray[np.bool_]:
    """Which documents are fitted: every other one; where they are labelled as a whole, every other one of a class."""
    fitted_M = np.zeros(documents, bool)
    kind_M = np.unique(labels, axis=1, return_inverse=True)[1].ravel() if pooled else np.zeros(documents, int)
    for kind in np.unique(kind_M):
        fitted_M[np.flatnonzero(kind_M == kind)[::2]] = True
    return fitted_M


def _documents_with(found: ProbeSet, label: int) -> NDArray[np.int64]:
    """In how many documents of each half each task has a label [tasks, 2]."""
    has_KC = found.labels == label if found.pooled else (found.labels == label).any(2)
    counted = [
        [np.unique(found.document_C[has_C & half_C]).size for half_C in _half_contexts(found)] for has_C in has_KC
    ]
    return np.array(counted, np.int64)


def _half_contexts(found: ProbeSet) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    fitted_C = found.fitted_M[found.document_C]
    return fitted_C, ~fitted_C


def _check(found: ProbeSet, settings: ProbeSettings, called: Sequence[str]) -> None:
    """Checks that each task has both classes in enough documents of both halves.

    Raises:
        UserError: one has not.
    """
    for label, what in ((1, "with"), (0, "without")):
        for task, counts in zip(called, _documents_with(found, label), strict=True):
            if counts.min() < LEAST_DOCUMENTS:
                raise UserError(
                    f"{settings.data}: of the {len(found.fitted_M)} documents that are taken {counts[0]} {what} {task} "
                    f"are fitted, and {counts[1]} scored; a probe takes {LEAST_DOCUMENTS} of each: give more "
                    f"documents, or raise tokens ({settings.tokens})"
                )


def _with_whole_tasks(found: ProbeSet, settings: ProbeSettings) -> ProbeSet:
    """The built-in set without tasks of which there is too little in the documents that were taken."""
    whole = np.minimum(_documents_with(found, 0), _documents_with(found, 1)).min(1) >= LEAST_DOCUMENTS
    if not whole.any():
        raise UserError(f"tokens: {settings.tokens} rows hold too few documents of the built-in text; raise it")
    tasks = tuple(f"{settings.name}.{task}" for task, kept in zip(found.tasks, whole, strict=True) if kept)
    return dataclasses.replace(found, tasks=tasks, labels=found.labels[whole])


def _labelled_examples(data: str) -> tuple[list[Example], bool, list[str]]:
    """The documents of a .jsonl file, whether they are labelled as a whole, and the label of each task.

    Raises:
        UserError: it cannot be read, or is not labelled as a data set for probes is.
    """
    examples = list(_examples(data))
    if not examples:
        raise UserError(f"there is no document in {data}")
    pooled = "label" in examples[0]
    labels = _classes(examples, data, pooled)
    # Of two classes the second one alone is a task: that of the other would be the same.
    return examples, pooled, labels[1:] if pooled and len(labels) == 2 else labels


def _examples(data: str) -> Iterator[Example]:
    """The documents of a .jsonl file.

    Raises:
        UserError: it cannot be read, or a line is not a labelled document.
    """
    path = Path(data).expanduser()
    if not path.is_file():
        raise UserError(f"data: no file {data!r} (from {Path.cwd()})")
    try:
        with fsspec.open(str(path), "rt", compression="infer", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        example = json.loads(line)
                    except (ValueError, RecursionError) as error:
                        raise UserError(f"{path.name}, line {number}: no JSON ({_reason(error)})") from error
                    if (wrong := _wrong(example)) is not None:
                        raise UserError(f"{path.name}, line {number}: {wrong}")
                    yield example
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"data: {path.name} cannot be read: {first_line(error)}") from error


def _reason(error: Exception) -> str:
    """Why a line is no JSON; the parser counts lines from the one that it was given."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, at character {error.pos + 1}"
    return first_line(error)


def _wrong(example: Any) -> str | None:
    """What is wrong with a document; None where nothing is."""
    if not isinstance(example, dict) or not isinstance(example.get("text"), str):
        return 'no text; a line is {"text": ..., "label": ...}, or {"text": ..., "spans": [[start, end, label], ...]}'
    if ("label" in example) == ("spans" in example):
        return "it has both label and spans; give one" if "label" in example else "it has neither label nor spans"
    if "label" in example:
        return None if isinstance(example["label"], (str, int, bool)) else "label is no text and no integer"
    if not isinstance(example["spans"], list):
        return "spans is no list"
    for span in example["spans"]:
        if not (isinstance(span, list) and len(span) == 3 and isinstance(span[2], (str, int, bool))):
            return f"the span {shown(span)} is not [start, end, label]"
        start, end = span[:2]
        if not (type(start) is int and type(end) is int and 0 <= start < end <= len(example["text"])):
            return f"the span {shown(span)} is not of characters of its text, 0 to {len(example['text'])}"
    return None


def _classes(examples: Sequence[Example], data: str, pooled: bool) -> list[str]:
    """The labels that there are, sorted.

    Raises:
        UserError: documents are labelled in different ways, there is one class only, or there are too many.
    """
    if any(("label" in example) != pooled for example in examples):
        raise UserError(f"{data}: some documents have a label, and others spans; give them a data set each")
    if pooled:
        labels = sorted({str(example["label"]) for example in examples})
    else:
        labels = sorted({str(label) for example in examples for *_, label in example["spans"]})
    if not labels:
        raise UserError(f"{data}: no document has a span, so there is nothing to tell")
    if pooled and len(labels) == 1:
        raise UserError(f"{data}: every document has the label {shown(labels[0])}; a probe takes two or more")
    if len(labels) > MOST_TASKS:
        raise UserError(f"{data}: {len(labels)} different labels; at most {MOST_TASKS}")
    return labels


def _task_names(name: str, labels: Sequence[str]) -> list[str]:
    """What tasks are called: by the data set and, of several, by the label."""
    if len(labels) == 1:
        return [name]
    called = [f"{name}.{re.sub(_NOT_IN_NAMES, '_', label)[:64]}" for label in labels]
    return [one if called.count(one) == 1 else f"{one}.{index}" for index, one in enumerate(called)]
