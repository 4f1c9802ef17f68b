"""Iterations over ranks: each passes the messages of its rows, one sum of n numbers joins them."""

from __future__ import annotations

from typing import Any

import numpy as np

from epruner.cluster import _native
from epruner.cluster.backends.native import new_active_set
from epruner.cluster.types import Doubles, Indices, Options
from epruner.distributed.checkpoint import Checkpoint, Saved
from epruner.distributed.group import Array, Group
from epruner.distributed.layout import shares

_CHUNK = 1 << 15  # columns that are summed at a time: ranks work on different ones


class SharedActiveSet:
    """The active set of n points whose rows lie with several ranks, in whole blocks.

    Every column's sum is added up block by block in their order, so its bits do not depend on how
    many ranks there are. It goes from rank to rank, each adding what its blocks hold; the last
    deals the sums to the columns' owners, and these tell all what total support comes of them.

    Parameters
    ----------
    group : Group
    n : int
        Points of all ranks.
    dtype : dtype
        Of their similarities.
    options : Options
    pairs : KnownPairs, optional
        Where similarities of own rows to prominent columns come from.

    Attributes
    ----------
    starts : ndarray of shape (size + 1,)
        The first row of each rank.
    own : ActiveSet
        The rows of this rank.
    is_exemplar : ndarray of shape (n,)
        After the last iteration.
    """

    def __init__(
        self,
        group: Group,
        n: int,
        dtype: np.dtype[Any],
        options: Options,
        pairs: Any = None,
    ) -> None:
        self.group, self.pairs = group, pairs
        self.starts = row_starts(n, group.size)
        self._options = options
        first, last = (int(start) for start in self.starts[group.rank : group.rank + 2])
        self.rows = slice(first, last)
        self.own = new_active_set(np.zeros(last - first), dtype, options, first, n)
        self.is_exemplar = np.zeros(n, dtype=bool)
        self.checkpoint: Checkpoint | None = None
        self._resumed: Saved | None = None
        self._preference = np.zeros(last - first)
        self._sums = np.empty(n)

    @property
    def iteration(self) -> int:
        """Iterations run."""
        return self.own.iteration

    @property
    def n_candidates(self) -> int:
        """Candidates in the lists of this rank, in proportion to its rows those of all."""
        return self.own.n_candidates * self.group.size

    def restart(self, preference: Doubles, damping: float) -> None:
        """Forget all messages; begin with preferences of the own rows and a damping.

        The first time after `resume`, go on where that says.
        """
        self._preference = preference
        if self._resumed is not None:
            self.own.restore(self._resumed)
            self.is_exemplar = of_all(self.group, self.own.is_exemplar)
            self._resumed = None
            return
        self.own.restart(preference, damping)
        self.is_exemplar = np.zeros_like(self.is_exemplar)
        if self.pairs is not None:
            self.pairs.forget()

    def resume(self, saved: Saved) -> None:
        """Have `restart` go on from messages that were saved of the own rows."""
        self._resumed = saved

    def continue_with(self, preference: Doubles, damping: float) -> None:
        """Go on from the messages there are with other preferences of the own rows and damping."""
        self.own.continue_with(preference, damping)

    def demands(self) -> tuple[Doubles, Indices] | None:
        """What rows of all ranks that need candidates need of columns, and what doing without
        costs; None if no row needs any."""
        most, cost = self.own.demands()
        counts = np.array([self.own.rows_needing_candidates().size, most.size])
        waiting, lengths = np.stack(self.group.gather(counts[None], [1] * self.group.size)).T[:, 0]
        if not waiting.any():
            return None
        packed = np.stack([most, cost.view(np.float64)], axis=1)
        everyone = np.concatenate(self.group.gather(packed, lengths.tolist()))
        return everyone[:, 0].copy(), everyone[:, 1].copy().view(np.int64)

    def finish(self) -> str:
        """End an iteration whose rows are done; return how iterations go on."""
        self._add_up()
        self.is_exemplar = np.zeros_like(self.is_exemplar)  # callers keep the last
        shortest = self._tell_totals(self.own.finish_rows(self._sums[self.rows]))
        t = self.iteration - 1
        if min(t, shortest) >= self._options.convergence_iter and self.is_exemplar.any():
            return "converged"
        if self.checkpoint is not None and self.iteration % self.checkpoint.every == 0:
            self.checkpoint.write(self.own, self._preference)
        return "running"

    def _add_up(self) -> None:
        """Leave the sums of the own columns in their place."""
        group, sums = self.group, self._sums
        before, after, last = group.rank - 1, group.rank + 1, group.size - 1
        chunks = [slice(k, min(k + _CHUNK, sums.size)) for k in range(0, sums.size, _CHUNK)]
        coming = [group.receive(sums[chunk], before) for chunk in chunks if before >= 0]
        own = [] if group.rank == last else [self._share(chunk, group.rank) for chunk in chunks]
        going = []
        for q, chunk in enumerate(chunks):
            if coming:
                coming[q]()
            self.own.add_support(chunk.start, sums[chunk])
            if after <= last:
                going.append(group.send(sums[chunk], after))
            else:
                shares = ((rank, self._share(chunk, rank)) for rank in range(last))
                going += [group.send(sums[share], rank) for rank, share in shares]
        group.wait(going)
        group.wait([group.receive(sums[share], last) for share in own])

    def _share(self, chunk: slice, rank: int) -> slice:
        """What of a chunk is a rank's, perhaps nothing."""
        first, end = (int(start) for start in self.starts[rank : rank + 2])
        return slice(max(first, chunk.start), max(first, chunk.start, min(end, chunk.stop)))

    def _tell_totals(self, shortest: int) -> int:
        """Have all ranks know total support and roles; return the shortest streak of any point."""
        rows, total = np.diff(self.starts), self.own.total
        mine = np.concatenate(
            [
                total[self.rows].view(np.uint8),
                np.packbits(self.own.is_exemplar),
                np.array([shortest]).view(np.uint8),
            ]
        )
        lengths = [8 * int(m) + -(-int(m) // 8) + 8 for m in rows]
        for q, message in enumerate(self.group.gather(mine, lengths)):
            theirs, m = slice(self.starts[q], self.starts[q + 1]), int(rows[q])
            if q != self.group.rank:
                total[theirs] = message[: 8 * m].view(np.float64)
            flags = np.unpackbits(message[8 * m : -8], count=m)
            self.is_exemplar[theirs] = flags
            shortest = min(shortest, int(message[-8:].view(np.int64)[0]))
        return shortest


def row_starts(n: int, size: int) -> Indices:
    """The first row of each of `size` ranks, and n: whole blocks of the active set."""
    return shares(n, _native.ActiveSet.block_rows(n), size)


def of_all(group: Group, own: Array) -> Array:
    """What lies with all ranks, one after the other."""
    return np.concatenate(group.gather(own))
