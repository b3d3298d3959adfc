"""What activations on disk cost as the source of a sweep."""

from __future__ import annotations

from collections.abc import Sequence

from gsae_ray.activation_files.splits import Collected, Splits, find_splits
from gsae_ray.activations.file_source import BATCH_BYTES
from gsae_ray.activations.layout import DTYPE_BYTES
from gsae_ray.capacity.language_model import LanguageModelCost
from gsae_ray.capacity.memory import Memory, producer_memory, rows_producer_memory
from gsae_ray.config.sections import DatasetSettings, EvaluationSettings
from gsae_ray.config.site import Site
from gsae_ray.config.sweep import Sweep
from gsae_ray.config.trial import TrialSpec
from gsae_ray.errors import DataEndedError, UserError
from gsae_ray.language_model.loading import layer_count, load_skeleton
from gsae_ray.storage.references import Reference


class FilesCost:
    """See `SourceCost`. Rows cost no FLOPs; a model that SAEs are spliced into does."""

    name = "rows of files"

    def __init__(self, sweep: Sweep) -> None:
        """Opens the files.

        Args:
            sweep: as its file has it.

        Raises:
            UserError: files or model are not there, or have no such sites, or too few rows.
        """
        self.said: list[str] = []
        """What the user should know of the files."""
        sweep = sweep.of_model(None if sweep.model is None else layer_count(load_skeleton(sweep.language_model)))
        self.splits = splits = find_splits(
            sweep.files, sweep.file_rows, [s.name for s in sweep.used_sites], self.said.append
        )
        if isinstance(splits, Collected) and sweep.evaluation.fraction != EvaluationSettings().fraction:
            raise UserError(f"evaluation.fraction: {sweep.files.path} has held-out rows of its own; leave it out")
        self._check_rows(sweep)
        self.widths, self.dtype = {Site(site): width for site, width in splits.widths.items()}, splits.dtype
        self._model = None if sweep.model is None else LanguageModelCost(_on_text(sweep, splits))
        if splits.blocks:
            rows = sweep.file_rows.model_copy(update={"shuffle_tokens": splits.blocks[0]})
            sweep = sweep.model_copy(update={"dataset": rows})
        self.sweep = sweep

    def _check_rows(self, sweep: Sweep) -> None:
        """Compares with what there is at most, before the files are looked through.

        Raises:
            DataEndedError: there are too few rows.
        """
        rows, heldout_rows = self.splits.rows_at_most
        needed = sweep.longest_tokens
        asked = (
            ("training.tokens", 0 if sweep.file_rows.repeat else needed, rows),
            ("evaluation.tokens", sweep.evaluation.tokens, heldout_rows),
        )
        for key, tokens, there in asked:
            if tokens > there:
                repeat = ", or set dataset.repeat: true" if key == "training.tokens" else ""
                raise DataEndedError(
                    f"{key}: {tokens} asked for, but {sweep.files.path!r} has only {there} rows; lower it{repeat}"
                )

    @property
    def block_flops(self) -> float:
        """None."""
        return 0.0

    def evaluation_flops(self, trials: Sequence[TrialSpec]) -> float:
        """Those of the model's passes, where there is one."""
        return 0.0 if self._model is None else self._model.evaluation_flops(trials)

    def producer_memory(
        self, block_bytes: int, trials: Sequence[TrialSpec], references: Sequence[Reference] = ()
    ) -> Memory:
        """That of a block, and of an evaluation; files are mapped, and take memory that others may have at any time."""
        if self._model is not None:
            skeleton = load_skeleton(self._model.sweep.language_model)
            widths = self.splits.widths
            return producer_memory(self._model.sweep, skeleton, widths, block_bytes, trials, references)
        rows = BATCH_BYTES // (DTYPE_BYTES[self.dtype] * max(self.widths.values()))
        return rows_producer_memory(
            2 * BATCH_BYTES, rows, block_bytes, trials, references, self.sweep.producers.gpus > 0
        )

    def disk_bytes(self, blocks: int) -> int:  # noqa: ARG002
        """Those of Parquet files, unpacked."""
        return self.splits.unpacked_bytes

    def notices(self) -> list[str]:
        """What was said of the files; and those of the model, where there is one."""
        return [*self.said, *([] if self._model is None else self._model.notices())]


def _on_text(sweep: Sweep, splits: Splits) -> Sweep:
    """The sweep as one of a language model that reads the contexts of these activations."""
    context = splits.metadata["model"].get("context_size", sweep.language_model.context_size)
    _, skip_positions = splits.masks
    return sweep.model_copy(
        update={
            "activations": None,
            "model": sweep.language_model.model_copy(update={"context_size": context}),
            "dataset": DatasetSettings(name="builtin", skip_positions=skip_positions, max_norm=sweep.dataset.max_norm),
        }
    )
