"""The compiled solvers: active set by default, dense on request."""

import numpy as np
from numpy.typing import NDArray

from epruner.cluster import _native
from epruner.cluster.outcome import Messages, Options


def _run(
    S: NDArray[np.floating], preference: NDArray[np.floating], options: Options, dense_only: bool
) -> Messages:
    is_exemplar, n_iter, converged = _native.solve(
        S,
        preference.astype(np.float64),
        options.damping,
        options.max_iter,
        options.convergence_iter,
        options.seed,
        options.n_threads,
        dense_only,
    )
    return Messages(is_exemplar, n_iter, converged)


def solve(S: NDArray[np.floating], preference: NDArray[np.floating], options: Options) -> Messages:
    """Pass messages between listed pairs only, turning dense when lists get long."""
    return _run(S, preference, options, dense_only=False)


def solve_dense(
    S: NDArray[np.floating], preference: NDArray[np.floating], options: Options
) -> Messages:
    """Pass messages between all pairs, one pass over memory per iteration."""
    return _run(S, preference, options, dense_only=True)
