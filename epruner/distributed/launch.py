"""Processes that a launcher such as torchrun has started, and the group that they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING

from epruner import _install

if TYPE_CHECKING:
    import torch.distributed as dist


@contextmanager
def launched(timeout: timedelta | None = None) -> Iterator[dist.ProcessGroup | None]:
    """Make a process group of the processes that a launcher has started, and destroy it at the end.

    It passes what lies in the CPU's memory by gloo. Where every process of a machine can have a
    card of its own, it has it as its current CUDA device, and cards talk by nccl. A group that is
    initialised already is taken as it is, and left.

    Parameters
    ----------
    timeout : timedelta, optional
        How long ranks wait for each other. Default: torch's, half an hour. One that has ended is
        noticed without.

    Yields
    ------
    torch.distributed.ProcessGroup or None
        None in a process that stands alone: WORLD_SIZE is 1 or not in the environment.

    Raises
    ------
    ImportError
        There is no torch.
    ValueError
        WORLD_SIZE is no number, or what else a launcher says (RANK, MASTER_ADDR, MASTER_PORT) is
        missing.

    Examples
    --------
    >>> from epruner.distributed import launched
    >>> with launched() as group:  # by itself, not under torchrun
    ...     print(group)
    None
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdecimal():
        raise ValueError(f"WORLD_SIZE must be a number of processes, got {size!r}")
    if int(size) <= 1:
        yield None
        return
    if find_spec("torch") is None:
        raise ImportError(
            f"WORLD_SIZE is {size}, and {size} processes need torch to work together: "
            f"{_install.command('prune')}"
        )
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        yield dist.group.WORLD
        return
    here = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    cards = 0 < here <= torch.cuda.device_count()
    if cards:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cards else "gloo", timeout=timeout)
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()
