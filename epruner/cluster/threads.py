"""How many threads a call may use."""

import os
import warnings
from functools import cache
from numbers import Integral

from epruner.cluster._compiled import native

_IMPORTED_IN = os.getpid()


def resolve(n_threads: int | None) -> int:
    """Return the number of OpenMP threads for one call.

    None follows ``OMP_NUM_THREADS`` and threadpoolctl's limits, and otherwise takes the cores that
    this process may run on. In a forked child the answer is 1: GNU's OpenMP hangs when a child
    enters a parallel region after its parent did.
    """
    if n_threads is not None:
        if not isinstance(n_threads, Integral) or isinstance(n_threads, bool):
            raise TypeError(f"n_threads={n_threads!r} must be an integer or None")
        if n_threads < 1:
            raise ValueError(f"n_threads={n_threads} must be at least 1, or None for all cores")
    if native is not None and native.serial_because:
        _warn_of_one_thread(native.serial_because)
    if os.getpid() != _IMPORTED_IN:
        return 1
    if n_threads is not None:
        return int(n_threads)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(_openmp_threads(), cores or 1)


@cache  # once a process
def _warn_of_one_thread(reason: str) -> None:
    warnings.warn(f"epruner runs on one thread, as {reason}", RuntimeWarning, stacklevel=3)


def _openmp_threads() -> int:
    return (os.cpu_count() or 1) if native is None else int(native.max_threads())
