"""Tie-breaking by a jitter that is a function of (seed, row, column), not of a generator's state.

Exact ties (duplicate points, integer similarities) let messages grow in step for ever.
scikit-learn adds noise of one unit in the last place from a sequential generator. Here the noise of
an entry is a hash of its position: reproducible, the same for every solver, evaluated only where
it is needed, and in 32 bits, of which a vector unit mixes many at once.
"""

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_GOLDEN_32 = np.uint64(0x9E3779B9)
_MIX1_32 = np.uint64(0x85EBCA6B)
_MIX2_32 = np.uint64(0xC2B2AE35)
_LOW_32 = np.uint64(0xFFFFFFFF)


def _mix(h: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finalise a 64-bit counter (splitmix64)."""
    h = (h ^ (h >> np.uint64(30))) * _MIX1
    h = (h ^ (h >> np.uint64(27))) * _MIX2
    return h ^ (h >> np.uint64(31))


def _uniform(row: NDArray[np.uint64], column: NDArray[np.uint64]) -> NDArray[np.float64]:
    """A number in [-1, 1) from 32 bits of a row's key and a column (murmur3's finaliser)."""
    h = (row + column * _GOLDEN_32) & _LOW_32
    h = ((h ^ (h >> np.uint64(16))) * _MIX1_32) & _LOW_32
    h = ((h ^ (h >> np.uint64(13))) * _MIX2_32) & _LOW_32
    h ^= h >> np.uint64(16)
    signed = (h + np.uint64(2**31)) & _LOW_32
    return signed * np.float64(2.0**-31) - np.float64(1.0)


def scale(dtype: np.dtype) -> tuple[float, float]:
    """Relative and absolute size of the jitter for similarities of `dtype`.

    float32: one unit in the last place, as scikit-learn's. float64: 2**-36, which is far below any
    meaningful difference and far above the rounding of the messages, so that rounding never
    decides a tie.
    """
    if dtype == np.float32:
        return 2.0**-23, 2.0**-120
    return 2.0**-36, 2.0**-1000


def jittered(
    s: NDArray[np.floating],
    rows: NDArray[np.integer],
    cols: NDArray[np.integer],
    seed: int | None,
    dtype: np.dtype | None = None,
) -> NDArray[np.float64]:
    """Similarities `s` at positions (`rows`, `cols`) with their jitter, in float64.

    The three arrays broadcast against each other. Infinite entries are returned unchanged, and all
    of them where `seed` is None. The jitter is of the size for `dtype`, by default that of `s`.
    """
    wide = s.astype(np.float64)
    if seed is None:
        return wide
    relative, absolute = scale(dtype or s.dtype)
    with np.errstate(over="ignore"):
        row = _mix((np.asarray(rows).astype(np.uint64) + np.uint64(seed)) * _GOLDEN + _GOLDEN)
        u = _uniform(row >> np.uint64(32), np.asarray(cols).astype(np.uint64))
    with np.errstate(invalid="ignore"):
        noisy = wide + (relative * np.abs(wide) + absolute) * u
    return np.where(np.isfinite(wide), noisy, wide)
