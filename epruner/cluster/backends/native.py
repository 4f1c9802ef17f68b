"""The compiled solvers: active set by default, dense on request."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from epruner.cluster import _native, resources
from epruner.cluster.types import Floats, Indices, Messages, Options

_SMALL = 1 << 26  # bytes not worth asking the system for


def solve(S: Floats, preference: Floats, options: Options) -> Messages:
    """Pass messages in the active set only, turning dense when its lists get long."""
    active_set = new_active_set(preference, S.dtype, options)
    with _dense_memory(S.shape[0], _dense_bytes(S)) as fits:
        return Messages(*_native.solve(S, active_set, fits), active_set)


def new_active_set(preference: Floats, dtype: np.dtype[Any], options: Options) -> _native.ActiveSet:
    """Return an active set without candidates, for similarities of `dtype`."""
    return _native.ActiveSet(
        preference.astype(np.float64),
        options.damping,
        options.max_iter,
        options.convergence_iter,
        options.seed,
        dtype == np.float32,
        options.n_threads,
    )


def cluster_many(
    problems: Sequence[Floats],
    preferences: Sequence[Floats],
    options: Options,
) -> list[tuple[Indices, Indices, int, bool]]:
    """Solve and decode problems side by side, one thread each; all of one dtype, at least one.

    Returns exemplars, labels, n_iter and converged of each.
    """
    sizes = sorted((_dense_bytes(S) for S in problems), reverse=True)
    with _dense_memory(max(map(len, problems)), sum(sizes[: options.n_threads])) as fits:
        return _native.cluster_many(
            problems,
            [p.astype(np.float64) for p in preferences],
            options.damping,
            options.max_iter,
            options.convergence_iter,
            options.seed,
            options.n_threads,
            fits,
        )


def solve_dense(S: Floats, preference: Floats, options: Options) -> Messages:
    """Pass messages between all pairs, one pass over memory per iteration."""
    needed = _dense_bytes(S)
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


def _dense_bytes(S: Floats) -> int:
    """Bytes that dense passes take: a jittered copy of S, R and A."""
    return 3 * S.nbytes


@contextmanager
def _dense_memory(n: int, needed: int) -> Iterator[bool]:
    """Whether memory has room for dense passes; explains the error where they turn out needed."""
    try:
        yield needed < _SMALL or resources.memory_fits(needed)
    except MemoryError:
        raise MemoryError(
            f"{n} points with few clusters need dense passes, which take "
            f"{needed / 1e9:.1f} GB; raise the preference (more clusters, shorter lists) or "
            "cluster a sample"
        ) from None
