"""The compiled solvers: active set by default, dense on request."""

import numpy as np
from numpy.typing import NDArray

from epruner.cluster import _native, memory
from epruner.cluster.outcome import Messages, Options

_SMALL = 1 << 26  # bytes not worth asking the system for


def _run(
    S: NDArray[np.floating], preference: NDArray[np.floating], options: Options, dense_only: bool
) -> Messages:
    n = S.shape[0]
    needed = 3 * n * n * S.itemsize  # a jittered copy of S, R and A
    small = needed < _SMALL
    if dense_only and not small:
        memory.require(needed, f"dense passes over {n} points", "use backend='native'")
    try:
        is_exemplar, n_iter, converged = _native.solve(
            S,
            preference.astype(np.float64),
            options.damping,
            options.max_iter,
            options.convergence_iter,
            options.seed,
            options.n_threads,
            dense_only,
            small or memory.fits(needed),
        )
    except MemoryError:
        raise MemoryError(
            f"{n} points with few clusters need dense passes, which take {needed / 1e9:.1f} GB; "
            "raise the preference (more clusters, shorter lists) or cluster a sample"
        ) from None
    return Messages(is_exemplar, n_iter, converged)


def solve(S: NDArray[np.floating], preference: NDArray[np.floating], options: Options) -> Messages:
    """Pass messages between listed pairs only, turning dense when lists get long."""
    return _run(S, preference, options, dense_only=False)


def solve_dense(
    S: NDArray[np.floating], preference: NDArray[np.floating], options: Options
) -> Messages:
    """Pass messages between all pairs, one pass over memory per iteration."""
    return _run(S, preference, options, dense_only=True)
