"""How many threads a call may use, and whether what it needs fits in memory."""

import os
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from numbers import Integral
from pathlib import Path

from epruner.cluster._compiled import native

_IMPORTED_IN = os.getpid()
_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_MOST_PER_CORE = 4  # threads; so many help nobody, and a system refuses to start far more
_LEAST_CAP = 16
_NEGLIGIBLE = 1 << 24  # bytes not worth asking the system for


def effective_n_threads(n_threads: int | None) -> int:
    """Return the number of OpenMP threads for one call.

    None follows ``OMP_NUM_THREADS`` and threadpoolctl's limits, and otherwise takes the cores that
    this process may run on, or as many as the CPU quota of its control groups is worth. A number
    is taken as it is up to four threads a core (at least 16). In a forked child the answer is 1:
    GNU's OpenMP hangs when a child enters a parallel region after its parent did.
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
        return min(int(n_threads), max(_LEAST_CAP, _MOST_PER_CORE * _cores()))
    return min(_openmp_threads(), _cores(), _quota())


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache  # reading it takes longer than clustering a few points
def _quota() -> int:
    """Cores' worth of time that the control groups of this process grant, rounded up."""
    granted = [
        _cores_granted(folder / "cpu.max")  # version 2: "quota period", or "max period"
        or _cores_granted(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")
        for folder in _control_groups("cpu")
    ]
    return min((cores for cores in granted if cores is not None), default=sys.maxsize)


def _cores_granted(*files: Path) -> int | None:
    try:
        quota, period = " ".join(file.read_text() for file in files).split()
        return max(1, -(-int(quota) // int(period))) if int(quota) > 0 else None
    except (OSError, ValueError):  # there is no such file, or no limit
        return None


def _control_groups(controller: str) -> Iterator[Path]:
    """Folders of the control groups of this process for a controller, and of those above them.

    A container may see only the top, which is then its own, under paths that hold elsewhere.
    """
    try:
        entries = [line.split(":", 2) for line in _MEMBERSHIP.read_text().splitlines()]
    except OSError:
        entries = []
    for _, controllers, path in [entry for entry in entries if len(entry) == 3]:
        if controllers == "":  # version 2
            top = _CGROUPS
        elif controller in controllers.split(","):
            top = _CGROUPS / controller
        else:
            continue
        group = top / path.lstrip("/")
        while top in group.parents:
            yield group
            group = group.parent
        yield top


@cache  # once a process
def _warn_of_one_thread(reason: str) -> None:
    warnings.warn(f"epruner runs on one thread, as {reason}", RuntimeWarning, stacklevel=3)


def _openmp_threads() -> int:
    return (os.cpu_count() or 1) if native is None else int(native.max_threads())


def available_memory() -> int | None:
    """Bytes that this process can still take without swapping; None where it cannot be told."""
    candidates = [
        _from_meminfo(),
        _from_address_space(),
        *(
            _from_control_group(folder / limit, folder / usage)
            for folder in _control_groups("memory")
            for limit, usage in (
                ("memory.max", "memory.current"),  # versions 2 and 1
                ("memory.limit_in_bytes", "memory.usage_in_bytes"),
            )
        ),
    ]
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
    if needed < _NEGLIGIBLE:
        return
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


def _from_address_space() -> int | None:
    """What RLIMIT_AS leaves, where the system has it and somebody set it."""
    try:
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        if most == resource.RLIM_INFINITY:
            return None
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, AttributeError, OSError):
        return None
    return max(0, most - used)


def _from_control_group(limit: Path, usage: Path) -> int | None:
    try:
        most, used = int(limit.read_text()), int(usage.read_text())
    except (OSError, ValueError):  # there is no such file, or no limit: "max"
        return None
    return max(0, most - used)
