"""The compiled solvers: active set by default, dense on request."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from epruner.cluster import _native, resources
from epruner.cluster.types import Floats, Indices, Messages, Options

_SMALL = 1 << 26  # bytes not worth asking the system for


def solve(S: Floats, preference: Floats, options: Options) -> Messages:
    """Pass messages in the active set only."""
    active_set = new_active_set(preference, S.dtype, options)
    return Messages(*_native.solve(S, active_set), active_set)


def new_active_set(
    preference: Floats,
    dtype: np.dtype[Any],
    options: Options,
    first: int = 0,
    n: int | None = None,
) -> _native.ActiveSet:
    """Return an active set without candidates, for similarities of `dtype`.

    It holds the rows of the points from `first` on, of `n`, that have a preference: all by default.
    """
    return _native.ActiveSet(
        preference.astype(np.float64),
        options.damping,
        options.max_iter,
        options.convergence_iter,
        options.seed,
        dtype == np.float32,
        options.n_threads,
        first,
        n,
    )


def cluster_many(
    problems: Sequence[Floats],
    preferences: Sequence[Floats],
    options: Options,
) -> list[tuple[Indices, Indices, int, bool]]:
    """Solve and decode problems side by side, one thread each; all of one dtype, at least one.

    Returns exemplars, labels, n_iter and converged of each.
    """
    return _native.cluster_many(
        problems,
        [p.astype(np.float64) for p in preferences],
        options.damping,
        options.max_iter,
        options.convergence_iter,
        options.seed,
        options.n_threads,
    )


def solve_dense(S: Floats, preference: Floats, options: Options) -> Messages:
    """Pass messages between all pairs, one pass over memory per iteration."""
    needed = 3 * S.size * np.float64().itemsize  # S with its jitter, R and A
    if needed >= _SMALL:
        resources.require_memory(
            needed, f"dense passes over {S.shape[0]} points", "use backend='native'"
        )
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
