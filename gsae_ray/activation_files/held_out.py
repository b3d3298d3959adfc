"""Which groups of rows are held out of training, and which of those SAEs are evaluated on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gsae_ray.activation_files.groups import Groups


def held_out_by_hash(key_G: NDArray[Any], fraction: float) -> NDArray[Any]:
    """Which groups belong to the held-out share: by a hash of their keys, so whatever other groups there are."""
    hash_G: NDArray[Any] = pd.util.hash_array(key_G.astype(np.int64))
    return hash_G < np.uint64(int(fraction * 2**64))


def evaluated(groups: Groups, held_out_K: NDArray[Any], rows: int, drawn: bool) -> NDArray[Any]:
    """The held-out groups that SAEs are evaluated on, ascending: as many as have the rows, or all.

    Always the same ones, whatever the data's seed: data seeds are compared on the same evaluation.

    Args:
        groups: of the table.
        held_out_K: those that are held out, ascending.
        rows: how many rows there should be.
        drawn: they were drawn before they were written, so that the first ones are taken.
    """
    order_K = held_out_K if drawn else np.random.RandomState([0, 0]).permutation(held_out_K)
    ends_K = np.cumsum(groups.rows_G[order_K])
    return np.sort(order_K[: int(np.searchsorted(ends_K, rows)) + 1])
