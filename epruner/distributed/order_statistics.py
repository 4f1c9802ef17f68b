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
    total = int(group.sum(np.array([values.size]))[0])
    if total == 0:
        return []
    wanted = np.clip(np.asarray(ranks), 0, total - 1)
    ends = _keys(np.array([-np.inf, np.inf], dtype=values.dtype)).tolist()
    low, high = (np.full(wanted.size, end, dtype=object) for end in ends)
    while (low < high).any():
        middle = (low + high) // 2
        counts = np.searchsorted(values, _from_keys(middle, values.dtype), side="right")
        reached = group.sum(counts) > wanted
        high = np.where(reached, middle, high)
        low = np.where(reached, low, middle + 1)
    found: list[float] = _from_keys(low, values.dtype).tolist()
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
    kind = _integers(values.dtype)
    bits: Array = (values + 0.0).view(kind)  # one number of both zeros
    return np.where(bits < 0, np.iinfo(kind).min - bits - 1, bits)


def _from_keys(keys: Array, dtype: np.dtype[np.floating]) -> Floats:
    kind = _integers(dtype)
    whole = keys.astype(kind)
    bits: Array = np.where(whole < 0, np.iinfo(kind).min - whole - 1, whole)
    floats: Floats = bits.astype(kind).view(dtype)
    return floats


def _integers(dtype: np.dtype[np.floating]) -> Any:
    return np.int32 if dtype == np.float32 else np.int64
