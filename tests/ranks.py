"""Processes that are the ranks of a process group, and do what tests ask of them."""

from __future__ import annotations

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

MOST = 4
# Imported once for all processes; the last by torch's optimisers. Not epruner, whose extension runs
# on one thread in processes that are forked after it was imported.
_SLOW = ["torch", "sklearn.cluster", "torch._dynamo"]

T = TypeVar("T")


@dataclass(frozen=True)
class Failed:
    """What a rank raised, by its type's name and its text."""

    kind: str
    text: str
    trace: str


class Ranks:
    """Processes on this machine; the first of them make groups of any smaller size, too."""

    def __init__(self, size: int = MOST) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_SLOW)
        self._folder = tempfile.TemporaryDirectory()
        meeting = Path(self._folder.name) / "meeting"
        self._ends, self.processes = [], []
        for rank in range(size):
            mine, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(rank, size, str(meeting), theirs), daemon=True
            )
            process.start()
            theirs.close()
            self._ends.append(mine)
            self.processes.append(process)

    def run(
        self, size: int, work: Callable[..., T], *args: Any, each: Sequence[Any] = ()
    ) -> list[T]:
        """Return work(group, *args) of `size` ranks, each with its own of `each` at the end."""
        found = self.outcomes(size, work, *args, each=each)
        for outcome in found:
            assert not isinstance(outcome, Failed), outcome.trace
        return found

    def outcomes(
        self, size: int, work: Callable[..., T], *args: Any, each: Sequence[Any] = ()
    ) -> list[Any]:
        """The same, with what a rank raised in place of what it would have returned."""
        for end in self._ends:  # all of them, as all take part when a group is made
            end.send(size)
        for rank, end in enumerate(self._ends[:size]):
            end.send((work, (*args, *([each[rank]] if each else []))))
        return [end.recv() for end in self._ends[:size]]


@cache
def ranks() -> Ranks:
    """The processes of this session, which last as long as it does."""
    return Ranks()


def _work(rank: int, size: int, meeting: str, end: Connection) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    groups: dict[int, Any] = {size: dist.group.WORLD}
    while True:
        try:
            wanted = end.recv()
        except EOFError:
            return
        if wanted not in groups:
            groups[wanted] = dist.new_group(list(range(wanted)))
        if rank >= wanted:
            continue
        try:
            work, args = end.recv()
            end.send(work(groups[wanted], *args))
        except BaseException as error:
            end.send(Failed(type(error).__name__, str(error), traceback.format_exc()))
