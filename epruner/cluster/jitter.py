"""Tie-breaking by a jitter that is a function of (seed, row, column), not of a generator's state.

Exact ties (duplicate points, integer similarities) let messages grow in step for ever.
scikit-learn adds noise of one unit in the last place from a sequential generator. Here the noise of
an entry is a hash of its position: reproducible, the same for every solver, and evaluated only
where it is needed.
"""

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def _mix(h: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finalise a 64-bit counter (splitmix64)."""
    h = (h ^ (h >> np.uint64(30))) * _MIX1
    h = (h ^ (h >> np.uint64(27))) * _MIX2
    return h ^ (h >> np.uint64(31))


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
    s: NDArray[np.floating], rows: NDArray[np.integer], cols: NDArray[np.integer], seed: int
) -> NDArray[np.float64]:
    """Similarities `s` at positions (`rows`, `cols`) with their jitter, in float64.

    The three arrays broadcast against each other. Infinite entries are returned unchanged.
    """
    relative, absolute = scale(s.dtype)
    with np.errstate(over="ignore"):
        row = _mix((np.asarray(rows).astype(np.uint64) + np.uint64(seed)) * _GOLDEN + _GOLDEN)
        h = _mix(row + np.asarray(cols).astype(np.uint64) * _GOLDEN)
    u = (h >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0  # uniform in [-1, 1)
    wide = s.astype(np.float64)
    with np.errstate(invalid="ignore"):
        noisy = wide + (relative * np.abs(wide) + absolute) * u
    return np.where(np.isfinite(wide), noisy, wide)
