"""Which rank owns what, and how rows get there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from epruner.cluster.types import Indices
from epruner.distributed.group import Array, Group


def shares(n: int, unit: int, size: int) -> Indices:
    """Where the share of each rank begins, (size + 1,): whole units, as even as can be."""
    units = -(-n // unit)
    return np.minimum(np.arange(size + 1) * units // size * unit, n)


class Move:
    """Rows on their way to those who own their places.

    Parameters
    ----------
    group : Group
    places : ndarray of shape (m,)
        Of the rows here among all; every place is named once, on some rank.
    starts : ndarray of shape (size + 1,)
        The first place of each rank.
    """

    def __init__(self, group: Group, places: Array, starts: Indices) -> None:
        self._group = group
        owner = np.searchsorted(starts, places, side="right") - 1
        self._going = np.argsort(owner, kind="stable")
        self._cuts = np.searchsorted(owner[self._going], np.arange(1, group.size))
        arrived = np.concatenate(self._dealt(np.asarray(places, dtype=np.int64)))
        self._order = np.argsort(arrived)

    def __call__(self, rows: Array) -> Array:
        """Return the rows (m', ...) whose places are this rank's, in their order."""
        return np.concatenate(self._dealt(rows))[self._order]

    def lists(self, lists: Lists) -> Lists:
        """Do the same for lists, one of each row."""
        counts, ends = np.diff(lists.offsets), np.cumsum(np.diff(lists.offsets)[self._going])
        going = _entries(lists.offsets[:-1][self._going], counts[self._going])
        cuts = np.concatenate([[0], ends])[self._cuts]

        def dealt(values: Array) -> Array:
            parts = self._group.exchange(np.split(values[going], cuts))
            return np.concatenate(parts)

        arrived = np.concatenate(self._dealt(counts))
        starts = np.cumsum(arrived) - arrived
        order = _entries(starts[self._order], arrived[self._order])
        return Lists.of_counts(
            arrived[self._order], dealt(lists.columns)[order], dealt(lists.values)[order]
        )

    def _dealt(self, rows: Array) -> list[Array]:
        return self._group.exchange(np.split(rows[self._going], self._cuts))


@dataclass(frozen=True)
class Lists:
    """A list of numbered values for each of some rows.

    `offsets` (rows + 1,) says where each begins, `columns` and `values` hold them one after the
    other.
    """

    offsets: Indices
    columns: Array
    values: Array

    @classmethod
    def of_counts(cls, counts: Indices, columns: Array, values: Array) -> Lists:
        """Lists of so many values each."""
        return cls(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), columns, values)


def _entries(starts: Indices, counts: Indices) -> Indices:
    """Where the entries are of lists that begin there and hold so many."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()))


def visits(
    group: Group, arrays: Sequence[Array], starts: Indices, steps: int
) -> Iterator[tuple[int, list[Array]]]:
    """Pass blocks round the ring and yield those that come here, with whose they are.

    While one is here the next is on its way. Every block is sent `steps` times.

    Parameters
    ----------
    group : Group
    arrays : sequence of ndarray of shape (starts[rank + 1] - starts[rank], ...)
        The block of this rank.
    starts : ndarray of shape (size + 1,)
    steps : int
        How many come by.
    """
    after, before = (group.rank + 1) % group.size, (group.rank - 1) % group.size

    def pass_on(step: int, going: Sequence[Array]) -> tuple[list[Array], list[Callable[[], None]]]:
        owner = (group.rank + step) % group.size
        rows = int(starts[owner + 1] - starts[owner])
        coming = [np.empty((rows, *array.shape[1:]), array.dtype) for array in arrays]
        waits = [group.receive(array, after) for array in coming]
        waits += [group.send(array, before) for array in going]
        return coming, waits

    if steps == 0:
        return
    coming, waits = pass_on(1, arrays)
    for step in range(1, steps + 1):
        group.wait(waits)
        visitor = coming
        if step < steps:
            coming, waits = pass_on(step + 1, visitor)
        yield (group.rank + step) % group.size, visitor
