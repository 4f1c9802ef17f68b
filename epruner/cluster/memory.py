"""Estimate before allocating: say no with a figure rather than swap a machine to death."""

import os
from pathlib import Path

_LIMITS = (  # control groups, version 2 and 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available() -> int | None:
    """Bytes that this process can still take without swapping; None where it cannot be told."""
    candidates = [_from_meminfo(), *(_from_control_group(*files) for files in _LIMITS)]
    known = [value for value in candidates if value is not None]
    return min(known) if known else None


def fits(needed: int) -> bool:
    """Whether `needed` bytes can be taken, as far as can be told."""
    free = available()
    return free is None or needed <= free


def require(needed: int, what: str, advice: str) -> None:
    """Raise `MemoryError` if `needed` bytes for `what` do not fit; `advice` names what helps."""
    free = available()
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
