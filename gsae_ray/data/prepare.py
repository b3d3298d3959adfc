"""Prepares a sweep's tokens: tokenises documents into blocks and held-out contexts, unless they are there already."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

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

FEW_DOCUMENTS = 10  # of so few no share can be held out

Progress = Callable[[str, int, int], None]
"""Called with (what, rows so far, rows needed)."""


def prepare_tokens(sweep: Sweep, directory: Path, report: Progress = lambda what, done, needed: None) -> TokenStore:
    """Tokenises what `sweep` needs, unless `directory` holds it already from another launch.

    Args:
        directory: where prepared data sets are kept, shared by the sweeps of a storage.
    Raises:
        DataEndedError: too few tokens for training or evaluation.
        UserError: the data set or the tokenizer cannot be loaded.
    """
    model, dataset, evaluation = sweep.model, sweep.dataset, sweep.evaluation
    is_text = dataset.tokens_column is None
    source = find_data(dataset)
    vocabulary = Vocabulary.of(model, is_text)
    special_ids = vocabulary.special_ids if dataset.skip_special_tokens else ()
    tokens_needed = max(sweep.max_tokens(site) for site in sweep.used_sites)
    heldout_split = evaluation.split or ("heldout" if dataset.name == "builtin" else None)
    split_key = "evaluation.split" if evaluation.split else "dataset.split"

    if heldout_split is not None and _overlap(heldout_split, dataset.split):
        raise UserError(
            f"evaluation.split: {heldout_split!r} is, or is of, what is trained on (dataset.split: {dataset.split}); "
            "hold out another"
        )

    def documents(split: str, keep: Callable[[str | list[int]], bool], key: str) -> Documents:
        return Documents(source, dataset, vocabulary, split, keep, key)

    as_contexts = are_contexts(dataset, lambda: documents(dataset.split, lambda _: True, "dataset.split"))
    bos = _bos(dataset, vocabulary, as_contexts)
    vocabulary.check([] if bos is None else [bos])

    def contexts_of(documents: Iterable[list[int]]) -> Iterator[list[int]]:
        if as_contexts:
            return as_they_are(documents, model.context_size, bos)
        return packed(documents, model.context_size, bos, have_bos=not is_text)

    def count(tokens_BT: Tensor) -> int:
        return int(kept_mask(tokens_BT, special_ids, dataset.skip_positions).sum())

    common = {
        "revision": REVISION,
        "tokenizer": vocabulary.fingerprint(),
        "eos": vocabulary.eos,  # ends each document; not among what the tokenizer's fingerprint covers
        "pad": None if is_text else vocabulary.pad,
        "context_size": model.context_size,
        "contexts": as_contexts,
        "bos": bos,
        "special_ids": special_ids,
        **dataset.model_dump(include={"text_column", "tokens_column", "streaming", "skip_positions"}),
    }
    train_key = {**common, **dataset.model_dump(include={"split", "seed", "repeat"}), "block": sweep.block_contexts}
    train_key["data"] = source.fingerprint(dataset.split, "dataset.split")
    train_key["held_out"] = None if heldout_split else evaluation.fraction
    heldout_key = {
        **common,
        "data": source.fingerprint(heldout_split or dataset.split, split_key),
        "tokens": evaluation.tokens,
        "held_out": heldout_split or [dataset.split, evaluation.fraction],
    }

    def held_out_whole(reader: Documents) -> str:
        """Advice where there are too few documents to hold out some of them."""
        if heldout_split or reader.seen >= FEW_DOCUMENTS:
            return ""
        found = "1 document" if reader.seen == 1 else f"{reader.seen} documents"
        return f", or, since documents are held out whole and this is {found}, cut it up or give evaluation.split"

    def make_blocks(target: Path) -> list[int]:
        def keep(document: str | list[int]) -> bool:
            return heldout_split is not None or not held_out_by_hash(document, evaluation.fraction)

        reader = documents(dataset.split, keep, "dataset.split")
        contexts = contexts_of(reader.passes(dataset.seed, dataset.repeat))
        rows: list[int] = []
        while sum(rows) < tokens_needed and (block := list(itertools.islice(contexts, sweep.block_contexts))):
            tokens_BT = torch.tensor(block)
            _write(tokens_BT, target / f"block-{len(rows):05d}.safetensors")
            rows.append(count(tokens_BT))
            report("tokenising", min(sum(rows), tokens_needed), tokens_needed)
            if dataset.repeat and not rows[-1]:  # special tokens only: there might be no end
                break
        if sum(rows) < tokens_needed:
            raise DataEndedError(
                f"training.tokens: {tokens_needed} asked for, but {dataset.name!r} (split {dataset.split!r}) has only "
                f"{sum(rows)} after dropping special and first positions; lower it"
                + ("" if dataset.repeat else ", or set dataset.repeat: true")
                + held_out_whole(reader)
            )
        return rows

    def make_heldout(target: Path) -> list[int]:
        def keep(document: str | list[int]) -> bool:
            return heldout_split is not None or held_out_by_hash(document, evaluation.fraction)

        # Always in the same order: data seeds are compared on the same evaluation.
        reader = documents(heldout_split or dataset.split, keep, split_key)
        contexts: list[list[int]] = []
        rows = 0
        for context in contexts_of(reader.one_pass(0, seed=0)):
            if rows >= evaluation.tokens:
                break
            contexts.append(context)
            rows += count(torch.tensor([context]))
            report("held-out tokens", min(rows, evaluation.tokens), evaluation.tokens)
        if rows < evaluation.tokens:
            where = f"split {heldout_split!r}" if heldout_split else f"{evaluation.fraction:g} of its documents"
            few = held_out_whole(reader)
            raise DataEndedError(
                f"evaluation.tokens: {evaluation.tokens} asked for, but the held-out part of {dataset.name!r} "
                f"({where}) has only {rows}; lower it"
                + (few or ("" if heldout_split else ", or raise evaluation.fraction"))
            )
        _write(torch.tensor(contexts), target / "heldout.safetensors")
        return [rows]

    heldout_directory = directory / f"heldout-{digest(heldout_key)[:16]}"
    heldout = _prepared(heldout_directory, evaluation.tokens, make_heldout)
    blocks_directory = directory / f"train-{digest(train_key)[:16]}"
    blocks = _prepared(blocks_directory, tokens_needed, make_blocks)
    return TokenStore(
        blocks_directory=blocks_directory,
        heldout_directory=heldout_directory,
        rows=tuple(blocks["rows"]),
        heldout_rows=sum(heldout["rows"]),
        special_ids=special_ids,
        skip_positions=dataset.skip_positions,
        seed=dataset.seed,
        fingerprint=digest(train_key),
        heldout_fingerprint=digest(heldout_key),
        hashes={**blocks["hashes"], **heldout["hashes"]},
    )


def _prepared(target: Path, needed: int, make: Callable[[Path], list[int]]) -> Manifest:
    """What a finished folder holds; made in a temporary one, so that there is no half-made one."""

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
    """Whether two splits, perhaps with slices (`train[:90%]+extra`), share documents. Of two slices only if equal."""
    parts, others = ({part.partition("[")[0]: part for part in name.split("+")} for name in (split, other))
    return any(name in (parts[name], others[name]) or parts[name] == others[name] for name in parts.keys() & others)


def _bos(dataset: DatasetSettings, vocabulary: Vocabulary, are_contexts: bool) -> int | None:
    """What each context is to begin with."""
    if dataset.prepend_bos is None:
        return vocabulary.bos if not are_contexts and vocabulary.begins_text() else None
    if dataset.prepend_bos and vocabulary.bos is None:
        raise UserError("dataset.prepend_bos: true, but this model's tokenizer has no BOS token")
    return vocabulary.bos if dataset.prepend_bos else None


def _write(tokens_BT: Tensor, path: Path) -> None:
    write_atomically(path, safetensors.torch.save({"tokens": tokens_BT.to(torch.int32).contiguous()}))
