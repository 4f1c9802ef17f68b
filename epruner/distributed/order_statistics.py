"""Order statistics of values that lie on several ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from epruner.cluster.types import Floats
from epruner.distributed.group import Array, Group


def values_at(group: Group, values: Floats, ranks: Sequence[int]) -> list[float]:
    """Return the values at these ranks, from 0, among the sorted `values` (m,) of all ranks.

    The first and the last for what lies beyond; none if there are no values at all. Exact: the
    numbers between which a value lies are halved until one is left.
    """
    keys = _keys(values)
    total = int(group.sum(np.array([keys.size]))[0])
    if total == 0:
        return []
    wanted = np.clip(np.asarray(ranks), 0, total - 1)
    info = np.iinfo(keys.dtype)
    low, high = (np.full(wanted.size, bound, dtype=object) for bound in (info.min, info.max))
    while (low < high).any():
        middle = (low + high) // 2
        counts = np.searchsorted(keys, middle.astype(keys.dtype), side="right")
        reached = group.sum(counts) > wanted
        high = np.where(reached, middle, high)
        low = np.where(reached, low, middle + 1)
    found: list[float] = _from_keys(low.astype(keys.dtype), values.dtype).tolist()
    return found


def quantile(group: Group, values: Floats, fraction: float) -> float:
    """Return a quantile of the sorted `values` (m,) of all ranks, interpolated as NumPy does."""
    total = int(group.sum(np.array([values.size]))[0])
    position = fraction * (total - 1)
    rank = int(position)
    low, high = values_at(group, values, [rank, rank + 1])
    return low + (high - low) * (position - rank)


def _keys(values: Floats) -> Array:
    """Integers in the same order."""
    kind: Any = np.int32 if values.dtype == np.float32 else np.int64
    bits: Array = (values + 0.0).view(kind)  # one number of both zeros
    return np.where(bits < 0, np.iinfo(kind).min - bits - 1, bits)


def _from_keys(keys: Array, dtype: np.dtype[np.floating]) -> Floats:
    kind: Any = keys.dtype
    least = np.iinfo(kind).min
    bits = np.where(keys < 0, least - keys - 1, keys)
    floats: Floats = bits.astype(keys.dtype).view(dtype)
    return floats
