"""How many threads a call may use, and whether what it needs fits in memory."""

import os
import warnings
from functools import cache
from numbers import Integral
from pathlib import Path

from epruner.cluster._compiled import native

_IMPORTED_IN = os.getpid()
_LIMITS = (  # control groups, version 2 and 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def effective_n_threads(n_threads: int | None) -> int:
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


def available_memory() -> int | None:
    """Bytes that this process can still take without swapping; None where it cannot be told."""
    candidates = [_from_meminfo(), *(_from_control_group(*files) for files in _LIMITS)]
    known = [value for value in candidates if value is not None]
    return min(known) if known else None


def memory_fits(needed: int) -> bool:
    """Whether `needed` bytes can be taken, as far as can be told."""
    free = available_memory()
    return free is None or needed <= free


def require_memory(needed: int, what: str, advice: str) -> None:
    """Raise `MemoryError` if `needed` bytes for `what` do not fit; `advice` names what helps.

    Called before allocating: a figure rather than a machine that swaps to death.
    """
    free = available_memory()
    if free is not None and needed > free:
        raise MemoryError(
            f"{what} needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are available; {advice}"
        )


def _from_meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):
            return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None


def _from_control_group(limit: str, usage: str) -> int | None:
    try:
        most = Path(limit).read_text().strip()
        used = int(Path(usage).read_text())
    except (OSError, ValueError):
        return None
    return None if most == "max" else max(0, int(most) - used)
