"""Where candidates come from when features, or rows of a sparse matrix, lie with several ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from epruner.cluster import _native
from epruner.cluster.progress import SILENT, Progress
from epruner.cluster.types import Floats, Indices, Options
from epruner.distributed.checkpoint import Saved
from epruner.distributed.group import Group
from epruner.distributed.messages import SharedActiveSet, of_all, row_starts


class SharedSource(ABC):
    """Similarities of n points, each rank with rows of its own.

    Attributes
    ----------
    n : int
    rows : slice
        Those of this rank.
    dtype : dtype
    """

    def __init__(self, group: Group, n: int, dtype: np.dtype[Any]) -> None:
        self.group, self.n, self.dtype = group, n, dtype
        self.starts = row_starts(n, group.size)
        self.rows = slice(*(int(start) for start in self.starts[group.rank : group.rank + 2]))

    def begin(self, options: Options) -> SharedActiveSet:
        """Return an active set without candidates."""
        return SharedActiveSet(self.group, self.n, self.dtype, options)

    def resumed(self, options: Options, saved: Saved) -> SharedActiveSet:
        """Return an active set that goes on from messages that were saved."""
        active_set = self.begin(options)
        active_set.resume(saved)
        return active_set

    @abstractmethod
    def digest(self) -> str:
        """What tells these similarities from others, whatever the number of ranks."""

    def common(self, preference: float) -> Floats:
        """Return this preference for each of the own rows."""
        return np.full(self.rows.stop - self.rows.start, preference, dtype=self.dtype)

    def iterate(self, active_set: SharedActiveSet, iterations: int) -> str:
        """Go on for at most so many iterations; return how that ended, the same on all ranks."""
        status = "running"
        while iterations > 0 and status == "running":
            status = self._iterate_once(active_set)
            iterations -= 1
        return status

    @abstractmethod
    def _iterate_once(self, active_set: SharedActiveSet) -> str:
        """Do the same for one iteration."""

    @abstractmethod
    def refill(self, active_set: SharedActiveSet, progress: Progress = SILENT) -> None:
        """Give more candidates to the rows that need them, on all ranks."""

    @abstractmethod
    def decode(
        self, active_set: SharedActiveSet, preference: Floats, exemplars: Indices, options: Options
    ) -> tuple[Indices, Indices]:
        """Return refined exemplars, ascending, and the labels of the own rows."""

    @abstractmethod
    def links(self, exemplars: Indices, labels: Indices) -> Floats:
        """Return the similarities of the own rows to their exemplars, nan where they have none."""

    def net_similarity(self, preference: Floats, exemplars: Indices, labels: Indices) -> float:
        """Sum of similarities to exemplars and of their preferences, in a fixed order."""
        links = self.links(exemplars, labels)
        own = exemplars[(exemplars >= self.rows.start) & (exemplars < self.rows.stop)]
        own -= self.rows.start
        links[labels < 0] = 0
        links[own] = 0
        block = _native.ActiveSet.block_rows(self.n)
        sums = [np.add.reduce(links[k : k + block]) for k in range(0, links.size, block)]
        chosen = of_all(self.group, preference[own].astype(np.float64))
        total = np.add.accumulate(of_all(self.group, np.array(sums)))[-1]
        return float(total + np.add.reduce(chosen))
