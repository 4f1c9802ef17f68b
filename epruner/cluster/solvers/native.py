"""The compiled solvers: active set by default, dense on request."""

import numpy as np
from numpy.typing import NDArray

from epruner.cluster import _native, memory
from epruner.cluster.outcome import Messages, Options

_SMALL = 1 << 26  # bytes not worth asking the system for


def solve(S: NDArray[np.floating], preference: NDArray[np.floating], options: Options) -> Messages:
    """Pass messages between listed pairs only, turning dense when lists get long."""
    lists = _native.ActiveSet(
        preference.astype(np.float64),
        options.damping,
        options.max_iter,
        options.convergence_iter,
        options.seed,
        S.dtype == np.float32,
        options.n_threads,
    )
    needed = _dense_bytes(S)
    try:
        messages = _native.solve(S, lists, needed < _SMALL or memory.fits(needed))
    except MemoryError:
        raise MemoryError(
            f"{S.shape[0]} points with few clusters need dense passes, which take "
            f"{needed / 1e9:.1f} GB; raise the preference (more clusters, shorter lists) or "
            "cluster a sample"
        ) from None
    return Messages(*messages, lists)


def solve_dense(
    S: NDArray[np.floating], preference: NDArray[np.floating], options: Options
) -> Messages:
    """Pass messages between all pairs, one pass over memory per iteration."""
    needed = _dense_bytes(S)
    if needed >= _SMALL:
        memory.require(needed, f"dense passes over {S.shape[0]} points", "use backend='native'")
    return Messages(
        *_native.solve_dense(
            S,
            preference.astype(np.float64),
            options.damping,
            options.max_iter,
            options.convergence_iter,
            options.seed,
            options.n_threads,
        )
    )


def _dense_bytes(S: NDArray[np.floating]) -> int:
    """Bytes that dense passes take: a jittered copy of S, R and A."""
    return 3 * S.nbytes
