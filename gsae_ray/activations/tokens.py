"""Text to tokens: documents in a seeded order, packed into contexts, kept on disk so that any block can be made again.

A prepared data set is a folder with `block-00000.safetensors` … (`tokens`, int32 [S, T]) and a `manifest.json` with
their rows and hashes; the held-out contexts are one of their own. Each is a function of the data, the tokenizer and the
settings that are hashed into its name, and of nothing else: one that is damaged is made again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import safetensors.torch
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from typing_extensions import TypedDict

from gsae_ray.activations.models import hub_login, load_tokenizer, quiet_hub
from gsae_ray.builtin import TEXT_FILES
from gsae_ray.errors import DamagedError, DataEndedError, UserError, first_line, suggest
from gsae_ray.files import JSONFile, digest, file_hash, is_whole, write_atomically
from gsae_ray.revision import REVISION
from gsae_ray.sweep import DatasetSettings, Sweep

TOKENIZE_BATCH = 64  # documents; small enough that little is read beyond what is needed
STREAM_SHUFFLE_BUFFER = 10_000  # documents

Progress = Callable[[str, int, int], None]
"""Called with (what, rows so far, rows needed)."""


def kept_mask(tokens_BT: Tensor, special_ids: Iterable[int], skip_positions: int) -> Tensor:
    """Which positions [B, T] are rows: used for training, splicing and zero-ablation alike."""
    kept_BT = ~torch.isin(tokens_BT, torch.tensor(sorted(special_ids), dtype=tokens_BT.dtype, device=tokens_BT.device))
    kept_BT[:, :skip_positions] = False
    return kept_BT


class _Manifest(TypedDict):
    rows: list[int]
    hashes: dict[str, str]


MANIFEST = JSONFile(_Manifest, "the same command with --resume makes them again", sealed=True)


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """A prepared data set on disk: blocks of training contexts, and the held-out contexts."""

    blocks_directory: Path
    heldout_directory: Path
    context_size: int
    rows: tuple[int, ...]
    """Kept positions of each block."""
    heldout_rows: int
    special_ids: tuple[int, ...]
    skip_positions: int
    seed: int
    fingerprint: str
    """Of all that decides the training rows, but for the forward pass."""
    heldout_fingerprint: str
    """Of the held-out contexts and their mask."""
    hashes: Mapping[str, str]
    """Of each file, by its name."""

    def block(self, index: int) -> Tensor:
        """Token ids [S, T] of a block's contexts.

        Raises:
            DamagedError: they are not as they were prepared.
        """
        return self._read(self.blocks_directory / f"block-{index:05d}.safetensors")

    def heldout(self) -> Tensor:
        """Token ids [E, T] of the held-out contexts. Raises as `block`."""
        return self._read(self.heldout_directory / "heldout.safetensors")

    def _read(self, path: Path) -> Tensor:
        data = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(data).hexdigest() != self.hashes[path.name]:
            raise DamagedError(f"{path}: these tokens are damaged; {MANIFEST.remedy}")
        return safetensors.torch.load(data)["tokens"].long()

    def kept(self, tokens_BT: Tensor) -> Tensor:
        """Which positions are rows [B, T]."""
        return kept_mask(tokens_BT, self.special_ids, self.skip_positions)


def _write(tokens_BT: Tensor, path: Path) -> None:
    write_atomically(path, safetensors.torch.save({"tokens": tokens_BT.to(torch.int32).contiguous()}))


# ---- documents ------------------------------------------------------------------------------------------------------


def _local_files(name: str) -> list[Path]:
    path = Path(name).expanduser()
    if any(c in name for c in "*?["):
        root = Path(path.anchor) if path.is_absolute() else Path()
        return sorted(root.glob(str(path.relative_to(path.anchor) if path.is_absolute() else path)))
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.suffix in LOCAL_FORMATS)
    return [path] if path.is_file() else []


LOCAL_FORMATS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def load_documents(
    dataset: DatasetSettings, split: str, key: str = "dataset.split"
) -> datasets.Dataset | datasets.IterableDataset:
    """The documents of a split, in the data set's own order.

    Raises:
        UserError: no such data set or split, or no network.
    """
    datasets.disable_progress_bars()
    if dataset.name == "builtin":
        if split not in TEXT_FILES:
            raise UserError(f"{key}: the built-in text has no split {split!r}; {suggest(split, TEXT_FILES)}")
        return _load_files("parquet", [TEXT_FILES[split]])
    looks_local = dataset.name.startswith((".", "/", "~")) or Path(dataset.name).suffix in LOCAL_FORMATS
    files = _local_files(dataset.name)
    if files:
        formats = {LOCAL_FORMATS.get(path.suffix) for path in files}
        if len(formats) != 1 or None in formats:
            raise UserError(
                f"dataset.name: {dataset.name!r} should be files of one kind; known: {', '.join(LOCAL_FORMATS)}"
            )
        if split != "train":
            raise UserError(f"{key}: local files have only the split 'train', not {split!r}")
        try:
            return _load_files(str(formats.pop()), files)
        except (datasets.exceptions.DatasetGenerationError, OSError, ValueError, StopIteration) as error:
            reason = (str(error.__cause__ or error).strip() or "it is empty").splitlines()[0]
            raise UserError(f"dataset.name: {dataset.name!r} cannot be read: {reason}") from error
    if looks_local:
        raise UserError(f"dataset.name: no file matches {dataset.name!r} (from {Path.cwd()})")
    try:
        with quiet_hub():
            return datasets.load_dataset(
                dataset.name,
                dataset.subset,
                split=split,
                revision=dataset.revision,
                streaming=dataset.streaming,
            )
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        reason = first_line(error)
        if "split" in reason:
            raise UserError(f"{key}: {dataset.name!r} has no split {split!r}: {reason}") from error
        if "gated" in reason:
            raise UserError(f"dataset.name: cannot load {dataset.name!r}: {reason}; and {hub_login()}") from error
        raise UserError(
            f"dataset.name: cannot load {dataset.name!r} (split {split!r}): {reason}; "
            "it may be 'builtin', local files, or a data set of the hub (which needs a network)"
        ) from error


def _load_files(kind: str, files: list[Path]) -> datasets.Dataset:
    # For plain text one document is one file, not one line.
    options: dict[str, Any] = {"sample_by": "document"} if kind == "text" else {}
    # Not load_dataset, which sends a request to count the use of its reader.
    read = getattr(datasets.Dataset, f"from_{kind}")
    return read([str(path) for path in files], **options)


def pinned_data(dataset: DatasetSettings) -> DatasetSettings:
    """With the commit that a hub data set's revision stands for now; offline as it is."""
    if dataset.name == "builtin" or _local_files(dataset.name):
        return dataset
    try:
        with quiet_hub():
            commit = HfApi().dataset_info(dataset.name, revision=dataset.revision).sha
    except (OSError, ValueError, HfHubHTTPError):
        return dataset  # what is wrong with it, `load_documents` says better
    return dataset.model_copy(update={"revision": commit})


def _data_fingerprint(dataset: DatasetSettings) -> str:
    """Contents of local files; name and revision of a data set of the hub."""
    files = list(TEXT_FILES.values()) if dataset.name == "builtin" else _local_files(dataset.name)
    if not files:
        return f"{dataset.name}/{dataset.subset}@{dataset.revision}"
    return digest([file_hash(path) for path in files])


def held_out_by_hash(document: str | list[int], fraction: float) -> bool:
    """Whether a document belongs to the held-out share: by its content, so wherever it stands."""
    data = document.encode() if isinstance(document, str) else np.asarray(document, np.int64).tobytes()
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") < fraction * 2**64


class _Documents:
    """Tokenised documents of one split, in a seeded order, each ending with the end-of-text token if there is one."""

    def __init__(
        self,
        dataset: DatasetSettings,
        tokenizer: PreTrainedTokenizerBase,
        split: str,
        keep: Callable[[str | list[int]], bool],
        key: str,
    ) -> None:
        self.data = load_documents(dataset, split, key)
        self.column = dataset.tokens_column or dataset.text_column
        self.is_text = dataset.tokens_column is None
        columns = self.data.column_names
        if columns is not None and self.column not in columns:
            raise self._no_column(columns)
        self.tokenizer = tokenizer
        self.keep = keep

    def _no_column(self, columns: Iterable[str]) -> UserError:
        key = "text_column" if self.is_text else "tokens_column"
        return UserError(f"dataset.{key}: no column {self.column!r}; {suggest(self.column, columns)}")

    def one_pass(self, number: int, seed: int) -> Iterator[list[int]]:
        """Each document once, in the order of (seed, pass number)."""
        if isinstance(self.data, datasets.IterableDataset):
            examples = iter(self.data.shuffle(seed=seed + number, buffer_size=STREAM_SHUFFLE_BUFFER))
        else:
            # A permutation of indices: `Dataset.shuffle` would write a cache file into the user's home.
            order = np.random.RandomState([seed, number]).permutation(len(self.data))
            examples = (self.data[int(i)] for i in order)
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        documents = (d for e in examples if (d := self._checked(e)) and self.keep(d))
        while batch := list(itertools.islice(documents, TOKENIZE_BATCH)):
            ids = self.tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"] if self.is_text else batch
            yield from ([*document, *end] for document in ids)

    def _checked(self, example: dict[str, Any]) -> Any:
        if self.column not in example:  # a stream's columns are known only now
            raise self._no_column(example)
        document = example[self.column]
        first = document[0] if isinstance(document, list) and document else 0
        if not (document is None or isinstance(document, str if self.is_text else list) and isinstance(first, int)):
            key, what = ("text_column", "text") if self.is_text else ("tokens_column", "lists of token ids")
            raise UserError(f"dataset.{key}: the column {self.column!r} holds {str(document)[:40]!r}, not {what}")
        return document

    def passes(self, seed: int, repeat: bool) -> Iterator[list[int]]:
        """One pass, or as many as are drawn from it."""
        for number in itertools.count():
            document = None
            for document in self.one_pass(number, seed):
                yield document
            if not repeat or document is None:
                return


def _contexts(documents: Iterable[list[int]], context_size: int, bos: int | None) -> Iterator[list[int]]:
    """Documents packed end to end; a last incomplete context is dropped."""
    lead = [] if bos is None else [bos]
    size = context_size - len(lead)
    buffer: list[int] = []
    for document in documents:
        buffer.extend(document)
        start = 0
        while len(buffer) - start >= size:
            yield lead + buffer[start : start + size]
            start += size
        del buffer[:start]


# ---- preparing ------------------------------------------------------------------------------------------------------


def prepare_tokens(sweep: Sweep, directory: Path, report: Progress = lambda what, done, needed: None) -> TokenStore:
    """Tokenises what `sweep` needs, unless `directory` holds it already from another launch.

    Args:
        directory: where prepared data sets are kept, shared by the sweeps of a storage.
    Raises:
        DataEndedError: too few tokens for training or evaluation.
        UserError: the data set or the tokenizer cannot be loaded.
    """
    model, dataset, evaluation = sweep.model, sweep.dataset, sweep.evaluation
    tokenizer = load_tokenizer(model)
    bos = _bos(dataset, tokenizer)
    special_ids = tuple(sorted(tokenizer.all_special_ids)) if dataset.skip_special_tokens else ()
    tokens_needed = max(sweep.max_tokens(site) for site in sweep.used_sites)
    heldout_split = evaluation.split or ("heldout" if dataset.name == "builtin" else None)

    if heldout_split == dataset.split:
        raise UserError(f"evaluation.split: {heldout_split!r} is what is trained on (dataset.split); hold out another")

    def count(tokens_BT: Tensor) -> int:
        return int(kept_mask(tokens_BT, special_ids, dataset.skip_positions).sum())

    common = {
        "revision": REVISION,
        "data": _data_fingerprint(dataset),
        "tokenizer": _tokenizer_fingerprint(tokenizer),
        "eos": tokenizer.eos_token_id,  # ends each document; not among what the tokenizer's fingerprint covers
        "context_size": model.context_size,
        "bos": bos,
        "special_ids": special_ids,
        **dataset.model_dump(include={"text_column", "tokens_column", "streaming", "skip_positions"}),
    }
    train_key = {**common, **dataset.model_dump(include={"split", "seed", "repeat"}), "block": sweep.block_contexts}
    train_key["held_out"] = None if heldout_split else evaluation.fraction
    heldout_key = {
        **common,
        "tokens": evaluation.tokens,
        "held_out": heldout_split or [dataset.split, evaluation.fraction],
    }

    def documents(split: str, keep: Callable[[str | list[int]], bool], key: str) -> _Documents:
        return _Documents(dataset, tokenizer, split, keep, key)

    def make_blocks(target: Path) -> list[int]:
        def keep(document: str | list[int]) -> bool:
            return heldout_split is not None or not held_out_by_hash(document, evaluation.fraction)

        passes = documents(dataset.split, keep, "dataset.split").passes(dataset.seed, dataset.repeat)
        contexts = _contexts(passes, model.context_size, bos)
        rows: list[int] = []
        while sum(rows) < tokens_needed and (block := list(itertools.islice(contexts, sweep.block_contexts))):
            tokens_BT = torch.tensor(block)
            _write(tokens_BT, target / f"block-{len(rows):05d}.safetensors")
            rows.append(count(tokens_BT))
            report("tokenising", min(sum(rows), tokens_needed), tokens_needed)
        if sum(rows) < tokens_needed:
            raise DataEndedError(
                f"training.tokens: {tokens_needed} asked for, but {dataset.name!r} (split {dataset.split!r}) has only "
                f"{sum(rows)} after dropping special and first positions; lower it, or set dataset.repeat: true"
            )
        return rows

    def make_heldout(target: Path) -> list[int]:
        def keep(document: str | list[int]) -> bool:
            return heldout_split is not None or held_out_by_hash(document, evaluation.fraction)

        # Always in the same order: data seeds are compared on the same evaluation.
        key = "evaluation.split" if evaluation.split else "dataset.split"
        one_pass = documents(heldout_split or dataset.split, keep, key).one_pass(0, seed=0)
        contexts: list[list[int]] = []
        rows = 0
        for context in _contexts(one_pass, model.context_size, bos):
            if rows >= evaluation.tokens:
                break
            contexts.append(context)
            rows += count(torch.tensor([context]))
            report("held-out tokens", min(rows, evaluation.tokens), evaluation.tokens)
        if rows < evaluation.tokens:
            where = f"split {heldout_split!r}" if heldout_split else f"{evaluation.fraction:g} of its documents"
            raise DataEndedError(
                f"evaluation.tokens: {evaluation.tokens} asked for, but the held-out part of {dataset.name!r} "
                f"({where}) has only {rows}; lower it{'' if heldout_split else ', or raise evaluation.fraction'}"
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
        context_size=model.context_size,
        rows=tuple(blocks["rows"]),
        heldout_rows=sum(heldout["rows"]),
        special_ids=special_ids,
        skip_positions=dataset.skip_positions,
        seed=dataset.seed,
        fingerprint=digest(train_key),
        heldout_fingerprint=digest(heldout_key),
        hashes={**blocks["hashes"], **heldout["hashes"]},
    )


def _prepared(target: Path, needed: int, make: Callable[[Path], list[int]]) -> _Manifest:
    """What a finished folder holds; made in a temporary one, so that there is no half-made one."""

    def finished() -> _Manifest | None:
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
        manifest = _Manifest(rows=rows, hashes={path.name: file_hash(path) for path in sorted(made.iterdir())})
        MANIFEST.write(made / "manifest.json", manifest)
        if (longer := finished()) is not None:  # another launch was quicker; its blocks may be in use
            return longer
        if target.exists():  # damaged, or shorter: the same blocks, and further ones
            target.rename(Path(temporary) / "old")
        made.rename(target)
    return manifest


def _bos(dataset: DatasetSettings, tokenizer: PreTrainedTokenizerBase) -> int | None:
    bos = tokenizer.bos_token_id
    if dataset.prepend_bos is None:
        return bos if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else None
    if dataset.prepend_bos and bos is None:
        raise UserError("dataset.prepend_bos: true, but this model's tokenizer has no BOS token")
    return bos if dataset.prepend_bos else None


def _tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return digest(backend.to_str() if backend is not None else tokenizer.get_vocab())
