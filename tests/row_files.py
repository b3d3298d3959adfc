"""Files of activations in the formats that others write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import Tensor

SITE = "blocks.1.hook_resid_post"
N, CONTEXT = 12, 10


def random_rows(rows: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, N, generator=torch.Generator().manual_seed(seed)).to(dtype)


def write_safetensors(path: Path, x_Rn: Tensor, **others: Tensor) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"acts": x_Rn.contiguous(), **others}, path)
    return path


def write_parquet(path: Path, x_Rn: Tensor, fixed: bool = False, row_group: int = 64, **others: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = x_Rn.numpy()
    kind = pa.list_(pa.from_numpy_dtype(values.dtype), x_Rn.shape[1] if fixed else -1)
    pq.write_table(pa.table({"acts": pa.array(list(values), type=kind), **others}), path, row_group_size=row_group)
    return path


def write_cache(
    folder: Path, x_CTn: Tensor, site: str = SITE, tokens: bool = True, token_ids: Tensor | None = None
) -> Path:
    """As `CacheActivationsRunner` does."""
    contexts, size, width = x_CTn.shape
    dtype = str(x_CTn.dtype).removeprefix("torch.")
    columns: dict[str, Any] = {site: datasets.Array2D(shape=(size, width), dtype=dtype)}
    data: dict[str, Any] = {site: x_CTn.numpy()}
    if tokens:
        columns["token_ids"] = datasets.List(datasets.Value("int32"), length=size)
        numbers = torch.arange(contexts * size).int().reshape(contexts, size)
        data["token_ids"] = (numbers if token_ids is None else token_ids).numpy()
    datasets.Dataset.from_dict(data, datasets.Features(columns)).save_to_disk(str(folder), num_shards=2)
    return folder
