"""Text to tokens: documents become blocks of training contexts and held-out contexts on disk, unless they are there."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from gsae_ray.config.sections import DatasetSettings
from gsae_ray.config.sweep import Sweep
from gsae_ray.data.contexts import are_contexts, as_they_are, packed
from gsae_ray.data.documents import Documents, find_data, held_out_by_hash
from gsae_ray.data.tokens import MANIFEST, Manifest, TokenStore, kept_mask
from gsae_ray.data.vocabulary import Vocabulary
from gsae_ray.errors import DataEndedError, UserError
from gsae_ray.files import digest, file_hash, is_whole, write_atomically
from gsae_ray.version import REVISION

FEW_DOCUMENTS = 10
"""Of fewer documents no share can be held out."""

Progress = Callable[[str, int, int], None]
"""Called with (what, rows so far, rows needed)."""


def _silent(_what: str, _done: int, _needed: int) -> None:
    """Reports no progress."""


def prepare_tokens(sweep: Sweep, directory: Path, report: Progress = _silent) -> TokenStore:
    """Tokenise what a sweep needs, unless it is there already from another launch.

    Args:
        sweep: a sweep whose sites are known (see `Sweep.of_model`).
        directory: where prepared data sets are kept, shared by the sweeps of a storage.
        report: told of the progress.

    Raises:
        DataEndedError: too few tokens for training or evaluation.
        UserError: the data set or the tokenizer cannot be loaded.
    """
    work = _Preparation(sweep, report)
    train_key, heldout_key = work.train_key(), work.heldout_key()
    heldout_directory = directory / f"heldout-{digest(heldout_key)[:16]}"
    heldout = _prepared(heldout_directory, sweep.evaluation.tokens, work.write_heldout)
    blocks_directory = directory / f"train-{digest(train_key)[:16]}"
    blocks = _prepared(blocks_directory, work.tokens_needed, work.write_blocks)
    return TokenStore(
        blocks_directory=blocks_directory,
        heldout_directory=heldout_directory,
        rows=tuple(blocks["rows"]),
        heldout_rows=sum(heldout["rows"]),
        special_ids=work.special_ids,
        skip_positions=sweep.text.skip_positions,
        prepends_bos=work.bos is not None,
        seed=sweep.text.seed,
        fingerprint=digest(train_key),
        heldout_fingerprint=digest(heldout_key),
        hashes={**blocks["hashes"], **heldout["hashes"]},
    )


class _Preparation:
    """How a sweep's documents become contexts: what identifies them, and writing them to a folder."""

    def __init__(self, sweep: Sweep, report: Progress) -> None:
        self.sweep, self.report = sweep, report
        model, dataset, evaluation = sweep.language_model, sweep.text, sweep.evaluation
        self.is_text = dataset.tokens_column is None
        self.source = find_data(dataset)
        self.vocabulary = Vocabulary.of(model, self.is_text)
        self.special_ids = self.vocabulary.special_ids if dataset.skip_special_tokens else ()
        self.tokens_needed = sweep.longest_tokens
        self.heldout_split = evaluation.split or ("heldout" if dataset.name == "builtin" else None)
        """None where a share of the training split's documents is held out."""
        self.heldout_setting = "evaluation.split" if evaluation.split else "dataset.split"
        if self.heldout_split is not None and _overlap(self.heldout_split, dataset.split):
            raise UserError(
                f"evaluation.split: {self.heldout_split!r} is, or is of, what is trained on (dataset.split: "
                f"{dataset.split}); hold out another"
            )
        every_row = partial(self._documents, dataset.split, lambda _: True, "dataset.split")
        self.as_contexts = are_contexts(dataset, every_row)
        self.bos = bos_token(dataset, self.vocabulary, self.as_contexts)
        self.vocabulary.check([] if self.bos is None else [self.bos])

    def train_key(self) -> dict[str, Any]:
        """All that decides the training contexts; its hash names their folder."""
        dataset = self.sweep.text
        return {
            **self._common_key(),
            **dataset.model_dump(include={"split", "seed", "repeat"}),
            "block": self.sweep.block_contexts,
            "data": self.source.fingerprint(dataset.split, "dataset.split"),
            "held_out": None if self.heldout_split else self.sweep.evaluation.fraction,
        }

    def heldout_key(self) -> dict[str, Any]:
        """All that decides the held-out contexts; its hash names their folder."""
        dataset, evaluation = self.sweep.text, self.sweep.evaluation
        return {
            **self._common_key(),
            "data": self.source.fingerprint(self.heldout_split or dataset.split, self.heldout_setting),
            "tokens": evaluation.tokens,
            "held_out": self.heldout_split or [dataset.split, evaluation.fraction],
        }

    def _common_key(self) -> dict[str, Any]:
        dataset, vocabulary = self.sweep.text, self.vocabulary
        return {
            "revision": REVISION,
            "tokenizer": vocabulary.fingerprint(),
            "eos": vocabulary.eos,  # ends each document; not among what the tokenizer's fingerprint covers
            "pad": None if self.is_text else vocabulary.pad,
            "context_size": self.sweep.language_model.context_size,
            "contexts": self.as_contexts,
            "bos": self.bos,
            "special_ids": self.special_ids,
            **dataset.model_dump(include={"text_column", "tokens_column", "streaming", "skip_positions"}),
        }

    def write_blocks(self, target: Path) -> list[int]:
        """Write the blocks of training contexts. Returns the rows of each."""
        sweep, dataset, evaluation = self.sweep, self.sweep.text, self.sweep.evaluation

        def keep(document: str | list[int]) -> bool:
            return self.heldout_split is not None or not held_out_by_hash(document, evaluation.fraction)

        documents = self._documents(dataset.split, keep, "dataset.split")
        contexts = self._contexts(documents.passes(dataset.seed, dataset.repeat))
        needed = self.tokens_needed
        rows: list[int] = []
        while sum(rows) < needed and (block := list(itertools.islice(contexts, sweep.block_contexts))):
            tokens_BT = torch.tensor(block)
            _write(tokens_BT, target / f"block-{len(rows):05d}.safetensors")
            rows.append(self._count(tokens_BT))
            self.report("tokenising", min(sum(rows), needed), needed)
            if dataset.repeat and not rows[-1]:  # special tokens only: there might be no end
                break
        if sum(rows) < needed:
            raise DataEndedError(
                f"training.tokens: {needed} asked for, but {dataset.name!r} (split {dataset.split!r}) has only "
                f"{sum(rows)} after dropping special and first positions; lower it"
                + ("" if dataset.repeat else ", or set dataset.repeat: true")
                + self._few_documents(documents)
            )
        return rows

    def write_heldout(self, target: Path) -> list[int]:
        """Write the held-out contexts. Returns their rows, as the one item of a list."""
        dataset, evaluation = self.sweep.text, self.sweep.evaluation

        def keep(document: str | list[int]) -> bool:
            return self.heldout_split is not None or held_out_by_hash(document, evaluation.fraction)

        # Always in the same order: data seeds are compared on the same evaluation.
        documents = self._documents(self.heldout_split or dataset.split, keep, self.heldout_setting)
        contexts: list[list[int]] = []
        rows = 0
        for context in self._contexts(documents.one_pass(0, seed=0)):
            if rows >= evaluation.tokens:
                break
            contexts.append(context)
            rows += self._count(torch.tensor([context]))
            self.report("held-out tokens", min(rows, evaluation.tokens), evaluation.tokens)
        if rows < evaluation.tokens:
            split, share = self.heldout_split, f"{evaluation.fraction:g} of its documents"
            advice = self._few_documents(documents) or ("" if split else ", or raise evaluation.fraction")
            raise DataEndedError(
                f"evaluation.tokens: {evaluation.tokens} asked for, but the held-out part of {dataset.name!r} "
                f"({f'split {split!r}' if split else share}) has only {rows}; lower it{advice}"
            )
        _write(torch.tensor(contexts), target / "heldout.safetensors")
        return [rows]

    def _documents(self, split: str, keep: Callable[[str | list[int]], bool], key: str) -> Documents:
        return Documents(self.source, self.sweep.text, self.vocabulary, split, keep, key)

    def _contexts(self, documents: Iterable[list[int]]) -> Iterator[list[int]]:
        size = self.sweep.language_model.context_size
        if self.as_contexts:
            return as_they_are(documents, size, self.bos)
        return packed(documents, size, self.bos, have_bos=not self.is_text)

    def _count(self, tokens_BT: Tensor) -> int:
        """Rows of contexts [B, T]."""
        return int(kept_mask(tokens_BT, self.special_ids, self.sweep.text.skip_positions).sum())

    def _few_documents(self, documents: Documents) -> str:
        """Advice where there are too few documents to hold out some of them."""
        if self.heldout_split or documents.seen >= FEW_DOCUMENTS:
            return ""
        found = "1 document" if documents.seen == 1 else f"{documents.seen} documents"
        return f", or, since documents are held out whole and this is {found}, cut it up or give evaluation.split"


def _prepared(target: Path, needed: int, make: Callable[[Path], list[int]]) -> Manifest:
    """The manifest of a folder of contexts, which is made if it is not there.

    It is made in a temporary folder and renamed, so that no half-made one is ever found.

    Args:
        target: the folder.
        needed: rows that it has to have at least.
        make: writes the contexts into a folder, and returns the rows of each file.
    """

    def finished() -> Manifest | None:
        manifest = MANIFEST.read_whole(target / "manifest.json")
        if manifest is None or sum(manifest["rows"]) < needed:
            return None
        return manifest if all(is_whole(target / name, sha) for name, sha in manifest["hashes"].items()) else None

    if (found := finished()) is not None:
        return found
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="making-") as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        rows = make(made)
        manifest = Manifest(rows=rows, hashes={path.name: file_hash(path) for path in sorted(made.iterdir())})
        MANIFEST.write(made / "manifest.json", manifest)
        if (longer := finished()) is not None:  # another launch was quicker; its blocks may be in use
            return longer
        if target.exists():  # damaged, or shorter: the same blocks, and further ones
            target.rename(Path(temporary) / "old")
        made.rename(target)
    return manifest


def _overlap(split: str, other: str) -> bool:
    """Whether two splits, perhaps with slices (`train[:90%]+extra`), share documents.

    Two different slices of a split are taken to share none.
    """
    parts, others = ({part.partition("[")[0]: part for part in name.split("+")} for name in (split, other))
    return any(name in (parts[name], others[name]) or parts[name] == others[name] for name in parts.keys() & others)


def bos_token(dataset: DatasetSettings, vocabulary: Vocabulary, are_contexts: bool) -> int | None:
    """The token that each context begins with, if any."""
    if dataset.prepend_bos is None:
        return vocabulary.bos if not are_contexts and vocabulary.begins_text() else None
    if dataset.prepend_bos and vocabulary.bos is None:
        raise UserError("dataset.prepend_bos: true, but this model's tokenizer has no BOS token")
    return vocabulary.bos if dataset.prepend_bos else None


def _write(tokens_BT: Tensor, path: Path) -> None:
    write_atomically(path, safetensors.torch.save({"tokens": tokens_BT.to(torch.int32).contiguous()}))
