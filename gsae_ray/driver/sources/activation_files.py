"""Activations on disk, as the source of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gsae_ray.activation_files.order import cut
from gsae_ray.activation_files.ready import Ready
from gsae_ray.activation_files.splits import Collected
from gsae_ray.activations.file_source import CollectedOrder, FileRows, FileSpec, SplicedModel
from gsae_ray.capacity.activation_files import FilesCost
from gsae_ray.capacity.memory import Memory
from gsae_ray.config.sections import ModelSettings
from gsae_ray.config.sweep import Sweep
from gsae_ray.config.trial import TrialSpec
from gsae_ray.data.prepare import Progress
from gsae_ray.driver.sources.base import PreparedSource
from gsae_ray.errors import DataEndedError, UserError
from gsae_ray.files import digest
from gsae_ray.language_model.hooks import site_widths
from gsae_ray.language_model.loading import (
    check_weights,
    layer_count,
    load_config,
    load_skeleton,
    model_fingerprint,
    pinned,
)
from gsae_ray.storage.references import Reference
from gsae_ray.version import REVISION


class ActivationFiles:
    """See `Source`. Files are opened; what is in them is looked at by `prepare`."""

    def __init__(self, sweep: Sweep, say: Callable[[str], None]) -> None:
        """Finds the files.

        Raises:
            UserError: as `find_source`.
        """
        self._cost = FilesCost(sweep)
        for line in self._cost.said:
            say(line)
        self._splits, self.widths, self.dtype = self._cost.splits, self._cost.widths, self._cost.dtype
        self.sweep = sweep.of_model(None) if sweep.model is None else self._of_model(sweep, sweep.language_model)

    def _of_model(self, sweep: Sweep, model: ModelSettings) -> Sweep:
        """The sweep with layers numbered, and the model's name pinned.

        Raises:
            UserError: the model cannot be had, or is not as wide.
        """
        skeleton = load_skeleton(model)
        sweep = sweep.of_model(layer_count(skeleton))
        check_weights(model)
        for site, width in site_widths(skeleton, sweep.used_sites).items():
            if width != self.widths[site]:
                raise UserError(
                    f"model.name: {model.name!r} is {width} wide at {site}, and the activations are "
                    f"{self.widths[site]} wide there; name the model that they are of, or leave model out"
                )
        return sweep.model_copy(update={"model": pinned(model)})

    def prepare(self, storage: Path, report: Progress) -> PreparedSource:
        """Looks through the files, unless that was done before."""
        sweep, splits, dataset = self.sweep, self._splits, self.sweep.file_rows
        train, heldout = splits.ready(storage / "activations", report)
        rows = FileRows(
            train=train.files,
            heldout=None if heldout is None else heldout.files,
            fraction=sweep.evaluation.fraction,
            sites=tuple(splits.widths),
            seed=splits.seed,
            as_they_lie=splits.as_they_lie,
            drawn=isinstance(splits, Collected),
            heldout_tokens=sweep.evaluation.tokens,
        )
        blocks = self._blocks(rows)
        self._check_heldout(rows)
        spliced, fingerprints = self._spliced(rows)
        collected = None
        if isinstance(splits, Collected) and splits.blocks:
            how = splits.schema["train"]
            collected = CollectedOrder(tuple(how["contexts"]), how["batch"])
        train_key, heldout_key = self._keys(train, heldout)
        return PreparedSource(
            spec=FileSpec(
                rows=rows,
                blocks=blocks,
                collected=collected,
                max_norm=dataset.max_norm,
                gpus=sweep.producers.gpus,
                spliced=spliced,
                sizes={**train.sizes, **({} if heldout is None else heldout.sizes)},
            ),
            rows=blocks,
            seed=splits.seed,
            provenance={"activations": digest(train_key)},
            heldout=(digest(heldout_key), *fingerprints),
            heldout_rows=rows.evaluated_rows,
            metadata=splits.metadata,
            params={
                "activations": sweep.files.path,
                **({"model": model} if (model := splits.metadata["model"].get("name")) else {}),
                "dataset.seed": splits.seed,
                "dtype": self.dtype,
            },
            modules=splits.modules,
        )

    def _keys(self, train: Ready, heldout: Ready | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """All that decides the training rows and their order, and the held-out rows."""
        sweep, splits, apart = self.sweep, self._splits, heldout is not None
        both = {"revision": REVISION, "held_out": None if apart else sweep.evaluation.fraction, **splits.about}
        block = None if splits.blocks else sweep.shuffle_tokens
        return (
            {
                **both,
                "files": train.hashes,
                "seed": splits.seed,
                "block": block or "collected",
                "repeat": sweep.file_rows.repeat,
            },
            {**both, "files": (heldout or train).hashes, "tokens": sweep.evaluation.tokens},
        )

    def _blocks(self, rows: FileRows) -> tuple[int, ...]:
        """Rows of each block.

        Raises:
            DataEndedError: there are too few.
        """
        sweep, repeat = self.sweep, self.sweep.file_rows.repeat
        needed, there = sweep.longest_tokens, rows.order(()).rows_a_pass
        if not there:
            groups = len(rows.train_rows.groups.rows_G)
            key = "group_rows" if sweep.files.group_column is None else "group_column"
            raise DataEndedError(
                f"activations.{key}: the rows are {groups} group{'s' * (groups != 1)}, and the share that is held "
                f"out ({rows.fraction:g}) has {'all of them' if groups != 1 else 'it'}; give smaller groups, or name "
                "held-out files with activations.heldout"
            )
        blocks = cut(needed, there, sweep.shuffle_tokens, self._splits.blocks, repeat)
        if sum(blocks) < needed:
            apart = "" if rows.heldout is not None else f" beside the share of {rows.fraction:g} that is held out"
            raise DataEndedError(
                f"training.tokens: {needed} asked for, but {sweep.files.path!r} has only {there} rows{apart}; lower "
                "it, or set dataset.repeat: true"
            )
        return blocks

    def _check_heldout(self, rows: FileRows) -> None:
        tokens, found = rows.heldout_tokens, rows.evaluated_rows
        if found >= tokens:
            return
        if rows.heldout is None:
            where, advice = (
                f"the held-out share ({rows.fraction:g}) of {self.sweep.files.path!r}",
                ("lower it, raise evaluation.fraction, or name held-out files with activations.heldout"),
            )
        else:
            where, advice = f"the held-out part of {self.sweep.files.heldout or self.sweep.files.path!r}", "lower it"
        raise DataEndedError(f"evaluation.tokens: {tokens} asked for, but {where} has only {found} rows; {advice}")

    def _spliced(self, rows: FileRows) -> tuple[SplicedModel | None, tuple[str, ...]]:
        """The model that SAEs are spliced into, and its fingerprint.

        Raises:
            UserError: the activations have no tokens, or are of another model.
        """
        splits = self._splits
        if self.sweep.model is None:
            return None, ()
        model, tokens_ET = self.sweep.language_model, rows.evaluated_tokens()
        if tokens_ET is None:
            raise UserError("model: these activations have no token ids for a model to read; leave model out")
        fingerprint = model_fingerprint(model)
        if (dtype := splits.metadata["model"].get("dtype", model.dtype)) != model.dtype:
            raise UserError(
                f"model.dtype: {model.dtype}, but these activations are of the model in {dtype}; set it so, or leave "
                "model out"
            )
        if splits.model_fingerprint not in (None, fingerprint):
            raise UserError(
                f"model.name: {model.name!r} is not the model that these activations are of "
                f"({splits.metadata['model'].get('name')!r}, or another revision of it); name that, or leave "
                "model out"
            )
        context, default = tokens_ET.shape[1], ModelSettings.model_fields["context_size"].default
        if model.context_size not in (context, default):
            raise UserError(f"model.context_size: the activations are of contexts of {context} tokens; leave it out")
        if int(tokens_ET.max()) >= (vocabulary := load_config(model).get_text_config().vocab_size):
            raise UserError(
                f"model.name: {model.name!r} has {vocabulary} tokens, and the activations are of token "
                f"{int(tokens_ET.max())}; name the model that they are of, or leave model out"
            )
        special_ids, skip_positions = splits.masks
        return SplicedModel(model, special_ids, skip_positions, self.sweep.evaluation.batch), (fingerprint,)

    def producer_memory(self, block_bytes: int, trials: Iterable[TrialSpec], references: Iterable[Reference]) -> Memory:
        """That of a block, and of an evaluation."""
        return self._cost.producer_memory(block_bytes, list(trials), list(references))
