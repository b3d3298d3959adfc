"""SAELens' cache of activations: a Hugging Face data set of contexts, saved by `save_to_disk`, one folder a hook.

`ActivationsStore(cached_activations_path=folder)` reads it (checked with sae-lens 6.54.12). Its examples are whole
contexts: the hook's column is `Array2D(context, width)`, `token_ids` stands beside it. Ours have a third column, which
SAELens does not read: `kept`, the positions that are rows here.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor

from gsae_ray.files import write_atomically

STATE_FILE, INFO_FILE = "state.json", "dataset_info.json"
STORED_DTYPE = {"float32": "float32", "float16": "float16", "bfloat16": "float32"}
"""Dtype of rows -> dtype in the files: Arrow has no bfloat16, and float32 holds its numbers."""


def features(column: str, context_size: int, width: int, dtype: str) -> datasets.Features:
    """The columns of such a data set."""
    return datasets.Features(
        {
            column: datasets.Array2D(shape=(context_size, width), dtype=STORED_DTYPE[dtype]),
            "token_ids": datasets.List(datasets.Value("int32"), length=context_size),
            "kept": datasets.List(datasets.Value("bool"), length=context_size),
        }
    )


def write_contexts(path: Path, columns: datasets.Features, x_CTn: Tensor, tokens_CT: Tensor, kept_CT: Tensor) -> None:
    """Writes some contexts as one Arrow file, which is there whole or not at all.

    Args:
        path: the file.
        columns: as of `features`.
        x_CTn: activations, on the CPU.
        tokens_CT: token ids, and PADDING after the last one of a short context.
        kept_CT: which positions are rows.
    """
    (column, array), *_ = columns.items()
    data = {
        column: x_CTn.to(getattr(torch, array.dtype)).numpy(),
        "token_ids": tokens_CT.int().numpy(),
        "kept": kept_CT.numpy(),
    }
    datasets.disable_progress_bars()
    made = datasets.Dataset.from_dict(data, features=columns)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as temporary:
        made.save_to_disk(temporary, num_shards=1)
        (file,) = Path(temporary).glob("*.arrow")
        with file.open("rb") as written:
            os.fsync(written.fileno())
        file.rename(path)


def write_data_set(folder: Path, columns: datasets.Features, files: Sequence[str], fingerprint: str) -> list[str]:
    """Makes a folder of such files a data set, that `datasets.load_from_disk` loads.

    Args:
        folder: where the files are.
        columns: as of `features`.
        files: names, in the order of their contexts.
        fingerprint: by which `datasets` tells it from others.

    Returns:
        names of the files that it writes.
    """
    datasets.DatasetInfo(features=columns).write_to_directory(str(folder))
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": fingerprint[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_atomically(folder / INFO_FILE, (folder / INFO_FILE).read_bytes())
    write_atomically(folder / STATE_FILE, (json.dumps(state, indent=2) + "\n").encode())
    return [INFO_FILE, STATE_FILE]
